"""Fields of `transformers.TrainingArguments` that a user gives in a file, beside those that the flags become."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Final

from transformers import TrainingArguments

from zotune.config.errors import nearest, shortened

OWN: Final[dict[str, str]] = {
    "output_dir": "--results",
    "num_train_epochs": "--epochs",
    "max_steps": "--epochs",
    "per_device_train_batch_size": "--batchsize and --batchsize_limit",
    "per_device_eval_batch_size": "--batchsize and --batchsize_limit",
    "gradient_accumulation_steps": "--batchsize and --batchsize_limit",
    "auto_find_batch_size": "--on_out_of_memory",
    "learning_rate": "--lr",
    "weight_decay": "--weight_decay",
    "max_grad_norm": "--clipping",
    "lr_scheduler_type": "--lr_scheduler_type",
    "adam_epsilon": "--eps",
    "bf16": "--bf16",
    "fp16": "--fp16",
    "eval_strategy": "--eval_every",
    "eval_steps": "--eval_every",
    "save_strategy": "--save_ckpt",
    "save_steps": "--save_every",
    "report_to": "--logging",
    "seed": "--init_seed and --trial",
    "data_seed": "--init_seed and --trial",
    "use_cpu": "--device",
    "resume_from_checkpoint": "--resume",
}
"""Fields that flags become, and which."""

_KEPT = """
optim optim_args optim_target_modules adam_beta1 adam_beta2 lr_scheduler_kwargs warmup_steps
eval_on_start eval_delay prediction_loss_only batch_eval_metrics include_for_metrics label_names metric_for_best_model
greater_is_better load_best_model_at_end save_total_limit save_only_model restore_callback_states_from_checkpoint
logging_strategy logging_steps logging_nan_inf_filter disable_tqdm dataloader_pin_memory dataloader_drop_last
remove_unused_columns ignore_data_skip train_sampling_strategy length_column_name do_train do_eval do_predict local_rank
"""
KEPT: Final = frozenset(_KEPT.split())
"""Fields that a run sets itself, or that would change what its files say."""

_BACKWARD = """
fsdp fsdp_config deepspeed parallelism_config gradient_checkpointing gradient_checkpointing_kwargs
activation_checkpointing activation_checkpointing_kwargs neftune_noise_alpha
"""
BACKWARD: Final = frozenset(_BACKWARD.split())
"""Fields that belong to a backward pass."""


def read_options(path: Path, *, zeroth_order: bool) -> dict[str, Any]:
    """The fields in a JSON file, by name.

    Args:
        path: of the file, which holds one object.
        zeroth_order: the method has no backward pass.

    Raises:
        ValueError: it cannot be read, or has a field that is unknown, a flag's or the run's own, or of no use.
    """
    what = f"--trainer_options {shortened(path)}"
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{what} cannot be read ({error.strerror}); give a JSON file.") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{what} is not JSON; give an object with fields of TrainingArguments.") from None
    if not isinstance(options, dict):
        raise ValueError(f"{what} is no object; give one with fields of TrainingArguments.")
    known = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    for name in options:
        if name in OWN:
            raise ValueError(f"{what} sets {name}, for which there is {OWN[name]}; give that.")
        if name in KEPT:
            raise ValueError(f"{what} sets {name}, which the run sets itself; take it out.")
        if name not in known:
            raise ValueError(f"{what} sets {name!r}, which TrainingArguments does not have{nearest(name, known)}")
        if zeroth_order and name in BACKWARD:
            raise ValueError(
                f"{what} sets {name}, which is for backward passes; choose --algorithm FOAdam or FOSGD, or take it out."
            )
    return options
