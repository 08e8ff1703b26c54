"""Metrics of the tasks in plain numpy: predictions and labels are integer arrays of shape (rows,)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from zotune.tasks.base import Task

Labels = npt.NDArray[np.integer[Any]]


def accuracy(predictions: Labels, labels: Labels) -> float:
    """Share of right predictions, 0 to 1."""
    return float(np.mean(predictions == labels))


def matthews(predictions: Labels, labels: Labels) -> float:
    """Matthews correlation, -1 to 1, for any number of classes; 0 when predictions or labels are all of one class.

    Gorodkin (2004): covariance of the one-hot predictions and labels over the root of their variances.
    """
    classes = np.union1d(predictions, labels)
    p = (predictions[:, None] == classes).astype(np.float64)
    t = (labels[:, None] == classes).astype(np.float64)
    p, t = p - p.mean(axis=0), t - t.mean(axis=0)
    variances = float((p * p).sum() * (t * t).sum())
    return float((p * t).sum()) / math.sqrt(variances) if variances > 0.0 else 0.0


def macro_f1(predictions: Labels, labels: Labels) -> float:
    """Mean over the classes that occur (in predictions or labels) of F1 = 2 TP / (2 TP + FP + FN), 0 to 1."""
    scores = []
    for label in np.union1d(predictions, labels):
        predicted, true = predictions == label, labels == label
        scores.append(2.0 * float(np.sum(predicted & true)) / float(np.sum(predicted) + np.sum(true)))
    return float(np.mean(scores))


METRICS: dict[str, Callable[[Labels, Labels], float]] = {
    "accuracy": accuracy,
    "matthews": matthews,
    "macro_f1": macro_f1,
}


def compute_metrics(task: Task) -> Callable[[Any], dict[str, float]]:
    """The function that `transformers.Trainer` calls as `compute_metrics`.

    It takes an EvalPrediction (predictions: logits of shape (rows, labels), or a tuple that begins with them;
    label_ids: (rows,)) and returns the task's metrics by name, accuracy first.
    """

    def compute(prediction: Any) -> dict[str, float]:
        logits, labels = prediction.predictions, np.asarray(prediction.label_ids)
        logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
        if labels.size == 0:
            raise ValueError("There is no row to evaluate; give a larger --samplesize_validation.")
        choices = logits.argmax(axis=-1)
        return {name: METRICS[name](choices, labels) for name in task.metrics}

    return compute
