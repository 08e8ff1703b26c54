"""What a run has spent so far, kept through checkpoints."""

# ruff: noqa: ARG002  (the library fixes the signatures of callbacks)

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

if TYPE_CHECKING:
    from .trainer import ZOTrainer


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """One step: mean loss over all ranks, rate of the first group, queries, examples per query, backward passes."""

    loss: float
    lr: float
    queries: int
    rows: int
    backwards: int


class Ledger(TrainerCallback, ExportableState):
    """Counts of queries, example forwards and backward passes; also asks for the one evaluation at the end of a run.

    Attributes:
        queries: forward passes over a batch (or, at a snapshot step of MeZO-SVRG, over the training sample).
        forwards: forward passes of one example, all ranks together.
        backwards: backward passes over a batch; 0 for zeroth-order methods.
        loss: mean training loss of the last step over all ranks; nan before the first step.
        lr: learning rate of the first parameter group in the last step; nan before the first step.
    """

    def __init__(self) -> None:
        self.queries = 0
        self.forwards = 0
        self.backwards = 0
        self.loss = float("nan")
        self.lr = float("nan")
        self._evaluated_at = -1
        self._unlogged: list[float] = []
        self._trainer: ZOTrainer | None = None

    def attach(self, trainer: "ZOTrainer") -> None:
        """Remember whose steps are counted."""
        self._trainer = trainer
        trainer.ledger = self

    def state(self) -> dict[str, Any]:
        """The counts, for the library's trainer_state.json."""
        counts = {"queries": self.queries, "forwards": self.forwards, "backwards": self.backwards}
        return {"args": {}, "attributes": counts}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Continue the counts of the checkpoint, or start from nought; compare replicas."""
        assert self._trainer is not None
        self._trainer.check_replicas()
        self._evaluated_at = -1
        self._unlogged = []
        # The library turns its list of callbacks into a dictionary by class name.
        saved: Any = state.stateful_callbacks
        counts = saved.get(type(self).__name__, {}).get("attributes", {}) if state.global_step else {}
        for name in ("queries", "forwards", "backwards"):
            setattr(self, name, int(counts.get(name, 0)))

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell the sampler its epoch: in a resumed run on several ranks the library does not reach it."""
        assert self._trainer is not None
        self._trainer.start_epoch()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over the loss and the cost of the step that has just been made."""
        assert self._trainer is not None
        cost = self._trainer.step_cost()
        self.loss, self.lr = cost.loss, cost.lr
        self._unlogged.append(cost.loss)
        self.queries += cost.queries
        self.forwards += cost.queries * cost.rows
        self.backwards += cost.backwards

    def take_mean(self) -> float:
        """Mean loss of the steps since it was asked for last; nan if there were none."""
        losses, self._unlogged = self._unlogged, []
        return math.fsum(losses) / len(losses) if losses else math.nan

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Compare replicas every 100 steps."""
        assert self._trainer is not None
        if state.global_step % 100 == 0:
            self._trainer.check_replicas()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remember which weights have been evaluated."""
        self._evaluated_at = state.global_step

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate the last weights exactly once, whatever the evaluation strategy."""
        assert self._trainer is not None
        if self._evaluated_at == state.global_step or self._trainer.stopping:
            control.should_evaluate = False
        elif control.should_training_stop or state.global_step >= state.max_steps:
            control.should_evaluate = self._trainer.eval_dataset is not None
