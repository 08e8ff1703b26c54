"""The figures of a comparison: metrics against what has been spent, a mean over trials with its deviation."""

from __future__ import annotations

import dataclasses
import io
import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from zotune.compare.curves import Curve, Numbers, Result
from zotune.compare.running import BLOWN
from zotune.compare.statistics import aligned, band, binned
from zotune.reports.comparison.findings import UNTAUGHT, untaught
from zotune.reports.style import DPI, LINES, METHOD_MARKERS, Theme, columns_of

BINS: Final = 50
"""Shares of the budget that the losses of steps are averaged over."""

WIDE: Final = 20.0
"""Largest over smallest mean loss from which on the axis is logarithmic."""

_VARIANTS: Final = ("4", "x", "1", "|")
"""Markers of a method's second line and so on: what no method has, besides another dash."""

_FEW: Final = 4
"""Methods whose bands may be as dark as they like; those of more would cover each other."""

_WIDTH, _HEIGHT, _LINE = 10.5, 4.6, 0.21
"""Inches: a figure with two lines in its legend, and a further one."""

_LONGEST: Final = 100
"""Letters of a line in a legend."""

_AGAINST: Final = {
    "cost": "forward passes of one example",
    "seconds": "seconds of training",
    "step": "steps",
}


@dataclasses.dataclass(frozen=True)
class Chart:
    """A figure: name of its files, title, metric, whether of training, what it is drawn against, label of y."""

    name: str
    title: str
    metric: str
    training: bool
    against: tuple[str, str]
    label: str


CHARTS: Final = (
    Chart("accuracy", "Validation accuracy", "accuracy", False, ("cost", "seconds"), "accuracy (share of examples)"),
    Chart("f1", "F1 of the validation rows", "f1", False, ("cost", "seconds"), "F1"),
    Chart("training-loss", "Training loss", "loss", True, ("cost", "step"), "loss of a step (nats per example)"),
    Chart("validation-loss", "Validation loss", "loss", False, ("cost", "seconds"), "loss (nats per example)"),
)


def charts_of(results: Sequence[Result]) -> list[Chart]:
    """The figures for which there is something to draw."""
    kept = [result for result in results if not result.diverged]
    return [chart for chart in CHARTS if any(chart.metric in _curve(chart, result).values for result in kept)]


def draw(chart: Chart, results: Sequence[Result], budget: int, theme: Theme, kind: str, *, title: str) -> bytes:
    """A figure as a file of ``kind`` ("png" or "svg"); the same results give the same bytes.

    Args:
        chart: what to draw.
        results: runs; those that diverged are left out, and their method's line is if none is left.
        budget: end of the axis of forward passes.
        theme: light or dark.
        kind: format.
        title: of the whole figure.
    """
    with mpl.rc_context(theme.settings):  # type: ignore[arg-type]  # matplotlib lists every name as a type
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        FigureCanvasAgg(figure)
        both = figure.subplots(1, 2, sharey=True)
        for axes, against in zip(both, chart.against, strict=True):
            _draw_lines(axes, chart, results, budget, against, theme)
            bar = math.nan if chart.training else untaught(results, chart.metric)
            if math.isfinite(bar):
                axes.axhline(bar, color=theme.text, linestyle=(0, (1, 3)), linewidth=1.2, zorder=0.5, label=UNTAUGHT)
            _dress(axes, theme)
            axes.set_xlabel(_AGAINST[against])
        both[0].set_ylabel(chart.label)
        if chart.metric == "loss":
            _scale(both[0], [_curve(chart, result).values["loss"] for result in results if not result.diverged])
        figure.suptitle(title.replace("$", r"\$"), fontsize=12, fontweight="bold")
        handles, labels = both[0].get_legend_handles_labels()
        if handles:
            labels = [textwrap.fill(label, _LONGEST) for label in labels]
            columns, heading = columns_of(labels, _WIDTH), _of_bands(results)
            lines = math.ceil(len(labels) / columns) * (1 + max(label.count("\n") for label in labels))
            figure.set_figheight(_HEIGHT + _LINE * max(0, lines - 2))
            figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, title=heading)
        picture = io.BytesIO()
        unchanging = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
        figure.savefig(picture, format=kind, dpi=DPI, metadata=unchanging)
    return picture.getvalue()


def _draw_lines(axes: Axes, chart: Chart, results: Sequence[Result], budget: int, against: str, theme: Theme) -> None:
    seen: dict[str, int] = {}
    alpha = 0.15 if len({result.label for result in results}) <= _FEW else 0.07
    for label in dict.fromkeys(result.label for result in results):
        own = [result for result in results if result.label == label]
        method = own[0].method
        number = seen[method] = seen.get(method, -1) + 1
        curves = [_curve(chart, result) for result in own if not result.diverged]
        if chart.training:
            curves = aligned([binned(curve, BINS, budget) for curve in curves], BINS, budget)
        line = band(curves, chart.metric, against)
        if line is None or not len(line.x):
            continue
        colour = theme.of(method)
        ends = line.mean - line.deviation, line.mean + line.deviation
        low, high = (np.clip(end, 0.0, np.inf if chart.metric == "loss" else 1.0) for end in ends)
        if chart.metric == "loss":  # a band down to zero has no place on a logarithmic axis
            low = np.maximum(low, line.mean / WIDE)
        axes.fill_between(line.x, low, high, color=colour, alpha=alpha, linewidth=0)
        axes.plot(
            line.x,
            line.mean,
            color=colour,
            linestyle=LINES[number % len(LINES)],
            linewidth=1.8,
            marker=METHOD_MARKERS.get(method, ".") if number == 0 else _VARIANTS[(number - 1) % len(_VARIANTS)],
            markersize=6 if METHOD_MARKERS.get(method) == "*" else 4.5,
            markevery=max(1, len(line.x) // 10),
            label=label.replace("$", r"\$"),
        )


def _of_bands(results: Sequence[Result]) -> str | None:
    """What lines and bands are, and of how many trials; None where every line is one run."""
    trials = set(Counter(result.label for result in results if not result.diverged).values())
    if max(trials, default=0) < 2:
        return None
    number = "the" if len(trials) > 1 else f"{min(trials)}"
    return f"mean of {number} trials, band: one standard deviation"


def _scale(axes: Axes, losses: Sequence[Numbers]) -> None:
    """A logarithmic axis where the means of methods are decades apart; and its end where a loss that shoots up would
    press all others to the ground."""
    means = np.concatenate([np.asarray(line.get_ydata(), dtype=np.float64) for line in axes.lines] or [np.empty(0)])
    first = [float(values[0]) for values in losses if len(values)]
    top = BLOWN * float(np.mean(first)) if first else 0.0
    if len(means) and 0.0 < WIDE * float(means.min()) < min(float(means.max()), top):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_ylim(float(means.min()) / 2.0, min(2.0 * float(means.max()), top))
    elif axes.get_ylim()[1] > top > 0.0:
        axes.set_ylim(0.0, top)


def _curve(chart: Chart, result: Result) -> Curve:
    return result.training if chart.training else result.evaluations


def _short(value: float, _: int | None) -> str:
    """Thousands as k and so on; numbers below that as they are."""
    return f"{value:g}" if abs(value) < 1000 else EngFormatter(sep="")(value)


def _dress(axes: Axes, theme: Theme) -> None:
    axes.grid(visible=True, color=theme.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_linewidth(0.8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    axes.set_xlim(left=0)
    axes.margins(y=0.06)
