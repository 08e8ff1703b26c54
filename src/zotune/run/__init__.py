"""A whole training run, from settings to a run folder: data, model, optimizer, trainer, files."""

from zotune.run.launch import launch, run_training
from zotune.run.seeds import derive_seed

__all__ = ["derive_seed", "launch", "run_training"]
