"""A measured rate as the run goes on: it follows the curvature, for the schedule ``adaptive``.

The symbols are those of `zotune.rates`: a step takes s_t sigma eta*_t, where s_t rises in the first tenth of the run
and falls to zero along a line in the last three (but see below), with the line search of now,

    eta*_t = eta* h_0 / h_t                       for a rate that is multiplied with slopes,
    eta*_t = eta* h_0 / h_t  sqrt(v_t / v_0)      for one of an update that is normalised by itself (Adam, FZOO),

v being a running mean of the variance of the losses of a step's plan over eps^2, which for MeZO is c^2.  h_t is what
measurements say (`Pace.measured`): behind a fresh head the curvature doubles or triples in the first tenth of a run.
Each is uncertain by its standard error r, and the ones before have become old, so they are combined as a scalar Kalman
filter does: with the variance p of what is known,

    p <- p + (DRIFT h)^2,      k = p / (p + r^2),      h <- h + k (h_measured - h),      p <- (1 - k) p,

and h_t = h + sqrt(p), because too small a curvature costs more than too large a one.  Single curvatures scatter in
proportion to themselves, so a mean below h has the error r h / h_measured (at most `FALL` r).  No measurement makes h
more than `FALL` times smaller, and no rate becomes more than `RISE` times what was planned: a loss that has become flat
says nothing of how far it stays so.

A share for what is learnt.  To first order a step would lower the loss by its K slopes' squares times the rate,
D_t = s_t sigma K v / h_t, if these were the slopes of all examples and not of one batch; rho is the part of it that
comes true: the fall of the loss along a line through the last `LOOK` of the run, over the mean of D_t.  The share that
lowers the loss of all examples most in one step is rho.  In most tasks rho soon drowns in the noise of the batches, and
small shares that fall to zero are best.  Where it is certain, its standard error below what was seen, half of it is a
share that costs little: a step then takes at least

    min(rho_low / 2, `LIFTED`, `LIFT` sigma),

so the rate of a run whose loss is still falling fast does not fall, and rises where sigma is small (`zotune.descent`).
It does so in the second half of a run, and before that, once it has warmed up, while the curvature is no larger than
it was at first, as with LoRA mostly: where all weights are trained behind a fresh head it grows for long, and a rate
that rises meets it.  An update that is normalised by itself walks as far on a batch without a slope as on any, so its
rate waits for the second half in any case.

A limit for single steps: where the root of v is above `LIMIT` times what is usual, the root of a slower running mean,
the update is as much smaller, unless it is normalised by itself, and the means take the limit for v.  Where the loss
has become steep, which is how a run is lost within a few dozen steps, the weights then move at the speed they had.

Curvature and squared slopes grow together where a loss becomes steep (as in the matrix of Gauss and Newton), and h_t is
as old as its last measurement: where the mean of v is more than `LIMIT` times what it was then, h_t counts as larger by
what it is above that.

A brake for what no curvature shows: the losses of a run's steps are averaged over windows of a twentieth of it, and
where the mean of one is above the lowest one before by more than `SURE` standard errors of their difference, the rate
is halved for the rest of the run, and that window is what the next ones are compared with.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Final

from zotune.checks import check_count
from zotune.descent import Descent
from zotune.optimizer import ZerothOrder
from zotune.probing import spread_of
from zotune.rates import DECAY, WARM_UP, Rate, is_normalised

DRIFT: Final = 0.3
"""Change of the curvature between two measurements that is nothing unusual, as a share of it."""

FALL: Final = 4.0
"""How many times smaller a measurement may make the curvature: noise can be larger than what is measured."""

RISE: Final = 4.0
"""How many times as large a rate may become."""

MEMORY: Final = 0.1
"""Share of a run that the running mean goes back ..."""

LATEST: Final = (5, 50)
"""... and steps that it does at least and at most; what is usual is the mean of as many as it does at most."""

MEASURED: Final = 4
"""Steps that the measured v_0 counts as in the running mean."""

LIMIT: Final = 2.0
"""Times what is usual that the slope of a step counts as at most, and that v may grow before h is taken to do so."""

LOOK: Final = 0.3
"""Share of a run whose losses show how fast they fall."""

SETTLED: Final = 0.5
"""Share of a run after which a loss that falls surely counts, even where the curvature has grown."""

LIFTED: Final = 0.3
"""Largest share of the line search that it allows ..."""

LIFT: Final = 3.0
"""... and times sigma that it is at most."""

WINDOWS: Final = 20
"""Windows of a run ..."""

STEPS: Final = 10
"""... of so many steps at least ..."""

UNPLANNED: Final = 50
"""... or of so many where the length of the run is not given."""

SURE: Final = 4.0
"""Standard errors by which the mean loss of a window is above the lowest one for that to be no chance."""

BRAKE: Final = 0.5
"""Share of the rate that is left then."""

UNMEASURED: Final = 10
"""Steps whose mean stands for v_0 where it was not measured."""


class Pace:
    """Lets the rate of a run follow the curvature; see the equations above.

    An instance is a hook of the optimizer, and multiplies the rate that the groups have when an update begins, a
    schedule's or their own, for that update::

        optimizer.register_tell_hook(Pace(rate, total=1000))

    Args:
        rate: what was measured; None: there is no curvature to follow, and the mean of the first `UNMEASURED` steps is
            v_0.
        total: steps of the run: the rate rises in the first `WARM_UP` of them and falls to zero along a line in the
            last `DECAY`; None: it does neither.

    Raises:
        ValueError: ``total`` is no whole number above zero.

    Attributes:
        total: steps of the run.
        spread: v_0, None until it is known.
        mean: running mean of v.
        usual: a slower one, which the limit is set by.
        steps: steps that are in it.
        curvature: h, None if none was measured.
        variance: p.
        looks: measurements of h on the way.
        then: mean of v at the last of them.
        limited: share of the present step's slope that counts.
        braked: product of all `BRAKE`.
        descent: of the loss, beside what the slopes predict.
        window: losses of the steps of the present one.
        lowest: mean and squared standard error of the window to compare with; None in the first one.
    """

    def __init__(self, rate: Rate | None = None, *, total: int | None = None) -> None:
        if total is not None:
            check_count("total", total)
        self.total = total
        self.spread: float | None = None
        self.mean, self.usual, self.steps, self._before = 0.0, 0.0, 0, 0
        self.curvature: float | None = None
        self.variance = self._first = 0.0
        self.looks, self.then = 0, 0.0
        self.limited = self.braked = 1.0
        self.window: list[float] = []
        self.lowest: tuple[float, float] | list[float] | None = None
        self.descent, self._share = Descent(), 0.0 if rate is None else rate.share
        if rate is not None:
            self._first = rate.curvature + rate.error
            self.curvature, self.variance = max(rate.curvature, self._least), rate.error**2
            if rate.spread > 0.0:
                self.spread = self.mean = self.usual = self.then = rate.spread
                self._before = MEASURED  # the measurement counts as so many steps
        self._step = -1  # whose update is being made

    def __call__(self, optimizer: ZerothOrder, losses: Sequence[float]) -> None:
        """Set the rates of the update that is about to be made from these losses."""
        if optimizer.t != self._step:  # an update that failed is made again from the same losses
            self._take(optimizer, losses)
            self._step = optimizer.t
        normalised = is_normalised(optimizer)
        factor = self.factor(normalised=normalised) * self.lifted(optimizer.t, normalised=normalised)
        factor *= 1.0 if normalised else self.limited
        for group in optimizer.param_groups:
            group["lr"] = float(group["lr"]) * factor
            if "lr_minibatch" in group and not (group.get("initial_lr") or group.get("max_lr")):
                group["lr_minibatch"] *= factor  # with a scheduler it follows lr by itself

    def planned(self, step: int) -> float:
        """s_t of a step, counted from 0."""
        if self.total is None:
            return 1.0
        rising = (step + 1) / (round(WARM_UP * self.total) + 1)
        falling = (self.total - step) / max(1.0, DECAY * self.total)
        return max(0.0, min(1.0, rising, falling))

    def lifted(self, step: int, *, normalised: bool = False) -> float:
        """What of sigma a step takes: s_t, or more where the loss falls surely."""
        planned = self.planned(step)
        if not self._share or self.total is None or step < WARM_UP * self.total:
            return planned
        if step < SETTLED * self.total and (normalised or not self.has_not_grown):
            return planned
        return max(planned, min(self.descent.sure / 2.0, LIFTED, LIFT * self._share) / self._share)

    @property
    def has_not_grown(self) -> bool:
        """Whether the curvature, looked at again, is at most what the rate was measured with."""
        if self.curvature is None or not self.looks:
            return False
        return self.curvature + math.sqrt(self.variance) <= self._first

    def factor(self, *, normalised: bool = False) -> float:
        """By what the rate is multiplied, with the present mean and curvature."""
        factor = 1.0
        if self.curvature is not None:
            steeper = self.mean / (LIMIT * self.then) if self.then else 1.0
            factor = self._first / (self.curvature + math.sqrt(self.variance)) / max(1.0, steeper)
        if normalised and self.spread:
            factor *= math.sqrt(self.mean / self.spread)
        return min(factor, RISE) * self.braked

    @property
    def _least(self) -> float:
        """What h never falls below: beyond that the rate rises no more."""
        return self._first / (FALL * RISE)

    def measured(self, value: float, error: float) -> None:
        """Take a curvature of now into account.

        Args:
            value: mean, in loss per eps^2.
            error: its standard error; infinite if it is not known.

        Raises:
            ValueError: the value is no finite number, or the error is negative or NaN.
        """
        if not math.isfinite(value) or not error >= 0.0:
            raise ValueError(
                f"a measured curvature of {value} with the error {error} says nothing: leave it out (present_curvature"
                " returns None where a loss is not finite)"
            )
        if self.curvature is None:
            return
        self.looks += 1
        self.then = self.mean
        value = abs(value)  # as before the run: what is concave will not stay so
        old = self.variance + (DRIFT * self.curvature) ** 2
        larger = min(max(1.0, self.curvature / value), FALL) if value else FALL
        weight = old / (old + (error * larger) ** 2) if math.isfinite(error) else 0.0
        fresh = self.curvature + weight * (value - self.curvature)
        self.curvature = max(fresh, self.curvature / FALL, self._least)
        self.variance = (1.0 - weight) * old

    def _take(self, optimizer: ZerothOrder, losses: Sequence[float]) -> None:
        self.limited = 1.0
        if getattr(optimizer, "needs_full", False):  # the whole sample has little noise: not to be compared
            return
        eps = float(optimizer.param_groups[0]["eps"])
        own = [f for f, probe in zip(losses, optimizer.plan(), strict=True) if probe.point == 0]
        self._watch(own)
        fresh = spread_of(own, eps)
        if self.curvature is not None:
            taken = self._share * self.lifted(optimizer.t, normalised=is_normalised(optimizer)) * self.braked
            now = self.curvature + math.sqrt(self.variance)
            look = LATEST[1] if self.total is None else int(LOOK * self.total)
            self.descent.take(own, taken * optimizer.estimator.directions * fresh / now, look)
        self.steps += 1
        seen = self.steps + self._before
        if seen > UNMEASURED and fresh > LIMIT**2 * self.usual > 0.0:
            self.limited = LIMIT * math.sqrt(self.usual / fresh)
            fresh = LIMIT**2 * self.usual
        least, most = LATEST
        back = most if self.total is None else min(max(least, MEMORY * self.total), most)
        self.mean += (fresh - self.mean) / min(seen, back)
        self.usual += (fresh - self.usual) / min(seen, most)
        if self.spread is None and self.steps == UNMEASURED:
            self.spread = self.mean

    def _watch(self, losses: Sequence[float]) -> None:
        self.window.append(math.fsum(losses) / len(losses))
        if len(self.window) < (UNPLANNED if self.total is None else max(STEPS, self.total // WINDOWS)):
            return
        now = statistics.fmean(self.window), statistics.variance(self.window) / len(self.window)
        self.window = []
        if self.lowest is not None and now[0] > self.lowest[0]:
            if now[0] - self.lowest[0] <= SURE * math.sqrt(now[1] + self.lowest[1]):
                return
            self.braked *= BRAKE
        self.lowest = now
