"""What can be said about runs of several methods: means, differences in pairs, and what it took to reach a target.

Trials of the same number share examples, order, new head and (per method) the seed of the directions, so methods are
compared trial by trial: the differences of a pair have a mean d, a standard deviation s over n trials, and the
confidence interval d +- t s / sqrt(n) with Student's t of n - 1 degrees of freedom.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy import stats

from zotune.compare.curves import Curve, Numbers, Result

CONFIDENCE: Final = 0.95
HIGHER_IS_BETTER: Final = frozenset({"accuracy", "f1", "macro_f1", "positive_f1", "matthews", "exact_match"})


@dataclasses.dataclass(frozen=True)
class Mean:
    """Mean and standard deviation (nan for one number) of so many numbers; nan for none."""

    mean: float
    deviation: float
    count: int


@dataclasses.dataclass(frozen=True)
class Difference:
    """A method minus the reference, over the trials that both have: mean, ends of the interval, number of trials."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out; one of no width, of equal differences, tells nothing."""
        return self.low < self.high and (self.low > 0.0 or self.high < 0.0)


@dataclasses.dataclass(frozen=True)
class Reached:
    """What it took to reach a target: medians over all runs, nan where half of them or more did not; how many did, and
    of how many."""

    cost: float
    seconds: float
    reached: int
    runs: int


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and standard deviation of the numbers that are finite."""
    kept = [value for value in values if math.isfinite(value)]
    if not kept:
        return Mean(math.nan, math.nan, 0)
    return Mean(statistics.fmean(kept), statistics.stdev(kept) if len(kept) > 1 else math.nan, len(kept))


def difference(
    method: Sequence[Result], reference: Sequence[Result], metric: str, *, comparisons: int = 1
) -> Difference:
    """The final metric of a method minus that of the reference, trial by trial; diverged runs have no metric.

    Args:
        method: its runs.
        reference: those of the reference.
        metric: name of the values.
        comparisons: how many intervals shall hold at once with the confidence (Bonferroni).
    """
    other = {result.trial: result.final(metric) for result in reference}
    pairs = [result.final(metric) - other[result.trial] for result in method if result.trial in other]
    kept = [pair for pair in pairs if math.isfinite(pair)]
    if not kept:
        return Difference(math.nan, math.nan, math.nan, 0)
    mean = statistics.fmean(kept)
    if len(kept) == 1:
        return Difference(mean, math.nan, math.nan, 1)
    half = (
        float(stats.t.ppf(1 - (1 - CONFIDENCE) / 2 / comparisons, len(kept) - 1))
        * statistics.stdev(kept)
        / math.sqrt(len(kept))
    )
    return Difference(mean, mean - half, mean + half, len(kept))


def target_of(reference: Sequence[Result], metric: str) -> float:
    """The worst of the reference's final metrics, so that all of its runs got there; nan if it has none."""
    finals = [value for value in (result.final(metric) for result in reference) if math.isfinite(value)]
    return (min if metric in HIGHER_IS_BETTER else max)(finals, default=math.nan)


def reaching(method: Sequence[Result], metric: str, target: float) -> Reached:
    """Cost and seconds of the first evaluation after a step that is as good as the target.  A run that does not get
    there takes longer than all that do, and one that diverged later has not got there."""
    costs, seconds = [], []
    for result in method:
        number = None if result.diverged else _first(result.evaluations, metric, target)
        costs.append(math.inf if number is None else float(result.evaluations.cost[number]))
        seconds.append(math.inf if number is None else float(result.evaluations.seconds[number]))
    medians = [statistics.median(found) if found else math.inf for found in (costs, seconds)]
    shown = [median if math.isfinite(median) else math.nan for median in medians]
    return Reached(shown[0], shown[1], sum(map(math.isfinite, costs)), len(method))


def _first(curve: Curve, metric: str, target: float) -> int | None:
    values = curve.values.get(metric)
    if values is None or math.isnan(target):
        return None
    good = values >= target if metric in HIGHER_IS_BETTER else values <= target
    found = np.flatnonzero(good & (curve.step > 0))
    return int(found[0]) if len(found) else None


@dataclasses.dataclass(frozen=True)
class Band:
    """A mean over trials with its standard deviation, against x."""

    x: Numbers
    mean: Numbers
    deviation: Numbers


def band(curves: Sequence[Curve], metric: str, against: str) -> Band | None:
    """Mean and standard deviation of a metric over curves with the same steps; as far as all of them reach.

    Args:
        curves: of the trials of one method.
        metric: name of the values.
        against: "cost", "step" or "seconds" (the mean over the trials).
    """
    curves = [curve for curve in curves if metric in curve.values and len(curve.step)]
    if not curves:
        return None
    length = min(len(curve.step) for curve in curves)
    values = np.stack([curve.values[metric][:length] for curve in curves])
    x = np.stack([getattr(curve, against)[:length] for curve in curves]).mean(axis=0)
    deviation = values.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(length)
    kept = np.isfinite(values).all(axis=0)
    return Band(x[kept], values.mean(axis=0)[kept], deviation[kept])


def binned(curve: Curve, bins: int, end: float) -> Curve:
    """A training curve as means over ``bins`` equal shares of the cost up to ``end``; empty shares are left out."""
    number = np.clip((curve.cost / end * bins).astype(int), 0, bins - 1) if len(curve.cost) else np.array([], dtype=int)
    present = np.unique(number)

    def means(values: Numbers) -> Numbers:
        return np.array([values[number == one].mean() for one in present])

    values = {name: means(series) for name, series in curve.values.items()}
    return Curve(cost=means(curve.cost), step=means(curve.step), seconds=means(curve.seconds), values=values)


def aligned(curves: Sequence[Curve], points: int, end: float) -> list[Curve]:
    """Curves of trials at the same costs, between their own ones along lines: where each has measured its rate, or
    makes snapshots, their steps are made at different costs.

    Args:
        curves: of the trials of one method.
        points: that ``end`` is cut into; those that a curve does not reach are left out.
        end: the largest cost.
    """
    if not all(len(curve.cost) for curve in curves) or not curves:
        return list(curves)
    low, high = max(curve.cost[0] for curve in curves), min(curve.cost[-1] for curve in curves)
    inner = (np.arange(points) + 0.5) * end / points
    cost = np.array([low, *inner[(inner > low) & (inner < high)], *([high] if high > low else [])])

    def at(curve: Curve, series: Numbers) -> Numbers:
        return np.asarray(np.interp(cost, curve.cost, series), dtype=np.float64)

    return [
        Curve(
            cost=cost,
            step=at(curve, curve.step),
            seconds=at(curve, curve.seconds),
            values={name: at(curve, series) for name, series in curve.values.items()},
        )
        for curve in curves
    ]
