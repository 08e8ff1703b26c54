"""A learning rate from a few dozen losses: the step that a method's own estimate would like to make.

Along a direction D(x_k) the loss has the slope c_k and the curvature h_k,

    c_k = (f(W + e D_k) - f(W - e D_k)) / (2 e),      h_k = (f(W + e D_k) + f(W - e D_k) - 2 f(W)) / e^2.

A step of the rate eta moves W by - eta gain sum_k w_k D_k, with the weights w_k that the method makes of the losses of
its plan.  Random directions in many dimensions are orthogonal and see the same curvature h (that of Gaussian noise is
the Hessian's trace), so to second order the loss changes by

    - eta gain sum_k w_k c_k + eta^2 gain^2 h / 2 sum_k w_k^2,

which is least at eta* = sum_k w_k c_k / (gain h sum_k w_k^2): the line search along the estimated direction, in
closed form.  For MeZO it is 1 / h whatever the slope.  It fits one step.  Over T steps the second term adds up, while
the first is mostly noise of the batches, so a run wants the rate at which all of its T steps cost no more than a share
theta of the loss that there is to lose,

    eta_T = sqrt(2 theta f(W) / (N gain^2 h sum_k w_k^2)),      N = sum_t s_t^2,

where s_t is the share of the rate that the schedule leaves in step t: N = T for a constant rate, T / 3 for one that
falls to zero along a line, 3 T / 8 along a cosine.  It is the 1 / sqrt(T) of stochastic descent (Ghadimi & Lan 2013,
SIAM J. Optim. 23(4), section 3).  The rate taken is the smaller one of `SAFETY` eta* and eta_T times a factor of the
method, `FACTORS`; both are measured (experiments).

What becomes of the rate while the run goes on is in `zotune.pace`.

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
from zotune.methods import MeZOSVRG
from zotune.optimizer import ZerothOrder
from zotune.probing import (
    SURE,
    Alone,
    Batch,
    Sample,
    Spent,
    curvature_now,
    error_of,
    is_certain,
    mean_curvature,
    passes_of,
    rise_at,
    samples_on,
)
from zotune.rules import Adam, Momentum

SAFETY: Final = 0.3
"""Share of eta* that is never exceeded."""

THETA: Final = 0.15
"""Share of the loss that the noise of all steps may cost."""

FACTORS: Final = {"ZOAdam": 0.85, "FZOO": 0.6}
"""What a method can take in place of eta_T, by class; 1 for the others.  Where slopes become small, dividing by them
makes the steps of these two larger than they were at first."""

TUNINGS: Final = {"lora": 2.0, "prefix": 1.5, "prompt": 1.5}
"""The same by what is trained, for `suggest_rate`'s ``factor``; 1 for the others."""

QUERIES: Final = 48
"""Forward passes that the measurement takes about; a third as many and more find the length of its probes."""

_SHARES: Final = {"constant": 1.0, "linear": 1.0 / 3.0, "cosine": 3.0 / 8.0, "adaptive": 1.0 / 3.0}
"""sum_t s_t^2 / T of each schedule."""

LENGTHS: Final = (4.0, 32.0, 256.0)
"""Lengths of the first probes, times eps: longer ones where the curvature drowns in the rounding of the losses; no
probe is longer than the last."""


@dataclass(frozen=True)
class Rate:
    """A rate with what it was made of.

    Attributes:
        lr: to be taken; like every rate of its method, weights per unit of the estimate.
        step: eta*, best for a single step.
        run: eta_T, for all steps; infinity where their number is not known.
        curvature: mean of h_k plus its standard error, or two of them where it is not certain to be above zero; loss
            per eps^2.
        slope: root of the mean of c_k^2; loss per eps.
        spread: v_0, mean variance of the losses of a plan over eps^2.
        queries: forward passes that it took.
        length: of the probes, times eps.
    """

    lr: float
    step: float
    run: float
    curvature: float
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
        steps: of the run; without it only a share of the best single step is known to be safe.
        factor: times eta_T, beside that of the method; see `TUNINGS`.
        schedule: of the run: ``constant``, ``linear``, ``cosine`` or ``adaptive`` (linear, with `zotune.Pace`).

    Returns:
        The rate, or None where the loss has no curvature above zero or no slope along the directions.

    Raises:
        NonFiniteLossError: a loss is NaN or infinite.
        ValueError: there is no closure or no such schedule, a number is out of range, or groups differ in ``eps``.
    """
    if steps is not None:
        check_count("steps", steps)
    check_number("factor", factor, above=0.0)
    batches = [Alone(closure) for closure in closures]
    planned = None if steps is None else lambda _: steps
    return measure(optimizer, batches, steps=planned, schedule=schedule, factor=factor).rate


@held
@torch.no_grad()
def present_curvature(optimizer: ZerothOrder, closures: Iterable[Closure], rate: Rate) -> float | None:
    """The curvature of a rate as it is now, for `zotune.Pace.measured`: it grows in training, most in the first steps.

    Args:
        optimizer: of the run, between two steps. Neither weights nor optimizer change.
        closures: two or more, as for `suggest_rate`; each takes three queries.
        rate: what was measured before the run.

    Returns:
        The mean along one direction for each closure plus its standard error, or None where it is not certain to be
        above zero.

    Raises:
        ValueError: there are fewer than two closures.
    """
    batches = [Alone(closure) for closure in closures]
    if len(batches) < 2:
        raise ValueError("a curvature is measured on batches of the run: give a closure for each of two or more")
    return curvature_now(optimizer, batches, rate.length)


@dataclass
class Measurement(Spent):
    """What a measurement has found and taken.

    Attributes:
        rate: None where the loss has no curvature above zero, or no slope.
    """

    rate: Rate | None = None


@held
@torch.no_grad()
def measure(
    optimizer: ZerothOrder,
    batches: Sequence[Batch],
    *,
    steps: Callable[[int], int] | None,
    schedule: str,
    factor: float,
) -> Measurement:
    """See `suggest_rate`.

    Args:
        steps: of the run, when the measurement has taken so many forward passes of one example.
    """
    if schedule not in _SHARES:
        raise ValueError(f"schedule={schedule!r}: choose one of {', '.join(_SHARES)}")
    if len(batches) < 2:
        raise ValueError("a rate is measured on batches of the run: give a closure for each of two or more")
    if len({float(group["eps"]) for group in optimizer.param_groups}) > 1:
        raise ValueError("a rate is measured along directions of one length: give all groups the same eps")
    spent = Measurement()

    def samples(of: Sequence[Batch], length: float) -> list[Sample] | None:
        return samples_on(optimizer, of, length, spent)

    few = batches[: math.ceil(len(batches) / 3)]
    far, known = 0.0, None  # the longest probes whose losses are finite
    for length in LENGTHS:
        found = samples(few, length)
        if found is None and known is None:  # not that far, then
            length = 1.0
            found = samples(few, length)
            if found is None and spent.error is not None:
                raise spent.error
        if found is None:
            break
        far, known = length, found
        rise = rise_at(optimizer, found, length)
        if rise > 0.0 and is_certain(found):
            # Again on all batches, at the length at which a run's noise will walk: that curvature counts.
            far = min(max(length * math.sqrt(THETA / rise), 1.0), LENGTHS[-1])
            break
        if length < LENGTHS[0]:
            break
    whole = samples(batches, far)
    if whole is None:
        assert known is not None
        far, whole = length, known
    noisy = None if steps is None else max(1.0, _SHARES[schedule] * steps(spent.forwards))
    spent.rate = _rate(optimizer, whole, far, spent.queries, noisy, factor)
    return spent


def batches_for(optimizer: ZerothOrder) -> int:
    """Batches that a probe of about `QUERIES` forward passes takes, 2 or more."""
    return max(2, QUERIES // passes_of(optimizer))


def most_queries(optimizer: ZerothOrder) -> int:
    """Forward passes over a batch that a measurement takes at most."""
    count, passes = batches_for(optimizer), passes_of(optimizer)
    return (len(LENGTHS) * math.ceil(count / 3) + count) * passes


def _rate(
    optimizer: ZerothOrder,
    samples: Sequence[Sample],
    far: float,
    queries: int,
    noisy: float | None,
    factor: float,
) -> Rate | None:
    # Too small a curvature costs more than too large a one; where there is none to be seen, it is at most this.
    sure = 1.0 if is_certain(samples) else SURE
    curvature = mean_curvature(samples) + sure * error_of(samples)
    descent = statistics.fmean([_product(s.weights, s.slopes) for s in samples])
    length = statistics.fmean([_product(s.weights, s.weights) for s in samples])
    loss = statistics.fmean([abs(s.loss) for s in samples])
    slope = math.sqrt(statistics.fmean([c * c for sample in samples for c in sample.slopes]))
    if length == 0.0 or descent <= 0.0 or loss == 0.0 or not 0.0 < curvature < math.inf:
        return None
    gain, scale = optimizer._matrix.gain, _scale(optimizer, length)
    step = scale * descent / (gain * curvature * length)
    run = math.inf
    if noisy is not None:
        run = scale * math.sqrt(2.0 * THETA * loss / (noisy * gain**2 * curvature * length))
    own = next((FACTORS[cls.__name__] for cls in type(optimizer).__mro__ if cls.__name__ in FACTORS), 1.0)
    lr = min(SAFETY * step, factor * own * run)
    return Rate(lr, step, run, curvature, slope, statistics.fmean([s.spread for s in samples]), queries, far)


def _scale(optimizer: ZerothOrder, length: float) -> float:
    """The rate at which the rule moves the weights as far as plain descent does at a rate of 1."""
    rule = optimizer.rule
    if isinstance(rule, Adam):
        return math.sqrt(length)
    if isinstance(rule, Momentum):
        return 1.0 - rule.beta
    return 1.0 / optimizer.period if isinstance(optimizer, MeZOSVRG) else 1.0


def _product(left: Sequence[float], right: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))
