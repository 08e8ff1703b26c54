"""Which rows a run trains on, which it is evaluated on, and which are kept for the end."""

from __future__ import annotations

import dataclasses
import functools

import datasets
from transformers import PreTrainedTokenizerBase

from zotune.config import EMBEDDED, TrainConfig
from zotune.tasks import Task
from zotune.tasks.base import VALIDATION_ROWS
from zotune.tasks.demonstrations import of_each_class
from zotune.tasks.sources import load_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splits:
    """Rows by what they are for.

    Attributes:
        train: to train on.
        validation: of every evaluation.
        test: to be scored once, in the end; None where nothing is held back for that.
    """

    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset | None = None


def read_splits(
    config: TrainConfig, task: Task, tokenizer: PreTrainedTokenizerBase, *, seed: int, training: bool = True
) -> Splits:
    """Training and validation rows; of the former none without ``training``.

    With ``--shots`` and ``--samplesize_dev`` both are of the training split, so that a model chosen by the few is
    scored on the validation split by which nothing was chosen.

    Raises:
        ValueError: see `load_rows` and `zotune.tasks.own.OwnData`.
    """
    wanted = config.samplesize_validation
    if config.own is None:
        rows = functools.partial(load_rows, task, source=config.source, seed=seed)
    else:
        rows = functools.partial(config.own.rows, held_back=wanted, seed=seed, tokenizer=tokenizer)
    if wanted is None and config.own is not None:  # nobody has asked for more than there are
        held = rows("validation", limit=None)
        held = held.select(range(min(VALIDATION_ROWS, len(held))))
    else:
        held = rows("validation", limit=VALIDATION_ROWS if wanted is None else wanted)
    if not training:
        return Splits(train=held.select([]), validation=held)
    if config.samplesize_dev:
        every = rows("train", limit=config.samplesize + config.samplesize_dev)
        taught_rows = _taught_rows(config, len(every))
        numbers = range(len(every))
        return Splits(
            train=every.select(numbers[:taught_rows]), validation=every.select(numbers[taught_rows:]), test=held
        )
    if config.shots is None:
        return Splits(train=rows("train", limit=config.samplesize), validation=held)
    # Generated rows have as many of each class as can be; of others all are looked at.
    wanted = 2 * config.shots * len(task.labels)
    every = rows("train", limit=wanted if config.source == EMBEDDED else None)
    taught, chosen_by = of_each_class(task, every["label"], config.shots)
    return Splits(train=every.select(taught), validation=every.select(chosen_by), test=held)


def _taught_rows(config: TrainConfig, there: int) -> int:
    """How many of the training rows are trained on; where there are too few, the held back ones stay as many.

    Raises:
        ValueError: none would be left.
    """
    taught = there - config.samplesize_dev
    if taught < 1:
        raise ValueError(
            f"There are {there} training rows, of which --samplesize_dev holds {config.samplesize_dev} back; give"
            " fewer."
        )
    return taught
