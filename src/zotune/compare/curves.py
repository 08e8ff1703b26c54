"""What a run of a comparison has measured, read from its folder, against what it has spent."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from zotune.compare.plan import Cell
from zotune.compare.running import has_blown, run_folder, state_of
from zotune.config import LIBRARIES, MEASURED, ConfigError, shortened
from zotune.hf.pacing import steps_again
from zotune.reports.rows import Row, read_rows, training_seconds
from zotune.run.budget import FIRST_ORDER

Numbers = npt.NDArray[np.float64]

LAST: Final = 0.1
"""Share of a run at its end over which training losses, which are those of single batches, are averaged."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """Series of one kind, an entry for every evaluation or step.

    Attributes:
        cost: forward passes of one example so far; a backward pass counts two.
        step: steps so far.
        seconds: of training so far, evaluations left out.
        values: metrics by name; nan where one is missing.
    """

    cost: Numbers
    step: Numbers
    seconds: Numbers
    values: dict[str, Numbers]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """A run that has ended.

    Attributes:
        label: of its method in the comparison.
        algorithm: name in `ALGORITHMS`.
        method: name that has a colour, "LOZO-M" for LOZO with momentum.
        trial: number of the repetition.
        diverged: the loss became infinite or NaN, or rose too far, see `zotune.compare.running.has_blown`.
        evaluations: of the validation rows; "loss", "accuracy" and further metrics.
        training: loss of every step.
        memory_mb: peak, 10**6 bytes; on a CPU that of the whole process.
        libraries_mb: what the process on a CPU held beside the model before the first step, 0 on a GPU.
        settings: of the run.
        command: words of its command line.
    """

    label: str
    algorithm: str
    method: str
    trial: int
    diverged: bool
    evaluations: Curve
    training: Curve
    memory_mb: float
    libraries_mb: float = 0.0
    settings: dict[str, Any]
    command: list[str]

    def final(self, metric: str) -> float:
        """The metric after the last step; nan for a run that diverged or has no such metric."""
        values = self.evaluations.values.get(metric)
        return float("nan") if self.diverged or values is None or not len(values) else float(values[-1])

    @property
    def training_loss(self) -> float:
        """Mean training loss over the last tenth of what was spent; nan for a run that diverged."""
        cost, losses = self.training.cost, self.training.values.get("loss")
        if self.diverged or losses is None or not len(losses):
            return float("nan")
        return float(losses[cost > (1.0 - LAST) * cost[-1]].mean())


def read_result(cell: Cell) -> Result | None:
    """The result of a cell, None for one whose run has not ended.

    Raises:
        ConfigError: its files are damaged.
    """
    state, run = state_of(cell.folder), run_folder(cell.folder)
    if run is None or state not in ("finished", "diverged"):
        return None
    try:
        return _read(cell, run, diverged=state == "diverged")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ConfigError(
            f"{cell}: the files in {shortened(run)} are not as the run wrote them ({reason}); restore them, or remove"
            " that folder and the run is made again."
        ) from error


def _read(cell: Cell, run: Path, *, diverged: bool) -> Result:
    train, evaluations = read_rows(run)
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    last = (summary["final"] or {}).get("loss")
    if summary["steps"] != len(train) or (last is not None and last != evaluations[-1]["loss"]):
        raise ValueError("rows are missing")
    measured = config.get(MEASURED) or {"forwards": 0, "seconds": 0.0}
    passes = 1 if cell.config.zeroth_order else FIRST_ORDER
    seconds = training_seconds(train, evaluations)
    before = _Before(
        forwards=int(measured["forwards"]),
        later=int(measured.get("later") or 0),
        seconds=float(measured["seconds"]),
        steps=int(measured.get("steps") or len(train)),  # planned, of which a run may not have made all
    )
    return Result(
        label=cell.entry.label,
        algorithm=cell.entry.algorithm,
        method=str(config.get("method") or cell.entry.method),
        trial=cell.trial,
        diverged=diverged or has_blown(evaluations),
        evaluations=_curve(evaluations, passes, seconds, before),
        training=_curve(train, passes, seconds, before),
        memory_mb=max(row["memory_mb"] for row in train + evaluations),
        libraries_mb=float(config.get(LIBRARIES) or 0.0),
        settings={name: value for name, value in config.items() if name not in ("versions", "checksum")},
        command=["zotune", *cell.words],
    )


@dataclasses.dataclass(frozen=True)
class _Before:
    """What `--lr auto` has spent, of which a part comes in the midst of the run."""

    forwards: int
    later: int
    seconds: float
    steps: int

    def at(self, step: float) -> int:
        """Forward passes up to the end of a step."""
        due = steps_again(self.steps)
        return self.forwards - self.later * sum(step <= again for again in due) // len(due)


def _curve(rows: list[Row], passes: int, seconds: dict[float, float], before: _Before) -> Curve:
    """The series of rows; `--lr auto` may have spent forward passes and seconds ``before``."""
    names = {name for row in rows for name in row} - _COUNTS
    return Curve(
        cost=np.array([row["forwards"] * passes + before.at(row["step"]) for row in rows]),
        step=np.array([row["step"] for row in rows]),
        seconds=np.array([seconds.get(row["step"], np.nan) + before.seconds for row in rows]),
        values={name: np.array([row.get(name, np.nan) for row in rows]) for name in sorted(names)},
    )


_COUNTS = {"step", "epoch", "queries", "forwards", "seconds", "memory_mb", "lr"}


def read_results(cells: list[Cell]) -> list[Result]:
    """The results of all cells that have ended, in their order."""
    return [result for cell in cells if (result := read_result(cell)) is not None]
