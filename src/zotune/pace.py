"""A measured rate as the run goes on: it follows the slopes, for the schedule ``adaptive``.

The symbols are those of `zotune.rates`.  In the run the slopes change, and the curvature with them.  With v the
variance of the losses of a step's plan over eps^2, which for MeZO is c^2, `Pace` takes

    eta_t = s_t min(eta_0 sqrt(v_0 h_0 / (v_t h_t)), eta* h_0 / h_t),      h_t = max(h_m, kappa v_t),

with a running mean of v.  The first term keeps what a step costs, eta^2 v h, where it was planned; the second one is
the line search.  h_m is the curvature as it was measured last: `Pace.measured` takes over a new one.  A fresh head has
little at first and several times as much after a tenth of the run, so that measurement matters more than the first.
In between, the Hessian of a calibrated model is the Fisher information, B times the variance of a batch's slope over
batches of B examples, so it grows as v does: kappa = min(h_m / v_m, B / 2), where the second one is for slopes that
were small by chance.  Where an update is normalised by itself (Adam, FZOO) the rate is multiplied by sqrt(v_t / v_0)
besides, and never rises.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from zotune.methods import FZOO
from zotune.optimizer import ZerothOrder
from zotune.probing import spread_of
from zotune.rates import Rate
from zotune.rules import Adam

RISE: Final = 2.0
"""How many times as large a rate may become while slopes fall."""

MEMORY: Final = 0.98
"""Share of the running mean that a step leaves."""

WARM_UP: Final = 0.1
"""Share of the steps in which an adaptive rate rises to eta_0: a fresh head has small slopes at first, which tell
little."""

UNMEASURED: Final = 10
"""Steps whose mean stands for v_0 where it was not measured."""


class Pace:
    """Lets the rate of a run follow the slopes; see the equations above.

    An instance is a hook of the optimizer, and multiplies the rate that the groups have when an update begins, a
    schedule's or their own, for that update::

        optimizer.register_tell_hook(Pace(rate, rows=16))

    Args:
        rate: what was measured; None: the mean of the first `UNMEASURED` steps is v_0, and they keep their rate.
        rows: examples of a step, B; None: not known.
        warm_up: steps in which the rate rises; `WARM_UP` of the run's are.

    Attributes:
        spread: v_0, None until it is known.
        mean: running mean of v.
        steps: steps that are in it.
    """

    def __init__(self, rate: Rate | None = None, *, rows: int | None = None, warm_up: int = 0) -> None:
        self.warm_up = warm_up
        self._limit = math.inf
        self._curvature: tuple[float, float] | None = None  # h_0 and h_m
        self._rows = math.inf if rows is None else float(rows)
        self.spread: float | None = None
        self.spread_then = 0.0
        self.mean, self.steps, self._before = 0.0, 0, 0
        if rate is not None and rate.spread > 0.0 and rate.lr > 0.0:
            self.spread = self.mean = rate.spread
            self._limit, self._before = rate.step / rate.lr, UNMEASURED  # the measurement counts as so many steps
            self._curvature, self.spread_then = (rate.curvature, rate.curvature), rate.spread
        self._step = -1  # whose update is being made

    def __call__(self, optimizer: ZerothOrder, losses: Sequence[float]) -> None:
        """Set the rates of the update that is about to be made from these losses."""
        if optimizer.t != self._step:  # an update that failed is made again from the same losses
            self._take(optimizer, losses)
            self._step = optimizer.t
        factor = self.factor(normalised=isinstance(optimizer.rule, Adam) or isinstance(optimizer, FZOO))
        factor *= min(1.0, (optimizer.t + 1) / (self.warm_up + 1))
        for group in optimizer.param_groups:
            group["lr"] = float(group["lr"]) * factor
            if "lr_minibatch" in group and not (group.get("initial_lr") or group.get("max_lr")):
                group["lr_minibatch"] *= factor  # with a scheduler it follows lr by itself

    def factor(self, *, normalised: bool = False) -> float:
        """By what the rate is multiplied, with the present mean."""
        if not self.spread or self.mean == 0.0:
            return 1.0
        root = math.sqrt(self.spread / self.mean)
        flatter = self._flatter()
        cost, line = root * math.sqrt(flatter), self._limit * flatter
        return min(1.0, min(cost, line) / root) if normalised else min(RISE, cost, line)

    @property
    def curvature(self) -> float | None:
        """h_m, what was measured last."""
        return None if self._curvature is None else self._curvature[1]

    def measured(self, curvature: float, spread: float | None = None) -> None:
        """Take over a curvature that was measured in the run, when the mean was ``spread``: now if that is left out."""
        if self._curvature is not None:
            self._curvature = self._curvature[0], curvature
            self.spread_then = self.mean if spread is None else spread

    def _flatter(self) -> float:
        """h_0 / h_t."""
        if self._curvature is None:
            return 1.0
        first, last = self._curvature
        kappa = min(last / self.spread_then, self._rows / 2.0) if self.spread_then else 0.0
        return first / max(last, kappa * self.mean)

    def _take(self, optimizer: ZerothOrder, losses: Sequence[float]) -> None:
        if getattr(optimizer, "needs_full", False):  # the whole sample has little noise: not to be compared
            return
        eps = float(optimizer.param_groups[0]["eps"])
        fresh = spread_of([f for f, probe in zip(losses, optimizer.plan(), strict=True) if probe.point == 0], eps)
        self.steps += 1
        seen = self.steps + self._before
        self.mean += (fresh - self.mean) * max(1.0 / seen, 1.0 - MEMORY)
        if self.spread is None and self.steps == UNMEASURED:
            self.spread = self.mean
