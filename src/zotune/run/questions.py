"""The parts of a run whose task is a question to a causal language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zotune.config import TrainConfig
from zotune.hf.answering import written_answers
from zotune.hf.options import OptionCollator, add_option_scores
from zotune.hf.writing import WritingCollator
from zotune.run.objectives import Objective
from zotune.run.splits import Splits
from zotune.tasks import Task, compute_metrics
from zotune.tasks.asking import Asked, as_columns, ask
from zotune.tasks.metrics import score
from zotune.tasks.questions import Row
from zotune.tasks.shares import class_shares
from zotune.tasks.tokens import Cut


def question_parts(
    config: TrainConfig,
    task: Task,
    objective: Objective,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: Splits,
    max_seq_length: int,
) -> dict[str, Any]:
    """Model, data, collators and metrics of `zotune.run.parts.Parts`."""
    per_token = objective.right_alone or task.writes or task.asked.per_token
    if config.score != "task":
        per_token = config.score == "mean"
    model = add_option_scores(model, per_token=per_token)
    length = min(max_seq_length, tokenizer.model_max_length)
    pad = int(tokenizer.pad_token_id)
    train, validation = splits.train.to_list(), splits.validation.to_list()
    test = [] if splits.test is None else splits.test.to_list()
    taught, asked, tested = (_asked(rows, task, tokenizer, length, config) for rows in (train, validation, test))
    every = (*taught, *asked, *tested)
    Cut(sum(question.cut for question in every), len(every)).say(length)
    labels, held, last = ([row["label"] for row in rows] for rows in (train, validation, test))
    width = max(len(question.options) for question in (*asked, *tested))
    if objective.right_alone:
        rows, collator = as_columns(taught, labels, right_alone=True), OptionCollator(pad, 1)
    else:
        rows = as_columns(taught, labels)
        collator = OptionCollator(pad, max(len(question.options) for question in taught))
    written = objective.written is not None
    if written:
        rows = {"prompt": [q.prompt for q in taught], "gold": [list(task.asked.gold(row)) for row in train]}
    metrics, of_test = (
        _metrics(config, task, objective, model, tokenizer, rows, questions)
        for rows, questions in ((validation, asked), (test, tested))
    )
    return {
        "model": model,
        "train": datasets.Dataset.from_dict(rows),
        "validation": datasets.Dataset.from_dict(as_columns(asked, held)),
        "test": datasets.Dataset.from_dict(as_columns(tested, last)) if test else None,
        "collator": OptionCollator(pad, width),
        "train_collator": WritingCollator(pad) if written else collator,
        "metrics": metrics,
        "test_metrics": of_test if test else None,
        "shares": class_shares(labels, held) if objective.name == "options" and task.labels else None,
    }


def _asked(
    rows: Sequence[Row], task: Task, tokenizer: PreTrainedTokenizerBase, length: int, config: TrainConfig
) -> list[Asked]:
    """The questions; of tasks with written answers, with the first right answer as the only option."""
    reserve = config.max_new_tokens if task.writes else 0
    options = (lambda row: [_taught(task, row)]) if task.writes else None
    return [ask(row, task, tokenizer, length, options=options, reserve=reserve) for row in rows]


def _taught(task: Task, row: Row) -> str:
    """The answer that is trained on."""
    trained = task.asked.trained
    return task.asked.gold(row)[0] if trained is None else trained(row)


def _metrics(
    config: TrainConfig,
    task: Task,
    objective: Objective,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    asked: Sequence[Asked],
) -> Callable[[Any], dict[str, float]]:
    """The function that `transformers.Trainer` calls as `compute_metrics`, with the loss that is trained."""
    of_options = compute_metrics(task, rows, trained=objective.counted)

    def compute(prediction: Any) -> dict[str, float]:
        scores = np.asarray(prediction.predictions, dtype=np.float64)
        labels = np.asarray(prediction.label_ids)
        right = np.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
        if not task.writes:
            loss = -right
            if not objective.right_alone:
                top = scores.max(axis=1)
                loss = np.log(np.exp(scores - top[:, None]).sum(axis=1)) + top - right
            return {"loss": float(loss.mean()), **of_options(prediction)}
        written = written_answers(
            model,
            tokenizer,
            asked,
            max_new_tokens=config.max_new_tokens,
            stop=task.asked.stop,
            batchsize=config.batchsize,
        )
        found = score(task, rows, written)
        return {"loss": 1.0 - found[_named(objective.written)] if objective.written else float(-right.mean()), **found}

    return compute


def _named(metric: str) -> str:
    return "accuracy" if metric == "exact_match" else metric
