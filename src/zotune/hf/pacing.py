"""`zotune.Pace` in the trainer, and through its checkpoints.

The curvature is measured again on the way, because it grows most in the first steps: at shares `AGAIN` of the run, on
as many small batches as the run has queries for, along one direction each, and on other ones each time.  What was
measured is an event of the trajectory, so a run that goes on has the same rates on any machine.
"""

# ruff: noqa: ARG002  (the library fixes the signatures of callbacks)

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from zotune.pace import Pace
from zotune.rates import Rate

from .measuring import small_rows

if TYPE_CHECKING:
    from .trainer import ZOTrainer


AGAIN: Final = (0.03, 0.07, 0.12, 0.2, 0.35, 0.55)
"""Shares of a run after which its curvature is measured again."""

BATCHES: Final = (4, 48)
"""Least and most small batches for each of them, of three queries each; a run that has not enough goes without."""

SHARE: Final = 0.1
"""Most of a run's forward passes that all of that may take."""


def batches_again(forwards: int, rows: int) -> int:
    """Small batches on which the curvature is measured each time in a run of so many forward passes of one example, and
    of ``rows`` examples a step; 0 if it is not."""
    least, most = BATCHES
    found = min(most, int(SHARE * forwards / cost_again(1, rows)))
    return found if found >= least else 0


def cost_again(batches: int, rows: int) -> int:
    """Forward passes of one example that all of these measurements take."""
    return len(AGAIN) * 3 * batches * small_rows(rows)


def steps_again(steps: int) -> set[int]:
    """The steps, of so many, before which the curvature is measured."""
    return {max(1, round(share * steps)) for share in AGAIN}


KEPT: Final = (
    "spread",
    "mean",
    "usual",
    "steps",
    "curvature",
    "variance",
    "looks",
    "then",
    "braked",
    "window",
    "lowest",
)
OF_DESCENT: Final = ("points", "part")
"""What of a pace and of its descent is in checkpoints."""


class PaceKeeper(TrainerCallback, ExportableState):
    """Gives a trainer a pace, and keeps its running mean in checkpoints.

    The steps after a checkpoint, which a resumed run makes again from their losses, bring it to where it was.

    Args:
        rate: what was measured, as a dictionary; None if nothing was.
        again: small batches on which the curvature is measured on the way, see `batches_again`.
    """

    def __init__(self, rate: dict[str, Any] | None = None, again: int = 0) -> None:
        self._given = {"rate": rate, "again": again}
        self._length = 1.0 if rate is None else float(rate["length"])
        self._again = again
        self.pace = Pace(None if rate is None else Rate(**rate))
        self._trainer: ZOTrainer | None = None

    def attach(self, trainer: ZOTrainer) -> None:
        """Let the trainer's optimizer ask this pace."""
        trainer.pace, self._trainer = self.pace, trainer

    def state(self) -> dict[str, Any]:
        """For the library's trainer_state.json."""
        kept = {name: getattr(self.pace, name) for name in KEPT}
        kept |= {name: getattr(self.pace.descent, name) for name in OF_DESCENT}
        return {"args": self._given, "attributes": {"kept": kept}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over the mean of the checkpoint, if there is one; the run's length is known now."""
        self.pace.total = state.max_steps
        saved: Any = state.stateful_callbacks
        kept = saved.get(type(self).__name__, {}).get("attributes", {}).get("kept") if state.global_step else None
        if kept is not None:
            for name in KEPT:
                setattr(self.pace, name, kept[name])
            for name in OF_DESCENT:
                setattr(self.pace.descent, name, kept[name])

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the curvature again where it is due, or take what the run has measured before."""
        step, trainer = state.global_step, self._trainer
        if trainer is None or not self._again or step not in (due := sorted(steps_again(state.max_steps))):
            return
        number = due.index(step)
        found = trainer.past.curvature(step) or trainer.curvature(self._length, self._again, number * self._again)
        if found is not None:
            self.pace.measured(*found)
