"""What a trajectory holds, in numbers: gathered once, then told as lines, as JSON or as a picture."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

from zotune.trajectory.frames import MAGIC, Frames, TrajectoryError
from zotune.trajectory.header import Header
from zotune.trajectory.reader import Event, Step, Trajectory

EVALUATION = "evaluation"
_PART_OF: Final = {"H": "header", "E": "events"}
"""Of a file, by kind of the frame; all others are of steps."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """The steps of a trajectory.

    Attributes:
        numbers: of the steps.
        means: mean loss of each, over the queries at the weights.
        spreads: largest minus smallest loss of each.
        rates: learning rate of the first group.
        groups_differ: whether some step had other rates in other groups.
        losses: of the steps that are to be listed.
        events: what happened between steps.
        trained: weights that took part in the first step.
    """

    numbers: list[int]
    means: list[float]
    spreads: list[float]
    rates: list[float | None]
    groups_differ: bool
    losses: list[tuple[int, tuple[float, ...]]]
    events: list[Event]
    trained: int


def gather(trajectory: Trajectory, span: tuple[int, int | None] | None = None) -> Series:
    """Read all steps and events; the losses themselves are kept for the steps of `span` only."""
    header = trajectory.header
    rates = [_number(group.get("lr")) for group in header.groups]
    numbers: list[int] = []
    means: list[float] = []
    spreads: list[float] = []
    firsts: list[float | None] = []
    losses: list[tuple[int, tuple[float, ...]]] = []
    events: list[Event] = []
    differ, trained = False, header.elements
    for item in trajectory.items():
        if isinstance(item, Event):
            events.append(item)
            continue
        for group, values in item.settings.items():
            if group < len(rates):
                rates[group] = _number(values.get("lr"))
        if item.rate is not None:
            rates = [item.rate] * len(rates)
        if item.active is not None and not numbers:
            trained = weights_of(header, item.active)
        own = _at_the_weights(header, item)
        numbers.append(item.number)
        means.append(math.fsum(own) / len(own))
        spreads.append(max(item.losses) - min(item.losses))
        firsts.append(rates[0] if rates else None)
        differ = differ or len(set(rates)) > 1
        if span is not None and span[0] <= item.number and (span[1] is None or item.number < span[1]):
            losses.append((item.number, item.losses))
    return Series(
        numbers=numbers,
        means=means,
        spreads=spreads,
        rates=firsts,
        groups_differ=differ,
        losses=losses,
        events=events,
        trained=trained,
    )


def facts(trajectory: Trajectory, series: Series) -> dict[str, Any]:
    """All that is told, as JSON has it.

    Raises:
        TrajectoryError: the file cannot be read any more.
    """
    header, about = trajectory.header, trajectory.header.about
    versions = about.get("versions")
    return {
        "file": str(trajectory.path),
        "bytes": trajectory.size + trajectory.cut,
        "bytes_per_query": trajectory.size / trajectory.queries if trajectory.queries else None,
        "sizes": _sizes(trajectory),
        "state": "whole" if not trajectory.cut else "torn" if trajectory.torn else "damaged",
        "problem": trajectory.problem,
        "method": header.method,
        "arguments": header.arguments,
        "groups": list(header.groups),
        "seed": header.arguments.get("seed", 0),
        "noise": header.noise,
        "versions": {"format": header.format, "zotune": header.zotune}
        | (versions if isinstance(versions, dict) else {}),
        "about": {name: value for name, value in about.items() if name != "versions"},
        "parameters": {
            "tensors": len(header.parameters),
            "weights": header.elements,
            "taking_part": series.trained,
            "weights_by_group": _weights_by_group(header),
            "dtypes": dict(Counter(p.dtype for p in header.parameters)),
            "digest": f"0x{header.digest:016x}",
        },
        "steps": {"first": header.start, "count": trajectory.steps, "end": trajectory.end},
        "queries": trajectory.queries,
        "learning_rate": _rates(series),
        "losses": _losses(series),
        "events": dict(Counter(event.kind for event in series.events)),
        "evaluations": [{"step": event.step, **_metrics(event)} for event in series.events if event.kind == EVALUATION],
        "listed": [{"step": number, "losses": list(losses)} for number, losses in series.losses],
    }


def _sizes(trajectory: Trajectory) -> dict[str, Any]:
    """Bytes of the header, of the steps (losses, with the rates and settings that changed) and of the events."""
    found = {"header": len(MAGIC), "steps": 0, "events": 0}
    try:
        with trajectory.path.open("rb") as file:
            for frame in Frames(file, trajectory.size):
                found[_PART_OF.get(frame.kind, "steps")] += frame.end - frame.start
    except OSError as error:
        raise TrajectoryError(f"{trajectory.path} cannot be read ({error.strerror or error})") from error
    return {**found, "steps_per_query": found["steps"] / trajectory.queries if trajectory.queries else None}


def evaluations(series: Series, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of the evaluations that have told a number of this name."""
    found = [(e.step, _metrics(e).get(name)) for e in series.events if e.kind == EVALUATION]
    numbers = [(step, value) for step, value in found if isinstance(value, (int, float)) and math.isfinite(value)]
    return [step for step, _ in numbers], [float(value) for _, value in numbers]


def _metrics(event: Event) -> dict[str, Any]:
    """The numbers of an evaluation, without the prefix that the library gives them."""
    told = event.facts.get("metrics")
    if not isinstance(told, dict):
        return {}
    return {str(name).removeprefix("eval_"): value for name, value in told.items()}


def _at_the_weights(header: Header, step: Step) -> tuple[float, ...]:
    """The losses around the weights: MeZO-SVRG also takes some around its anchor, which are the second half."""
    period = header.arguments.get("period", 2)
    if header.method == "MeZOSVRG" and isinstance(period, int) and period > 0 and step.number % period:
        return step.losses[: len(step.losses) // 2] or step.losses
    return step.losses


def _rates(series: Series) -> dict[str, Any]:
    known = [rate for rate in series.rates if rate is not None]
    if not known:
        return {}
    changes = sum(1 for before, after in itertools.pairwise(known) if before != after)
    return {
        "first": known[0],
        "last": known[-1],
        "smallest": min(known),
        "largest": max(known),
        "changes": changes,
        "groups_differ": series.groups_differ,
    }


def _losses(series: Series) -> dict[str, Any]:
    if not series.means:
        return {}
    least = min(range(len(series.means)), key=series.means.__getitem__)
    return {
        "first": series.means[0],
        "last": series.means[-1],
        "smallest": series.means[least],
        "smallest_at": series.numbers[least],
        "spread_mean": math.fsum(series.spreads) / len(series.spreads),
        "spread_largest": max(series.spreads),
    }


def weights_of(header: Header, names: frozenset[str]) -> int:
    """Weights of the named parameters."""
    return sum(math.prod(p.shape) for p in header.parameters if p.name in names)


def _weights_by_group(header: Header) -> list[int]:
    found = [0] * len(header.groups)
    for parameter in header.parameters:
        found[parameter.group] += math.prod(parameter.shape)
    return found


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
