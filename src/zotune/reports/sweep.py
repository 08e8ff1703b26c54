"""The files of a search: every run as a row, and the metric against the rate as a picture."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from zotune.reports.style import THEMES
from zotune.reports.sweep_plot import Found, draw
from zotune.sweep.draws import Draws
from zotune.sweep.study import Search, scores_of, spent_by


def write_sweep(out: Path, searches: Sequence[Search], metric: str) -> None:
    """Write ``trials.csv`` and ``sweep.png`` (and .svg, and both for a dark ground) into the folder of a search.

    As in best.json, rows of methods that an earlier search there had and these have not stay in the table; the figure
    is of these alone.
    """
    trials = {search.entry.label: search.study.get_trials(deepcopy=False) for search in searches}
    draws = {search.entry.label: search.draws for search in searches}
    path = out / "trials.csv"
    path.write_text(_with_others(_rows(trials, draws, metric), path, set(trials)), encoding="utf-8", newline="")
    found = {search.entry.label: _found(search) for search in searches}
    about = _about(searches[0])
    for theme, suffix in THEMES:
        for kind in ("png", "svg"):
            (out / f"sweep{suffix}.{kind}").write_bytes(draw(found, metric, kind, theme, about=about))


def _found(search: Search) -> Found:
    trials = search.study.get_trials(deepcopy=False)
    again = {trial.number: search.draws.values(trial.number) for trial in trials}
    best = search.best()
    return Found(trials, {run: values for run, values in again.items() if values}, best.number if best else None)


def _about(search: Search) -> str:
    """Task, model and budget of all runs."""
    settings = search.settings
    data = settings.task if settings.train_file is None else Path(settings.train_file).name
    return f"{data} with {Path(settings.model_name).name}, {settings.budget_queries:,} forward passes a run"


def _rows(trials: Mapping[str, list[FrozenTrial]], draws: Mapping[str, Draws], metric: str) -> str:
    every = [(label, trial) for label, found in trials.items() for trial in found]
    names = sorted({name for _, trial in every for name in trial.params})
    scores = sorted({name for _, trial in every for name in scores_of(trial)} - {"runtime"} | {metric})
    scores = [name for name in scores if "per_second" not in name and "time" not in name and name != "epoch"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "run", "state", "forward_passes", *names, *scores, "draws", f"mean_{metric}"])
    for label, trial in every:
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
            state = "finished" if trial.state is TrialState.COMPLETE else "broken off"
            state = "diverged" if trial.state is TrialState.COMPLETE and not _finite(trial) else state
            own = scores_of(trial)
            values = [*(trial.params.get(name, "") for name in names), *(own.get(name, "") for name in scores)]
            again = draws[label].values(trial.number)
            mean = draws[label].mean(trial) if state == "finished" else ""
            writer.writerow([label, trial.number + 1, state, spent_by(trial), *values, 1 + len(again), mean])
    return text.getvalue()


def _with_others(table: str, path: Path, methods: set[str]) -> str:
    """A table with the rows that a file has of other methods behind its own."""
    try:
        before = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, csv.Error):
        return table
    others = [row for row in before if row.get("method") and row["method"] not in methods and None not in row]
    if not others:
        return table
    own = list(csv.DictReader(io.StringIO(table)))
    columns = next(csv.reader(io.StringIO(table)))
    columns[-2:-2] = [name for name in others[0] if name not in columns]  # in front of draws and their mean
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows([*own, *others])
    return text.getvalue()


def _finite(trial: FrozenTrial) -> bool:
    return trial.value is not None and math.isfinite(trial.value)
