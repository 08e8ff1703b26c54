"""Several processes: each evaluates the probes on its share of the batch, and only losses travel.

Every rank ends a step with the same floats, applies the same update from the same noise, and so keeps the same bits
as all others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist

from zotune.estimators import Probe
from zotune.evaluators.base import Closure, Evaluator, NonFiniteLossError, Writer
from zotune.evaluators.overlay import Overlay
from zotune.perturbations import Slot

if dist.is_available():
    # Its functions keep the default group of the moment in which torch imports it by itself, in the first step. Then
    # destroy_process_group() cannot end the group's threads, and a process that exits beside them sometimes aborts.
    import torch.distributed.nn.functional


class DataParallel(Evaluator):
    """Ranks split the batch; one all-gather of a few floats per step.

    Args:
        group: process group; None is the default group.
        inner: evaluator used on each rank; the overlay when left out.

    Raises:
        ValueError: if torch.distributed is not initialised.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, inner: Evaluator | None = None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "DataParallel needs torch.distributed: start with torchrun and call init_process_group first"
            )
        self.group, self.inner = group, inner or Overlay()

    def evaluate(
        self, slots: Sequence[Slot], plan: Sequence[Probe], write: Writer, closure: Closure, step: int
    ) -> list[float]:
        """Losses on this rank's share.

        A non-finite loss is passed on as it is: all ranks must reach the all-gather, and there all of them raise
        together.
        """
        try:
            return self.inner.evaluate(slots, plan, write, closure, step)
        except NonFiniteLossError as error:
            return [error.loss] * len(plan)

    def fresh(self) -> DataParallel:
        """See `Evaluator.fresh`."""
        return DataParallel(self.group, self.inner.fresh())

    def merge(self, sums: Sequence[float], weight: float, step: int) -> list[float]:
        """Mean over all ranks, each weighted by the examples it has seen; added in the order of the ranks."""
        device = "cuda" if dist.get_backend(self.group) == "nccl" else "cpu"
        mine = torch.tensor([weight, *sums], dtype=torch.float64, device=device)
        gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(gathered, mine, group=self.group)
        rows = [row.tolist() for row in gathered]
        total = math.fsum(row[0] for row in rows)
        if total == 0.0:
            raise ValueError("no rank had an example in this step: give estimate() the number of examples as weight")
        merged = [sum(column) / total for column in zip(*(row[1:] for row in rows), strict=True)]
        for loss in merged:
            if not math.isfinite(loss):
                raise NonFiniteLossError(step, loss)
        return merged
