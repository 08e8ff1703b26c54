"""A small classification run for the tests of the training loop: generated examples, a tiny model, seconds at most."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_models import SPECIALS, VOCABULARY, build
from transformers import EvalPrediction, TrainerCallback, TrainingArguments

import zotune
from zotune.hf.trainer import ZOTrainer

METHODS: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
    "MeZO": lambda groups: zotune.MeZO(groups, lr=1e-2, seed=3),
    "LOZO-M": lambda groups: zotune.LOZO(groups, lr=1e-2, momentum=0.5, period=4, seed=3),
    "LOREN": lambda groups: zotune.LOREN(groups, lr=1e-3, queries=2, seed=3),
    "ZOAdam": lambda groups: zotune.ZOAdam(groups, lr=1e-3, seed=3),
    "HiZOO": lambda groups: zotune.HiZOO(groups, lr=1e-3, seed=3),
    "MeZOSVRG": lambda groups: zotune.MeZOSVRG(groups, lr=1e-3, lr_minibatch=1e-3, period=2, seed=3),
    "FOAdam": lambda groups: torch.optim.AdamW(groups, lr=1e-3),
}


def examples(size: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of one length whose label says whether the first token is in the upper half of the vocabulary."""
    generator = np.random.Generator(np.random.Philox(seed))
    ids = generator.integers(len(SPECIALS), VOCABULARY, (size, 6))
    middle = (len(SPECIALS) + VOCABULARY) // 2
    return [{"input_ids": row.tolist(), "attention_mask": [1] * 6, "labels": int(row[0] > middle)} for row in ids]


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(axis=1) == prediction.label_ids).mean())}


def make_trainer(
    folder: Path,
    *,
    method: str | Callable[[list[dict[str, Any]]], torch.optim.Optimizer] = "MeZO",
    model: torch.nn.Module | None = None,
    train: int = 30,
    data_seed: int = 7,
    callbacks: list[TrainerCallback] | None = None,
    trainer: dict[str, Any] | None = None,
    **arguments: Any,
) -> ZOTrainer:
    """A trainer on `train` generated rows; `arguments` go to TrainingArguments, `trainer` to ZOTrainer."""
    settings = {
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 4,
        "max_steps": 6,
        "save_strategy": "no",
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }
    return ZOTrainer(
        model=build("llama") if model is None else model,
        args=TrainingArguments(output_dir=str(folder), **(settings | arguments)),
        optimizer_factory=METHODS[method] if isinstance(method, str) else method,
        data_seed=data_seed,
        train_dataset=examples(train),
        eval_dataset=examples(10, seed=1),
        compute_metrics=accuracy,
        callbacks=callbacks,
        **(trainer or {}),
    )


def weights(trainer: ZOTrainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


class Losses(TrainerCallback):
    """Collects the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self._trainer: ZOTrainer | None = None

    def attach(self, trainer: ZOTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self._trainer is not None
        self.values.append(self._trainer.last_loss)
