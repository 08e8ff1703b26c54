"""The files of a search: every run as a row, a table of the best, and the metric against the rate."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import optuna
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

from zotune.reports.style import DPI, LIGHT, METHOD_MARKERS
from zotune.sweep.study import scores_of, spent_by

_COLUMNS = 4


def write_sweep(out: Path, studies: Mapping[str, optuna.Study], metric: str) -> None:
    """Write ``trials.csv`` and ``sweep.png`` (and .svg) into the folder of a search."""
    trials = {label: study.get_trials(deepcopy=False) for label, study in studies.items()}
    (out / "trials.csv").write_text(_rows(trials, metric), encoding="utf-8", newline="")
    for kind in ("png", "svg"):
        (out / f"sweep.{kind}").write_bytes(_draw(trials, metric, kind))


def _rows(trials: Mapping[str, list[FrozenTrial]], metric: str) -> str:
    every = [(label, trial) for label, found in trials.items() for trial in found]
    names = sorted({name for _, trial in every for name in trial.params})
    scores = sorted({name for _, trial in every for name in scores_of(trial)} - {"runtime"} | {metric})
    scores = [name for name in scores if "per_second" not in name and "time" not in name and name != "epoch"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "run", "state", "forward_passes", *names, *scores])
    for label, trial in every:
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
            state = "finished" if trial.state is TrialState.COMPLETE else "broken off"
            state = "diverged" if trial.state is TrialState.COMPLETE and not _finite(trial) else state
            own = scores_of(trial)
            values = [*(trial.params.get(name, "") for name in names), *(own.get(name, "") for name in scores)]
            writer.writerow([label, trial.number, state, spent_by(trial), *values])
    return text.getvalue()


def _finite(trial: FrozenTrial) -> bool:
    return trial.value is not None and math.isfinite(trial.value)


def _draw(trials: Mapping[str, list[FrozenTrial]], metric: str, kind: str) -> bytes:
    columns = min(len(trials), _COLUMNS)
    rows = math.ceil(len(trials) / columns)
    with mpl.rc_context(LIGHT.settings):  # type: ignore[arg-type]  # matplotlib lists every name as a type
        figure = Figure(figsize=(3.4 * columns + 0.6, 2.9 * rows + 0.5), layout="constrained")
        FigureCanvasAgg(figure)
        every = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
        for axes, (label, found) in zip(every, trials.items(), strict=False):
            _draw_method(axes, label, found, metric)
        for axes in list(every)[len(trials) :]:
            axes.remove()
        figure.suptitle(f"Validation {metric} at the end of a run, against its learning rate", fontweight="bold")
        picture = io.BytesIO()
        figure.savefig(
            picture,
            format=kind,
            dpi=DPI,
            metadata={"Software": None} if kind == "png" else {"Date": None, "Creator": None},
        )
    return picture.getvalue()


def _draw_method(axes: Axes, label: str, trials: list[FrozenTrial], metric: str) -> None:
    colour = LIGHT.of(label.split()[0])
    marker = METHOD_MARKERS.get(label.split()[0], ".")
    for state, filled in ((TrialState.COMPLETE, True), (TrialState.PRUNED, False)):
        points = [
            (trial.params["lr"], scores_of(trial)[metric])
            for trial in trials
            if trial.state is state and "lr" in trial.params and metric in scores_of(trial)
        ]
        if points:
            axes.scatter(
                [rate for rate, _ in points],
                [value for _, value in points],
                marker=marker,
                s=28,
                facecolors=colour if filled else "none",
                edgecolors=colour,
                label="finished" if filled else "broken off",
            )
    axes.set_xscale("log")
    axes.set(title=label.replace("$", r"\$"), xlabel="learning rate", ylabel=f"validation {metric}")
    axes.label_outer()
    axes.grid(visible=True, color=LIGHT.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0.0, -0.28), ncols=2)
