"""The trainer of a run, from its settings and its parts."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import TrainerCallback

from zotune.config import TrainConfig
from zotune.hf.trainer import OptimizerFactory, ZOTrainer
from zotune.hf.writing import WrittenObjective
from zotune.run.arguments import training_arguments
from zotune.run.machine import Machine
from zotune.run.parts import Parts


def make_trainer(
    config: TrainConfig,
    machine: Machine,
    parts: Parts,
    *,
    folder: Path,
    factory: OptimizerFactory,
    order_seed: int,
    dropout_seed: int,
    callbacks: list[TrainerCallback],
    resumed: bool = False,
) -> ZOTrainer:
    """A trainer for a run of ``config`` (resolved) in ``folder``.

    Args:
        config: the settings.
        machine: where it runs.
        parts: model, rows and objective.
        folder: of the run.
        factory: makes the optimizer.
        order_seed: of the order of the examples.
        dropout_seed: of what the library draws itself.
        callbacks: of the trainer.
        resumed: leave the evaluation before the first step out.
    """
    arguments = training_arguments(
        config, machine, folder=folder, rows=len(parts.train), seed=dropout_seed, resumed=resumed
    )
    # Questions have columns of their own, which the collator makes the model's arguments of.
    arguments.remove_unused_columns = parts.objective.form != "question"
    return ZOTrainer(
        model=parts.model,
        args=arguments,
        optimizer_factory=factory,
        data_seed=order_seed,
        train_dataset=parts.train,
        eval_dataset=parts.validation,
        data_collator=parts.collator,
        train_collator=parts.train_collator,
        processing_class=parts.tokenizer,
        compute_metrics=parts.metrics,
        compute_loss_func=parts.objective.loss,
        objective=_whole(config, parts),
        halve_when_out_of_memory=config.on_out_of_memory == "halve",
        callbacks=callbacks,
    )


def _whole(config: TrainConfig, parts: Parts) -> Callable[..., float | torch.Tensor] | None:
    """The objective that is a function of model and batch, if it is one."""
    if parts.objective.written is None:
        return parts.objective.whole
    stop = config.chosen_task().asked.stop
    return WrittenObjective(parts.tokenizer, parts.objective.written, max_new_tokens=config.max_new_tokens, stop=stop)
