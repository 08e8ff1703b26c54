"""The facts of a trajectory as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from zotune.reports.trajectory_about import about_lines, value_text

_LABEL: Final = 15  # width of the first column
_LISTED: Final = 12  # evaluations in the lines; JSON has all
_HIDDEN: Final = frozenset({"input_dim", "seed", "params", "param_names", "initial_lr", "max_lr", "min_lr"})
"""Of the settings of a group: what is told elsewhere, and what only the optimizer and schedules use."""

_EVENTS: Final = {
    "evaluation": ("evaluation", "evaluations"),
    "curvature": ("measurement of the curvature", "measurements of the curvature"),
    "portions": ("change to smaller portions of a batch", "changes to smaller portions of a batch"),
    "weights": ("digest of the weights", "digests of the weights"),
}
"""The kinds of events that zotune itself writes, for one and for several."""


def lines(facts: Mapping[str, Any]) -> list[str]:
    """One line a fact, the name in front."""
    return [printable(f"{label:<{_LABEL}}{text}".rstrip()) for label, text in _entries(facts)]


def printable(text: str) -> str:
    """A line with nothing that a terminal would obey: names in a file may be anything."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _entries(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "file", facts["file"]
    yield "size", _size(facts)
    yield "checksums", _state(facts)
    yield from _method(facts)
    yield from about_lines(facts["about"], facts["method"])
    yield from _parameters(facts["parameters"])
    versions = facts["versions"]
    named = {"format": versions["format"], "noise": facts["noise"], **versions}
    yield "versions", ", ".join(f"{name} {version}" for name, version in named.items())
    steps = facts["steps"]
    yield "steps", f"{steps['count']:,}" + (f", after {steps['first']:,} others" if steps["first"] else "")
    yield "queries", f"{facts['queries']:,}"
    yield "learning rate", _rates(facts["learning_rate"])
    yield from _losses(facts["losses"])
    yield "events", _events(facts["events"])
    yield from _evaluations(facts["evaluations"])
    for row in facts["listed"]:
        yield f"step {row['step']}", "  ".join(f"{loss:.9g}" for loss in row["losses"])


def _size(facts: Mapping[str, Any]) -> str:
    """The whole file, then its parts: what grows with the run apart from what is there once."""
    sizes = facts["sizes"]
    per = sizes["steps_per_query"]
    steps = f"{sizes['steps']:,} of losses and rates" + ("" if per is None else f" ({per:.1f} a query)")
    return f"{facts['bytes']:,} bytes: {steps}, {sizes['header']:,} of the header, {sizes['events']:,} of events"


def _events(counts: Mapping[str, int]) -> str:
    told = []
    for kind, count in counts.items():
        one, several = _EVENTS.get(kind, (kind, f"x {kind}"))
        told.append(f"{count:,} {one if count == 1 else several}")
    return ", ".join(told) or "none"


def _state(facts: Mapping[str, Any]) -> str:
    sound = f"all right for the {facts['steps']['count']:,} whole steps"
    return {
        "whole": "all right, from the first byte to the last",
        "torn": f"{sound}; the file ends within a record, as it does when a program is killed",
        "damaged": f"{sound}; what follows them is damaged",
    }[facts["state"]]


def _method(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    groups = facts["groups"]
    # What all groups have in common was mostly an argument, and stands there.
    common = {k: v for k, v in (groups[0] if groups else {}).items() if all(g.get(k, groups) == v for g in groups)}
    named = {**common, **facts["arguments"]}
    hidden = _HIDDEN | (frozenset() if named.get("momentum") else {"momentum_bits"})
    named = {k: v for k, v in named.items() if k not in hidden and v is not None}
    in_order = sorted(named.items(), key=lambda item: (item[0] != "lr", item[0]))
    yield "method", f"{facts['method']}({', '.join(f'{k}={value_text(v)}' for k, v in in_order)})"
    own = [{k: v for k, v in group.items() if k not in common and k not in hidden} for group in groups]
    for number, settings in enumerate(own if any(own) else []):
        weights = f"{facts['parameters']['weights_by_group'][number]:,} weights"
        yield f"group {number}", ", ".join([*(f"{k}={value_text(v)}" for k, v in settings.items()), weights])
    yield "seed", f"{facts['seed']}, of the directions"


def _parameters(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    types = ", ".join(told["dtypes"])
    part = told["taking_part"]
    trained = "all take part" if part == told["weights"] else f"{part:,} take part in the first step"
    yield "parameters", f"{told['weights']:,} weights in {told['tensors']} tensors ({types}); {trained}"
    yield "digest", f"{told['digest']}, of these weights before the first step"


def _rates(told: Mapping[str, Any]) -> str:
    if not told:
        return "none"
    differ = " (of the first group; others have other ones)" if told["groups_differ"] else ""
    if not told["changes"]:
        return f"{told['first']:g} throughout{differ}"
    changes = "once" if told["changes"] == 1 else f"{told['changes']:,} times"
    between = f", between {told['smallest']:g} and {told['largest']:g}"
    return f"{told['first']:g} at first, {told['last']:g} at last, changed {changes}{between}{differ}"


def _losses(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if not told:
        yield "losses", "none"
        return
    least = f"smallest {told['smallest']:.6g} (step {told['smallest_at']})"
    yield "losses", f"first {told['first']:.6g}, last {told['last']:.6g}, {least}; each the mean of a step"
    spread = f"{told['spread_mean']:.3g} on average, {told['spread_largest']:.3g} at most"
    yield "spread", f"largest minus smallest loss of a step: {spread}"


def _evaluations(rows: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    kept = rows if len(rows) <= _LISTED else [*rows[: _LISTED // 2], *rows[-_LISTED // 2 :]]
    for row in kept:
        numbers = {k: v for k, v in row.items() if isinstance(v, (int, float)) and k != "step"}
        yield "evaluation", f"after step {row['step']}: " + ", ".join(f"{k} {v:.6g}" for k, v in numbers.items())
    if len(kept) < len(rows):
        yield "evaluation", f"{len(rows) - len(kept)} between them are left out; --json has them all"
