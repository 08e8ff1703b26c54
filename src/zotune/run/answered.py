"""What `zotune evaluate` tells about the answers of a model: the table, and the JSON file."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from zotune.config import EvaluateConfig


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a model answered.

    Attributes:
        scores: the task's metrics by name.
        answers: for each row the number of the chosen option, or the text that was written.
        gold: for each row the numbers or texts that are right.
        texts: what was answered, in words.
        options: for each row the options in words, or the classes; none where the model writes.
        option_scores: for each row the score of every option, or the logarithm of every class's probability.
        without_content: of calibration, the scores that were subtracted before the choice.
        way: how the model answers, where it is not asked in words.
    """

    scores: dict[str, float]
    answers: list[Any]
    gold: list[Any]
    texts: list[str]
    options: list[list[str]] | None = None
    option_scores: list[list[float]] | None = None
    without_content: list[list[float]] | None = None
    way: str | None = None


def summary(answered: Sequence[Answered]) -> tuple[dict[str, float], dict[str, float] | None]:
    """Mean of every score over the seeds, and its standard deviation (of a sample: n - 1) where there are several."""
    values = {name: [one.scores[name] for one in answered] for name in answered[0].scores}
    means = {name: statistics.fmean(given) for name, given in values.items()}
    return means, {name: statistics.stdev(given) for name, given in values.items()} if len(answered) > 1 else None


def show(config: EvaluateConfig, answered: Sequence[Answered]) -> None:
    """The table of the scores, to standard output."""
    shots = "in words" + (f", {config.demonstrations} demonstrations" if config.demonstrations else "")
    way = answered[0].way or shots + (", calibrated" if config.calibrate else "")
    task = config.training().chosen_task().name
    means, deviations = summary(answered)
    if deviations is None:
        table = Table("task", "way", "questions", *means)
        table.add_row(task, way, str(len(answered[0].answers)), *(f"{value:.4f}" for value in means.values()))
    else:
        table = Table("task", "way", "questions", "seed", *means)
        for seed, one in zip(config.all_seeds, answered, strict=True):
            values = (f"{value:.4f}" for value in one.scores.values())
            table.add_row(task, way, str(len(one.answers)), str(seed), *values)
        table.add_section()
        table.add_row("", "", "", "mean", *(f"{means[name]:.4f} \u00b1 {deviations[name]:.4f}" for name in means))
    Console(file=sys.stdout).print(table)


def facts(config: EvaluateConfig, answered: Sequence[Answered]) -> dict[str, Any]:
    """How was asked and what was answered, as JSON has it; of several seeds, each on its own under `seeds`."""
    task = config.training().chosen_task()
    how = {
        "model": config.model_name,
        "adapter": None if config.adapter is None else str(config.adapter),
        "task": task.name,
        "version": task.version,
        "way": answered[0].way or "words",
        "demonstrations": config.demonstrations,
        "calibrated": config.calibrate,
        "score": config.score,
        "max_seq_length": config.max_seq_length,
        "max_new_tokens": config.max_new_tokens,
        "dtype": config.dtype,
    }
    told = [{"seed": seed, **_told(one)} for seed, one in zip(config.all_seeds, answered, strict=True)]
    means, deviations = summary(answered)
    if deviations is None:
        return {**how, **told[0]}
    return {**how, "scores": means, "deviations": deviations, "seeds": told}


def _told(answered: Answered) -> dict[str, Any]:
    told = {
        "scores": answered.scores,
        "answers": answered.answers,
        "texts": answered.texts,
        "right": answered.gold,
        "options": answered.options,
        "option_scores": answered.option_scores,
        "without_content": answered.without_content,
    }
    return {name: value for name, value in told.items() if value is not None}
