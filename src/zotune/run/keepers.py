"""What `--save_ckpt` keeps beside the checkpoints: the best and the last model."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

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

EVALUATION: Final = "evaluation.json"
"""File in the folder of the best model: step, accuracy and loss by which it was chosen."""


class BestModel(TrainerCallback):
    """Writes the model to `folder` at every evaluation that is better than all before it, with that evaluation.

    Better is a higher accuracy, or at the same accuracy a lower loss.  A model whose loss is NaN or infinite is not
    kept, whatever its accuracy.  The evaluation before the first step counts as all others do, so that what is kept is
    never worse than the model that came in.
    """

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self._folder = folder
        self._tokenizer = tokenizer

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002 (the library's signature)
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **context: Any,  # noqa: ARG002
    ) -> None:
        """Called by the library, also when a run goes on."""
        if state.is_world_process_zero:
            recover(self._folder)

    def on_evaluate(
        self,
        args: TrainingArguments,  # noqa: ARG002 (the library's signature)
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **context: Any,
    ) -> None:
        """Called by the library, before it notes the best accuracy in its state, which is kept over a resume."""
        if not state.is_world_process_zero:
            return
        metrics = context["metrics"]
        accuracy, loss = float(metrics["eval_accuracy"]), float(metrics.get("eval_loss", 0.0))
        kept = best_evaluation(self._folder)
        if kept is not None:
            better = (accuracy, -loss) > (kept["accuracy"], -kept["loss"])
        elif state.best_metric is None:
            better = True
        elif self._folder.exists():
            better = accuracy > state.best_metric
        else:  # it is gone: an equal one will do
            better = accuracy >= state.best_metric
        if better and math.isfinite(loss):
            evaluation = {"step": state.global_step, "accuracy": accuracy, "loss": loss}
            save_model(context["model"], self._tokenizer, self._folder, evaluation=evaluation)


def best_evaluation(folder: Path) -> dict[str, Any] | None:
    """Step, accuracy and loss of the model that `BestModel` has kept in a folder; None where it has kept none."""
    try:
        content = json.loads((folder / EVALUATION).read_text(encoding="utf-8"))
        found = {"step": int(content["step"]), **{name: float(content[name]) for name in ("accuracy", "loss")}}
        return found if all(map(math.isfinite, found.values())) else None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def recover(folder: Path) -> None:
    """Finish what `save_model` was killed in between its two renames: the new folder is whole by then."""
    staging, old = _beside(folder)
    if not folder.exists() and old.exists():
        (staging if staging.exists() else old).replace(folder)


def _beside(folder: Path) -> tuple[Path, Path]:
    """Where a folder is written, and where the one before it waits to be deleted."""
    return folder.with_name(f".{folder.name}.saving"), folder.with_name(f".{folder.name}.old")


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    evaluation: Mapping[str, float] | None = None,
) -> None:
    """Write weights (safetensors), configuration and tokenizer to `folder`; of an adapter, only its own.

    They are written beside it first, so that a folder of that name is always whole.
    """
    recover(folder)
    staging, old = _beside(folder)
    shutil.rmtree(staging, ignore_errors=True)
    try:
        _write_model(model, tokenizer, staging)
        if evaluation is not None:
            (staging / EVALUATION).write_text(json.dumps(evaluation) + "\n", encoding="utf-8")
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
