"""Data, tokenizer and model of a run, loaded before anything is trained."""

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zotune.config import ConfigError, TrainConfig
from zotune.hf.models import load_tokenizer, prompt_style
from zotune.run.base import BaseFacts, base_model
from zotune.tasks import get_task
from zotune.tasks.sources import load_rows
from zotune.tasks.tokens import tokenise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What is loaded before anything is trained."""

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    train: datasets.Dataset
    validation: datasets.Dataset

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
    task = get_task(config.task)
    with sentences():
        # First, because a misspelt name of a model should not wait for the data.
        tokenizer = load_tokenizer(config.model_name, trust_remote_code=config.trust_remote_code)
        rows = functools.partial(load_rows, task, source=config.source, seed=row_seed)
        train = rows("train", limit=config.samplesize)
        validation = rows("validation", limit=config.samplesize_validation)
        model = base_model(
            BaseFacts.of(config, dtype=dtype, head_seed=head_seed),
            tokenizer=tokenizer,
            device=device,
            trust_remote_code=config.trust_remote_code,
        )
        prompt = prompt_style(model)
        tokens = [
            tokenise(split, task, tokenizer, config.max_seq_length, prompt=prompt) for split in (train, validation)
        ]
    return Parts(tokenizer=tokenizer, model=model, train=tokens[0], validation=tokens[1])


@contextmanager
def sentences() -> Iterator[None]:
    """What the loaders say about a wrong file, task or model is about a setting."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(str(error)) from error
