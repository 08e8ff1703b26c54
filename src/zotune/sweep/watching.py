"""A run of a search, which tells Optuna each evaluation."""

# ruff: noqa: ARG002  (the library fixes the signatures of callbacks)

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from zotune import NonFiniteLossError
from zotune.compare.running import has_blown
from zotune.config import TrainConfig
from zotune.run.budget import FIRST_ORDER
from zotune.run.training import TrainingRun


def executed(settings: TrainConfig, watcher: Watcher) -> None:
    """Train.  A run that diverges leaves the watcher without metrics."""
    # What a run says goes to its folder's rows; a search of a hundred runs would fill the screen.
    run = TrainingRun(settings, Console(quiet=True), callbacks=[watcher], pictures=False)
    try:
        run.execute()
    except (optuna.TrialPruned, TakenError):
        run.finish("broken off")
        raise
    except NonFiniteLossError:
        run.finish("non-finite loss")
        watcher.latest = {}
    finally:
        run.close()
        watcher.folder = run.folder


class TakenError(Exception):
    """Another process took this one for dead, and does its run again."""


class Watcher(TrainerCallback):
    """Tells Optuna each evaluation, if it has asked for the run, and breaks off one that it thinks little of.

    Args:
        metric: that is told.
        settings: of the run.
        trial: of Optuna's, if it has asked for the run.
        note: has what was spent at each evaluation: a process that is killed tells nothing in the end.

    Attributes:
        latest: metrics of the last evaluation.
        seen: metrics of all evaluations.
        spent: forward passes of one example so far.
        folder: of the run, once it has ended.
    """

    def __init__(
        self,
        metric: str,
        settings: TrainConfig,
        trial: optuna.Trial | None = None,
        *,
        note: Callable[[int], object] | None = None,
    ) -> None:
        self.latest: dict[str, float] = {}
        self.seen: list[dict[str, float]] = []
        self.spent = 0
        self.folder: Path | None = None
        self._trial, self._metric, self._note = trial, metric, note
        self._passes = 1 if settings.zeroth_order else FIRST_ORDER
        self._trainer: Any = None
        self._evaluations = 0

    @property
    def value(self) -> float:
        """The metric in the end; the worst there is if the run diverged, as a comparison has it."""
        worst = math.inf if self._metric == "loss" else -math.inf
        value = self.latest.get(self._metric, math.nan)
        return worst if math.isnan(value) or has_blown(self.seen) else value

    def attach(self, trainer: Any) -> None:
        """Remember whose counts are told."""
        self._trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count what has been spent."""
        self.spent = self._trainer.forwards * self._passes

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Tell, and ask."""
        self.latest = {name.removeprefix("eval_"): float(value) for name, value in (metrics or {}).items()}
        self.seen.append(self.latest)
        try:
            if self._note is not None:
                self._note(self.spent)
            if self._trial is None or state.global_step == 0 or self._metric not in self.latest:
                return
            self._evaluations += 1
            self._trial.report(self.latest[self._metric], self._evaluations)
        except optuna.exceptions.UpdateFinishedTrialError as error:
            raise TakenError from error
        if state.global_step < state.max_steps and self._trial.should_prune():
            raise optuna.TrialPruned
