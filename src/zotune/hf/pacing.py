"""`zotune.Pace` in the trainer, and through its checkpoints.

The curvature is measured again on the way, because it grows most in the first steps: at shares `AGAIN` of the run, as
many of them as the run has queries for.  What was measured is an event of the trajectory, so a run that goes on has the
same rates on any machine.
"""

# ruff: noqa: ARG002  (the library fixes the signatures of callbacks)

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from zotune.pace import WARM_UP, Pace
from zotune.rates import Rate

if TYPE_CHECKING:
    from .trainer import ZOTrainer


AGAIN: Final = (0.1, 0.25, 0.5)
"""Shares of a run after which its curvature is measured again."""

BATCHES: Final = 8
"""Batches for that, of three queries each."""

SHARE: Final = 0.08
"""Most of a run's forward passes that all of that may take."""


def times_again(forwards: int, rows: int) -> int:
    """How often the curvature is measured again in a run of so many forward passes of one example, and of ``rows``
    examples a step."""
    return min(len(AGAIN), int(SHARE * forwards / cost_again(rows)))


def cost_again(rows: int) -> int:
    """Forward passes of one example that one such measurement takes."""
    return 3 * BATCHES * rows


def steps_again(times: int, steps: int) -> list[int]:
    """The steps, of so many, before which the curvature is measured."""
    return [max(1, round(share * steps)) for share in AGAIN[:times]]


class PaceKeeper(TrainerCallback, ExportableState):
    """Gives a trainer a pace, and keeps its running mean in checkpoints.

    The steps after a checkpoint, which a resumed run makes again from their losses, bring it to where it was.

    Args:
        rate: what was measured, as a dictionary; None if nothing was.
        rows: examples of a step.
        again: how often the curvature is measured on the way, see `times_again`.
    """

    def __init__(self, rate: dict[str, Any] | None = None, rows: int | None = None, again: int = 0) -> None:
        self._given = {"rate": rate, "rows": rows, "again": again}
        self._length = 1.0 if rate is None else float(rate["length"])
        self._again = again
        self.pace = Pace(None if rate is None else Rate(**rate), rows=rows)
        self._trainer: ZOTrainer | None = None

    def attach(self, trainer: ZOTrainer) -> None:
        """Let the trainer's optimizer ask this pace."""
        trainer.pace, self._trainer = self.pace, trainer

    def state(self) -> dict[str, Any]:
        """For the library's trainer_state.json."""
        kept = {name: getattr(self.pace, name) for name in ("spread", "mean", "steps", "curvature", "spread_then")}
        return {"args": self._given, "attributes": {"kept": kept}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over the mean of the checkpoint, if there is one; the run's length is known now."""
        self.pace.warm_up = round(WARM_UP * state.max_steps)
        saved: Any = state.stateful_callbacks
        kept = saved.get(type(self).__name__, {}).get("attributes", {}).get("kept") if state.global_step else None
        if kept is not None:
            self.pace.spread, self.pace.mean, self.pace.steps = kept["spread"], float(kept["mean"]), int(kept["steps"])
            if kept["curvature"] is not None:
                self.pace.measured(float(kept["curvature"]), float(kept["spread_then"]))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the curvature again where it is due, or take what the run has measured before."""
        step, trainer = state.global_step, self._trainer
        if trainer is None or step not in steps_again(self._again, state.max_steps):
            return
        found = trainer.past.curvature(step)
        if found is None:
            found = trainer.curvature(self._length, BATCHES)
        if found > 0.0:
            self.pace.measured(found)
