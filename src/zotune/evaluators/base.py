"""The interface of evaluators: they turn a plan of probes into losses."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from zotune.estimators import Probe
from zotune.perturbations import Part, Slot

Closure: TypeAlias = Callable[[], "float | Tensor"]

_log = logging.getLogger(__name__)


class NonFiniteLossError(ArithmeticError):
    """A loss was NaN or infinite.  The weights and the state are as before the query.

    Attributes:
        step: number of the step, from 0.
        loss: the value.
    """

    def __init__(self, step: int, loss: float) -> None:
        self.step, self.loss = step, loss
        super().__init__(
            f"the loss is {loss} at step {step}: lower the learning rate or the perturbation scale eps, "
            "or start from weights whose loss is finite"
        )


class Writer(Protocol):
    """Gives the weights of probes."""

    def __call__(self, slot: Slot, probe: Probe, out: Tensor, part: Part | None = None) -> None:
        """Write ``point + sign * eps * D(x_query)`` of one parameter to ``out``, shaped as ``slot.logical`` or as the
        ``part`` of it."""

    def low_rank(self, slot: Slot, probes: Sequence[Probe]) -> tuple[Tensor, Tensor]:
        """Factors U, shape (len(probes), m, r), and V, (1 or len(probes), n, r), of a slot with low-rank directions:
        ``sign * eps * D(x_query) = U V^T`` for each probe."""


class Evaluator:
    """Base class of evaluators."""

    def evaluate(
        self, slots: Sequence[Slot], plan: Sequence[Probe], write: Writer, closure: Closure, step: int
    ) -> list[float]:
        """The loss at every probe of the plan, in order.

        The stored weights are the same bits afterwards, also when the closure raises.

        Raises:
            NonFiniteLossError: if a loss is NaN or infinite.
            TypeError: if the closure returns something else than a number or a one-element tensor.
        """
        raise NotImplementedError

    def fresh(self) -> Evaluator:
        """A new evaluator of the same kind, for a copy of the optimizer."""
        return type(self)()

    def merge(self, sums: Sequence[float], weight: float, step: int) -> list[float]:  # noqa: ARG002
        """Mean losses of the step from the weighted sums of this process's (micro-)batches and their total weight.

        Raises:
            ValueError: if the total weight is zero.
        """
        if weight == 0.0:
            raise ValueError("all batches of the step had weight 0: give each its number of examples")
        return [s / weight for s in sums]


_warned_half = False


def as_loss(value: object, step: int) -> float:
    """The closure's result as a finite Python float."""
    global _warned_half
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise TypeError(
                f"the closure returned a tensor of shape {tuple(value.shape)}: "
                "return one loss, a number or a one-element tensor"
            )
        if value.dtype in (torch.float16, torch.bfloat16) and not _warned_half:
            _warned_half = True
            _log.warning(
                "the closure returns its loss in %s, whose rounding drowns the differences between queries: "
                "compute it from logits.float()",
                value.dtype,
            )
        value = value.item()
    if isinstance(value, (np.generic, np.ndarray)) and value.size == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f"the closure returned {type(value).__name__}: return the loss as a number or a one-element tensor"
        )
    try:
        loss = float(value)
    except OverflowError:  # a whole number beyond all floats
        loss = math.inf if value > 0 else -math.inf
    if not math.isfinite(loss):
        raise NonFiniteLossError(step, loss)
    return loss
