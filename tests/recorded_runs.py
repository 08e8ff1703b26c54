"""Runs of a tiny model that leave a trajectory, the trained model and checkpoints, as `zotune train` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny_models import build, save
from tiny_runs import make_trainer
from transformers import TrainerCallback

import zotune
from zotune.config import TRAJECTORY, TrainConfig
from zotune.hf.groups import parameter_groups
from zotune.hf.models import load_tokenizer
from zotune.run.base import BaseFacts, about_of, base_model
from zotune.run.keepers import save_model
from zotune.trajectory import Recorder

HEAD_SEED = 7
STEPS = 6

METHODS: dict[str, Callable[[list[dict[str, Any]]], zotune.ZerothOrder]] = {
    "MeZO": lambda groups: zotune.MeZO(groups, lr=1e-2, seed=3, momentum=0.5, clip=1.0),
    "ZOAdam": lambda groups: zotune.ZOAdam(groups, lr=1e-3, seed=3),
    "MeZOSVRG": lambda groups: zotune.MeZOSVRG(groups, lr=1e-3, lr_minibatch=1e-3, period=2, seed=3),
    "LOZO-M": lambda groups: zotune.LOZO(groups, lr=1e-2, momentum=0.5, period=4, seed=3),
    "HiZOO": lambda groups: zotune.HiZOO(groups, lr=1e-3, seed=3),
    "LOREN": lambda groups: zotune.LOREN(groups, lr=1e-3, queries=3, momentum=0.5, momentum_bits=8, seed=3),
    "FZOO": lambda groups: zotune.FZOO(groups, lr=1e-3, queries=4, seed=3),
}


def record(folder: Path, base: Path, method: str = "MeZO", *, every: int = 3, **settings: Any) -> Path:
    """Train the model of `base` with the trainer; the run folder has trajectory.zo, checkpoint-N and last.

    `settings` are those of `TrainConfig`, such as `full_parameter`.
    """
    config = TrainConfig(model_name=str(base), **settings).resolved()
    dtype = torch.bfloat16 if config.bf16 else torch.float32
    tokenizer = load_tokenizer(str(base))
    model = base_model(BaseFacts.of(config, dtype=dtype, head_seed=HEAD_SEED), tokenizer=tokenizer, device="cpu")
    about = about_of(config, model, dtype=dtype, head_seed=HEAD_SEED)
    folder.mkdir(exist_ok=True)
    recorders: list[Recorder] = []

    def factory(groups: list[dict[str, Any]]) -> zotune.ZerothOrder:
        optimizer = METHODS[method](groups)
        recorders.append(Recorder(folder / TRAJECTORY, optimizer, about=about))
        return optimizer

    class Telling(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **more: Any) -> None:
            recorders[0].event("evaluation", metrics=metrics)

        def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            recorders[0].event("weights", digest=digest_of(recorders[0]._optimizer))
            recorders[0].close()

    trainer = make_trainer(
        folder,
        method=factory,
        model=model,
        callbacks=[Telling()],
        trainer={"processing_class": tokenizer},
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=every,
        eval_strategy="steps",
        eval_steps=every,
        lr_scheduler_type="linear",
    )
    trainer.train()
    save_model(model, tokenizer, folder / "last")
    return folder


def digest_of(optimizer: zotune.ZerothOrder) -> int:
    """Digest of the parameters in the order of the header."""
    return zotune.digest(p for group in optimizer.param_groups for p in group["params"])


def record_plain(folder: Path, *, steps: int = 5, method: str = "MeZO") -> Path:
    """A loop of plain torch on a classifier with all its weights; `base`, `run.zo` and `trained` in the folder."""
    save(folder / "base", "opt", head="classifier")
    model = build("opt", head="classifier")
    optimizer = METHODS[method](parameter_groups(model, weight_decay=0.0))
    ids = torch.arange(5, 53).view(4, 12)
    with Recorder(folder / "run.zo", optimizer):
        for _ in range(steps):
            optimizer.step(lambda: model(input_ids=ids, labels=torch.arange(4) % 2).loss)
    model.save_pretrained(folder / "trained")
    return folder


def same_weights(one: Path, other: Path) -> bool:
    """Whether two model folders hold the same tensors, bit for bit."""
    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k].view(torch.uint8), b[k].view(torch.uint8)) for k in a
    )
