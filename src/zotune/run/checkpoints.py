"""Checkpoints of a run that goes on: which are complete, and what to say about one that cannot be read."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from zotune import NonFiniteLossError
from zotune.config import ConfigError
from zotune.reports.rows import read_rows
from zotune.saving import OtherSettingsError

_FILES: Final = ("trainer_state.json", "optimizer.pt", "scheduler.pt")
_WEIGHTS: Final = ("model.safetensors", "model.safetensors.index.json")


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of the run, newest first; one that was being written when the run died is left out."""
    steps = {
        int(checkpoint.name.removeprefix("checkpoint-")): checkpoint
        for checkpoint in folder.glob("checkpoint-*")
        if checkpoint.name.removeprefix("checkpoint-").isdecimal() and _complete(checkpoint)
    }
    return [steps[step] for step in sorted(steps, reverse=True)]


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of the run, or None."""
    return next(iter(complete_checkpoints(folder)), None)


def _complete(checkpoint: Path) -> bool:
    """Whether every part is there and has content; the library itself would silently do without some of them."""
    return (
        all(_filled(checkpoint / name) for name in _FILES)
        and any(_filled(checkpoint / name) for name in _WEIGHTS)
        and any(_filled(path) for path in checkpoint.glob("rng_state*.pth"))
    )


def _filled(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size > 0
    except OSError:
        return False


def checkpoint_to_go_on_from(run: Path) -> Path:
    """The newest complete checkpoint of the folder `run`.

    Raises `ConfigError` when there is none, or when metrics.csv, which the resumed run continues, cannot be read.
    """
    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        partial = ", only incomplete ones" if any(run.glob("checkpoint-*")) else ""
        raise ConfigError(
            f"{run} has no checkpoint to go on from{partial}; runs with --save_ckpt have them, so start it again."
        )
    path = run / "metrics.csv"
    if not path.is_file():
        raise ConfigError(f"{path} is missing, so the rows of the run cannot be continued; restore it or start anew.")
    try:
        train, evaluations = read_rows(run)
        whole = all({"step", "queries", "seconds"} <= row.keys() for row in train + evaluations)
    except (OSError, ValueError, csv.Error):
        whole = False
    if not whole:
        raise ConfigError(f"{path} cannot be read as the rows of the run; restore it or start a new run.")
    return checkpoint


class FirstStep(TrainerCallback):
    """Notes that a step has begun: by then everything has been read from the checkpoint."""

    def __init__(self) -> None:
        self.begun = False

    def on_step_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002 (the library's signature)
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **context: Any,  # noqa: ARG002
    ) -> None:
        """Called by the library."""
        self.begun = True


@contextlib.contextmanager
def readable(checkpoint: Path | None, first_step: FirstStep) -> Iterator[None]:
    """Turn what goes wrong before the first step of a resumed run into a `ConfigError` about its checkpoint."""
    try:
        yield
    except (ConfigError, NonFiniteLossError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if checkpoint is None or first_step.begun:
            raise
        if isinstance(error, OtherSettingsError):
            raise ConfigError(
                f"{checkpoint} was made with {error.field}={error.saved!r}, but the run's config.json stands for"
                f" {error.present!r}; restore config.json or start a new run."
            ) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
        older = complete_checkpoints(checkpoint.parent)[1:]
        advice = f"delete it, so that {older[0].name} is used" if older else "there is no older one, so start a new run"
        raise ConfigError(f"The checkpoint {checkpoint} cannot be read ({reason}); {advice}.") from error
