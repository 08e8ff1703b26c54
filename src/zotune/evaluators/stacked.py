"""Low-rank directions beside the matrix product: the weights are not touched, and several probes share a forward.

With D = U V^T the product with perturbed weights is  x (W + c U V^T)^T = x W^T + c (x V) U^T.  The second term costs a
few numbers per row, so the weights need neither be written nor read a second time; and since the first term is the same
function of x for every probe, the rows of several probes can go through one forward together.

The closure runs once under ``torch.vmap``: its batch is the same for all probes, what the model makes of it has a
hidden dimension with one value for each, and Python sees the shapes of a forward of its own.  So rows never mix, an
ordinary closure will do, and the loss of each probe is read from the hidden dimension of what it returns.

Functions of perturbed weights are found by a mode that sees every torch function called from Python: linear layers,
``torch.addmm`` (GPT-2's Conv1D), embeddings and heads tied to them take the formula above; whatever else is given a
perturbed parameter (convolutions, fused attention) is evaluated group by group with that parameter written out for the
group, and so is what torch cannot batch, see `zotune.evaluators.groups`.

What the mode cannot see is code that reads stored weights by itself (scripted modules).  So losses are compared with
those of separate forwards, and operators are watched for reads of stored weights: in the first step, in steps whose
number is a power of two, when a parameter takes part for the first time, and when a torch function follows another that
it has not followed before: the model takes another path.  The comparison is made at larger eps, too, if the losses do
not differ by much more than rounding.  On any doubt this evaluator steps aside for good and says so.  It also steps
aside for directions that are not low-rank, and for probes at other points than the weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch.utils._pytree import tree_leaves

from zotune.checks import check_count
from zotune.estimators import Probe
from zotune.evaluators.base import Closure, Evaluator, NonFiniteLossError, Writer, as_loss
from zotune.evaluators.groups import Groups, UnsupportedError
from zotune.evaluators.overlay import Overlay
from zotune.evaluators.stack import Stack, TooManyRowsError
from zotune.evaluators.watch import Watch
from zotune.interrupts import delayed
from zotune.perturbations import Slot

_log = logging.getLogger(__name__)

_CHECKS = 3
"""Evaluations that may leave open whether the losses are right; after that this evaluator steps aside."""

_ENLARGED = (1.0, 10.0, 100.0, 1000.0)
"""Multiples of eps at which losses are compared, until they differ by much more than rounding."""

TOKENS = {"cpu": 512, "cuda": 1024}
"""Most rows of a product with a matrix (tokens) in a stacked forward.  On a CPU, matrix products gain nothing from more
rows, and larger activations fall out of the caches; on a GPU, more than some hundred tokens keep it busy, and
activations take memory."""

_STEPS_ASIDE = (
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    AttributeError,
    KeyError,
    AssertionError,
    StopIteration,
    MemoryError,
)
"""Errors that a stacked forward may cause and separate ones do not; all others are the closure's own."""


@dataclass(frozen=True, slots=True)
class Staged:
    """A closure in two stages, of which only the first one shares a forward.

    An ordinary closure must leave its loss a tensor until it returns it: with several probes in one forward no single
    number could stand for it.  Where the loss needs numbers (NumPy, ``item()``, an F1 score), tell it apart.

    Args:
        run: runs the model; returns a tensor, or a container of them that torch knows (`torch.utils._pytree`), such as
            a mapping, a tuple or the output of a transformers model.
        loss: called with what ``run`` returned, for each probe with its own plain tensors; gives a number or a
            one-element tensor.

    Example:
        >>> layer, x, y = torch.nn.Linear(3, 2), torch.ones(8, 3), torch.zeros(8)
        >>> closure = Staged(lambda: layer(x), lambda scores: 1.0 - (scores.argmax(1) == y).float().mean().item())
        >>> optimizer = zotune.LOZO(layer.parameters(), lr=0.01)
        >>> loss = optimizer.step(closure)
    """

    run: Callable[[], Any]
    loss: Callable[[Any], float | Tensor]

    def __call__(self) -> float | Tensor:
        """The loss of one forward: what an ordinary closure returns."""
        return self.loss(self.run())


class Stacked(Evaluator):
    """The evaluator of low-rank methods; see the module's docstring.

    Args:
        limit: most probes in one forward, whose activations take as many times the memory.  With 1 every probe has a
            forward of its own, at the memory of inference.
        tokens: most rows of all probes in a product with a matrix; a large batch is not stacked where that would cost
            time.  512 on a CPU and 1,024 on a GPU when left out.
        inner: evaluator that takes over where this one cannot help; the overlay when left out.

    Attributes:
        reason: why this evaluator has stepped aside, or None.
        alone: why every probe has a forward of its own although the limit is above 1, or None.

    Raises:
        ValueError: if the limit or the tokens are below 1.
    """

    def __init__(self, limit: int = 16, tokens: int | None = None, inner: Evaluator | None = None) -> None:
        check_count("limit", limit)
        if tokens is not None:
            check_count("tokens", tokens)
        self.limit, self.tokens, self.inner = limit, tokens, inner or Overlay()
        self.reason: str | None = None
        self.alone: str | None = None
        self._seen: dict[int, nn.Parameter] = {}  # checked; kept, so that no id is used again
        self._checked = -1  # step
        self._equal = False  # the last step's losses were all the same
        self._open = 0  # checks in a row that settled nothing
        self._paths: set[tuple[Any, Any]] = set()  # torch functions, each with the one before it, of checked forwards

    def fresh(self) -> Stacked:
        """See `Evaluator.fresh`."""
        return Stacked(self.limit, self.tokens, self.inner.fresh())

    def evaluate(
        self, slots: Sequence[Slot], plan: Sequence[Probe], write: Writer, closure: Closure, step: int
    ) -> list[float]:
        """See `Evaluator.evaluate`."""
        if self.reason is not None or not self._low_rank(slots, plan):
            return self.inner.evaluate(slots, plan, write, closure, step)
        trusted = self._trusted(slots, step)
        if not (trusted or self._right(slots, plan, write, closure, step)):
            return self.inner.evaluate(slots, plan, write, closure, step)
        path: set[tuple[Any, Any]] = set()
        try:
            losses = self._losses(slots, plan, write, closure, step, path)
            if trusted and not path <= self._paths and not self._right(slots, plan, write, closure, step):
                return self.inner.evaluate(slots, plan, write, closure, step)
            if trusted and self._suspicious(losses):
                separate = self.inner.evaluate(slots, plan, write, closure, step)
                if separate != losses:
                    self._step_aside(f"losses of one forward {losses} differ from separate ones {separate}")
                return separate
            return losses
        except NonFiniteLossError:
            raise
        except _STEPS_ASIDE as error:
            problem = _told(error)
        # The error may be one of what torch cannot batch, or of memory, which it no longer holds here; if it is one of
        # the closure, it is raised again.
        separate = self.inner.evaluate(slots, plan, write, closure, step)
        self._step_aside(problem)
        return separate

    def _suspicious(self, losses: list[float]) -> bool:
        """Whether no query changes the loss, for the first step in a row: weights may be read unseen."""
        before, self._equal = self._equal, len(losses) > 1 and len(set(losses)) == 1
        return self._equal and not before

    def _trusted(self, slots: Sequence[Slot], step: int) -> bool:
        """Whether losses need no check: not before the first step, when a parameter is new, and now and then."""
        known = {id(slot.param) for slot in slots} <= self._seen.keys()
        return known and not (step & (step - 1) == 0 and step != self._checked)

    def _right(self, slots: Sequence[Slot], plan: Sequence[Probe], write: Writer, closure: Closure, step: int) -> bool:
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
                losses = self._losses(slots, probes, write, closure, step, path, watch=True)
            except _STEPS_ASIDE as error:
                return self._step_aside(_told(error))
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

    @staticmethod
    def _low_rank(slots: Sequence[Slot], plan: Sequence[Probe]) -> bool:
        """Whether all probes are low-rank perturbations of the stored weights."""
        if any(probe.point for probe in plan):
            return False
        return all(slot.perturbation.rank for slot in slots if slot.param.dim() >= 2)

    def _step_aside(self, reason: str) -> bool:
        """Give every probe a forward of its own, or if they had, leave all that follows to the other evaluator; False.

        What comes next is compared again.
        """
        reason = reason.splitlines()[0]
        self._seen, self._checked, self._open = {}, -1, 0
        self._paths.clear()
        if self.alone is None and self.limit > 1:
            self.alone = reason
            _log.warning("from here on every query has a forward pass of its own: %s", reason)
            return False
        self.reason = reason
        _log.warning(
            "low-rank directions are evaluated one by one from here on, with the weights written out for each: %s",
            reason,
        )
        return False

    def _losses(
        self,
        slots: Sequence[Slot],
        plan: Sequence[Probe],
        write: Writer,
        closure: Closure,
        step: int,
        path: set[tuple[Any, Any]],
        *,
        watch: bool = False,
    ) -> list[float]:
        """Losses from stacked forwards, whose torch functions are added to ``path``.

        How many probes share a forward is a function of the batch alone, as the losses' last bits depend on it: it
        begins again with fewer when a product turns out to have too many rows, at the first layer in most models.
        """
        devices = {slot.param.device for slot in slots}
        most = self.tokens or min(TOKENS.get(device.type, TOKENS["cuda"]) for device in devices)
        groups = 1 if self.alone is not None else min(self.limit, len(plan))
        losses: list[float] = []
        while len(losses) < len(plan):
            probes = plan[len(losses) : len(losses) + groups]
            stack = Stack(slots, probes, write, most)
            torch.clear_autocast_cache()
            try:
                values = _values(closure, stack, devices, watch=watch)
            except TooManyRowsError as error:
                groups = max(1, most // error.rows)
                continue
            path |= stack.path
            losses.extend(as_loss(value, step) for value in values)
        return losses


def _values(closure: Closure, stack: Stack, devices: Iterable[torch.device], *, watch: bool) -> list[Any]:
    """What the closure returns for each group, from one forward of all."""
    watching = Watch(stack.answer) if watch else nullcontext()
    with delayed() as signals:  # but for the closure itself, no mode and no dimension of vmap is left behind
        if stack.groups.count == 1:
            with stack, watching:
                return [signals.through(closure)]
        values: list[Any] = []

        def run(index: Tensor) -> Tensor:
            stack.groups.level = _functorch.maybe_get_level(index)
            with stack, watching:
                values.extend(signals.through(lambda: _each_value(closure, stack.groups)))
            if stack.groups.problem is not None:  # the closure has caught the error and gone on in another way
                raise UnsupportedError(stack.groups.problem)
            return index

        before = _generators(devices)
        _functorch._set_vmap_fallback_warning_enabled(False)  # type: ignore[attr-defined]
        try:
            torch.func.vmap(run, randomness="error")(torch.arange(stack.groups.count))
        finally:
            _functorch._set_vmap_fallback_warning_enabled(True)  # type: ignore[attr-defined]
        if not all(map(torch.equal, before, _generators(devices))):
            raise UnsupportedError("the closure draws from torch's random generator, each query its own numbers")
    return values


def _generators(devices: Iterable[torch.device]) -> list[Tensor]:
    """States of the generators that a forward may draw from when it is not given one."""
    cuda = sorted({device.index or 0 for device in devices if device.type == "cuda"})
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, cuda)]


def _each_value(closure: Closure, groups: Groups) -> list[Any]:
    if not isinstance(closure, Staged):
        value = closure()
        return [groups.parts(value, group) for group in range(groups.count)]
    output = closure.run()
    common = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and not groups.differs(leaf)]
    before, values = [leaf._version for leaf in common], []
    for group in range(groups.count):
        # What a container that torch does not know has kept for all groups is cut here.
        values.append(groups.parts(closure.loss(groups.parts(output, group)), group))
        if [leaf._version for leaf in common] != before:
            raise UnsupportedError("the loss of one query changes a tensor that the next one is given")
    return values


def _told(error: Exception) -> str:
    text = str(error)
    if "autograd.Function" in text:
        return "a torch.autograd.Function of the model has no rule for several queries at once (generate_vmap_rule)"
    return f"{type(error).__name__}: {text}"
