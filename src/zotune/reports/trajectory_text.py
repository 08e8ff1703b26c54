"""The facts of a trajectory as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

_LABEL: Final = 15  # width of the first column
_LISTED: Final = 12  # evaluations in the lines; JSON has all
_HIDDEN: Final = frozenset({"input_dim", "seed", "params", "param_names"})


def lines(facts: Mapping[str, Any]) -> list[str]:
    """One line a fact, the name in front."""
    return [printable(f"{label:<{_LABEL}}{text}".rstrip()) for label, text in _entries(facts)]


def printable(text: str) -> str:
    """A line with nothing that a terminal would obey: names in a file may be anything."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _entries(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "file", facts["file"]
    size = f"{facts['bytes']:,} bytes"
    per = facts["bytes_per_query"]
    yield "size", size if per is None else f"{size}, {per:.2f} a query"
    yield "checksums", _state(facts)
    yield from _method(facts)
    yield from _run(facts)
    yield from _parameters(facts["parameters"])
    steps = facts["steps"]
    yield "steps", f"{steps['count']:,}, from {steps['first']:,} to {steps['end']:,}"
    yield "queries", f"{facts['queries']:,}"
    yield "learning rate", _rates(facts["learning_rate"])
    yield from _losses(facts["losses"])
    yield "events", ", ".join(f"{count} x {kind}" for kind, count in facts["events"].items()) or "none"
    yield from _evaluations(facts["evaluations"])
    for row in facts["listed"]:
        yield f"step {row['step']}", "  ".join(f"{loss:.9g}" for loss in row["losses"])


def _state(facts: Mapping[str, Any]) -> str:
    sound = f"all right for the {facts['steps']['count']:,} whole steps"
    return {
        "whole": "all right, from the first byte to the last",
        "torn": f"{sound}; the file ends within a record, as it does when a program is killed",
        "damaged": f"{sound}; what follows them is damaged",
    }[facts["state"]]


def _method(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    arguments = {**facts["arguments"]}
    groups = facts["groups"]
    # What all groups have in common was mostly an argument, and stands there.
    common = {k: v for k, v in (groups[0] if groups else {}).items() if all(g.get(k, groups) == v for g in groups)}
    named = {**common, **arguments}
    named = {k: v for k, v in named.items() if k not in _HIDDEN and v is not None}
    yield "method", f"{facts['method']}({', '.join(f'{k}={_value(v)}' for k, v in sorted(named.items()))})"
    for number, group in enumerate(groups if len(groups) > 1 else []):
        own = ", ".join(f"{k}={_value(v)}" for k, v in group.items() if k not in common or k == "input_dim")
        yield f"group {number}", own or "as the method"
    yield "seed", str(facts["seed"])
    yield "noise", str(facts["noise"])


def _run(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    about = {name: value for name, value in facts["about"].items() if value is not None}
    if about:
        yield "about", ", ".join(f"{name}={_value(value)}" for name, value in about.items())


def _parameters(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    types = ", ".join(told["dtypes"])
    part = told["taking_part"]
    trained = "all take part" if part == told["weights"] else f"{part:,} take part in the first step"
    yield "parameters", f"{told['weights']:,} weights in {told['tensors']} tensors ({types}); {trained}"
    yield "digest", f"{told['digest']} before the first step"


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
    yield "losses", f"first {told['first']:.6g}, last {told['last']:.6g}, {least}; means of a step"
    yield "spread", f"{told['spread_mean']:.3g} on average, {told['spread_largest']:.3g} at most, within a step"


def _evaluations(rows: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    kept = rows if len(rows) <= _LISTED else [*rows[: _LISTED // 2], *rows[-_LISTED // 2 :]]
    for row in kept:
        numbers = {k: v for k, v in row.items() if isinstance(v, (int, float)) and k != "step"}
        yield "evaluation", f"after step {row['step']}: " + ", ".join(f"{k} {v:.6g}" for k, v in numbers.items())
    if len(kept) < len(rows):
        yield "evaluation", f"{len(rows) - len(kept)} between them are left out; --json has them all"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return text if len(text) <= 120 else f"{text[:100]}..."
