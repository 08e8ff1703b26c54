"""Steps that a run has made before: the loop makes them again from the losses in its trajectory, without the model.

A run that goes on after its last step, and not after its last checkpoint, needs more than weights: learning-rate
schedule, data order, early stopping, best accuracy and the log are what they were only if the loop has passed all
steps.  So it does pass them: the trainer's own loop runs over the recorded steps with all its callbacks, and only
what costs time is left out.  Losses and evaluations are those of the file, and each update costs one pass over the
weights.
"""

# ruff: noqa: ARG002  (the library fixes the signatures of callbacks)

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from zotune import digest
from zotune.probing import Curvature
from zotune.trajectory import Event, Recorder, Step, Trajectory, read

if TYPE_CHECKING:
    from .trainer import ZOTrainer

EVALUATION = "evaluation"
WEIGHTS = "weights"
PORTIONS = "portions"
"""Rows of a forward pass became fewer, from a step on; see `zotune.hf.portions`."""


CURVATURE = "curvature"
"""What was measured before a step; see `zotune.hf.pacing`."""


class Past:
    """Recorded steps and evaluations.

    Args:
        trajectory: of the run; None for a run that begins.

    Attributes:
        end: steps that are recorded.
    """

    def __init__(self, trajectory: Trajectory | None = None) -> None:
        self.end = 0 if trajectory is None else trajectory.end
        self._losses: dict[int, tuple[float, ...]] = {}
        self._evaluations: dict[tuple[int, str], dict[str, Any]] = {}
        self._weighed: set[int] = set()
        self._portions: list[tuple[int, int]] = []  # (first step, rows)
        self._curvatures: dict[int, Curvature] = {}
        for item in () if trajectory is None else trajectory.items():
            if isinstance(item, Step):
                self._losses[item.number] = item.losses
            elif item.kind == EVALUATION:
                self._take(item)
            elif item.kind == WEIGHTS:
                self._weighed.add(item.step)
            elif item.kind == PORTIONS:
                self._take_portions(item)
            elif item.kind == CURVATURE and all(isinstance(item.facts.get(n), float) for n in Curvature._fields):
                self._curvatures[item.step] = Curvature(*(item.facts[name] for name in Curvature._fields))

    def _take(self, event: Event) -> None:
        name, metrics = event.facts.get("name"), event.facts.get("metrics")
        if isinstance(name, str) and isinstance(metrics, dict):
            self._evaluations[event.step, name] = metrics

    def _take_portions(self, event: Event) -> None:
        begin, rows = event.facts.get("begin"), event.facts.get("rows")
        if isinstance(begin, int) and isinstance(rows, int) and rows > 0:
            self._portions.append((begin, rows))

    def portions(self, step: int) -> int | None:
        """Most rows of a forward pass in a step, or None if memory had not run out."""
        return min((rows for begin, rows in self._portions if begin <= step), default=None)

    def curvature(self, step: int) -> Curvature | None:
        """What was measured before a step, or None if nothing was."""
        return self._curvatures.get(step)

    def losses(self, step: int) -> tuple[float, ...] | None:
        """Losses of a step, or None if it is still to be made."""
        return self._losses.get(step)

    def evaluation(self, step: int, name: str) -> dict[str, Any] | None:
        """Metrics of the evaluation after so many steps, or None if there was none."""
        found = self._evaluations.get((step, name))
        return None if found is None else dict(found)

    def weighed(self, step: int) -> bool:
        """Whether there is a digest of the weights after so many steps."""
        return step in self._weighed

    def evaluated(self, step: int) -> bool:
        """Whether there was an evaluation after so many steps."""
        return any(number == step for number, _ in self._evaluations)


class TrajectoryKeeper(TrainerCallback):
    """Records the run, and on a run that goes on gives the trainer its past.

    Args:
        path: of the file.
        about: facts for its header.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path, self._about = path, dict(about)
        self._recorder: Recorder | None = None
        self._weighed = -1  # step of the last digest
        self._trainer: ZOTrainer | None = None

    def attach(self, trainer: ZOTrainer) -> None:
        """Remember the trainer whose steps are recorded."""
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read what the file holds, then begin or continue it."""
        trainer = self._trainer
        assert trainer is not None
        optimizer = trainer.zeroth_order
        if optimizer is None:
            return
        written = self.path.exists() and self.path.stat().st_size > 0
        trainer.past = Past(read(self.path) if written else None)
        trainer.accelerator.wait_for_everyone()  # all have read before the first one writes
        # A run that has made steps without a file began before there were any, or has lost it: it is not recorded.
        if state.is_world_process_zero and (written or optimizer.t == 0):
            self._recorder = Recorder(self.path, optimizer, about=self._about)

    def evaluation(self, name: str, metrics: Mapping[str, Any]) -> None:
        """Record the metrics of an evaluation."""
        if self._recorder is not None:
            self._recorder.event(EVALUATION, name=name, metrics=dict(metrics))

    def portions(self, rows: int, begin: int) -> None:
        """Record how many rows a forward pass has from a step on."""
        if self._recorder is not None:
            self._recorder.event(PORTIONS, rows=rows, begin=begin)

    def curvature(self, found: Curvature) -> None:
        """Record what was measured before the coming step."""
        if self._recorder is not None:
            self._recorder.event(CURVATURE, **found._asdict())

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Record a digest of the weights, against which a replay is checked."""
        self._weigh(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record a digest of the last weights."""
        self._weigh(state.global_step)

    def _weigh(self, step: int) -> None:
        trainer, recorder = self._trainer, self._recorder
        if recorder is None or trainer is None or trainer.zeroth_order is None:
            return
        if step >= trainer.past.end and not trainer.past.weighed(step) and step != self._weighed:
            params = (p for group in trainer.zeroth_order.param_groups for p in group["params"])
            recorder.event(WEIGHTS, digest=digest(params))
            recorder.sync()
            self._weighed = step

    def close(self) -> None:
        """Close the file."""
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None
