"""MeZO-SVRG: zeroth-order descent with a control variate (Gautam et al. 2024, ICML, arXiv 2404.08080).

c_B(X) = (f_B(X + eps z) - f_B(X - eps z)) / (2 eps) on the batch B, averaged over directions when ``queries`` is more
than 2.

    every q-th step (snapshot), on the full training sample F:
        X <- W,   g_full = c_F(W) z_0,   W <- (1 - eta_1 wd) W - eta_1 g_full
    other steps, with the same fresh z and the same batch B at both points:
        W <- (1 - eta_2 wd) W - eta_2 [ c_B(W) z - c_B(X) z + g_full ]
    annealing: whenever the mean loss of the last window is more than 1.05 times that of the window before, both rates
        are divided by ``anneal``, not below the floors 1e-5 (eta_1) and 1e-6 (eta_2)

| symbol | argument       | shape                                   |
|--------|----------------|-----------------------------------------|
| eta_1  | `lr`           |                                         |
| eta_2  | `lr_minibatch` |                                         |
| eps    | `eps`          |                                         |
| q      | `period`       |                                         |
| X      | `anchor`       | a few floats, or a copy of the tensors  |
| g_full |                | a seed and a few floats, never a tensor |

The anchor needs no copy.  Each update since the snapshot was W <- d W + sum_j a_j z_j with a few known numbers and
keys, so W = D X + sum_j A_j z_j, and a query at the anchor writes X = W / D - sum_j (A_j / D) z_j together with its
perturbation, in one pass over W.  With K directions an estimate, the sum has K terms after the snapshot and K more with
each step.  Anything else that writes the weights between two snapshots moves a recomputed anchor as well.

A learning-rate schedule on ``lr`` scales both rates.  Differences from the released code: there, the anchor is a copy
of the list of parameters, so it is the moving model itself, and the two estimates of a step use different directions.
"""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from zotune.checks import check_count, check_number
from zotune.estimators import Probe, TwoPoint
from zotune.evaluators import Closure, Evaluator
from zotune.noise import Noise
from zotune.optimizer import ParamsT, ZerothOrder
from zotune.perturbations import Dense, Part, Slot
from zotune.rules import SGD

ANCHORS = ("recompute", "copy")
_LEAST_DECAY = 0.5  # dividing by less would enlarge the roundings of W
_LONG = {"gaussian": 16, "rademacher": 80}
"""Directions that take a processor core about 17 ns a weight, as does a forward pass over 512 tokens."""
_FLOORS = (1e-5, 1e-6)
_WORSE = 1.05
_log = logging.getLogger(__name__)


class MeZOSVRG(ZerothOrder):
    """Variance-reduced zeroth-order descent, see `zotune.methods.svrg`.

    Cost: ``queries`` forward passes over the full sample on a snapshot step, twice ``queries`` over the batch on the
    others; a few numbers, or with ``anchor="copy"`` a copy of the weights.

    Args:
        params: see `zotune.optimizer.ZerothOrder`.
        lr: learning rate eta_1 of snapshot steps.
        lr_minibatch: learning rate eta_2 of the other steps; None is ``lr``.
        eps: perturbation scale.
        period: q; 1 is full-batch descent.
        anchor: "recompute" undoes the updates since the snapshot when the anchor is queried; "copy" keeps its weights.
        anneal: divisor of both rates, 1 or more; 1 switches annealing off.
        anneal_window: steps per window.
        queries: forward passes per estimate, even.
        weight_decay: decoupled.
        noise: "gaussian" or "rademacher".
        seed: of all random numbers.
        backend: kernel backend; None chooses.
        evaluator: how losses are obtained; None is the overlay.
        clip: bound on the norm of each estimate's projected gradient.

    Raises:
        ValueError: if a value is out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        lr_minibatch: float | None = None,
        eps: float = 1e-3,
        period: int = 2,
        anchor: str = "recompute",
        anneal: float = 1.0,
        anneal_window: int = 100,
        queries: int = 2,
        weight_decay: float = 0.0,
        noise: Noise = "gaussian",
        seed: int = 0,
        backend: str | None = None,
        evaluator: Evaluator | None = None,
        clip: float | None = None,
    ) -> None:
        check_count("period", period)
        if anchor not in ANCHORS:
            close = difflib.get_close_matches(str(anchor), ANCHORS, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(ANCHORS)}"
            raise ValueError(f"unknown anchor {anchor!r}: {hint}")
        check_count("anneal_window", anneal_window)
        check_number("anneal", anneal, at_least=1.0)
        self.period, self.anchor, self.anneal, self.anneal_window = period, anchor, anneal, anneal_window
        self._snapshot_step = 0
        self._snapshot_weights: list[list[float]] = []  # per group
        self._annealed = 0  # times the rates were divided
        self._windows = [math.nan, 0.0]  # mean loss of the window before, sum over the present one
        self._warned = False
        defaults: dict[str, Any] = {
            "lr": lr,
            "eps": eps,
            "weight_decay": weight_decay,
            "lr_minibatch": lr if lr_minibatch is None else lr_minibatch,
        }
        super().__init__(
            params,
            defaults,
            estimator=TwoPoint(queries),
            matrix=Dense(noise),
            rule=SGD(),
            seed=seed,
            backend=backend,
            evaluator=evaluator,
            clip=clip,
        )
        terms = self.estimator.directions * period / 2
        if anchor == "recompute" and terms > _LONG[noise]:
            _log.warning(
                "period=%d: a query at the anchor adds up %d directions on average, which takes a processor core as "
                "long as a forward pass over 500 tokens; anchor='copy' is faster and keeps a copy of the weights",
                period,
                terms,
            )

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        check_number("lr_minibatch", group["lr_minibatch"], at_least=0.0)

    @property
    def needs_full(self) -> bool:
        """Whether the coming step is a snapshot, whose closure must evaluate the full training sample."""
        return self.t % self.period == 0

    def plan(self) -> Sequence[Probe]:
        """The probes of the coming step: at the weights, and on other than snapshot steps also at the anchor (point
        1)."""
        own = self.estimator.plan
        return own if self.needs_full else (*own, *(replace(probe, point=1) for probe in own))

    def step(self, closure: Closure | None = None, full_closure: Closure | None = None) -> float | None:  # type: ignore[override]
        """One update, see `ZerothOrder.step`.

        Args:
            closure: loss on the present minibatch.
            full_closure: loss on the full training sample, called on snapshot steps only.  Without it, ``closure`` is
                taken for both, which is right only if it evaluates the full sample.
        """
        if self.needs_full and closure is not None:
            if full_closure is None and not self._warned:
                self._warned = True
                _log.warning(
                    "MeZOSVRG.step() was given no full_closure: its closure is taken for the full training sample"
                )
            closure = full_closure or closure
        return self._step(closure)

    def _write_probe(self, slot: Slot, probe: Probe, out: Tensor, part: Part | None = None) -> None:
        if probe.point == 0 or not self._anchored(slot) or "anchor" in slot.state:
            super()._write_probe(slot, probe, out, part)
            return
        decay, w = slot.state["anchor_decay"], slot.logical(slot.param.data)
        terms = self._probe_terms(slot, probe)
        for step, moves in slot.state["anchor_moves"]:
            terms += [(-move / decay, key) for move, key in self._terms(slot, moves, step) if move != 0.0]
        slot.perturbation.combine(slot, out, w if part is None else part.take(w), terms, decay=1.0 / decay, part=part)

    def _point(self, slot: Slot, point: int) -> Tensor:
        anchor: Tensor = slot.state["anchor"] if point == 1 and self._anchored(slot) else slot.param.data
        return anchor

    def _anchored(self, slot: Slot) -> bool:
        """Whether the parameter took part in the last snapshot.  If it was frozen then, it moves as in MeZO."""
        return slot.state.get("anchor_step") == self._snapshot_step

    def _rates(self, group: dict[str, Any]) -> tuple[float, float]:
        """Both rates now: schedule and annealing applied."""
        base = group.get("max_lr") or group.get("initial_lr") or group["lr"]  # one-cycle schedules start low
        schedule = float(group["lr"]) / float(base) if base else 1.0
        return (
            _annealed(float(group["lr"]), self.anneal, self._annealed, _FLOORS[0]),
            _annealed(float(group["lr_minibatch"]) * schedule, self.anneal, self._annealed, _FLOORS[1]),
        )

    def _update(self, slots: Sequence[Slot], losses: Sequence[float]) -> None:
        half = len(self.estimator.plan)
        if self.needs_full:
            self._snapshot_step = self.t
            self._snapshot_weights = [self._clipped(self.estimator.weigh(losses, g["eps"])) for g in self.param_groups]
        for slot in slots:
            rate, rate_minibatch = self._rates(slot.group)
            if self.needs_full:
                self._drop_anchor(slot)
                self._descend(slot, [], rate)
                continue
            eps = slot.group["eps"]
            here = self._clipped(self.estimator.weigh(losses[:half], eps))
            if not self._anchored(slot):
                self._apply(slot, self._terms(slot, here, self.t), lr=rate_minibatch)
                continue
            there = self._clipped(self.estimator.weigh(losses[half:], eps))
            self._descend(slot, [w - x for w, x in zip(here, there, strict=True)], rate_minibatch)
        self._watch(self._mean(losses))

    def _drop_anchor(self, slot: Slot) -> None:
        """The present weights are the anchor."""
        state = slot.state
        state["anchor_step"] = self.t
        if self.anchor == "copy":
            state["anchor"] = state["anchor"].copy_(slot.param.data) if "anchor" in state else slot.param.data.clone()
            state.pop("anchor_moves", None)  # of a run that began with "recompute"
        else:
            state.pop("anchor", None)  # of a run that began with "copy"
            state["anchor_decay"], state["anchor_moves"] = 1.0, ((self.t, (0.0,) * self.estimator.directions),)

    def _descend(self, slot: Slot, fresh: Sequence[float], lr: float) -> None:
        """W <- (1 - lr wd) W - lr (g_full + sum_k fresh_k z_k) with the present step's z, taken down in the state."""
        number = next(i for i, group in enumerate(self.param_groups) if group is slot.group)
        full = self._snapshot_weights[number]
        terms = [*self._terms(slot, fresh, self.t), *self._terms(slot, full, self._snapshot_step)]
        self._apply(slot, terms, lr=lr)
        if "anchor" in slot.state:
            return
        decay = self._decay(slot, lr)
        first, *others = ((step, [decay * move for move in moves]) for step, moves in slot.state["anchor_moves"])
        moves = [(first[0], [move - lr * w for move, w in zip(first[1], full, strict=True)]), *others]
        if fresh:
            moves.append((self.t, [-lr * w for w in fresh]))
        slot.state["anchor_decay"] *= decay
        slot.state["anchor_moves"] = tuple((step, tuple(own)) for step, own in moves)

    @staticmethod
    def _decay(slot: Slot, lr: float) -> float:
        return 1.0 - lr * float(slot.group["weight_decay"])

    def _check_update(self, slots: Sequence[Slot]) -> None:
        """Raise ValueError if, after this step, the anchor could not be recomputed."""
        for slot in slots:
            kept = 1.0 if self.needs_full else slot.state.get("anchor_decay", 1.0)
            decay = kept * self._decay(slot, self._rates(slot.group)[not self.needs_full])
            if self.anchor == "recompute" and self.period > 1 and decay < _LEAST_DECAY:
                raise ValueError(
                    "the weights decay to less than half between two snapshots, so their anchor cannot be recomputed: "
                    "lower lr, weight_decay or period, or choose anchor='copy'"
                )

    def _watch(self, loss: float) -> None:
        """Keep the means of two windows of losses, and anneal when the later is worse."""
        self._windows[1] += loss
        if (self.t + 1) % self.anneal_window == 0:
            mean = self._windows[1] / self.anneal_window
            if self.anneal > 1.0 and mean > _WORSE * self._windows[0]:
                self._annealed += 1
                _log.info(
                    "step %d: the mean loss has grown by more than 5 %%; both rates are divided by %g",
                    self.t,
                    self.anneal,
                )
            self._windows = [mean, 0.0]

    def _kind(self) -> dict[str, Any]:
        # `anchor` may change, and `anneal` is a divisor of rates; a window that has begun must end where it was to
        window = {"anneal_window": self.anneal_window} if self.anneal > 1.0 else {}
        return {**super()._kind(), "period": self.period, **window}

    def _own_state(self) -> dict[str, Any]:
        return {
            **super()._own_state(),
            "anneal_window": self.anneal_window,
            "snapshot_step": self._snapshot_step,
            "snapshot_weights": [list(weights) for weights in self._snapshot_weights],
            "annealed": self._annealed,
            "windows": list(self._windows),
        }

    def _load_own(self, own: dict[str, Any]) -> None:
        super()._load_own(own)
        self._snapshot_step, self._annealed = own["snapshot_step"], own["annealed"]
        self._snapshot_weights = [list(weights) for weights in own["snapshot_weights"]]
        self._windows = list(own["windows"])


def _annealed(rate: float, divisor: float, times: int, floor: float) -> float:
    """The rate divided ``times`` times, each time not below the floor; a rate below the floor is left alone."""
    for _ in range(times):
        rate = max(rate / divisor, min(rate, floor))
    return rate
