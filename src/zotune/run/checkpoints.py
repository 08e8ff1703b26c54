"""Checkpoints of a run that goes on: which are complete, and what to say about one that cannot be read."""

from __future__ import annotations

import contextlib
import csv
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from zotune import NonFiniteLossError
from zotune.config import TRAJECTORY, ConfigError
from zotune.hf.checkpoints import by_step, step_of, verified
from zotune.hf.portions import MemoryShortError
from zotune.reports.rows import read_rows
from zotune.saving import OtherSettingsError
from zotune.trajectory import TrajectoryError, read


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of the run that is as it was written, or None."""
    return next(filter(verified, by_step(folder)), None)


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run goes on from.

    Attributes:
        checkpoint: whose state is loaded; None: the base model, and all steps are made again from the trajectory.
        said: sentences about what was found.
    """

    checkpoint: Path | None
    said: tuple[str, ...] = ()


def start_of(run: Path, *, recorded: bool) -> Start:
    """Where the run in a folder goes on: after the last step in its trajectory, from the newest sound checkpoint.

    Args:
        run: its folder.
        recorded: whether the method keeps a trajectory.

    Raises:
        ConfigError: nothing was kept to go on from, or metrics.csv, which the run continues, cannot be read.
    """
    said = []
    newest = newest_checkpoint(run)
    for broken in by_step(run):
        if broken == newest:
            break
        said.append(f"Warning: {broken.name} is incomplete or damaged and is not used.")
    path, end = run / TRAJECTORY, 0
    if recorded and newest is not None and not path.is_file():
        said.append(f"Warning: {path.name} is missing, so steps from here on are not recorded.")
    if recorded and path.is_file():
        try:
            trajectory = read(path)
        except TrajectoryError as error:
            if newest is None:
                raise ConfigError(
                    f"{error}; there is no checkpoint to go on from either, so start a new run."
                ) from None
            aside = set_aside(path)
            said.append(f"Warning: {error}. It is now {aside.name}, and steps from here on are not recorded.")
        else:
            end = trajectory.end
            if trajectory.problem:
                said.append(f"Warning: {trajectory.problem}")
            if not trajectory.torn and trajectory.cut:
                shutil.copyfile(path, _free(path.with_name(f"{path.name}.damaged")))
    if newest is None and end == 0 and not path.is_file():
        partial = ", only incomplete ones" if by_step(run) else ""
        raise ConfigError(f"{run} has no step and no checkpoint to go on from{partial}; start it again.")
    if path.is_file():
        # The loop passes at least the last step again: what was due after it (an evaluation, the end of the training)
        # is not in a checkpoint of that step.  One behind the sound part of the trajectory would leave a gap in it.
        for checkpoint in by_step(run):
            if (step_of(checkpoint) or 0) > end:
                said.append(f"Warning: {checkpoint.name} is behind the last step of {TRAJECTORY} and is not used.")
        newest = next((c for c in by_step(run) if (step_of(c) or 0) < end and verified(c)), None)
    if not (run / "metrics.csv").is_file() and newest is not None:
        if not end:
            raise ConfigError(
                f"{run / 'metrics.csv'} is missing, so the rows of the run cannot be continued; restore it."
            )
        said.append(f"Warning: metrics.csv is missing; its rows are made again from {TRAJECTORY}.")
        newest = None
    _check_rows(run, end)
    return Start(checkpoint=newest, said=tuple(said))


def set_aside(path: Path) -> Path:
    """Give a damaged file another name, so that nothing is lost."""
    return path.rename(_free(path.with_name(f"{path.name}.damaged")))


def _free(path: Path) -> Path:
    """The path, or one with a number that does not exist yet."""
    number, wanted = 1, path
    while path.exists():
        number += 1
        path = wanted.with_name(f"{wanted.name}-{number}")
    return path


def _check_rows(run: Path, end: int) -> None:
    """Raise ConfigError if metrics.csv, which the resumed run continues, cannot be read."""
    path = run / "metrics.csv"
    if not path.is_file():
        return
    try:
        train, evaluations = read_rows(run)
        whole = all({"step", "queries", "seconds"} <= row.keys() for row in train + evaluations)
    except (OSError, ValueError, csv.Error):
        whole = False
    if not whole:
        advice = "delete it, and its rows are made again" if end else "start a new run"
        raise ConfigError(f"{path} cannot be read as the rows of the run; restore it, or {advice}.")


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
    except (ConfigError, NonFiniteLossError, MemoryError, MemoryShortError, torch.OutOfMemoryError):
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
        older = [c for c in by_step(checkpoint.parent) if c != checkpoint and verified(c)]
        advice = f"delete it, so that {older[0].name} is used" if older else "there is no older one, so start a new run"
        raise ConfigError(f"The checkpoint {checkpoint} cannot be read ({reason}); {advice}.") from error
