"""Reading a run folder: metrics.csv and config.json."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, float]


def read_rows(run_dir: Path) -> tuple[list[Row], list[Row]]:
    """Training rows and evaluation rows of ``metrics.csv``; empty fields are left out.

    A last line that a killed run has left unfinished is skipped.

    Raises:
        ValueError: there is no metrics.csv, it has no rows, or a field is no number.
    """
    path = Path(run_dir) / "metrics.csv"
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give the folder of a run that has begun training.")
    text = path.read_text(encoding="utf-8")
    kinds: dict[str, list[Row]] = {"train": [], "eval": []}
    for number, row in enumerate(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()), start=2):
        kind = row.pop("kind", "")
        try:
            kinds[kind].append({name: float(value) for name, value in row.items() if value})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"Line {number} of {path} is not a row of metrics; restore the file or run again."
            ) from error
    if not kinds["train"] and not kinds["eval"]:
        raise ValueError(f"{path} has no rows yet; wait for the first step of the run.")
    return kinds["train"], kinds["eval"]


def read_config(run_dir: Path) -> dict[str, Any]:
    """Content of ``config.json``; empty where the run was not started by the command line."""
    path = Path(run_dir) / "config.json"
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def method_name(config: dict[str, Any]) -> str:
    """Name of the method in tables and figures: LOZO with momentum is LOZO-M."""
    return str(config.get("method") or config.get("algorithm") or "")


def training_seconds(train: Sequence[Row], evaluations: Sequence[Row]) -> dict[float, float]:
    """Step to seconds of training up to its end: the clock runs on during evaluations, so those are taken off."""
    rows = sorted([(row["step"], 0, row) for row in train] + [(row["step"], 1, row) for row in evaluations], key=_order)
    result, before, evaluating = {0.0: 0.0}, 0.0, 0.0
    for step, evaluation, row in rows:
        if evaluation:
            evaluating += row["seconds"] - before
        else:
            result[step] = row["seconds"] - evaluating
        before = row["seconds"]
    return result


def _order(row: tuple[float, int, Row]) -> tuple[float, int]:
    return row[:2]
