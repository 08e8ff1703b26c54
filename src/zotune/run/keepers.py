"""What `--save_ckpt` keeps beside the checkpoints: the best and the last model."""

import math
import shutil
from pathlib import Path
from typing import Any

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from zotune.hf.adapters import own_model
from zotune.hf.checkpoints import sync


class BestModel(TrainerCallback):
    """Writes the model to `folder` at every evaluation with a better accuracy than all evaluations before it.

    A model whose loss is NaN or infinite is not kept, whatever its accuracy.  The evaluation before the first step does
    not count: it is of the model that came in.
    """

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self._folder = folder
        self._tokenizer = tokenizer

    def on_evaluate(
        self,
        args: TrainingArguments,  # noqa: ARG002 (the library's signature)
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **context: Any,
    ) -> None:
        """Called by the library, which keeps the best accuracy so far in its state, also over a resume."""
        metrics = context["metrics"]
        better = state.best_metric is None or metrics["eval_accuracy"] > state.best_metric
        finite = math.isfinite(metrics.get("eval_loss", 0.0))
        if state.global_step > 0 and better and finite and state.is_world_process_zero:
            save_model(context["model"], self._tokenizer, self._folder)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights (safetensors), configuration and tokenizer to `folder`; of an adapter, only its own.

    They are written beside it first, so that a folder of that name is always whole.
    """
    staging, old = (folder.with_name(f".{folder.name}.{word}") for word in ("saving", "old"))
    shutil.rmtree(staging, ignore_errors=True)
    try:
        _write_model(model, tokenizer, staging)
        sync(staging)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.replace(old)
    staging.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def _write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    # Left to itself, peft would ask the hub whether the vocabulary of the base model has grown.
    options: dict[str, Any] = {"save_embedding_layers": False} if own_model(model) is not model else {}
    model.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
