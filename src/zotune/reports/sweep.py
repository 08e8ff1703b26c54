"""The files of a search: every run as a row, a table of the best, and the metric against the rate."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from optuna.trial import FrozenTrial, TrialState

from zotune.reports.comparison.charts import CHARTS, WIDE
from zotune.reports.style import DPI, THEMES, Theme
from zotune.sweep.draws import Draws
from zotune.sweep.study import Search, scores_of, spent_by

_COLUMNS = 4


def write_sweep(out: Path, searches: Sequence[Search], metric: str) -> None:
    """Write ``trials.csv`` and ``sweep.png`` (and .svg, and both for a dark ground) into the folder of a search."""
    trials = {search.entry.label: search.study.get_trials(deepcopy=False) for search in searches}
    draws = {search.entry.label: search.draws for search in searches}
    (out / "trials.csv").write_text(_rows(trials, draws, metric), encoding="utf-8", newline="")
    for theme, suffix in THEMES:
        for kind in ("png", "svg"):
            (out / f"sweep{suffix}.{kind}").write_bytes(_draw(trials, metric, kind, _chosen(searches), theme))


def _chosen(searches: Sequence[Search]) -> dict[str, int]:
    """Numbers of the best runs of the methods that have one."""
    best = {search.entry.label: search.best() for search in searches}
    return {label: trial.number for label, trial in best.items() if trial is not None}


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


def _finite(trial: FrozenTrial) -> bool:
    return trial.value is not None and math.isfinite(trial.value)


def _draw(
    trials: Mapping[str, list[FrozenTrial]], metric: str, kind: str, chosen: Mapping[str, int], theme: Theme
) -> bytes:
    columns = min(len(trials), _COLUMNS)
    rows = math.ceil(len(trials) / columns)
    values = [point.value for found in trials.values() for point in _points(found, metric)]
    limits = _limits(values) if metric == "loss" else _whole(values)
    wide = metric == "loss" and _is_wide(values)
    if wide:
        limits = min(values) / 1.5, limits[1]
    with mpl.rc_context(theme.settings):  # type: ignore[arg-type]  # matplotlib lists every name as a type
        figure = Figure(figsize=(max(2.9 * columns, 5.5), 2.7 * rows + 0.9), layout="constrained")
        FigureCanvasAgg(figure)
        every = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
        for axes, (label, found) in zip(every, trials.items(), strict=False):
            if wide:
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axes.yaxis.set_minor_formatter(NullFormatter())
            edge = (0.97 if metric == "loss" else 0.03) * (limits[1] - limits[0]) + limits[0]
            _draw_method(axes, label, _points(found, metric, chosen.get(label)), limits, edge, theme)
        for axes in every[len(trials) :]:
            axes.remove()
        for axes in every[: len(trials) : columns]:
            axes.set_ylabel(f"validation {_UNITS.get(metric, metric)}")
        handles = [
            Line2D([], [], color=theme.text, linestyle="", marker=marker, fillstyle=fill, label=name, markersize=size)
            for name, marker, fill, size in _LEGEND
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4 if columns > 2 else 2, frameon=False)
        figure.suptitle(f"Validation {metric} against the learning rate", fontweight="bold")
        picture = io.BytesIO()
        unchanging = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
        figure.savefig(picture, format=kind, dpi=DPI, metadata=unchanging)
    return picture.getvalue()


_UNITS: Final = {chart.metric: chart.label for chart in CHARTS if not chart.training}

_LEGEND: Final[tuple[tuple[str, str, Literal["full", "none"], int], ...]] = (
    ("finished", "o", "full", 5),
    ("broken off", "o", "none", 5),
    ("outside of the figure", "^", "none", 5),
    ("chosen, with its other draws", "o", "none", 10),
)


class _Point(NamedTuple):
    """A run: learning rate, whether it was finished and its settings were chosen, the metric; infinity if diverged."""

    rate: float
    finished: bool
    chosen: bool
    value: float


def _points(trials: list[FrozenTrial], metric: str, chosen: int | None = None) -> list[_Point]:
    points = []
    for trial in trials:
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and "lr" in trial.params:
            finished = trial.state is TrialState.COMPLETE
            value = math.inf if finished and not _finite(trial) else scores_of(trial).get(metric, math.inf)
            points.append(_Point(trial.params["lr"], finished, trial.number == chosen, value))
    return points


def _is_wide(values: list[float]) -> bool:
    """Whether losses of the better runs are so far apart that a logarithmic axis shows more."""
    kept = _better(values)
    return bool(kept) and 0.0 < WIDE * kept[0] < kept[-1]


def _better(values: list[float]) -> list[float]:
    """The better three quarters of all runs that did not diverge, two at least, in order."""
    finite = sorted(value for value in values if math.isfinite(value))
    return finite[: max(2, int(0.75 * (len(finite) - 1)) + 1)]


def _limits(values: list[float]) -> tuple[float, float]:
    """Ends of the axis of the metric: wide enough for the better three quarters of all runs, at any rate."""
    better = _better(values)
    if not better:
        return 0.0, 1.0
    low = better[0]
    high = min(max(value for value in values if math.isfinite(value)), low + 1.5 * (better[-1] - low))
    margin = 0.08 * (high - low or abs(low) or 1.0)
    return low - margin, high + margin


def _whole(values: list[float]) -> tuple[float, float]:
    """Ends of the axis for every run that did not diverge."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    margin = 0.08 * (max(finite) - min(finite) or 1.0)
    return min(finite) - margin, max(finite) + margin


def _tick(axes: Axes, rates: list[float]) -> None:
    """A few labels, however little of a decade there is."""
    decades = math.log10(max(rates) / min(rates)) if rates else 0.0
    if rates and decades < 0.3:
        middle = math.sqrt(max(rates) * min(rates))
        axes.set_xlim(middle / 2.0, middle * 2.0)
    subs = (1.0,) if decades >= 2.0 else (1.0, 3.0) if decades >= 0.6 else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_method(
    axes: Axes, label: str, points: list[_Point], limits: tuple[float, float], edge: float, theme: Theme
) -> None:
    """The runs of a method, those outside of the limits at the edge."""
    colour = theme.of(label.split()[0])
    for rate, finished, chosen, value in points:
        inside = value <= limits[1]
        if chosen:
            place = value if inside else edge
            axes.plot(rate, place, marker="o", markersize=10, color=theme.text, markerfacecolor="none")
        axes.plot(
            rate,
            value if inside else edge,
            marker="o" if inside else "^",
            markersize=5,
            color=colour,
            markerfacecolor=colour if finished and inside else "none",
            linestyle="",
        )
    axes.set_xscale("log")
    _tick(axes, [point.rate for point in points])
    axes.set_ylim(*limits)
    axes.set_title(label.replace("$", r"\$"), fontsize=10)
    axes.set_xlabel("learning rate")
    axes.grid(visible=True, color=theme.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
