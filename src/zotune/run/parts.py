"""Data, tokenizer and model of a run, loaded before anything is trained."""

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import datasets
import torch
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from zotune.config import ConfigError, TrainConfig
from zotune.hf.heads import order_of
from zotune.hf.models import class_names, has_head, load_tokenizer, prompt_style
from zotune.hf.options import BatchF1
from zotune.hf.prompted import style_of
from zotune.run.base import BaseFacts, base_model
from zotune.run.objectives import Objective, objective_of
from zotune.run.questions import question_parts
from zotune.run.splits import read_splits
from zotune.tasks import Task, compute_metrics
from zotune.tasks.questions import LABEL_FIELD
from zotune.tasks.shares import class_shares
from zotune.tasks.tokens import Cut, tokenise

logger = logging.getLogger("zotune")

LONGEST: Final = 128
"""Most tokens of a row that a new head or label words read, unless told otherwise; LOREN's."""
LONGEST_QUESTION: Final = 2048
"""The same of a question to a causal model, where that reads as many; MeZO's."""

Metrics = Callable[[Any], dict[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What is loaded before anything is trained.

    Attributes:
        tokenizer: of the model.
        model: reads what ``collator`` makes.
        train: rows as token ids.
        validation: the same, of the rows of every evaluation.
        test: the same, of rows that are scored once, in the end; None where there are none.
        objective: what is trained.
        collator: of both sets of rows, but for those that are trained on where ``train_collator`` is given.
        train_collator: see `collator`.
        metrics: of an evaluation.
        test_metrics: of the test rows, where they are not ``metrics``.
        shares: see `class_shares`; of classes that are options.
        max_seq_length: most tokens of a row, which follows from form and model where no setting says it.
    """

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset | None = None
    objective: Objective
    collator: Callable[[list[Any]], dict[str, Any]]
    train_collator: Callable[[list[Any]], dict[str, Any]] | None = None
    metrics: Metrics
    test_metrics: Metrics | None = None
    shares: dict[str, float] | None = None
    max_seq_length: int

    @property
    def rows(self) -> tuple[datasets.Dataset, ...]:
        """All sets of rows."""
        every = (self.train, self.validation, self.test)
        return tuple(rows for rows in every if rows is not None)

    @property
    def class_shares(self) -> dict[str, float] | None:
        """Loss and accuracy of predicting how frequent the classes are; None where no class is predicted or chosen."""
        if self.objective.name != "classes":
            return self.shares
        return class_shares(self.train["labels"], self.validation["labels"])

    @property
    def in_words(self) -> str | None:
        """The flag by which the model would answer in words; None where it does, or has no words for the task."""
        headed = has_head(self.model.config)
        if self.objective.form != "head" or self.objective.name != "classes" or headed:
            return None
        try:
            style = style_of(self.model.config, self.tokenizer)
        except ValueError:  # neither a masked model nor a causal one
            return None
        return {"mask": "--soft_prompt", "last": "--objective options"}[style]

    @property
    def parameters(self) -> tuple[int, int]:
        """Numbers of trained parameters and of all parameters."""
        every = list(self.model.parameters())
        return sum(p.numel() for p in every if p.requires_grad), sum(p.numel() for p in every)


def load_parts(
    config: TrainConfig, *, dtype: torch.dtype, device: torch.device, row_seed: int, head_seed: int
) -> Parts:
    """What `config` names; `row_seed` draws the rows, `head_seed` the weights that the model's files do not hold.

    Raises `ConfigError` for data or a model that cannot be used.
    """
    with sentences():
        task = config.chosen_task()
        objective = objective_of(
            config.objective, task, soft_prompt=config.soft_prompt, zeroth_order=config.zeroth_order
        )
        if isinstance(objective.loss, BatchF1) and config.on_out_of_memory == "halve":
            raise ConfigError(
                "The F1 of a batch is not the mean of its parts', so --on_out_of_memory halve would train something"
                " else; leave it out, or give a smaller --batchsize."
            )
        if config.score != "task" and not objective.compares(task):
            raise ConfigError(
                f"--score says how options are compared, and --objective {objective.name} of task {task.name} compares"
                " none; leave it out, or choose --objective options."
            )
        # First, because a misspelt name of a model should not wait for the data.
        tokenizer = load_tokenizer(config.model_name, trust_remote_code=config.trust_remote_code)
        splits = read_splits(config, task, tokenizer, seed=row_seed)
        question = objective.form == "question"
        model = base_model(
            BaseFacts.of(config, dtype=dtype, head_seed=head_seed, question=question),
            tokenizer=tokenizer,
            device=device,
            trust_remote_code=config.trust_remote_code,
        )
        if objective.form == "head":
            say_names(
                config.model_name,
                task,
                trust_remote_code=config.trust_remote_code,
                adapted=config.adapter is not None,
            )
        length = config.max_seq_length
        if length is None:  # after the model, because its virtual tokens leave less room
            length = min(LONGEST_QUESTION if question else LONGEST, tokenizer.model_max_length)
        if question:
            return Parts(
                tokenizer=tokenizer,
                objective=objective,
                max_seq_length=length,
                **question_parts(config, task, objective, model, tokenizer, splits, length),
            )
        prompt = prompt_style(model)
        fields = [name for _, name in task.pieces("mask") if name is not None]
        if prompt == "last" and config.own is not None and fields[-1] != LABEL_FIELD:
            raise ConfigError(
                "A causal model reads --template up to the answer; end it with that, or leave --soft_prompt out."
            )
        cut = Cut()
        read = functools.partial(
            tokenise, task=task, tokenizer=tokenizer, max_seq_length=length, prompt=prompt, cut=cut
        )
        train, validation = read(splits.train), read(splits.validation)
        test = None if splits.test is None else read(splits.test)
        cut.say(min(length, tokenizer.model_max_length))
    return Parts(
        tokenizer=tokenizer,
        model=model,
        train=train,
        validation=validation,
        test=test,
        objective=objective,
        collator=DataCollatorWithPadding(tokenizer),
        metrics=compute_metrics(task, trained=objective.counted),
        max_seq_length=length,
    )


def say_names(name: str, task: Task, *, trust_remote_code: bool, adapted: bool = False) -> None:
    """Say in which order the classes of a head are taken that does not name them as the task does; with an adapter,
    beside which no names are kept, also where its order is not that of the model."""
    names = class_names(name, trust_remote_code=trust_remote_code)
    if names is None or len(names) != len(task.labels):
        return
    order = order_of(names, task.labels)
    if adapted and order not in (None, list(range(len(names)))):
        own = paired(range(len(names)), task)
        logger.warning("The classes of the adapter are %s: the task's order, and not that of %s.", own, name)
    if order is None:
        pairs = paired(names, task)
        logger.warning("The classes of %s have other names than those of the task; taken in order: %s.", name, pairs)


def paired(names: Iterable[object], task: Task) -> str:
    """What the classes of a head are called, each with its label."""
    return ", ".join(f"{name} = {label}" for name, label in zip(names, task.labels, strict=True))


def rows_digest(*sets: datasets.Dataset) -> str:
    """A digest of rows as the model reads them, with their order."""
    found = hashlib.blake2b(digest_size=16)
    for rows in sets:
        found.update(f"{len(rows)} {rows.column_names}\n".encode())
        for first in range(0, len(rows), _AT_ONCE):
            found.update(json.dumps(rows[first : first + _AT_ONCE], sort_keys=True, default=str).encode())
    return found.hexdigest()


_AT_ONCE = 1024


@contextmanager
def sentences() -> Iterator[None]:
    """What the loaders say about a wrong file, task or model is about a setting."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(str(error)) from error
