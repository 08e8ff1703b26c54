"""Metrics of the tasks: of classes in plain numpy, predictions and labels of shape (rows,); and of written answers."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from zotune.tasks.base import Task
    from zotune.tasks.questions import Question, Row

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


def positive_f1(predictions: Labels, labels: Labels) -> float:
    """F1 of class 1, 2 TP / (2 TP + FP + FN), 0 to 1; 0 when the class occurs nowhere."""
    predicted, true = predictions == 1, labels == 1
    both = float(np.sum(predicted) + np.sum(true))
    return 2.0 * float(np.sum(predicted & true)) / both if both else 0.0


METRICS: dict[str, Callable[[Labels, Labels], float]] = {
    "accuracy": accuracy,
    "matthews": matthews,
    "macro_f1": macro_f1,
    "positive_f1": positive_f1,
}

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> list[str]:
    """Words of an answer as SQuAD's metrics compare them: lower case, no punctuation, no articles (Rajpurkar et al.,
    2016)."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def exact_match(prediction: str, gold: Sequence[str]) -> float:
    """1 if the normalised answer is one of the right ones, else 0."""
    return float(any(normalised(prediction) == normalised(one) for one in gold))


def text_f1(prediction: str, gold: Sequence[str]) -> float:
    """Largest F1 of the bags of normalised words of the answer and of a right one, 0 to 1."""
    return max((_bag_f1(normalised(prediction), normalised(one)) for one in gold), default=0.0)


def _bag_f1(a: list[str], b: list[str]) -> float:
    if not a or not b:
        return float(a == b)
    common = sum((Counter(a) & Counter(b)).values())
    return 2.0 * common / (len(a) + len(b))


TEXT_METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exact_match": exact_match,
    "f1": text_f1,
    "accuracy": exact_match,
}
"""Metrics of one answer; those of a task are their means over its rows.  The accuracy of written answers is that of
exact matches."""


def score(task: Task, rows: Sequence[Row], choices: Sequence[int] | Sequence[str]) -> dict[str, float]:
    """The task's metrics by name.

    Args:
        task: the task of these rows.
        rows: with the task's columns.
        choices: for each row the number of the chosen option, or the text that the model wrote.

    Raises:
        ValueError: there is no row.
    """
    if not len(rows):
        raise ValueError("There is no row to evaluate; give a larger --samplesize_validation.")
    asked, scores = task.asked, {}
    for name in task.metrics:
        if name == "accuracy" and asked.options is not None:
            hits = [choice in asked.right(row) for choice, row in zip(choices, rows, strict=True)]
            scores[name] = sum(hits) / len(hits)
            continue
        if name in METRICS and asked.options is not None:
            scores[name] = METRICS[name](np.asarray(choices), np.asarray([row["label"] for row in rows]))
            continue
        texts = choices if asked.options is None else _named(asked, rows, choices)
        values = [TEXT_METRICS[name](str(text), asked.gold(row)) for text, row in zip(texts, rows, strict=True)]
        scores[name] = math.fsum(values) / len(values)
    return scores


def _named(asked: Question, rows: Sequence[Row], choices: Sequence[Any]) -> list[str]:
    assert asked.options is not None
    names = asked.names or asked.options
    return [names(row)[choice] for row, choice in zip(rows, choices, strict=True)]


def compute_metrics(
    task: Task, rows: Sequence[Row] | None = None, *, trained: str | None = None
) -> Callable[[Any], dict[str, float]]:
    """The function that `transformers.Trainer` calls as `compute_metrics`.

    It takes an EvalPrediction (predictions: logits of shape (rows, labels), or a tuple that begins with them;
    label_ids: (rows,)) and returns the task's metrics by name, accuracy first.  Metrics of texts need the ``rows`` that
    are evaluated, in their order.  Where a metric is ``trained``, it is there too, and 1 minus it is the loss.
    """

    def compute(prediction: Any) -> dict[str, float]:
        logits, labels = prediction.predictions, np.asarray(prediction.label_ids)
        logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
        if labels.size == 0:
            raise ValueError("There is no row to evaluate; give a larger --samplesize_validation.")
        choices = logits.argmax(axis=-1)
        if rows is not None:
            scores = score(task, rows, [int(choice) for choice in choices])
        else:
            scores = {name: METRICS[name](choices, labels) for name in task.metrics}
        if trained is not None:
            scores[trained] = METRICS[trained](choices, labels)
            scores["loss"] = 1.0 - scores[trained]
        return scores

    return compute
