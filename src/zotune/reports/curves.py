"""curves.png: how a run went."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .rows import Row, method_name, read_config, read_rows
from .style import DPI, GRID_COLOUR, method_colour

CURVES_FILE = "curves.png"


def draw_curves(run_dir: Path) -> Path:
    """Draw training loss against steps, and accuracy and loss of the evaluations against queries.

    Needs metrics.csv only; model, task and method for the title come from config.json where there is one.

    Returns:
        The path of the picture, ``run_dir / "curves.png"``.

    Raises:
        ValueError: metrics.csv is missing or damaged.
    """
    run_dir = Path(run_dir)
    train, evaluations = read_rows(run_dir)
    config = read_config(run_dir)
    colour = method_colour(method_name(config))
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy, evaluation_loss = figure.subplots(1, 3)
    _draw_training_loss(loss, train, colour)
    _draw_evaluations(accuracy, evaluations, "accuracy", colour)
    _draw_evaluations(evaluation_loss, evaluations, "loss", colour)
    loss.set(title="Training", xlabel="step", ylabel="training loss (nats per example)")
    queries = "queries (forward passes over a batch)"
    last = "" if not evaluations or "accuracy" not in evaluations[-1] else f" (last {evaluations[-1]['accuracy']:.3f})"
    accuracy.set(title=f"Evaluation: accuracy{last}", xlabel=queries, ylabel="accuracy (share of examples)")
    evaluation_loss.set(title="Evaluation: loss", xlabel=queries, ylabel="evaluation loss (nats per example)")
    figure.suptitle(_title(config, run_dir), fontweight="bold")
    handles, labels = [], []
    for axes in (loss, accuracy):
        more_handles, more_labels = axes.get_legend_handles_labels()
        handles += more_handles
        labels += more_labels
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False)
    path = run_dir / CURVES_FILE
    # Without the version of the library in the file, the same rows give the same bytes.
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return path


def _title(config: dict[str, Any], run_dir: Path) -> str:
    model = Path(str(config.get("model_name") or "")).name
    parts = [method_name(config), str(config.get("task") or ""), model]
    return ", ".join(part for part in parts if part) or run_dir.resolve().name


def _draw_training_loss(axes: Axes, rows: list[Row], colour: str) -> None:
    prepare(axes)
    steps = np.array([row["step"] for row in rows])
    losses = np.array([row["loss"] for row in rows])
    window = min(len(rows), max(5, len(rows) // 20))
    axes.plot(steps, losses, color=colour, alpha=0.3, linewidth=0.8, label="loss of a step")
    if len(rows) > window:
        label = f"mean of {window} steps"
        axes.plot(steps[window - 1 :], running_mean(losses, window), color=colour, linewidth=2, label=label)


def running_mean(values: np.ndarray[Any, Any], window: int) -> np.ndarray[Any, Any]:
    """Means of `window` values in a row; as many fewer as fit in no window."""
    return np.asarray(np.lib.stride_tricks.sliding_window_view(values, window).mean(axis=1))


def _draw_evaluations(axes: Axes, rows: list[Row], name: str, colour: str) -> None:
    prepare(axes)
    points = [(row["queries"], row[name]) for row in rows if name in row]
    if not points:
        axes.text(0.5, 0.5, "no evaluation", transform=axes.transAxes, ha="center", va="center")
        return
    queries, values = zip(*points, strict=True)
    axes.plot(queries, values, color=colour, linewidth=2, marker="o", markersize=4, label="evaluation")


def prepare(axes: Axes) -> None:
    """Give a plot the grid and the margins of all figures."""
    axes.grid(visible=True, color=GRID_COLOUR, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.margins(x=0.02, y=0.08)
