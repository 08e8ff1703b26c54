"""`zotune evaluate` of a model that answers with classes: by a head of its own, or with label words."""

from __future__ import annotations

import logging
from typing import Any, Final

import torch
from torch.nn.functional import cross_entropy
from transformers import DataCollatorWithPadding, EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

from zotune.config import ConfigError, EvaluateConfig
from zotune.config.train import OWN
from zotune.hf.adapters import load_adapter, read_settings
from zotune.hf.answering import Tick
from zotune.hf.models import class_names, load_classifier, prompt_style
from zotune.run.answered import Answered
from zotune.run.base import DTYPES
from zotune.run.parts import LONGEST, paired, say_names
from zotune.tasks import Task, compute_metrics
from zotune.tasks.tokens import Cut, tokenise

logger = logging.getLogger("zotune")

_OF_QUESTIONS: Final = ("demonstrations", "calibrate", "score", "max_new_tokens")
"""Flags that say how a model is asked in words."""


def classifies(config: EvaluateConfig) -> bool:
    """Whether the model answers with classes: as ``--soft_prompt`` says, by its own head, or by its adapter's.

    Raises:
        ValueError: there is no such model.
    """
    if config.soft_prompt or class_names(config.model_name, trust_remote_code=config.trust_remote_code) is not None:
        return True
    if config.adapter is None:
        return False
    return bool(read_settings(config.adapter).get("task_type") == "SEQ_CLS")


def check_classes(config: EvaluateConfig, task: Task) -> None:
    """Raise `ConfigError` for settings and tasks that a model with classes has no use for."""
    what = "--soft_prompt compares label words" if config.soft_prompt else f"{_named(config)} answers with its own head"
    for name in _OF_QUESTIONS:
        if getattr(config, name) != EvaluateConfig.__dataclass_fields__[name].default:
            raise ConfigError(f"{what}, so --{name} has nothing to say; leave it out.")
    if not task.labels and task.name == OWN:
        raise ConfigError(f"{what}, and data of your own have classes with --template and --options; give both.")
    if not task.labels:
        raise ConfigError(f"{what}, and task {task.name} has no classes; give a task that has, or another model.")


def _named(config: EvaluateConfig) -> str:
    return config.model_name if config.adapter is None else f"The model with --adapter {config.adapter}"


def load_with_classes(
    config: EvaluateConfig, task: Task, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> PreTrainedModel:
    """The classifier, with its adapter if it has one.

    Raises:
        ValueError: its head is not for this task, or see `zotune.hf.models.load_classifier`.
    """
    of_adapter = config.adapter is not None and not config.soft_prompt
    model = load_classifier(
        config.model_name,
        task,
        tokenizer=tokenizer,
        dtype=DTYPES[config.dtype],
        device=device,
        prompted=config.soft_prompt,
        adapted=True,
        new_head=of_adapter,
        trust_remote_code=config.trust_remote_code,
    )
    if config.adapter is not None:
        model = load_adapter(model, config.adapter, tokenizer=tokenizer)
    return model


def say_order(config: EvaluateConfig, task: Task) -> None:
    """Say in which order classes are taken where their names do not tell."""
    if config.adapter is None:
        say_names(config.model_name, task, trust_remote_code=config.trust_remote_code)
        return
    pairs = paired(range(len(task.labels)), task)
    logger.warning("An adapter does not name its classes; they are taken to be %s.", pairs)


@torch.inference_mode()
def classify(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    rows: Any,
    config: EvaluateConfig,
    *,
    tick: Tick | None = None,
) -> Answered:
    """Classes of ``rows``, as the evaluations of a run compute them, with the mean cross entropy in nats as "loss".

    Args:
        model, tokenizer: see `load_with_classes`.
        task: gives the labels.
        rows: a `datasets.Dataset`.
        config: batch size and length.
        tick: told how many rows are done.

    Raises:
        ValueError: scores that are no numbers, or see `zotune.tasks.tokens.tokenise`.
    """
    length = min(config.max_seq_length or LONGEST, tokenizer.model_max_length)
    cut = Cut()
    read = tokenise(rows, task, tokenizer, length, prompt=prompt_style(model), cut=cut)
    cut.say(length)
    collate = DataCollatorWithPadding(tokenizer)
    found: list[torch.Tensor] = []
    for first in range(0, len(read), config.batchsize):
        batch = collate([read[number] for number in range(first, min(first + config.batchsize, len(read)))])
        labels = batch.pop("labels")
        given = {name: value.to(model.device) for name, value in batch.items()}
        found.append(model(**given).logits.float().cpu())
        if tick is not None:
            tick(len(labels))
    logits, gold = torch.cat(found), torch.tensor(read["labels"])
    if not bool(logits.isfinite().all()):
        raise ValueError(f"The scores of {_named(config)} are NaN or infinite; its weights are damaged or overflow.")
    scores = compute_metrics(task)(EvalPrediction(logits.numpy(), gold.numpy()))
    chosen = [int(number) for number in logits.argmax(dim=-1)]
    return Answered(
        scores={**scores, "loss": float(cross_entropy(logits.double(), gold))},
        answers=chosen,
        gold=[[int(label)] for label in gold],
        texts=[task.labels[number] for number in chosen],
        options=[list(task.labels)] * len(chosen),
        option_scores=logits.log_softmax(dim=-1).tolist(),
        way="label words" if config.soft_prompt else "own head",
    )
