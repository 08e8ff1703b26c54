"""Sizes and times for people."""

from __future__ import annotations

import math
from collections.abc import Sequence


def memory_text(size: int | None) -> str:
    """Bytes for people: 1 GB is 10**9."""
    if size is None:
        return "?"
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def seconds_texts(seconds: Sequence[float]) -> list[str]:
    """Times all in milliseconds, or all in seconds."""
    if max(seconds, default=0.0) < 1.0:
        return _fixed([1e3 * s for s in seconds], "ms", places=1)
    return _fixed(seconds, "s", places=2)


def durations(seconds: Sequence[float]) -> tuple[str, list[str]]:
    """Times all in one unit: its name where the texts do not have it, and the texts."""
    most = max(seconds, default=0.0)
    if most < 100.0:
        return "", seconds_texts(seconds)
    if most < 6000.0:
        return "min:s", [_clock(s) for s in seconds]
    return "h:min", [_clock(s / 60.0) for s in seconds]


def _fixed(values: Sequence[float], unit: str, *, places: int) -> list[str]:
    """As many places for all as the smallest needs to have two digits."""
    least = min((value for value in values if value > 0.0), default=1.0)
    places = max(places, 1 - math.floor(math.log10(least)))
    return [f"{value:.{places}f} {unit}" for value in values]


def _clock(count: float) -> str:
    large, small = divmod(round(count), 60)
    return f"{large}:{small:02}"
