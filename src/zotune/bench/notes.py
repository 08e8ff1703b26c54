"""What the figures of `zotune bench` are worth: the lines below its table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from zotune.bench.clock import spread
from zotune.bench.costs import FORWARD, STEP, Cost
from zotune.bench.measure import Refused
from zotune.bench.texts import seconds_texts
from zotune.config import BenchConfig

_SMALL: Final = 10**8  # bytes of a forward pass: below, the few MB by which a process differs count
_CERTAIN: Final = 0.1  # of a time


@dataclass(frozen=True, kw_only=True)
class Certainty:
    """How far the figures can be trusted.

    Attributes:
        small: whether the model is so small that the memory of the process is noise beside it.
        time: by what part of themselves times are uncertain; None where nothing tells.
    """

    small: bool
    time: float | None

    @property
    def rough(self) -> bool:
        """Whether times are too uncertain for two decimals of a ratio."""
        return self.time is not None and self.time > _CERTAIN

    @property
    def time_places(self) -> int:
        """Decimals of a ratio of times."""
        return 1 if self.rough else 2

    @property
    def memory_places(self) -> int:
        """Decimals of a ratio of memories."""
        return 1 if self.small else 2


def certainty(entries: Sequence[Cost | Refused], device: torch.device) -> Certainty:
    """What the measurements say about themselves; of what is foretold nothing is known.

    Times are as uncertain as those of the forward pass, which is the same work beside every method, over all methods
    and rounds: that shows what the machine did besides in the meantime.  Or, if that is more, as the rounds of a method
    in the middle.  Both are the distance of the quartiles over the median.
    """
    costs = [entry for entry in entries if isinstance(entry, Cost) and entry.samples is not None]
    forward = spread([seconds for cost in costs for seconds in cost.rounds(FORWARD)])
    own = [found for cost in costs if (found := spread(cost.rounds(STEP))) is not None]
    figures = [found for found in (forward, statistics.median(own) if own else None) if found is not None]
    return Certainty(
        small=device.type == "cpu" and any(cost.inference is not None and cost.inference < _SMALL for cost in costs),
        time=max(figures, default=None),
    )


def notes(config: BenchConfig, entries: Sequence[Cost | Refused], trust: Certainty) -> list[str]:
    """Why rows have no numbers, how certain the others are, and what is not plain in them."""
    costs = [entry for entry in entries if isinstance(entry, Cost)]
    how = "foretold" if config.plan else "measured"
    lines = [
        f"{entry.variant.title}: {entry.reason}."
        if entry.memory
        else f"{entry.variant.title} was not {how}: {entry.reason.rstrip('.')}."
        for entry in entries
        if isinstance(entry, Refused)
    ]
    if config.plan and costs:
        lines.append(
            "Foretold times are rough, and several times too short for models of a few million weights or fewer, whose"
            " time is not in matrix products; without --plan they are measured."
        )
    return [*lines, *_times(costs, trust), *_memory(costs, trust), *_snapshots(config, costs)]


def batches_of(config: BenchConfig) -> int:
    """Batches of the training sample."""
    return -(-config.samplesize // config.batchsize)


def of_inference(cost: Cost) -> float | None:
    """Memory over that of a forward pass; None where the system does not tell."""
    return cost.memory / cost.inference if cost.memory and cost.inference else None


def _times(costs: Sequence[Cost], trust: Certainty) -> list[str]:
    lines = []
    if trust.rough:
        assert trust.time is not None
        forward = [seconds for cost in costs for seconds in cost.rounds(FORWARD)]
        least, most = seconds_texts([min(forward), max(forward)])
        example = f" (the same forward pass took from {least} to {most})" if (spread(forward) or 0.0) > _CERTAIN else ""
        lines.append(
            f"Times are uncertain by about {100 * trust.time:.0f} %: the machine was busy with other work{example}."
            " Measure again when it is idle."
        )
    elif shaken := [(cost, found) for cost in costs if (found := spread(cost.rounds(STEP)) or 0.0) > _CERTAIN]:
        named = ", ".join(f"{cost.variant.title} by {100 * found:.0f} %" for cost, found in shaken)
        lines.append(f"The times of some methods are uncertain, as their rounds tell: {named}.")
    below = {cost.variant.algorithm == "LOZO" for cost in costs if round(cost.ratio, trust.time_places) < 1.0}
    if True in below:
        lines.append("LOZO can make its forward passes together, which takes less time than one after another.")
    if False in below:
        lines.append(f"x passes below 1 is noise{', but for LOZO' if True in below else ''}.")
    return lines


def _memory(costs: Sequence[Cost], trust: Certainty) -> list[str]:
    below = any(found is not None and round(found, trust.memory_places) < 1.0 for found in map(of_inference, costs))
    if trust.small:
        return [
            "x inference is uncertain: a forward pass takes less than 100 MB, beside which the memory of the process"
            f" itself is noise{' (as a ratio below 1 shows)' if below else ''}."
        ]
    return ["x inference below 1 is noise: a step takes at least the memory of a forward pass."] if below else []


def _snapshots(config: BenchConfig, costs: Sequence[Cost]) -> list[str]:
    if not any(cost.duration(config.steps, batches_of(config)) > config.steps * cost.seconds for cost in costs):
        return []
    return [
        f"MeZO-SVRG: {config.steps} steps take longer than {config.steps} x step, as every second one (--q 2) is a"
        f" snapshot, two forward passes of all {config.samplesize} rows of --samplesize."
    ]
