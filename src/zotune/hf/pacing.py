"""`zotune.Pace` in the trainer, and through its checkpoints."""

# ruff: noqa: ARG002  (the library fixes the signatures of callbacks)

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from zotune.pace import WARM_UP, Pace
from zotune.rates import Rate

if TYPE_CHECKING:
    from .trainer import ZOTrainer


class PaceKeeper(TrainerCallback, ExportableState):
    """Gives a trainer a pace, and keeps its running mean in checkpoints.

    The steps after a checkpoint, which a resumed run makes again from their losses, bring it to where it was.

    Args:
        rate: what was measured, as a dictionary; None if nothing was.
        rows: examples of a step.
    """

    def __init__(self, rate: dict[str, Any] | None = None, rows: int | None = None) -> None:
        self._given = {"rate": rate, "rows": rows}
        self.pace = Pace(None if rate is None else Rate(**rate), rows=rows)

    def attach(self, trainer: ZOTrainer) -> None:
        """Let the trainer's optimizer ask this pace."""
        trainer.pace = self.pace

    def state(self) -> dict[str, Any]:
        """For the library's trainer_state.json."""
        kept = {"spread": self.pace.spread, "mean": self.pace.mean, "steps": self.pace.steps}
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
