"""The settings as `transformers.TrainingArguments`."""

import math
import os
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from zotune.config import ConfigError, TrainConfig, shortened
from zotune.run.budget import steps_of
from zotune.run.machine import Machine, micro_batch
from zotune.run.optimizers import CLIP_NORM


def steps_per_epoch(config: TrainConfig, rows: int) -> int:
    """Steps in one pass over `rows` training examples; the last step of a pass may be a smaller one."""
    return math.ceil(rows / config.batchsize)


def training_arguments(
    config: TrainConfig, machine: Machine, *, folder: Path, rows: int, seed: int, resumed: bool
) -> TrainingArguments:
    """The library's arguments for a run of `config` (resolved) in `folder` on `rows` training examples.

    `seed` is for what the library draws itself (dropout of the first-order baselines); a resumed run leaves out the
    evaluation before the first step.
    """
    assert isinstance(config.lr, float)
    assert config.batchsize_limit is not None
    options = config.library_options()
    _check_divided(options, config, machine)
    share = config.batchsize // machine.processes
    micro = micro_batch(share, config.batchsize_limit)
    steps = steps_per_epoch(config, rows)
    first_order = not config.zeroth_order
    # The library's own choice is always the first GPU; this is accelerate's documented way to name another.
    if machine.processes == 1 and machine.device.type == "cuda":
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(machine.device)
    ours: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": config.epochs,
        "max_steps": -1 if config.budget_queries is None else steps_of(config, rows),
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": share // micro,
        "learning_rate": config.lr,
        "lr_scheduler_type": "constant" if config.lr_scheduler_type == "adaptive" else config.lr_scheduler_type,
        "weight_decay": config.weight_decay,
        # The zeroth-order optimizers clip their own estimate.
        "max_grad_norm": CLIP_NORM if config.clipping and first_order else 0.0,
        "bf16": config.bf16 and first_order,
        "fp16": config.fp16 and first_order,
        "eval_strategy": "steps",
        "eval_steps": _between_evaluations(config, rows),
        "eval_on_start": not resumed,
        "metric_for_best_model": "accuracy",
        "greater_is_better": True,
        "save_strategy": "steps" if config.save_ckpt else "no",
        "save_steps": _interval(config.save_every, steps),
        "save_total_limit": 2,
        "restore_callback_states_from_checkpoint": True,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        # The run has set what the library may say; on other ranks the library would set it back to warnings.
        "log_level_replica": "passive",
        "disable_tqdm": True,
        "seed": seed,
        "use_cpu": machine.device.type == "cpu",
        "dataloader_pin_memory": machine.device.type != "cpu",
    }
    arguments = _made({**options, **ours}, config)
    if machine.processes == 1 and machine.device.type == "cuda":
        _take_gpu(arguments, machine.device)
    return arguments


def _between_evaluations(config: TrainConfig, rows: int) -> int:
    if config.evaluations is None:
        return _interval(config.eval_every, steps_per_epoch(config, rows))
    return max(1, math.ceil(steps_of(config, rows) / config.evaluations))


def _check_divided(options: dict[str, Any], config: TrainConfig, machine: Machine) -> None:
    """Raise `ConfigError` where FSDP or DeepSpeed would be left out in silence, or models be kept in parts."""
    name = next((name for name in ("fsdp", "deepspeed") if options.get(name)), None)
    if name is None:
        return
    where = f"--trainer_options {shortened(config.trainer_options)} sets {name}"
    if machine.device.type == "cpu":
        raise ConfigError(f"{where}, which the library leaves out on CPUs; take it out, or give a --device with a GPU.")
    if machine.processes == 1:
        raise ConfigError(f"{where}, which divides a model over processes; start the run with torchrun.")
    if config.save_ckpt:
        raise ConfigError(f"{where}, and a divided model cannot be kept by --save_ckpt; leave one of them out.")


def _made(values: dict[str, Any], config: TrainConfig) -> TrainingArguments:
    try:
        return TrainingArguments(**values)
    except Exception as error:  # of a library that a field of the user's names, or of a value that it does not take
        if config.trainer_options is None:
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ConfigError(f"--trainer_options {shortened(config.trainer_options)} cannot be used: {reason}.") from error


def _interval(epochs: float, steps: int) -> int:
    """Steps between two evaluations or checkpoints, at least one."""
    return max(1, round(epochs * steps))


def _take_gpu(arguments: TrainingArguments, device: torch.device) -> None:
    # The library would wrap the model over all GPUs it sees; the run takes the one it was given.
    torch.cuda.set_device(device)
    arguments._n_gpu = 1
    arguments.__dict__["_setup_devices"] = device
