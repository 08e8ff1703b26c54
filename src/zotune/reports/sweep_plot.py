"""The picture of a search: the metric of every run against its rate, a panel for each method."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from optuna.trial import FrozenTrial, TrialState

from zotune.reports.comparison.charts import CHARTS, WIDE
from zotune.reports.style import DPI, Theme, columns_of
from zotune.sweep.study import scores_of

_WIDTHS: Final = (7.0, 4.4, 3.5, 2.9)
"""Inches of a panel, where there are one, two, three and more beside each other."""

_LETTER, _LINE = 0.085, 0.18
"""Inches of a letter and of a line of a panel's title."""

_FEW: Final = 9
"""Values up to which the axis shows all of them: three quarters are too few to go by."""

_DECADES: Final = 4.0
"""Largest over smallest loss from which on the axis is logarithmic: the best runs are those to be told apart."""

_LEAST: Final = 0.1
"""Shortest axis of the loss as a share of the lowest: what is closer than that is to look close."""

_UNITS: Final = {chart.metric: chart.label for chart in CHARTS if not chart.training}


class Found(NamedTuple):
    """The runs of a method, the metric of their settings on other draws by number of the run, and the chosen run."""

    trials: Sequence[FrozenTrial]
    again: Mapping[int, Sequence[float]] = {}
    chosen: int | None = None


class _Point(NamedTuple):
    """A run: its rate, whether it was finished and its settings were chosen, and the metric; infinity if it diverged.

    ``others`` are the metric on other draws.
    """

    rate: float
    finished: bool
    chosen: bool
    value: float
    others: tuple[float, ...] = ()

    @property
    def every(self) -> tuple[float, ...]:
        return (self.value, *self.others)


_LEGEND: Final[dict[str, dict[str, Any]]] = {
    "finished": {"marker": "o", "markersize": 5.5},
    "broken off": {"marker": "o", "markersize": 5.5, "markerfacecolor": "none"},
    "diverged": {"marker": "x", "markersize": 6.5, "markeredgewidth": 1.6},
    "worse than the axis shows": {"marker": "^", "markersize": 5.5, "markerfacecolor": "none"},
    "same settings, another draw": {"marker": "_", "markersize": 9, "markeredgewidth": 1.8},
    "chosen": {"marker": "o", "markersize": 12, "markerfacecolor": "none"},
}
"""How each kind of sign looks, in the order of the legend."""


def draw(found: Mapping[str, Found], metric: str, kind: str, theme: Theme, *, about: str = "") -> bytes:
    """The picture as a file of ``kind`` ("png" or "svg"); the same runs give the same bytes.

    Args:
        found: by method.
        metric: of the last evaluations.
        kind: format.
        theme: light or dark.
        about: what all runs have in common.
    """
    points = {label: points_of(own, metric) for label, own in found.items()}
    columns = min(len(points), len(_WIDTHS))
    panel, rows = _WIDTHS[columns - 1], math.ceil(len(points) / columns)
    width = panel * columns
    titles = {label: "\n".join(_title(label, own, metric, int(panel / _LETTER))) for label, own in points.items()}
    height = (3.0 if columns == 1 else 2.4) + _LINE * (1 + max(title.count("\n") for title in titles.values()))
    scale = _Scale([value for own in points.values() for point in own for value in point.every], metric)
    with mpl.rc_context(theme.settings):  # type: ignore[arg-type]  # matplotlib lists every name as a type
        figure = Figure(figsize=(width, height * rows + 1.2), layout="constrained")
        FigureCanvasAgg(figure)
        every = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
        seen: set[str] = set()
        for axes, (label, own) in zip(every, points.items(), strict=False):
            scale.set(axes)
            seen |= _draw_method(axes, own, scale, theme.of(label.split()[0]), theme)
            axes.set_title(titles[label], fontsize=10)
        for axes in every[len(points) :]:
            axes.remove()
        for axes in every[: len(points) : columns]:
            axes.set_ylabel(f"validation {_UNITS.get(metric, metric)}")
        handles = [
            Line2D([], [], color=theme.text, linestyle="", label=name, **{**look, **scale.look(name)})
            for name, look in _LEGEND.items()
            if name in seen
        ]
        names = [str(handle.get_label()) for handle in handles]
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=columns_of(names, width),
            frameon=False,
            title=about.replace("$", r"\$") or None,
        )
        figure.suptitle(f"Validation {metric} against the learning rate", fontsize=12, fontweight="bold")
        picture = io.BytesIO()
        unchanging = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
        figure.savefig(picture, format=kind, dpi=DPI, metadata=unchanging)
    return picture.getvalue()


def points_of(found: Found, metric: str) -> list[_Point]:
    """The runs that came to an end and have a rate."""
    points = []
    for trial in found.trials:
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and "lr" in trial.params:
            finished = trial.state is TrialState.COMPLETE
            diverged = finished and (trial.value is None or not math.isfinite(trial.value))
            value = math.inf if diverged else scores_of(trial).get(metric, math.inf)
            others = tuple(value if math.isfinite(value) else math.inf for value in found.again.get(trial.number, ()))
            points.append(_Point(trial.params["lr"], finished, trial.number == found.chosen, value, others))
    return points


def _title(label: str, points: Sequence[_Point], metric: str, letters: int) -> Iterator[str]:
    """The method, and what was chosen."""
    yield textwrap.fill(label, letters).replace("$", r"\$")
    for point in points:
        if point.chosen:
            mean, draws = math.fsum(point.every) / len(point.every), len(point.every)
            of = f", mean of {draws} draws" if draws > 1 else ""
            yield textwrap.fill(f"chosen: lr {point.rate:.3g}, {metric} {mean:.4f}{of}", letters)
    if not points:
        yield "no run with a rate has ended"


class _Scale:
    """The axis of the metric, for all methods.

    Args:
        values: of all runs and draws; infinity for those that diverged.
        metric: which it is.

    Attributes:
        limits: its ends.
    """

    def __init__(self, values: Sequence[float], metric: str) -> None:
        self._log = metric == "loss" and is_wide(values)
        self._down = metric != "loss"
        self.limits = limits_of(values) if metric == "loss" else whole(values)
        if self._log:
            self.limits = min(values) / 1.25, self.limits[1]
        low, high = self.limits
        self.edge = low + (0.04 if self._down else 0.96) * (high - low)
        if self._log:
            self.edge = high / (high / low) ** 0.04

    def set(self, axes: Axes) -> None:
        """Give the axis to a panel."""
        if self._log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(*self.limits)

    def has(self, value: float) -> bool:
        """Whether a value has its place on the axis; others are drawn at its worse end."""
        return self.limits[0] <= value <= self.limits[1]

    def look(self, name: str) -> dict[str, str]:
        """What depends on which end is the worse one."""
        return {"marker": "v"} if name.startswith("worse") and self._down else {}


def is_wide(values: Sequence[float]) -> bool:
    """Whether losses of the better runs are so far apart that a logarithmic axis shows more."""
    kept = _better(values)
    return bool(kept) and 0.0 < _DECADES * kept[0] < kept[-1]


def _better(values: Sequence[float]) -> list[float]:
    """The better three quarters of all runs that did not diverge, two at least, in order."""
    finite = sorted(value for value in values if math.isfinite(value))
    return finite[: max(2, int(0.75 * (len(finite) - 1)) + 1)]


def limits_of(values: Sequence[float]) -> tuple[float, float]:
    """Ends of the axis of the loss: wide enough for the better three quarters of all runs, at any rate, and for all of
    a few that are not decades apart."""
    better = _better(values)
    if not better:
        return 0.0, 1.0
    low, highest = better[0], max(value for value in values if math.isfinite(value))
    high = min(highest, low + 1.5 * (better[-1] - low))
    if len(values) <= _FEW and highest <= WIDE * low:
        high = highest
    margin = max(0.08 * (high - low), 0.5 * (_LEAST * abs(low) - (high - low))) or 1.0
    return low - margin, high + margin


def whole(values: Sequence[float]) -> tuple[float, float]:
    """Ends of the axis for every run that did not diverge."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    margin = max(0.08 * (max(finite) - min(finite)), 0.02)
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


def _draw_method(axes: Axes, points: Sequence[_Point], scale: _Scale, colour: str, theme: Theme) -> set[str]:
    """The runs of a method, those that have no place on the axis at its worse end; the signs that were used."""
    seen = set()

    def put(name: str, rate: float, value: float, colour: str, **more: Any) -> None:
        seen.add(name)
        look = {**_LEGEND[name], **scale.look(name), **more}
        axes.plot(rate, value if scale.has(value) else scale.edge, color=colour, linestyle="", **look)

    axes.set_xscale("log")
    for point in points:
        places = [value if scale.has(value) else scale.edge for value in point.every]
        if point.others:
            axes.plot([point.rate] * 2, [min(places), max(places)], color=colour, alpha=0.45, linewidth=1.2)
        for value in point.others:
            put(_sign(value, scale) or "same settings, another draw", point.rate, value, colour)
        put(
            _sign(point.value, scale) or ("finished" if point.finished else "broken off"),
            point.rate,
            point.value,
            colour,
        )
        if point.chosen:
            put("chosen", point.rate, point.value, theme.text)
    _tick(axes, [point.rate for point in points])
    axes.set_xlabel("learning rate")
    axes.grid(visible=True, color=theme.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return seen


def _sign(value: float, scale: _Scale) -> str | None:
    """The sign of a value that has no place on the axis."""
    if math.isinf(value):
        return "diverged"
    return None if scale.has(value) else "worse than the axis shows"
