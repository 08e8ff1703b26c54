"""Rows of a micro-batch that go through the model at once, halved when memory runs out.

The loss of a micro-batch is the mean over its rows, so it may be taken over any portions of it, each with its number of
rows as its weight: that is gradient accumulation.  Losses change by rounding only.  A run that goes on must cut as
the run did that was not interrupted; so the size is recorded, with the step from which on it holds, see
`zotune.hf.past`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from zotune import ZerothOrder
from zotune.hf.sampling import Batch, count_rows

Record = Callable[[int, int], None]
"""Called with a number of rows of a forward and the step from which on it holds."""

_ANY = 2**62

logger = logging.getLogger(__name__)

_TEXTS = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")


class MemoryShortError(RuntimeError):
    """There was no memory for a forward pass.  Weights and optimizer are as before the step.

    Attributes:
        rows: of the forward.
        halved: whether it had been halved down to one row.
    """

    def __init__(self, rows: int, *, halved: bool) -> None:
        self.rows, self.halved = rows, halved
        super().__init__(f"there is not enough memory for a forward pass of {rows} row{'s' if rows > 1 else ''}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory: torch tells it in several ways."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _TEXTS)


class Portions:
    """Evaluates micro-batches in portions of as many rows as there is memory for.

    Args:
        halve: whether a forward may be halved; otherwise running out of memory is an error.

    Attributes:
        rows: most rows of a forward; None as long as memory has not run out.
        record: told when they become fewer.
    """

    def __init__(self, *, halve: bool = False) -> None:
        self.halve = halve
        self.rows: int | None = None
        self.record: Record = lambda rows, begin: None  # noqa: ARG005
        self._step = 0

    def begin(self, step: int, recorded: int | None, *, ranks: int, device: torch.device) -> None:
        """Agree on the rows of a step: the fewest of all ranks, and of the recorded run that goes on.

        Args:
            step: its number.
            recorded: rows that the run has had in it.
            ranks: their number; all of them must call this.
            device: of this rank.
        """
        self._step = step
        known = [rows for rows in (self.rows, recorded) if rows is not None]
        if self.halve and ranks > 1:
            least = torch.tensor(min(known, default=_ANY), device=device)
            dist.all_reduce(least, dist.ReduceOp.MIN)
            known = [int(least)] if int(least) < _ANY else []
        rows = min(known, default=None)
        if rows is not None and rows not in (self.rows, recorded):
            self.record(rows, step)
        self.rows = rows

    def estimate(
        self, optimizer: ZerothOrder, inputs: Batch, rows: int, estimate: Callable[[Batch, int], float]
    ) -> float:
        """The mean loss of a micro-batch, whose losses are then those of the optimizer's step, too.

        Args:
            optimizer: takes the losses.
            inputs: the micro-batch.
            rows: its rows that count; 0 for a rank without any, whose only row has no weight.
            estimate: evaluates some rows of it with a weight; returns their mean loss.

        Raises:
            MemoryShortError: there is not enough memory, and a forward may not be halved, or has one row.
        """
        while True:
            try:
                with optimizer.all_or_none():
                    return self.in_portions(inputs, rows, estimate)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Here the error is gone, and with it the activations that its traceback has kept.
            self.make_smaller(count_rows(inputs))

    def in_portions(self, inputs: Batch, rows: int, estimate: Callable[[Batch, int], float]) -> float:
        """The mean of what ``estimate`` returns for portions of a micro-batch; see `estimate`."""
        size = count_rows(inputs)
        most = self.rows or size
        if size <= most:
            return estimate(inputs, rows)
        total = 0.0
        for first in range(0, size, most):
            last = min(first + most, size)
            weight = max(0, min(last, rows) - first)
            if weight or (rows == 0 and first == 0):
                total += estimate(cut(inputs, first, last, size), weight) * weight
        return total / max(1, rows)

    def make_smaller(self, size: int) -> None:
        """Halve the portions after memory has run out for a micro-batch of ``size`` rows; see `estimate`."""
        had = min(self.rows or size, size)
        if not self.halve or had <= 1:
            raise MemoryShortError(had, halved=self.halve)
        self.rows = (had + 1) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning("memory ran out in step %d: %d rows of a batch at once from here on", self._step, self.rows)
        # What is left of this step is not what a run that goes on would do; from the next one on it is.
        self.record(self.rows, self._step + 1)


def cut(inputs: Batch, first: int, last: int, size: int) -> Batch:
    """Rows of a collated batch: of its tensors, and of lists that are as long."""

    def part(value: Any) -> Any:
        if hasattr(value, "shape"):
            return value[first:last] if value.ndim and len(value) == size else value
        listed = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == size
        return value[first:last] if listed else value

    return {name: part(value) for name, value in inputs.items()}
