"""The life of a run around its steps: callbacks, evaluations, the log, checkpoints, and the steps made before."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from zotune import NonFiniteLossError, ZerothOrder

from .checkpoints import STAGING, by_step, prune, publish, verified
from .ledger import Ledger
from .past import Past, TrajectoryKeeper


class Lifecycle(Trainer):
    """What `zotune.hf.trainer.ZOTrainer` does around its steps.

    Attributes:
        ledger: counts of the run.
        past: steps and evaluations of a run that goes on; while the loop passes them, the model is not asked.
        stopping: whether a request to stop ends the training; what is due is left to the run that goes on.
    """

    ledger: Ledger
    past: Past = Past()
    stopping = False
    _staging = False

    @property
    def zeroth_order(self) -> ZerothOrder | None:
        """The optimizer, if it is one of zeroth order."""
        raise NotImplementedError

    def check_replicas(self) -> None:
        """Compare the weights of all ranks."""
        raise NotImplementedError

    # Callbacks.

    def add_callback(self, callback: type[TrainerCallback] | TrainerCallback) -> None:
        """Add a callback and give it the trainer if it asks for it."""
        super().add_callback(callback)
        self._attach_callbacks()

    def _load_callback_state(self) -> None:
        # Restoring replaces callbacks by new objects, which do not know the trainer yet.
        super()._load_callback_state()
        self._attach_callbacks()

    def _attach_callbacks(self) -> None:
        for callback in self.callback_handler.callbacks:
            if hasattr(callback, "attach"):
                callback.attach(self)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train as the library does; callbacks are closed also when training is interrupted."""
        try:
            result = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
            self.check_replicas()
            return result
        finally:
            # A later first-order trainer of the same model does need the wrapping.
            assert self.model is not None
            self.model._is_accelerate_prepared = False  # type: ignore[assignment]
            for callback in self.callback_handler.callbacks:
                if hasattr(callback, "close"):
                    callback.close()

    def load_weights(self, folder: Path) -> None:
        """Give the model the weights that `save_pretrained` has written to a folder; of an adapter, its own."""
        self._load_from_checkpoint(str(folder))

    # Evaluations and the log.

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate as the library does.

        Raises:
            NonFiniteLossError: training has made the evaluation loss nan or infinite.
        """
        metrics: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        loss = metrics.get(f"{metric_key_prefix}_loss", 0.0)
        if self.state.global_step > 0 and not math.isfinite(loss):
            raise NonFiniteLossError(self.state.global_step - 1, loss)
        return metrics

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate; while training passes recorded steps, take what was recorded."""
        step = self.state.global_step
        recorded = self.past.evaluation(step, metric_key_prefix) if self.is_in_train else None
        if recorded is not None:
            return EvalLoopOutput(None, None, recorded, len(dataloader.dataset))  # type: ignore[arg-type]
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if self.is_in_train and output.metrics is not None:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, TrajectoryKeeper):
                    callback.evaluation(metric_key_prefix, output.metrics)
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the library does; the training loss is the mean of the steps' exact losses over all ranks."""
        if self.zeroth_order is not None and "loss" in logs:
            logs["loss"] = self.ledger.take_mean()
        super().log(logs, start_time)

    # Checkpoints.

    def _get_output_dir(self, trial: Any) -> str:
        place: str = super()._get_output_dir(trial)
        return os.path.join(place, STAGING) if self._staging else place

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder, step = Path(self._get_output_dir(trial)), self.state.global_step
        place = folder / f"checkpoint-{step}"
        if self.past.losses(step - 1) is not None and verified(place):
            return  # written before
        best = folder / f"checkpoint-{self.state.best_global_step}"
        if self.state.best_global_step and (self.state.best_global_step == step or best.is_dir()):
            self.state.best_model_checkpoint = str(best)
        if self.args.should_save:
            shutil.rmtree(folder / STAGING, ignore_errors=True)  # of a run that died while it saved
        self.accelerator.wait_for_everyone()
        self._staging = True
        try:
            super()._save_checkpoint(model, trial)
        except BaseException:
            if self.args.should_save:  # half a checkpoint would keep a full disk full
                shutil.rmtree(folder / STAGING, ignore_errors=True)
            raise
        finally:
            self._staging = False
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            publish(folder / STAGING / place.name, place)
            (folder / STAGING).rmdir()
            kept = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
            if by_step(folder)[0] == place and verified(place):
                prune(folder, self.args.save_total_limit, None if kept is None else Path(kept))
