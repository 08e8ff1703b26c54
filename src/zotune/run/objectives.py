"""What a run trains: the form in which the model reads a task, and the number that becomes small."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final, Literal

from torch import Tensor, nn

from zotune.config import ConfigError, nearest
from zotune.config.train import OWN
from zotune.hf.options import BatchF1, error_rate, option_likelihood
from zotune.hf.own import as_objective, load_function
from zotune.tasks import Task

Form = Literal["head", "words", "question"]
"""A new classification head; label words by their first tokens; options or answers of a causal model."""

NAMES: Final = ("classes", "options", "likelihood", "accuracy", "f1", "exact_match")
COUNTED: Final = ("accuracy", "exact_match")
"""Objectives whose loss is 1 minus the accuracy."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What a run trains.

    Attributes:
        name: one of `NAMES`, or FILE.py:FUNCTION.
        form: how the model reads the rows.
        loss: function of (outputs, labels); None is the cross entropy of the scores.
        whole: function of (model, batch) in place of everything else.
        right_alone: rows are trained on their right option only.
        written: the model writes answers, and the loss is 1 minus this metric of theirs.
        counted: the loss is 1 minus this metric of the chosen classes.
    """

    name: str
    form: Form
    loss: Callable[..., Tensor] | None = None
    whole: Callable[[nn.Module, dict[str, Any]], float | Tensor] | None = None
    right_alone: bool = False
    written: str | None = None
    counted: str | None = None

    def compares(self, task: Task) -> bool:
        """Whether a causal model chooses among the options of a task by their scores."""
        return self.form == "question" and not self.right_alone and not task.writes

    @property
    def differentiable(self) -> bool:
        """Whether first-order methods can train it."""
        counted = self.loss is error_rate or isinstance(self.loss, BatchF1)
        return self.whole is None and self.written is None and not counted


def default_objective(task: Task, *, soft_prompt: bool = False) -> str:
    """The objective of a task when none is named."""
    if task.writes:
        return "likelihood"
    return "classes" if task.labels and (task.name != OWN or soft_prompt) else "options"


def class_f1(task: Task) -> str:
    """The F1 of a task with classes: the one that it reports, or that of class 1 of two, or the mean over more."""
    reported = [name for name in task.metrics if name in ("macro_f1", "positive_f1")]
    return reported[0] if reported else "positive_f1" if task.num_labels == 2 else "macro_f1"


def objective_of(name: str | None, task: Task, *, soft_prompt: bool, zeroth_order: bool) -> Objective:
    """What ``--objective`` stands for.

    Raises:
        ConfigError: there is no such objective, the task does not have it, or the method needs a gradient of it.
    """
    name = default_objective(task, soft_prompt=soft_prompt) if name is None else name
    # Data of one's own are asked in words, where a new head is not named.
    form: Form = "words" if soft_prompt else "question" if task.name == OWN and name != "classes" else "head"
    objective = _made(name, task, form)
    if soft_prompt and objective.form == "question":
        raise ConfigError(f"--soft_prompt belongs to --objective classes; with {name} leave it out.")
    if not (zeroth_order or objective.differentiable):
        raise ConfigError(f"--objective {name} has no gradient; choose a zeroth-order --algorithm.")
    return objective


def _made(name: str, task: Task, form: Form) -> Objective:
    if ".py:" in name:
        return Objective(
            name=name, form=form if task.labels else "question", whole=as_objective(name, load_function(name))
        )
    if name not in NAMES:
        like = nearest(name, NAMES)
        raise ConfigError(f"There is no objective {name!r}{like} A function of your own is FILE.py:FUNCTION.")
    if name == "f1" and task.labels:
        metric = class_f1(task)
        return Objective(name=name, form=form, loss=BatchF1(metric), counted=metric)
    if name in ("f1", "exact_match"):
        if not task.writes:
            raise ConfigError(
                f"Task {task.name} has no written answers; --objective {name} needs squad, drop or --train_file"
                " without --options" + (", or a task with classes." if name == "f1" else ".")
            )
        return Objective(name=name, form="question", written=name)
    if name == "likelihood":
        return Objective(name=name, form="question", loss=option_likelihood, right_alone=True)
    if task.writes and task.name == OWN:
        raise ConfigError(
            f"Without --options the answers of --train_file are written; give it with --objective {name}, or choose"
            " likelihood, f1 or exact_match."
        )
    if task.writes:
        raise ConfigError(f"The answers of task {task.name} are written; choose likelihood, f1 or exact_match.")
    if name == "classes" and (not task.labels or form == "question"):
        raise ConfigError(f"Task {task.name} has no classes; choose --objective options or likelihood.")
    if name == "accuracy":
        counted = "accuracy" if task.labels else None
        return Objective(name=name, form=form if task.labels else "question", loss=error_rate, counted=counted)
    return Objective(name=name, form=form if name == "classes" else "question")
