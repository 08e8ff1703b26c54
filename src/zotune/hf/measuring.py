"""Batches of a run as `zotune.rates` asks for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zotune import ZerothOrder
from zotune.estimators import Probe
from zotune.evaluators import Closure
from zotune.probing import losses_at
from zotune.rates import PART

from .portions import Portions, is_out_of_memory
from .sampling import Batch, StepRows, count_rows


def small_rows(rows: int) -> int:
    """Examples of a small batch, by those of a step."""
    return math.ceil(rows / PART)


@dataclass(frozen=True)
class StepBatch:
    """The examples of one step: the micro-batches of this rank, of which those that only fill up have no weight.

    Args:
        micro: on the device of the model.
        share: their examples.
        loss_on: gives the loss on some rows.
        portions: how many rows go through the model at once.
    """

    micro: Sequence[Batch]
    share: StepRows
    loss_on: Callable[[Batch], Closure]
    portions: Portions

    @property
    def rows(self) -> int:
        """Examples of all ranks."""
        return self.share.total

    def losses(self, optimizer: ZerothOrder, plan: Sequence[Probe]) -> list[float]:
        """See `zotune.rates.Batch`.

        Raises:
            MemoryShortError: see `Portions.estimate`.
        """
        sums, weight = [0.0] * len(plan), 0.0
        for inputs, rows in zip(self.micro, self.share.own, strict=True):
            for losses, part in self._evaluated(optimizer, plan, inputs, rows):
                if part:
                    sums = [total + part * loss for total, loss in zip(sums, losses, strict=True)]
                    weight += part
        return optimizer.evaluator.merge(sums, weight, optimizer.t)

    def _evaluated(
        self, optimizer: ZerothOrder, plan: Sequence[Probe], inputs: Batch, rows: int
    ) -> list[tuple[list[float], int]]:
        """Losses of the portions of a micro-batch, each with its number of rows."""
        while True:
            found: list[tuple[list[float], int]] = []

            def portion(part: Batch, weight: int, found: list[tuple[list[float], int]] = found) -> float:
                found.append((losses_at(optimizer, plan, self.loss_on(part)), weight))
                return 0.0

            try:
                self.portions.in_portions(inputs, rows, portion)
                return found
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self.portions.make_smaller(count_rows(inputs))
