"""Low-rank directions beside the matrix product: the weights are not touched, and several probes share a forward.

With D = U V^T the product with perturbed weights is  x (W + c U V^T)^T = x W^T + c (x V) U^T.  The second term costs a
few numbers per row, so the weights need neither be written nor read a second time; and since the first term is the same
function of x for every probe, the rows of several probes can go through one forward together.  Such a forward has
``groups`` times the rows, group by group, and the closure returns one loss per group (`Grouped`).

Functions of perturbed weights are found by a mode that sees every torch function called from Python: linear layers,
``torch.addmm`` (GPT-2's Conv1D), embeddings and heads tied to them take the formula above; whatever else is given a
perturbed parameter (norms, convolutions, fused attention) is evaluated group by group with that parameter written out
for the group, see `zotune.evaluators.grouped`.  The same holds for a function of the rows alone that is not known to
act on each of them by itself: the groups' rows never mix.

What the mode cannot see (scripted code, other threads), and what Python computes from the number of rows, would give
wrong losses in silence.  So losses are compared with those of separate forwards, and operators are watched for reads of
stored weights: in the first step, in steps whose number is a power of two, when a parameter takes part for the first
time, and when a torch function follows another that it has not followed before: the model takes another path.  The
comparison is made at larger eps, too, if the losses do not differ by much more than rounding.  On any doubt this
evaluator steps aside for good and says so.  It also steps aside for directions that are not low-rank, and for probes at
other points than the weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from zotune.checks import check_count
from zotune.estimators import Probe
from zotune.evaluators.base import Closure, Evaluator, NonFiniteLossError, Writer, as_loss
from zotune.evaluators.grouped import BATCHED, UnsupportedError, kind, split
from zotune.evaluators.overlay import Overlay
from zotune.evaluators.stack import Stack
from zotune.evaluators.watch import Watch
from zotune.perturbations import Slot

_log = logging.getLogger(__name__)

_CHECKS = 3
"""Evaluations that may leave open whether the losses are right; after that this evaluator steps aside."""

_ENLARGED = (1.0, 10.0, 100.0, 1000.0)
"""Multiples of eps at which losses are compared, until they differ by much more than rounding."""

TOKENS = {"cpu": 512, "cuda": 1024}
"""Most tokens in a stacked forward.  On a CPU, matrix products gain nothing from more rows, and larger activations fall
out of the caches; on a GPU, more than some hundred tokens keep it busy, and activations take memory."""


@dataclass(frozen=True, slots=True)
class Grouped:
    """A closure that can evaluate several probes in one forward.

    Args:
        losses: called with a number of groups; runs the model on the batch repeated that many times by `zotune.repeat`
            and returns the loss of each group: a tensor with ``groups`` elements, a sequence of numbers, or a loss over
            all rows, which is taken group by group.  `zotune.split` gives each group's part of the model's output.
        tokens: of one group, padding included, if known: a large batch is not stacked where that would cost time.

    Example:
        >>> layer, x = torch.nn.Linear(3, 1), torch.ones(8, 3)
        >>> closure = Grouped(lambda groups: layer(zotune.repeat(x, groups)).square().view(groups, -1).mean(1))
        >>> optimizer = zotune.LOZO(layer.parameters(), lr=0.01)
        >>> loss = optimizer.step(closure)
    """

    losses: Callable[[int], Tensor | Sequence[float | Tensor]]
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
        self._seen: dict[int, nn.Parameter] = {}  # checked; kept, so that no id is used again
        self._checked = -1  # step
        self._open = 0  # checks in a row that settled nothing
        self._paths: set[tuple[Any, Any]] = set()  # torch functions, each with the one before it, of checked forwards

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
        trusted = self._trusted(slots, step)
        if not (trusted or self._right(slots, plan, write, closure, step, groups)):
            return self.inner.evaluate(slots, plan, write, closure, step)
        path: set[tuple[Any, Any]] = set()
        try:
            losses = self._losses(slots, plan, write, closure, step, groups, path)
            if trusted and not path <= self._paths and not self._right(slots, plan, write, closure, step, groups):
                return self.inner.evaluate(slots, plan, write, closure, step)
            return losses
        except (NonFiniteLossError, KeyboardInterrupt):
            raise
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        # The error may be one of rows that the model did not expect, or of memory, which it no longer holds here; if it
        # is one of the closure, it is raised again.
        separate = self.inner.evaluate(slots, plan, write, closure, step)
        self._step_aside(problem)
        return separate

    def _trusted(self, slots: Sequence[Slot], step: int) -> bool:
        """Whether losses need no check: not before the first step, when a parameter is new, and now and then."""
        known = {id(slot.param) for slot in slots} <= self._seen.keys()
        return known and not (step & (step - 1) == 0 and step != self._checked)

    def _right(
        self, slots: Sequence[Slot], plan: Sequence[Probe], write: Writer, closure: Closure, step: int, groups: int
    ) -> bool:
        """Whether losses are those of separate forwards: compared at larger and larger eps until they differ plainly.

        Steps aside if they are not, or if too many checks have left it open.
        """
        coarse = any(slot.param.dtype in (torch.bfloat16, torch.float16) for slot in slots)
        exact = all(slot.param.dtype is torch.float64 for slot in slots)
        path: set[tuple[Any, Any]] = set()
        for factor in _ENLARGED:
            probes = [replace(probe, sign=factor * probe.sign) for probe in plan]
            try:
                separate = self.inner.evaluate(slots, probes, write, closure, step)
            except Exception:
                if factor == 1.0:
                    raise
                break  # so large a perturbation breaks the model or the closure: nothing to learn from
            try:
                losses = self._losses(slots, probes, write, closure, step, groups, path, watch=True)
            except Exception as error:
                return self._step_aside(f"{type(error).__name__}: {error}")
            # Perturbed weights are rounded in separate forwards only; in half precision that shows.
            noise, share = (3e-2, 0.1) if coarse else (1e-8, 1e-5) if exact else (2e-5, 5e-3)
            noise *= max(1e-3, *map(abs, separate))
            spread = max(separate) - min(separate)
            if max(abs(x - y) for x, y in zip(losses, separate, strict=True)) > noise + share * spread:
                return self._step_aside(f"losses of one forward {losses} differ from separate ones {separate}")
            if spread > 8.0 * noise:  # such differences cannot have come out right by accident
                self._seen = {id(slot.param): slot.param for slot in slots}
                self._checked, self._open = step, 0
                self._paths |= path
                self.inner = self.inner.fresh()  # without scratch memory that may never be needed again
                return True
        self._open += 1
        if self._open < _CHECKS:
            return True
        return self._step_aside("the losses do not depend on the directions enough to tell whether they are right")

    def _groups(self, slots: Sequence[Slot], plan: Sequence[Probe], closure: Closure) -> int:
        """Probes in one forward: a function of the batch alone, as the losses' last bits depend on it.

        0 if this evaluator cannot help.
        """
        if any(probe.point for probe in plan):
            return 0
        if not all(slot.perturbation.rank for slot in slots if slot.param.dim() >= 2):
            return 0
        if not isinstance(closure, Grouped):
            return 1
        limit = min(self.limit, len(plan))
        if closure.tokens is not None:
            most = min(TOKENS.get(slot.param.device.type, TOKENS["cuda"]) for slot in slots)
            limit = min(limit, most // max(1, closure.tokens))
        return max(1, limit)

    def _step_aside(self, reason: str) -> bool:
        """Leave all that follows to the other evaluator; False."""
        self.reason = reason.splitlines()[0]
        _log.warning(
            "low-rank directions are evaluated one by one from here on, with the weights written out for each: %s",
            self.reason,
        )
        return False

    def _losses(
        self,
        slots: Sequence[Slot],
        plan: Sequence[Probe],
        write: Writer,
        closure: Closure,
        step: int,
        groups: int,
        path: set[tuple[Any, Any]],
        *,
        watch: bool = False,
    ) -> list[float]:
        """Losses from stacked forwards, whose torch functions are added to ``path``."""
        losses: list[float] = []
        for first in range(0, len(plan), groups):
            probes = plan[first : first + groups]
            torch.clear_autocast_cache()
            with Stack(slots, probes, write) as stack, Watch(stack.answer) if watch else nullcontext():
                value = _call(closure, len(probes))
            path |= stack.path
            losses.extend(_as_losses(value, len(probes), step))
        return losses


def _call(closure: Closure, groups: int) -> Any:
    return closure.losses(groups) if isinstance(closure, Grouped) else closure()


def _as_losses(value: Any, groups: int, step: int) -> list[float]:
    if groups == 1 and not isinstance(value, (list, tuple)):
        return [as_loss(value, step)]
    if isinstance(value, Tensor) and isinstance(kind(value), list) and value.numel() == 1:
        return [as_loss(loss, step) for loss in split(value, groups)]
    if isinstance(value, Tensor) and value.numel() == groups:
        if kind(value) is not BATCHED:
            raise UnsupportedError("the closure's losses do not come from a batch made by zotune.repeat")
        return [as_loss(loss, step) for loss in value.reshape(-1)]
    if isinstance(value, (list, tuple)) and len(value) == groups:
        return [as_loss(loss, step) for loss in value]
    raise TypeError(f"the closure was asked for {groups} losses: return a tensor with one loss per group")
