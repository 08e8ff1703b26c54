"""Losses along the directions of an optimizer, from which its rate is measured; see `zotune.rates`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, Protocol

from zotune.estimators import Probe
from zotune.evaluators import Closure, NonFiniteLossError
from zotune.optimizer import ZerothOrder, _Probes

DIRECTIONS: Final = 12
"""Most directions of a step that are measured."""

_OTHERS: Final = 1 << 23  # numbers of queries that no plan has

SURE: Final = 2.0  # standard errors by which a mean curvature must be above zero


class Batch(Protocol):
    """The examples of one step."""

    @property
    def rows(self) -> int:
        """Their number, all ranks together."""

    def losses(self, optimizer: ZerothOrder, plan: Sequence[Probe]) -> list[float]:
        """Their mean loss at the probes, the same on all ranks."""


@dataclass(frozen=True)
class Alone:
    """The batch of a closure."""

    closure: Closure
    rows: int = 1

    def losses(self, optimizer: ZerothOrder, plan: Sequence[Probe]) -> list[float]:
        """See `Batch`."""
        return optimizer.evaluator.merge(losses_at(optimizer, plan, self.closure), 1.0, optimizer.t)


def losses_at(optimizer: ZerothOrder, plan: Sequence[Probe], closure: Closure) -> list[float]:
    """The closure's losses at probes along the optimizer's directions of the present step, of this rank alone."""
    slots = optimizer._active()
    optimizer._refresh(slots)
    return optimizer.evaluator.evaluate(slots, plan, _Probes(optimizer), closure, optimizer.t)


@dataclass(frozen=True)
class Sample:
    """What one batch shows: its loss, c_k, h_k, and of the method's own plan w_k and the variance over eps^2; only loss
    and curvature if it was looked at along one direction alone."""

    loss: float
    slopes: list[float]
    curvatures: list[float]
    weights: list[float]
    spread: float


class Curvature(NamedTuple):
    """A curvature with its standard error, loss per eps^2."""

    value: float
    error: float


def plan_of(optimizer: ZerothOrder, length: float) -> list[Probe]:
    """The weights, and both sides of each direction that is measured."""
    around = [Probe(k, sign * length) for k in range(probed(optimizer)) for sign in (1.0, -1.0)]
    return [Probe(0, 0), *around]


def sample_on(optimizer: ZerothOrder, batch: Batch, length: float) -> Sample:
    """See `Sample`."""
    eps = float(optimizer.param_groups[0]["eps"])
    here, *around = batch.losses(optimizer, plan_of(optimizer, length))
    pairs = list(zip(around[0::2], around[1::2], strict=True))
    slopes = [(plus - minus) / (2.0 * length * eps) for plus, minus in pairs]
    curvatures = [_curvature(here, plus, minus, length * eps) for plus, minus in pairs]
    losses = _own_losses(optimizer, here, slopes, curvatures, eps)
    weights = optimizer._clipped(optimizer.estimator.weigh(losses, eps))
    all_slopes = [slopes[k % len(slopes)] for k in range(len(weights))]
    return Sample(here, all_slopes, curvatures, weights, spread_of(losses, eps))


def without_curvature(optimizer: ZerothOrder, sample: Sample) -> Sample:
    """What the method would make of a sample if the loss were linear."""
    eps = float(optimizer.param_groups[0]["eps"])
    losses = _own_losses(optimizer, sample.loss, sample.slopes, [0.0], eps)
    weights = optimizer._clipped(optimizer.estimator.weigh(losses, eps))
    return replace(sample, weights=weights)


def _own_losses(
    optimizer: ZerothOrder, here: float, slopes: Sequence[float], curvatures: Sequence[float], eps: float
) -> list[float]:
    """What the method's own plan would see, to second order: its probes are of length 1."""
    walked = [(probe.query, probe.sign * eps) for probe in optimizer.estimator.plan]
    return [here + far * slopes[k % len(slopes)] + far**2 / 2 * curvatures[k % len(curvatures)] for k, far in walked]


def look_on(optimizer: ZerothOrder, batch: Batch, length: float, query: int = 0) -> Sample:
    """Loss and curvature along one direction of the present step."""
    eps = float(optimizer.param_groups[0]["eps"])
    plan = [Probe(query, 0), Probe(query, length), Probe(query, -length)]
    here, plus, minus = batch.losses(optimizer, plan)
    return Sample(here, [], [_curvature(here, plus, minus, length * eps)], [], 0.0)


@dataclass
class Spent:
    """What a measurement takes.

    Attributes:
        queries: forward passes over a batch.
        forwards: forward passes of one example.
        error: of the last probes that were too long, or began at weights whose loss is not finite.
    """

    queries: int = 0
    forwards: int = 0
    error: NonFiniteLossError | None = None


def samples_on(
    optimizer: ZerothOrder, batches: Sequence[Batch], length: float, spent: Spent, *, alone: bool = False
) -> list[Sample] | None:
    """Samples on all batches, along one direction alone if asked; None where probes are too long for the loss to be
    finite."""
    stride = max(1, getattr(optimizer, "period", 1), optimizer.param_groups[0].get("period", 1))
    samples, passes = [], 3 if alone else passes_of(optimizer)
    for batch in batches:
        spent.queries += passes
        spent.forwards += passes * batch.rows
        try:
            samples.append((look_on if alone else sample_on)(optimizer, batch, length))
        except NonFiniteLossError as error:
            spent.error = error
            return None
        optimizer.t += stride
    return samples


def rise_of(optimizer: ZerothOrder, curvature: float, samples: Sequence[Sample], length: float) -> float:
    """Share of the samples' loss by which it rises at that length from the weights."""
    loss = statistics.fmean([abs(s.loss) for s in samples])
    walked = length * float(optimizer.param_groups[0]["eps"])
    return walked**2 / 2.0 * curvature / loss if loss else 0.0


def mean_curvature(samples: Sequence[Sample]) -> float:
    """Mean of all h_k."""
    return statistics.fmean([h for sample in samples for h in sample.curvatures])


def is_certain(samples: Sequence[Sample]) -> bool:
    """Whether the mean curvature is above zero by more than chance."""
    return mean_curvature(samples) > SURE * error_of(samples)


def error_of(samples: Sequence[Sample]) -> float:
    """Standard error of the mean curvature."""
    curvatures = [h for sample in samples for h in sample.curvatures]
    return statistics.stdev(curvatures) / math.sqrt(len(curvatures)) if len(curvatures) > 1 else math.inf


def _curvature(here: float, plus: float, minus: float, distance: float) -> float:
    """The second difference of losses at and on both sides of the weights."""
    return (plus + minus - 2.0 * here) / distance**2


def probed(optimizer: ZerothOrder) -> int:
    """Directions of a step along which it is measured; they stand for the others."""
    return min(DIRECTIONS, optimizer.estimator.directions)


def passes_of(optimizer: ZerothOrder) -> int:
    """Queries of `plan_of`."""
    return 2 * probed(optimizer) + 1


def curvature_now(optimizer: ZerothOrder, batches: Sequence[Batch], length: float) -> Curvature | None:
    """The curvature of `Rate` at the present weights, along one direction for each batch: those of the coming step, but
    others than its queries'.  None where a loss is not finite."""
    try:
        found = [look_on(optimizer, batch, length, _OTHERS + number) for number, batch in enumerate(batches)]
    except NonFiniteLossError:
        return None
    return Curvature(mean_curvature(found), error_of(found))


def spread_of(losses: Sequence[float], eps: float) -> float:
    """Variance of losses over eps^2."""
    shifted = [loss - losses[0] for loss in losses]  # exact where they are large and alike
    mean = math.fsum(shifted) / len(shifted)
    return math.fsum((x - mean) ** 2 for x in shifted) / len(shifted) / eps**2
