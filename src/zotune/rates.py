"""A learning rate from a few dozen losses: a share of the step that a method's own estimate would like to make.

Along a direction D(x_k) the loss has the slope c_k and the curvature h_k,

    c_k = (f(W + e D_k) - f(W - e D_k)) / (2 e),      h_k = (f(W + e D_k) + f(W - e D_k) - 2 f(W)) / e^2.

A step of the rate eta moves W by - eta gain sum_k w_k D_k, with the weights w_k that the method makes of the losses of
its plan.  Random directions in many dimensions are orthogonal and see the same curvature h (that of Gaussian noise is
the Hessian's trace), so to second order the loss changes by

    - eta gain sum_k w_k c_k + eta^2 gain^2 h / 2 sum_k w_k^2,

which is least at eta* = sum_k w_k c_k / (gain h sum_k w_k^2): the line search along the estimated direction, in
closed form.  For MeZO it is 1 / h whatever the slope.  It fits the loss of one batch.  Over a run the second term adds
up, while most of the first is noise of the batches: T steps along K directions each at a share sigma of eta* cost
sigma^2 T K / 2 times what a direction's slope can gain.  For that to be the same in runs of any length the share falls
with the root of the number of directions, the 1 / sqrt(T) of stochastic descent (Ghadimi & Lan 2013, SIAM J. Optim.
23(4), section 3):

    eta_0 = sigma eta*,      sigma = min(LARGEST_SHARE, REACH / sqrt(M)),      M = K sum_t s_t^2,

where s_t is the share of the rate that the schedule leaves in step t: the sum of squares is T for a constant rate,
T / 3 for one that falls to zero along a line, 3 T / 8 along a cosine.  REACH is measured for MeZO, whose best constant
rate is near one tenth of eta* in runs of 250 directions, in units of the curvature during the run, and taken for all
methods (experiments).

Where the mean of h_k is below zero its magnitude stands for it: a fresh head can be so badly calibrated that the loss
falls in most directions at first.  A loss that cannot be negative has c^2 <= 2 h f along a parabola, so where
curvatures drown in rounding h is taken to be at least that.

The law needs the curvature as it is during the run, which is several times that of the first weights; see
`zotune.pace`.

Rules that rescale the estimate get the rate that moves the weights as much: Adam divides by the root of its second
moment, which is that of sum_k w_k^2; heavy-ball momentum adds up 1 / (1 - beta) steps; MeZO-SVRG walks along one
direction for a whole period.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from zotune.checks import check_count, check_number
from zotune.evaluators import Closure
from zotune.interrupts import held
from zotune.methods import FZOO, MeZOSVRG
from zotune.optimizer import ZerothOrder
from zotune.probing import (
    SURE,
    Alone,
    Batch,
    Curvature,
    Sample,
    Spent,
    curvature_now,
    error_of,
    is_certain,
    mean_curvature,
    passes_of,
    rise_of,
    samples_on,
    without_curvature,
)
from zotune.rules import Adam, Momentum

LARGEST_SHARE: Final = 0.3
"""Share of eta* that is never exceeded."""

REACH: Final = 2.0
"""Share of eta* times the root of the number of directions."""

UNKNOWN: Final = 1000
"""Steps of a run whose number is not given."""

RISE: Final = 0.05
"""Share of the loss by which it rises at the ends of the probes."""

QUERIES: Final = 48
"""Forward passes that the measurement takes about; a third as many and more find the length of its probes."""

FEWEST: Final = 4
"""Batches on which the length of the probes is looked for, if there are as many."""

SMALL: Final = 24
"""Small batches of a trainer, along one direction each, that show the curvature ..."""

WHOLE: Final = 9
"""... and passes over whole ones, which show what the method makes of its losses."""

PART: Final = 8
"""Rows of a step over those of a small batch."""

WARM_UP: Final = 0.1
"""Share of the steps in which an adaptive rate rises to eta_0: the curvature grows fastest there."""

DECAY: Final = 0.3
"""Share of the steps, the last ones, in which it falls to zero along a line."""

_SHARES: Final = {
    "constant": 1.0,
    "linear": 1.0 / 3.0,
    "cosine": 3.0 / 8.0,
    "adaptive": 1.0 - 2.0 / 3.0 * (WARM_UP + DECAY),
}
"""sum_t s_t^2 / T of each schedule."""

LENGTHS: Final = (4.0, 32.0, 256.0)
"""Lengths of the first probes, times eps: longer ones where the curvature drowns in the rounding of the losses; no
probe is longer than the last."""


@dataclass(frozen=True)
class Rate:
    """A rate with what it was made of.

    Attributes:
        lr: to be taken; like every rate of its method, weights per unit of the estimate.
        step: eta*, best for a single step, where the curvature is larger by its error.
        share: sigma.
        curvature: magnitude of the mean of h_k, plus its standard error where it is not certain to be above zero; loss
            per eps^2.
        error: its standard error.
        slope: root of the mean of c_k^2; loss per eps.
        spread: v_0, mean variance of the losses of a plan over eps^2.
        queries: forward passes that it took.
        length: of the probes, times eps.
    """

    lr: float
    step: float
    share: float
    curvature: float
    error: float
    slope: float
    spread: float
    queries: int
    length: float = 1.0


def suggest_rate(
    optimizer: ZerothOrder,
    closures: Iterable[Closure],
    *,
    steps: int | None = None,
    schedule: str = "constant",
    factor: float = 1.0,
) -> Rate | None:
    """A learning rate for an optimizer that has made no step.  The weights are not written.

    With `zotune.DataParallel` all ranks call it, each with the losses of a share of equal size, and get the same rate.

    Args:
        optimizer: of the method, with any rate; its directions are used up, so make another one to train with.
        closures: a loss each, on different batches as large as those of the run's steps; `batches_for` says how many
            are useful.
        steps: of the run; without it they are taken to be `UNKNOWN`.
        factor: times eta_0.
        schedule: of the run: ``constant``, ``linear``, ``cosine`` or ``adaptive`` (that of `zotune.Pace`).

    Returns:
        The rate, or None where the loss has no curvature or no slope along the directions.

    Raises:
        NonFiniteLossError: a loss is NaN or infinite.
        TypeError: the optimizer is none of this package, or closures is a single function.
        ValueError: there are fewer than two closures or no such schedule, a number is out of range, or groups differ in
            ``eps``.
    """
    if not isinstance(optimizer, ZerothOrder):
        raise TypeError(f"a rate is measured for a method of zotune, and {type(optimizer).__name__} is none")
    if steps is not None:
        check_count("steps", steps)
    check_number("factor", factor, above=0.0)
    if callable(closures):
        raise TypeError("closures is one function: give a list, with a closure for each of several batches")
    batches = [Alone(closure) for closure in closures]
    planned = None if steps is None else lambda _: steps
    return measure(optimizer, batches, steps=planned, schedule=schedule, factor=factor).rate


@held
@torch.no_grad()
def present_curvature(optimizer: ZerothOrder, closures: Iterable[Closure], rate: Rate | None) -> Curvature | None:
    """The curvature as it is now, for `zotune.Pace.measured`: it grows in training, most in the first steps.

    Args:
        optimizer: of the run, between two steps. Neither weights nor optimizer change.
        closures: two or more, as for `suggest_rate`; each takes three queries.
        rate: what was measured before the run; None if nothing was.

    Returns:
        The mean along one direction for each closure and its standard error, or None where a loss is NaN or infinite,
        or there is no rate whose curvature could be followed.

    Raises:
        ValueError: there are fewer than two closures.
    """
    if rate is None:
        return None
    batches = [Alone(closure) for closure in closures]
    if len(batches) < 2:
        raise ValueError("a curvature is measured on batches of the run: give a closure for each of two or more")
    return curvature_now(optimizer, batches, rate.length)


@dataclass
class Measurement(Spent):
    """What a measurement has found and taken.

    Attributes:
        rate: None where the loss has no curvature or no slope.
    """

    rate: Rate | None = None


@held
@torch.no_grad()
def measure(
    optimizer: ZerothOrder,
    batches: Sequence[Batch],
    *,
    small: Sequence[Batch] = (),
    steps: Callable[[int], int] | None,
    schedule: str,
    factor: float = 1.0,
) -> Measurement:
    """See `suggest_rate`.

    Args:
        small: batches of fewer examples. Single curvatures differ by the direction much more than by the examples, so
            many directions on few examples each say most for their forward passes.
        steps: of the run, when the measurement has taken so many forward passes of one example.
    """
    if schedule not in _SHARES:
        raise ValueError(f"schedule={schedule!r}: choose one of {', '.join(_SHARES)}")
    if len(batches) < 2:
        raise ValueError("a rate is measured on batches of the run: give a closure for each of two or more")
    if len({float(group["eps"]) for group in optimizer.param_groups}) > 1:
        raise ValueError("a rate is measured along directions of one length: give all groups the same eps")
    spent = Measurement()
    looked = small or batches
    length = _length(optimizer, looked[: max(FEWEST, math.ceil(len(looked) / 3))], spent)
    found = _both(optimizer, batches, small, length, spent)
    if found is None:  # too far for one of these batches
        length = 1.0
        found = _both(optimizer, batches, small, length, spent)
    if found is None:
        assert spent.error is not None
        raise spent.error
    planned = UNKNOWN if steps is None else steps(spent.forwards)
    directions = max(1.0, _SHARES[schedule] * planned * optimizer.estimator.directions)
    spent.rate = _rate(optimizer, *found, length, spent.queries, directions, factor)
    return spent


def _both(
    optimizer: ZerothOrder, batches: Sequence[Batch], small: Sequence[Batch], length: float, spent: Measurement
) -> tuple[list[Sample], list[Sample]] | None:
    """Samples on whole batches and looks at small ones; None where probes are too long for the loss to be finite."""
    whole = samples_on(optimizer, batches, length, spent)
    looks = None if whole is None else samples_on(optimizer, small, length, spent, alone=True)
    return None if whole is None or looks is None else (whole, looks)


def _length(optimizer: ZerothOrder, batches: Sequence[Batch], spent: Measurement) -> float:
    """Of the probes, times eps: the loss rises by `RISE` of itself there, which is how far the noise of a run walks.

    Raises:
        NonFiniteLossError: a loss is NaN or infinite at the weights.
    """
    far, seen, most = 1.0, None, LENGTHS[-1]
    for length in LENGTHS:
        found = samples_on(optimizer, batches, length, spent, alone=True)
        if found is None:
            break
        far, seen = length, found
        # Once it may have changed by more than that, still longer probes would see another loss than the run does.
        if is_certain(found) or rise_of(optimizer, _bound(found), found, length) > RISE:
            break
    if seen is None:
        return far
    curvature = mean_curvature(seen)
    if not is_certain(seen):
        curvature, most = _bound(seen), far
    rise = rise_of(optimizer, curvature, seen, far)
    return min(max(far * math.sqrt(RISE / rise), 1.0), most) if rise > 0.0 else far


def _bound(samples: Sequence[Sample]) -> float:
    """Above what the mean curvature is but by chance, whatever its sign."""
    return abs(mean_curvature(samples)) + SURE * error_of(samples)


def batches_for(optimizer: ZerothOrder) -> int:
    """Batches that a probe of about `QUERIES` forward passes takes, 2 or more."""
    return max(2, QUERIES // passes_of(optimizer))


def whole_batches_for(optimizer: ZerothOrder) -> int:
    """Whole batches beside `SMALL` small ones, 2 or more."""
    return max(2, WHOLE // passes_of(optimizer))


def is_normalised(optimizer: ZerothOrder) -> bool:
    """Whether the method's updates are as large whatever the slope."""
    return isinstance(optimizer.rule, Adam) or isinstance(optimizer, FZOO)


def most_rows(optimizer: ZerothOrder, rows: int) -> int:
    """Forward passes of one example that a measurement takes at most, with whole batches of so many and small ones."""
    small = (len(LENGTHS) * math.ceil(SMALL / 3) + 2 * SMALL) * 3 * math.ceil(rows / PART)
    return small + 2 * whole_batches_for(optimizer) * passes_of(optimizer) * rows


def _rate(
    optimizer: ZerothOrder,
    samples: Sequence[Sample],
    looks: Sequence[Sample],
    length: float,
    queries: int,
    directions: float,
    factor: float,
) -> Rate | None:
    every = [*samples, *looks]
    # Behind a head that is badly calibrated the loss can be concave at first; it will not stay so.
    curvature, error = abs(mean_curvature(every)), error_of(every)
    if not is_certain(every):  # at most two errors above its mean, then
        curvature += error
    square = statistics.fmean([_product(s.weights, s.weights) for s in samples])
    descent = _descent(samples)
    if descent <= 0.0:  # one-sided losses can hide a slope behind the curvature, for so few directions
        descent = _descent([without_curvature(optimizer, s) for s in samples])
    slope = math.sqrt(statistics.fmean([c * c for sample in samples for c in sample.slopes]))
    if square == 0.0 or descent <= 0.0 or not 0.0 < curvature + error < math.inf:
        return None
    loss = statistics.fmean([abs(s.loss) for s in samples])
    sure = max(curvature + error, slope**2 / (2.0 * loss) if loss else 0.0)
    step = _scale(optimizer, square) * descent / (optimizer._matrix.gain * sure * square)
    share = factor * min(LARGEST_SHARE, REACH / math.sqrt(directions))
    spread = statistics.fmean([s.spread for s in samples])
    return Rate(share * step, step, share, curvature, error, slope, spread, queries, length)


def _scale(optimizer: ZerothOrder, square: float) -> float:
    """The rate at which the rule moves the weights as far as plain descent does at a rate of 1."""
    rule = optimizer.rule
    if isinstance(rule, Adam):
        return math.sqrt(square)
    if isinstance(rule, Momentum):
        return 1.0 - rule.beta
    return 1.0 / optimizer.period if isinstance(optimizer, MeZOSVRG) else 1.0


def _descent(samples: Sequence[Sample]) -> float:
    """Mean of sum_k w_k c_k."""
    return statistics.fmean([_product(s.weights, s.slopes) for s in samples])


def _product(left: Sequence[float], right: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))
