"""Content of summary.json: what a run reached and what it cost."""

import math
from pathlib import Path
from typing import Any

from .rows import Row, method_name, read_config, read_rows

_NOT_METRICS = ("epoch", "lr", "seconds", "memory_mb")
_NOT_SETTINGS = ("versions", "method")


def build_summary(run_dir: Path) -> dict[str, Any]:
    """Method, settings, evaluations and cost of a run, from its metrics.csv and config.json.

    ``first``, ``best`` and ``final`` are evaluations with step, queries, forwards, loss, accuracy and further metrics
    (None where there was none); ``first`` may be that of the untrained weights, and ``best``, the one of highest
    accuracy (ties: of lower loss, then the earlier one), which is what best/ keeps, too. ``seconds`` counts training
    and evaluation, ``peak_memory_mb`` is in 10**6 bytes.

    Raises:
        ValueError: metrics.csv is missing or damaged.
    """
    train, evaluations = read_rows(run_dir)
    config = read_config(run_dir)
    rows = train + evaluations
    return {
        "method": method_name(config),
        "first": _evaluation(evaluations[0] if evaluations else None),
        "best": _evaluation(_best(evaluations)),
        "final": _evaluation(evaluations[-1] if evaluations else None),
        "final_training_loss": _finite(train[-1]["loss"]) if train else None,
        "steps": len(train),
        "queries": int(max(row["queries"] for row in rows)),
        "forwards": int(max(row["forwards"] for row in rows)),
        "seconds": max(row["seconds"] for row in rows),
        "peak_memory_mb": max(row["memory_mb"] for row in rows),
        "settings": {name: value for name, value in config.items() if name not in _NOT_SETTINGS},
        "versions": config.get("versions", {}),
    }


def _best(evaluations: list[Row]) -> Row | None:
    counted = [row for row in evaluations if "accuracy" in row and math.isfinite(row.get("loss", 0.0))]
    return max(counted, key=lambda row: (row["accuracy"], -row.get("loss", 0.0), -row["step"]), default=None)


def _evaluation(row: Row | None) -> dict[str, float | int | None] | None:
    if row is None:
        return None
    counts = ("step", "queries", "forwards")
    values = {name: _finite(value) for name, value in row.items() if name not in (*counts, *_NOT_METRICS)}
    return {name: int(row[name]) for name in counts} | values


def _finite(value: float) -> float | None:
    """JSON has neither nan nor infinity."""
    return value if math.isfinite(value) else None
