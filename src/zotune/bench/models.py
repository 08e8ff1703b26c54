"""The model of `zotune bench`: as `zotune train` would load it, or its shapes alone."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from zotune.config import BenchConfig, ConfigError
from zotune.hf.models import load_classifier, load_tokenizer, position_limit
from zotune.hf.partial import select_trainable
from zotune.hf.resolve import explained, resolve
from zotune.tasks import get_task

_TASK = get_task("sst2")  # any task of two labels


def dtype_of(config: BenchConfig) -> torch.dtype:
    """Type of the weights."""
    return torch.bfloat16 if config.bf16 else torch.float16 if config.fp16 else torch.float32


def load(config: BenchConfig, device: torch.device) -> PreTrainedModel:
    """The model with its weights.

    Raises:
        ConfigError: if it cannot be loaded.
    """
    try:
        tokenizer = load_tokenizer(config.model_name, trust_remote_code=config.trust_remote_code)
        model = load_classifier(
            config.model_name,
            _TASK,
            tokenizer=tokenizer,
            dtype=dtype_of(config),
            device=device,
            full_parameter=config.full_parameter,
            trust_remote_code=config.trust_remote_code,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for tensor in [*model.parameters(), *model.buffers()]:
        # Weights are mapped from their file at first, and those that no one has read yet are not in memory.
        tensor.data = tensor.data.clone()
    return model


def outline(config: BenchConfig) -> PreTrainedModel:
    """The same model on the meta device: shapes without weights, from the configuration alone.

    Raises:
        ConfigError: if there is no such configuration.
    """
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code, "token": os.environ.get("HF_TOKEN")}
    try:
        with explained(config.model_name, "a configuration"):
            described = AutoConfig.from_pretrained(resolve(config.model_name), num_labels=_TASK.num_labels, **options)
            for part in {id(c): c for c in (described, described.get_text_config())}.values():
                part.use_cache = False
                part.pad_token_id = getattr(part, "pad_token_id", None) or 0
            own = {"trust_remote_code": True} if config.trust_remote_code else {}
            auto: Any = AutoModelForSequenceClassification  # its functions carry no types
            with torch.device("meta"):
                model = auto.from_config(described, dtype=dtype_of(config), **own)
        select_trainable(model, full_parameter=config.full_parameter)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    model.eval()
    assert isinstance(model, PreTrainedModel)
    return model


def length_of(config: BenchConfig, model: PreTrainedModel) -> int:
    """Tokens of an example: what was asked for, or as many as the model can read."""
    return min(config.max_seq_length, position_limit(model))
