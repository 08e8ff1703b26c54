"""Low-rank directions beside the matrix product: the weights are not touched, and several probes share a forward.

With D = U V^T the product with perturbed weights is  x (W + c U V^T)^T = x W^T + c (x V) U^T.  The second term costs a
few numbers per row, so the weights need neither be written nor read a second time; and since the first term is the same
function of x for every probe, the rows of several probes can go through one forward together.  Such a forward has
``groups`` times the rows, group by group, and the closure returns one loss per group (`Grouped`).

Functions of perturbed weights are found by a mode that sees every torch function called from Python: linear layers,
``torch.addmm`` (GPT-2's Conv1D), embeddings and heads tied to them take the formula above; whatever else is given a
perturbed parameter (norms, convolutions, fused attention) is evaluated group by group with that parameter written out
for the group, see `zotune.evaluators.grouped`.

What the mode cannot see (scripted code, other threads), and models that move the rows to another dimension, would give
wrong losses in silence.  So the losses of the first steps are compared with those of separate forwards, and operators
are watched for reads of stored weights; on any doubt this evaluator steps aside for good and says so.  It also steps
aside for directions that are not low-rank, and for probes at other points than the weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zotune.checks import check_count
from zotune.estimators import Probe
from zotune.evaluators.base import Closure, Evaluator, NonFiniteLossError, Writer, as_loss
from zotune.evaluators.grouped import BATCHED, UnsupportedError, kind
from zotune.evaluators.overlay import Overlay
from zotune.evaluators.stack import Stack
from zotune.evaluators.watch import Watch
from zotune.perturbations import Slot

_log = logging.getLogger(__name__)

_CHECKS = 3
"""Steps whose losses are compared with separate forwards, unless one of them settles the matter before."""

CPU_TOKENS = 256
"""On a CPU, matrix products gain nothing from more rows than this, and larger activations fall out of the caches."""


@dataclass(frozen=True, slots=True)
class Grouped:
    """A closure that can evaluate several probes in one forward.

    Args:
        losses: called with a number of groups; runs the model on the batch repeated that many times by `zotune.repeat`
            and returns the loss of each group, a tensor with ``groups`` elements (or a sequence of numbers).
        tokens: of one group, padding included, if known: a large batch is not stacked where that would cost time.

    Example:
        >>> layer, x = torch.nn.Linear(3, 1), torch.ones(8, 3)
        >>> closure = Grouped(lambda groups: layer(zotune.repeat(x, groups)).square().view(groups, -1).mean(1))
        >>> optimizer = zotune.LOZO(layer.parameters(), lr=0.01)
        >>> loss = optimizer.step(closure)
    """

    losses: Callable[[int], Tensor | Sequence[float]]
    tokens: int | None = None

    def __call__(self) -> float | Tensor:
        """The loss of one group: what an ordinary closure returns."""
        value = self.losses(1)
        return value if isinstance(value, Tensor) else value[0]


class Stacked(Evaluator):
    """The evaluator of low-rank methods; see the module's docstring.

    Args:
        limit: most probes in one forward, whose activations take as many times the memory.  With 1, and for closures
            that are not `Grouped`, every probe has a forward of its own, at the memory of inference.
        inner: evaluator that takes over where this one cannot help; the overlay when left out.

    Attributes:
        reason: why this evaluator has stepped aside, or None.

    Raises:
        ValueError: if the limit is below 1.
    """

    def __init__(self, limit: int = 16, inner: Evaluator | None = None) -> None:
        check_count("limit", limit)
        self.limit, self.inner = limit, inner or Overlay()
        self.reason: str | None = None
        self._checks = _CHECKS

    def fresh(self) -> Stacked:
        """See `Evaluator.fresh`."""
        return Stacked(self.limit, self.inner.fresh())

    def evaluate(
        self, slots: Sequence[Slot], plan: Sequence[Probe], write: Writer, closure: Closure, step: int
    ) -> list[float]:
        """See `Evaluator.evaluate`."""
        groups = self._groups(slots, plan, closure)
        if self.reason is not None or groups == 0:
            return self.inner.evaluate(slots, plan, write, closure, step)
        try:
            losses = self._losses(slots, plan, write, closure, step, groups)
        except (NonFiniteLossError, KeyboardInterrupt):
            raise
        except Exception as error:
            # Raised by the model on rows it did not expect; or by the closure whatever the rows, and then again below.
            separate = self.inner.evaluate(slots, plan, write, closure, step)
            self._step_aside(f"{type(error).__name__}: {error}")
            return separate
        if self._checks:
            self._checks -= 1
            separate = self.inner.evaluate(slots, plan, write, closure, step)
            if self._differ(losses, separate, slots):
                self._step_aside(f"losses of one forward {losses} differ from separate ones {separate}")
                return separate
            if not self._checks:
                self.inner = self.inner.fresh()  # without the scratch memory that it may never need again
        return losses

    def _groups(self, slots: Sequence[Slot], plan: Sequence[Probe], closure: Closure) -> int:
        """Probes in one forward: a function of the batch alone, as the losses' last bits depend on it.

        0 if this evaluator cannot help.
        """
        if any(probe.point for probe in plan):
            return 0
        if not all(slot.perturbation.low_rank_directions for slot in slots if slot.param.dim() >= 2):
            return 0
        if not isinstance(closure, Grouped):
            return 1
        limit = min(self.limit, len(plan))
        if closure.tokens is not None and all(slot.param.device.type == "cpu" for slot in slots):
            limit = min(limit, CPU_TOKENS // max(1, closure.tokens))
        return max(1, limit)

    def _differ(self, losses: Sequence[float], separate: Sequence[float], slots: Sequence[Slot]) -> bool:
        """Whether the losses of two evaluations differ by more than rounding."""
        coarse = any(slot.param.dtype in (torch.bfloat16, torch.float16) for slot in slots)
        noise = (3e-2 if coarse else 2e-5) * max(1e-3, *map(abs, separate))
        spread = max(separate) - min(separate)
        if spread > 20.0 * noise:
            self._checks = 0  # such a difference between probes cannot have come out right by accident
        return max(abs(x - y) for x, y in zip(losses, separate, strict=True)) > noise + 0.05 * spread

    def _step_aside(self, reason: str) -> None:
        self.reason = reason.splitlines()[0]
        _log.warning(
            "low-rank directions are evaluated one by one from here on, with the weights written out for each: %s",
            self.reason,
        )

    def _losses(
        self, slots: Sequence[Slot], plan: Sequence[Probe], write: Writer, closure: Closure, step: int, groups: int
    ) -> list[float]:
        losses: list[float] = []
        for first in range(0, len(plan), groups):
            probes = plan[first : first + groups]
            torch.clear_autocast_cache()
            with Stack(slots, probes, write) as stack:
                if self._checks:
                    with Watch(stack.answer):
                        value = _call(closure, len(probes))
                else:
                    value = _call(closure, len(probes))
            losses.extend(_as_losses(value, len(probes), step))
        return losses


def _call(closure: Closure, groups: int) -> Any:
    return closure.losses(groups) if isinstance(closure, Grouped) else closure()


def _as_losses(value: Any, groups: int, step: int) -> list[float]:
    if groups == 1 and not isinstance(value, (list, tuple)):
        return [as_loss(value, step)]
    if isinstance(value, Tensor) and value.numel() == groups:
        if kind(value) != BATCHED:
            raise UnsupportedError("the closure's losses do not come from a batch made by zotune.repeat")
        return [as_loss(loss, step) for loss in value.reshape(-1)]
    if isinstance(value, (list, tuple)) and len(value) == groups:
        return [as_loss(loss, step) for loss in value]
    raise TypeError(f"the closure was asked for {groups} losses: return a tensor with one loss per group")
