"""Ctrl-C and SIGTERM: a step that is under way is finished, then the run ends with all its files.

Between steps, and for a second request, they are exceptions; while files are being finished they pass.
"""

# ruff: noqa: ARG002  (the library fixes the signatures of callbacks)

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from zotune.hf.trainer import ZOTrainer

_Handler = Callable[..., Any] | signal.Handlers
_STOPS = (signal.SIGINT, signal.SIGTERM)


class Terminated(BaseException):
    """The process was asked to end by SIGTERM."""


class StopKeeper(TrainerCallback):
    """Lets a step finish before a request to stop is answered; the last of the callbacks.

    Attributes:
        requested: number of the signal that has come during a step, or None.
        save: whether a checkpoint is to be written then.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self.save = False
        self._inside = False
        self._trainer: ZOTrainer | None = None

    def attach(self, trainer: "ZOTrainer") -> None:
        """Remember the trainer that is to stop."""
        self._trainer = trainer

    def answer(self, number: int, _frame: object) -> None:
        """Handler of the signals."""
        if self._inside and self.requested is None:
            self.requested = number
            return
        self.leave(number)

    def leave(self, number: int) -> NoReturn:
        """End the run now: `Terminated` or `KeyboardInterrupt`."""
        if number == signal.SIGTERM:
            # A second request must not break off the finishing that the first one began.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise Terminated
        raise KeyboardInterrupt

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From here on the step is finished first."""
        self._inside = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End the training if there was a request on any rank."""
        self._inside = False
        if args.world_size > 1:
            flag = torch.tensor(self.requested or 0, device=args.device)
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            self.requested = int(flag) or None
        if self.requested is not None:
            assert self._trainer is not None
            self._trainer.stopping = True
            control.should_training_stop = True
            if self._trainer.zeroth_order is not None:
                control.should_evaluate = (
                    False  # what is due is done when the run goes on, which passes this step again
                )
            control.should_save = control.should_save or self.save


@contextlib.contextmanager
def _handlers(sigint: _Handler, sigterm: _Handler) -> Iterator[None]:
    """These handlers for the length of the block; outside the main thread, which alone may set any, no change."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [signal.signal(number, handler) for number, handler in zip(_STOPS, (sigint, sigterm), strict=True)]
    try:
        yield
    finally:
        for number, handler in zip(_STOPS, before, strict=True):
            signal.signal(number, handler)


def terminable(keeper: StopKeeper | None = None) -> contextlib.AbstractContextManager[None]:
    """Turn Ctrl-C into `KeyboardInterrupt` and SIGTERM into `Terminated` for the length of the block, but for the
    steps of a keeper's run."""
    keeper = keeper or StopKeeper()
    return _handlers(keeper.answer, keeper.answer)


def undisturbed() -> contextlib.AbstractContextManager[None]:
    """Let Ctrl-C and SIGTERM pass for the length of the block: the files of a run are being finished."""
    return _handlers(signal.SIG_IGN, signal.SIG_IGN)
