"""The optimizer that all methods assemble: estimate, then step."""

from __future__ import annotations

import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from zotune import kernels
from zotune.checks import check_number
from zotune.estimators import Estimator, Probe
from zotune.evaluators import Closure, Evaluator, Overlay
from zotune.interrupts import Delayed, delayed, held
from zotune.noise import NOISES, Key
from zotune.perturbations import Dense, Part, Perturbation, Slot
from zotune.rules import Rule
from zotune.slotted import Slotted

ParamsT: TypeAlias = Iterable[Any]
"""Parameters, (name, parameter) pairs, or group dictionaries."""

TellHook: TypeAlias = Callable[["ZerothOrder", Sequence[float]], None]
"""Called as hook(optimizer, losses) before an update."""

_RATES = ("lr", "lr_minibatch")
"""Entries of groups that a hook may set for one step."""


class _Probes:
    """The weights of an optimizer's probes, for its evaluator; see `zotune.evaluators.base.Writer`."""

    def __init__(self, optimizer: ZerothOrder) -> None:
        self._optimizer = optimizer

    def __call__(self, slot: Slot, probe: Probe, out: Tensor, part: Part | None = None) -> None:
        self._optimizer._write_probe(slot, probe, out, part)

    def low_rank(self, slot: Slot, probes: Sequence[Probe]) -> tuple[Tensor, Tensor]:
        return slot.perturbation.low_rank(slot, [self._optimizer._probe_terms(slot, probe) for probe in probes])


class ZerothOrder(Slotted):
    """An optimizer that needs losses only.

    One step is ``refresh``, evaluate the plan, ``tell(losses)``.  ``step(closure)`` does all of it;
    ``estimate(closure)`` followed by ``step()`` is the same in two halves, where several calls of ``estimate``
    accumulate (gradient accumulation: the same directions on several micro-batches).

    Args:
        params: parameters, (name, parameter) pairs as from ``model.named_parameters()``, or group dictionaries.
            Frozen parameters are left alone. With names, noise is tied to the name's place in the sorted list of
            names, not to the order or the grouping.
        defaults: hyperparameters of groups; every group may set its own.
        estimator: the plan of queries.
        matrix: perturbation of parameters with two or more dimensions.
        vector: perturbation of the others.
        rule: update rule.
        seed: of all random numbers, 0 <= seed < 2**64.
        backend: kernel backend, see `zotune.kernels`.
        evaluator: how losses are obtained; the overlay when left out.
        clip: if given, the K weights w_k are scaled down so that sqrt(K) times their Euclidean norm, an estimate of
            the gradient's norm, is at most this.

    Attributes:
        t: steps made.
        queries: forward passes used up.
        last_loss: mean loss of the last step, or None.
        last_losses: losses of its plan, all that `tell` needs to repeat the step.
        last_rates: the learning rates that it was made with, by group.
        arguments: those it was made with by their names, without the parameters.

    Raises:
        ValueError: for hyperparameters out of range and parameters that cannot be perturbed.
    """

    arguments: dict[str, Any]

    def __new__(cls, *args: Any, **arguments: Any) -> Self:
        """Note the arguments: with them, the parameters and the losses, anybody can repeat the run."""
        self = super().__new__(cls)
        self.arguments = _named_arguments(cls, args, arguments)
        return self

    def __init__(
        self,
        params: ParamsT,
        defaults: dict[str, Any],
        *,
        estimator: Estimator,
        matrix: Perturbation,
        vector: Perturbation | None = None,
        rule: Rule,
        seed: int = 0,
        backend: str | None = None,
        evaluator: Evaluator | None = None,
        clip: float | None = None,
    ) -> None:
        kernels.check_backend(backend)
        Key(seed)  # checks the range
        for perturbation in (matrix, vector):
            if perturbation is not None and perturbation.noise not in NOISES:
                raise ValueError(f"noise={perturbation.noise!r}: choose one of {', '.join(NOISES)}")
        if clip is not None:
            check_number("clip", clip, above=0.0)
        if evaluator is not None and not isinstance(evaluator, Evaluator):
            raise TypeError(f"evaluator={evaluator!r}: give an instance of an evaluator, such as zotune.Overlay()")
        self.estimator, self.rule, self.seed, self.backend, self.clip = estimator, rule, seed, backend, clip
        self._matrix, self._vector = matrix, vector or Dense(matrix.noise)
        self.evaluator: Evaluator = evaluator or Overlay()
        self.t = 0
        self.queries = 0
        self.last_loss: float | None = None
        self.last_losses: tuple[float, ...] = ()
        self.last_rates: tuple[float, ...] = ()
        self._sums: list[float] = []
        self._weight = 0.0
        self._evaluated: list[Slot] | None = None
        self._recalled: tuple[float, ...] | None = None
        self._slots: dict[torch.nn.Parameter, Slot] = {}
        self._numbers: dict[torch.nn.Parameter, int] = {}
        self._listeners: OrderedDict[int, TellHook] = OrderedDict()
        self._recorders: OrderedDict[int, TellHook] = OrderedDict()  # they see what all others have set
        super().__init__(params, {**defaults, "input_dim": -1})

    # -------------------------------------------------------------------------------- one iteration

    def plan(self) -> Sequence[Probe]:
        """The probes of the coming step."""
        return self.estimator.plan

    @held
    @torch.no_grad()
    def estimate(self, closure: Closure, weight: float = 1.0) -> float:
        """Evaluate all probes of the coming step on one batch, and add the losses to those of the step.

        Args:
            closure: returns the loss on the batch as a number or a one-element tensor, always of the same batch;
                called under ``torch.no_grad`` once per probe, and more often where an evaluator checks itself.
            weight: of this batch in the step's mean, usually its number of examples; 0 for a rank without examples.

        Returns:
            The mean loss over the probes.

        Raises:
            NonFiniteLossError: if a loss is NaN or infinite; weights and accumulated losses are as before.
            ValueError: if the weight is negative.
        """
        check_number("weight", weight, at_least=0.0)
        slots = self._active()
        if self._sums:
            self._check_same(slots)
        self._refresh(slots)
        plan = self.plan()
        losses = self.evaluator.evaluate(slots, plan, _Probes(self), closure, self.t)
        if not self._sums:
            self._sums, self._evaluated = [0.0] * len(plan), slots
        if weight > 0.0:  # the mean over no example is NaN, and must not count
            self._sums = [s + weight * loss for s, loss in zip(self._sums, losses, strict=True)]
        self._weight += weight
        return self._mean(losses)

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Losses that are estimated in the block belong to the step only if the whole block ends well."""
        kept = self._sums, self._weight, self._evaluated  # replaced by estimates, never changed
        try:
            yield
        except BaseException:
            self._sums, self._weight, self._evaluated = kept
            raise

    def step(self, closure: Closure | None = None) -> float | None:  # type: ignore[override]
        """One update from the accumulated losses; with a closure, ``estimate(closure)`` first.

        Returns:
            The step's mean loss over batches and probes.

        Raises:
            RuntimeError: if there is nothing to update from.
            NonFiniteLossError: see `estimate`.
        """
        return self._step(closure)

    def _step(self, closure: Closure | None) -> float | None:
        # apart from step(), which torch wraps with its hooks once per class: a subclass would run them twice
        if closure is not None:
            self.estimate(closure)
        if self._sums:
            self._check_same(self._active())
            sums, weight = self._sums, self._weight
            self._sums, self._weight = [], 0.0  # also if a rank's loss is not finite: the next step begins anew
            self._recalled = tuple(self.evaluator.merge(sums, weight, self.t))
        if self._recalled is None:
            raise RuntimeError("step() has no losses to update from: call estimate(closure) first, or step(closure)")
        self.tell(self._recalled)
        return self.last_loss

    def recall(self, losses: Sequence[float]) -> None:
        """Let the coming ``step()`` make an update from these losses of the plan, as `tell`: for loops that call
        ``step()`` on their own."""
        self._recalled = tuple(losses)

    def register_tell_hook(self, hook: TellHook, *, last: bool = False) -> RemovableHandle:
        """Call a function with the optimizer and the losses of each step, before the weights are touched.

        If it raises an exception, the step is not made, and `step()` makes it again from the same losses.  Rates that
        it sets hold for this step alone: schedulers of torch go on from those that were there.

        Args:
            hook: see `TellHook`.
            last: called after all others that are registered without it, also later ones: it sees the step's rates.
        """
        hooks = self._recorders if last else self._listeners
        handle = RemovableHandle(hooks)
        hooks[handle.id] = hook
        return handle

    def tell(self, losses: Sequence[float]) -> None:
        """Update from the losses of the plan alone, without running the model.

        Args:
            losses: mean losses of the step, in the order of `plan`.

        Raises:
            ValueError: if their number is wrong or one is not finite.
        """
        with delayed() as signals:
            self._tell([float(loss) for loss in losses], signals)

    @torch.inference_mode(False)  # state made in inference mode could not be changed outside it
    @torch.no_grad()
    def _tell(self, losses: list[float], signals: Delayed) -> None:
        plan = self.plan()
        if len(losses) != len(plan):
            raise ValueError(f"{len(losses)} losses were given, but the step's plan has {len(plan)} probes")
        if not all(map(math.isfinite, losses)):
            raise ValueError("tell() was given a loss that is not finite")
        slots = self._active()
        self._refresh(slots)
        self._check_update(slots)
        rates = [{name: group[name] for name in _RATES if name in group} for group in self.param_groups]
        try:
            signals.through(lambda: self._ask_hooks(losses))
            self._update(slots, losses)
            self.last_loss, self.last_losses = self._mean(losses), tuple(losses)
            self.last_rates = tuple(float(group["lr"]) for group in self.param_groups)
            self.queries += len(plan)
            self.t += 1
            # here: a request to stop is answered after the step
            self._sums, self._weight, self._recalled = [], 0.0, None
        finally:
            for group, own in zip(self.param_groups, rates, strict=False):  # a hook may have added a group
                group.update(own)

    def _ask_hooks(self, losses: Sequence[float]) -> None:
        for hook in (*self._listeners.values(), *self._recorders.values()):
            hook(self, losses)

    def _check_update(self, slots: Sequence[Slot]) -> None:
        """Raise ValueError if the coming update cannot be made."""

    def _update(self, slots: Sequence[Slot], losses: Sequence[float]) -> None:
        for slot in slots:
            weights = self._clipped(self.estimator.weigh(losses, slot.group["eps"]))
            slot.perturbation.after_losses(slot, self.t, weights, losses)
            self._apply(slot, self._terms(slot, weights, self.t), lr=slot.group["lr"])
            slot.perturbation.after_update(slot, self.t, weights)

    def _terms(self, slot: Slot, weights: Sequence[float], step: int) -> list[tuple[float, Key]]:
        return [(w, slot.key.at(step=step, query=k)) for k, w in enumerate(weights)]

    def _apply(self, slot: Slot, terms: Sequence[tuple[float, Key]], *, lr: float) -> None:
        self.rule.step(slot, terms, lr=float(lr), rounding=slot.key.at(step=self.t, tag="rounding"))

    def _clipped(self, weights: list[float]) -> list[float]:
        norm = math.sqrt(len(weights) * math.fsum(w * w for w in weights))
        if self.clip is None or norm <= self.clip:
            return weights
        return [w * (self.clip / norm) for w in weights]

    @torch.inference_mode(False)
    @torch.no_grad()
    def _refresh(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            slot.perturbation.refresh(slot, self.t)

    def _mean(self, losses: Sequence[float]) -> float:
        """Mean of the losses that were taken around the weights."""
        own = [loss for loss, probe in zip(losses, self.plan(), strict=True) if probe.point == 0]
        return math.fsum(own) / len(own)

    def _probe_terms(self, slot: Slot, probe: Probe) -> list[tuple[float, Key]]:
        scale = probe.sign * slot.group["eps"]
        return [(scale, slot.key.at(step=self.t, query=probe.query))] if probe.sign else []

    def _write_probe(self, slot: Slot, probe: Probe, out: Tensor, part: Part | None = None) -> None:
        """out = point + sign * eps * D(x_query), of the whole parameter or some rows of it."""
        terms = self._probe_terms(slot, probe)
        point = slot.logical(self._point(slot, probe.point))
        slot.perturbation.combine(slot, out, point if part is None else part.take(point), terms, part=part)

    def _point(self, slot: Slot, point: int) -> Tensor:
        """Stored weights of a point; methods with more points than one add theirs."""
        assert point == 0
        return slot.param.data

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing to do: there are no gradients.  Left-over ones of other code are dropped."""
        super().zero_grad(set_to_none)

    def __repr__(self) -> str:
        """Class and hyperparameters; the names of the parameters are counted, not listed."""
        groups = []
        for group in self.param_groups:
            own = {k: v for k, v in group.items() if k not in ("params", "param_names")}
            groups.append(", ".join([f"{len(group['params'])} parameters", *(f"{k}={v}" for k, v in own.items())]))
        return f"{type(self).__name__}({'; '.join(groups)}; seed={self.seed})"


def _named_arguments(cls: type, args: tuple[Any, ...], arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call by their names, without the parameters; wrong ones are left for the call to refuse."""
    if args[1:]:
        names = list(inspect.signature(cls.__init__).parameters)[1:]  # type: ignore[misc]
        arguments = {**dict(zip(names[1:], args[1:], strict=False)), **arguments}
    return {name: value for name, value in arguments.items() if name != "params"}
