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

    eta_T = sqrt(2 theta f(W) / (T gain^2 h sum_k w_k^2)),

the 1 / sqrt(T) of stochastic descent (Ghadimi & Lan 2013, SIAM J. Optim. 23(4), section 3).  The rate taken is the
smaller one of `SAFETY` eta* and eta_T times a factor of the method, `FACTORS`; both are measured (experiments).

Rules that rescale the estimate get the rate that moves the weights as much: Adam divides by the root of its second
moment, which is that of sum_k w_k^2; heavy-ball momentum adds up 1 / (1 - beta) steps; MeZO-SVRG walks along one
direction for a whole period.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from zotune.estimators import Probe
from zotune.evaluators import Closure
from zotune.methods import MeZOSVRG
from zotune.optimizer import ZerothOrder, _Probes
from zotune.rules import Adam, Momentum

SAFETY: Final = 0.3
"""Share of eta* that is never exceeded."""

THETA: Final = 0.15
"""Share of the loss that the noise of all steps may cost."""

FACTORS: Final = {"ZOAdam": 0.7, "FZOO": 0.3}
"""What a method can take in place of eta_T, by class; 1 for the others.  Where slopes become small, dividing by them
makes the steps of these two larger than they were at first."""

QUERIES: Final = 48
"""Forward passes that a probe takes about, over all batches."""

LENGTHS: Final = (1.0, 10.0, 100.0)
"""Lengths of the probes, times eps: longer ones where the curvature drowns in the rounding of the losses."""

_SURE = 2.0  # standard errors by which the mean curvature must be above zero


@dataclass(frozen=True)
class Rate:
    """A rate with what it was made of.

    Attributes:
        lr: to be taken.
        step: eta*, best for a single step.
        run: eta_T, for all steps; infinity where their number is not known.
        curvature: mean of h_k.
        slope: root of the mean of c_k^2.
        queries: forward passes that it took.
    """

    lr: float
    step: float
    run: float
    curvature: float
    slope: float
    queries: int


@dataclass(frozen=True)
class _Sample:
    loss: float
    slopes: list[float]
    curvatures: list[float]
    weights: list[float]


@torch.no_grad()
def suggest_rate(optimizer: ZerothOrder, closures: Iterable[Closure], *, steps: int | None = None) -> Rate | None:
    """A learning rate for an optimizer that has made no step.  The weights are not written.

    Args:
        optimizer: of the method, with any rate; its directions are used up, so make another one to train with.
        closures: a loss each, on different batches; `batches_for` says how many are useful.
        steps: of the run; without it only a share of the best single step is known to be safe.

    Returns:
        The rate, or None where the loss has no positive curvature along the directions.

    Raises:
        NonFiniteLossError: a loss is NaN or infinite.
    """
    batches, queries = list(closures), 0
    stride = max(1, getattr(optimizer, "period", 1), optimizer.param_groups[0].get("period", 1))
    for length in LENGTHS:
        samples = []
        for closure in batches:
            samples.append(_sample(optimizer, closure, length))
            queries += 2 * optimizer.estimator.directions + 1
            optimizer.t += stride
        curvatures = [h for sample in samples for h in sample.curvatures]
        mean = statistics.fmean(curvatures)
        error = statistics.stdev(curvatures) / math.sqrt(len(curvatures)) if len(curvatures) > 1 else math.inf
        if mean > _SURE * error:
            return _rate(optimizer, samples, mean, queries, steps)
    return None


def batches_for(optimizer: ZerothOrder) -> int:
    """Batches that a probe of about `QUERIES` forward passes takes, 3 or more."""
    return max(3, QUERIES // (2 * optimizer.estimator.directions + 1))


def _sample(optimizer: ZerothOrder, closure: Closure, length: float) -> _Sample:
    eps, directions = float(optimizer.param_groups[0]["eps"]), optimizer.estimator.directions
    slots = optimizer._active()
    optimizer._refresh(slots)
    plan = [Probe(0, 0), *(Probe(k, sign * length) for k in range(directions) for sign in (1.0, -1.0))]
    here, *around = optimizer.evaluator.evaluate(slots, plan, _Probes(optimizer), closure, optimizer.t)
    pairs = list(zip(around[0::2], around[1::2], strict=True))
    slopes = [(plus - minus) / (2.0 * length * eps) for plus, minus in pairs]
    curvatures = [(plus + minus - 2.0 * here) / (length * eps) ** 2 for plus, minus in pairs]
    # What the method's own plan would see, to second order: its probes are of length 1.
    losses = [
        here + p.sign * eps * slopes[p.query] + (p.sign * eps) ** 2 / 2 * curvatures[p.query] for p in _plan(optimizer)
    ]
    return _Sample(here, slopes, curvatures, optimizer._clipped(optimizer.estimator.weigh(losses, eps)))


def _plan(optimizer: ZerothOrder) -> Sequence[Probe]:
    return optimizer.estimator.plan


def _rate(
    optimizer: ZerothOrder, samples: Sequence[_Sample], curvature: float, queries: int, steps: int | None
) -> Rate | None:
    descent = statistics.fmean([_product(s.weights, s.slopes) for s in samples])
    length = statistics.fmean([_product(s.weights, s.weights) for s in samples])
    loss = statistics.fmean([abs(s.loss) for s in samples])
    slope = math.sqrt(statistics.fmean([c * c for sample in samples for c in sample.slopes]))
    if length == 0.0 or descent <= 0.0 or loss == 0.0:
        return None
    gain, scale = optimizer._matrix.gain, _scale(optimizer, length)
    step = scale * descent / (gain * curvature * length)
    run = math.inf
    if steps is not None:
        run = scale * math.sqrt(2.0 * THETA * loss / (max(1, steps) * gain**2 * curvature * length))
    lr = min(SAFETY * step, FACTORS.get(type(optimizer).__name__, 1.0) * run)
    return Rate(lr, step, run, curvature, slope, queries)


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
