"""Timing of alternatives that take turns in one process, so that what disturbs the machine disturbs all alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch

Clock: TypeAlias = Callable[[], float]
Samples: TypeAlias = Mapping[str, Sequence[float]]


def wall_clock(device: torch.device) -> Clock:
    """Seconds that pass; on a GPU up to the end of all work given to it."""
    if device.type != "cuda":
        return time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def take_turns(
    sides: Mapping[str, Callable[[], object]],
    *,
    clock: Clock,
    rounds: int,
    seconds: float = math.inf,
    before: Mapping[str, Callable[[], object]] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each side in each round.

    Args:
        sides: what to run, by name; in each round all run once, in order.
        clock: `time.process_time` (of one thread: unmoved by other programs) or `wall_clock`.
        rounds: 1 or more.
        seconds: no round begins later than this after the start.
        before: what to do before a side begins, not timed.
    """
    samples: dict[str, list[float]] = {name: [] for name in sides}
    start = time.perf_counter()
    for done in range(rounds):
        if done and time.perf_counter() - start > seconds:
            break
        for name, run in sides.items():
            if before and name in before:
                before[name]()
            begin = clock()
            run()
            samples[name].append(clock() - begin)
    return samples


def ratio(samples: Samples, side: str, base: str, count: int) -> tuple[float, float, float]:
    """Median, lower and upper quartile over the rounds of side / (count x base).

    The base of a round is the mean of its own and the next round's, which run just before and just after the side.
    """
    bases = samples[base]
    around = [(before + after) / 2 for before, after in zip(bases, [*bases[1:], bases[-1]], strict=True)]
    return quartiles([s / (count * b) for s, b in zip(samples[side], around, strict=True)])


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile of one value or more."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def spread(values: Sequence[float]) -> float | None:
    """Distance of the quartiles over the median (of three values: half of their range); None of fewer than two."""
    if len(values) < 2:
        return None
    middle, low, high = quartiles(values)
    return (high - low) / middle if middle > 0.0 else None
