"""Progress of a run on the terminal."""

# ruff: noqa: ARG002  (the library fixes the signatures of callbacks)

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from .trainer import ZOTrainer

_SMOOTHING = 0.9  # weight of the past in the running mean of the loss
_LINE_SECONDS = 30.0  # without a terminal: a line at least this often ...
_LINE_SHARE = 10  # ... and after each tenth of the steps


class ProgressReporter(TrainerCallback):
    """Progress bar with training loss (running mean), last validation accuracy, queries per second and time left.

    Where the console is no terminal, plain lines instead: after each tenth of the steps and at least every 30 seconds.
    Silent on ranks other than 0.

    Args:
        console: where to write.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._trainer: ZOTrainer | None = None
        self._loss: float | None = None
        self._weight = 0.0
        self._accuracy: float | None = None
        self._start = self._last_line = 0.0
        self._first_step = self._first_query = self._last_share = 0

    def attach(self, trainer: "ZOTrainer") -> None:
        """Remember the trainer whose counts are shown."""
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show the bar."""
        if not state.is_world_process_zero:
            return
        if self._trainer is None:
            raise ValueError("ProgressReporter works with ZOTrainer only; pass it in the trainer's callbacks.")
        self._loss = self._accuracy = None
        self._weight = 0.0
        self._start = self._last_line = time.perf_counter()
        self._first_step, self._first_query = state.global_step, self._trainer.queries
        self._last_share = self._share(state)
        if self._console.is_terminal:
            text = TextColumn("{task.fields[figures]}")
            self._bar = Progress(TextColumn("step"), MofNCompleteColumn(), BarColumn(), text, console=self._console)
            self._task = self._bar.add_task("", total=state.max_steps, completed=state.global_step, figures="")
            self._bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar, or write a line when it is time for one."""
        if not state.is_world_process_zero:
            return
        assert self._trainer is not None
        loss = self._trainer.last_loss
        past, weight = self._loss or 0.0, self._weight
        self._weight = _SMOOTHING * weight + (1 - _SMOOTHING)  # so that the first losses do not count too much
        self._loss = (_SMOOTHING * weight * past + (1 - _SMOOTHING) * loss) / self._weight
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step, figures=self._figures(state))
            return
        now = time.perf_counter()
        if self._share(state) > self._last_share or now - self._last_line > _LINE_SECONDS:
            self._last_line, self._last_share = now, self._share(state)
            percent = 100 * state.global_step // max(1, state.max_steps)
            figures = self._figures(state, accuracy=False)  # it has a line of its own
            self._line(f"step {state.global_step}/{state.max_steps} ({percent} %)  {figures}")

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the accuracy that was just measured."""
        if not state.is_world_process_zero or not metrics:
            return
        self._accuracy = metrics.get("eval_accuracy")
        if self._bar is not None:
            self._bar.update(self._task, figures=self._figures(state))
        elif self._accuracy is not None:
            loss = metrics.get("eval_loss", float("nan"))
            figures = f"loss {loss:.4f}, accuracy {self._accuracy:.4f}"
            self._line(f"validation after step {state.global_step}: {figures}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the bar as it stands."""
        self.close()

    def close(self) -> None:
        """Stop drawing; also called when training is interrupted."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _share(self, state: TrainerState) -> int:
        return _LINE_SHARE * state.global_step // max(1, state.max_steps)

    def _line(self, text: str) -> None:
        # soft_wrap: a line in a log file stays one line, whatever the width.
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    def _figures(self, state: TrainerState, *, accuracy: bool = True) -> str:
        assert self._trainer is not None
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        done = state.global_step - self._first_step
        parts = [] if self._loss is None else [f"training loss {self._loss:.4f}"]
        if accuracy and self._accuracy is not None:
            parts.append(f"validation accuracy {self._accuracy:.4f}")
        if done:
            if self._trainer.zeroth_order is None:
                parts.append(f"{done / elapsed:.1f} steps/s")
            else:
                parts.append(f"{(self._trainer.queries - self._first_query) / elapsed:.1f} queries/s")
            parts.append(f"{clock(elapsed / done * (state.max_steps - state.global_step))} left")
        return "  ".join(parts)


def clock(seconds: float) -> str:
    """Minutes and seconds as ``m:ss``, or ``h:mm:ss`` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
