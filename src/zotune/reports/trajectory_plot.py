"""Picture of a trajectory: the losses against the steps, and the evaluations where there are some."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from zotune.reports.curves import prepare, running_mean
from zotune.reports.style import DPI, method_colour
from zotune.reports.trajectory import Series, evaluations
from zotune.trajectory.header import Header

_NAMES = {"MeZO": "ZO", "MeZOSVRG": "ZOSVRG"}  # of classes, where the colour goes by another name


def draw(header: Header, series: Series, path: Path, span: tuple[int, int | None] | None = None) -> None:
    """Draw the steps of `span`, or all, to a file of the kind that its suffix names.

    Raises:
        OSError: the file cannot be written.
    """
    first, end = span or (0, None)
    chosen = [i for i, n in enumerate(series.numbers) if n >= first and (end is None or n < end)]
    colour = method_colour(_NAMES.get(header.method, header.method))
    values = {name: _within(evaluations(series, name), first, end) for name in ("loss", "accuracy")}
    second = "accuracy" if values["accuracy"][0] else None
    figure = Figure(figsize=(12 if second else 8, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 if second else 1, squeeze=False)[0]
    _draw_losses(axes[0], series, chosen, colour)
    if values["loss"][0]:
        axes[0].plot(*values["loss"], color="black", linewidth=1, marker="o", markersize=4, label="loss, evaluation")
    axes[0].set(title="Losses", xlabel="steps made", ylabel="loss (as told to the optimizer)")
    if second:
        prepare(axes[1])
        axes[1].plot(*values[second], color=colour, linewidth=2, marker="o", markersize=4)
        last = values[second][1][-1]
        axes[1].set(title=f"Evaluation: {second} (last {last:.3f})", xlabel="steps made", ylabel=f"{second} (share)")
    about = header.about
    parts = [header.method, *(str(about[name]) for name in ("task", "model_name") if isinstance(about.get(name), str))]
    figure.suptitle(", ".join(part[-60:] for part in parts).replace("$", r"\$"), fontweight="bold")
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False)
    picture = io.BytesIO()
    kind = path.suffix.lower().removeprefix(".")
    figure.savefig(picture, format=kind, dpi=DPI, metadata={"Software": None} if kind == "png" else None)
    part = path.with_name(path.name + ".part")
    part.write_bytes(picture.getvalue())
    part.replace(path)


def _draw_losses(axes: Axes, series: Series, chosen: list[int], colour: str) -> None:
    prepare(axes)
    if not chosen:
        axes.text(0.5, 0.5, "no step", transform=axes.transAxes, ha="center", va="center")
        return
    steps = np.array([series.numbers[i] for i in chosen])
    losses = np.array([series.means[i] for i in chosen])
    window = min(len(chosen), max(5, len(chosen) // 20))
    smoothed = len(chosen) > window
    alpha, width = (0.3, 0.8) if smoothed else (1.0, 2.0)
    axes.plot(steps, losses, color=colour, alpha=alpha, linewidth=width, label="mean loss of a step")
    if smoothed:
        smooth = running_mean(losses, window)
        axes.plot(steps[window - 1 :], smooth, color=colour, linewidth=2, label=f"mean of {window} steps")


def _within(points: tuple[list[int], list[float]], first: int, end: int | None) -> tuple[list[int], list[float]]:
    kept = [(step, value) for step, value in zip(*points, strict=True) if step >= first and (end is None or step < end)]
    return [step for step, _ in kept], [value for _, value in kept]
