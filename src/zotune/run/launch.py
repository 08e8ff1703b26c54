"""A run as the command line sees it: exit codes and sentences for everything that can end it."""

import shlex
import sys
import traceback
from pathlib import Path

from rich.console import Console

from zotune import NonFiniteLossError
from zotune.config import ConfigError, TrainConfig
from zotune.run.stops import Terminated, terminable
from zotune.run.training import TrainingRun


def launch(config: TrainConfig, console: Console) -> int:
    """Train, say how it went on `console`, write the run folder's path to standard output; return the exit code.

    0: done; 1: crash; 2: wrong settings; 3: infinite or NaN loss; 130: Ctrl-C; 143: SIGTERM.
    """
    run = TrainingRun(config, console)
    try:
        with terminable():
            code = _guarded(run)
    finally:
        run.close()
    if run.folder is not None and run.first:
        sys.stdout.write(f"{run.folder}\n")
        sys.stdout.flush()
    return code


def _guarded(run: TrainingRun) -> int:
    try:
        run.execute()
    except ConfigError as error:
        run.say(str(error))
        return 2
    except NonFiniteLossError as error:
        run.finish("non-finite loss")
        lower = "--lr or --perturbation_scale" if run.config.zeroth_order else "--lr"
        run.say(f"The loss is {error.loss} at step {error.step + 1}; lower {lower}. The rows so far are kept.")
        return 3
    except (KeyboardInterrupt, Terminated) as stop:
        run.finish("stopped")
        run.say(f"Stopped. {how_to_go_on(run)}")
        return 143 if isinstance(stop, Terminated) else 130
    except Exception as error:
        # Whatever else goes wrong is a defect or the machine's: the person gets a sentence, the log the details.
        log = run.log_path()
        with log.open("a", encoding="utf-8") as lines:
            traceback.print_exc(file=lines)
        run.finish("crashed")
        run.say(f"The run broke off with {type(error).__name__}; the details are in {log}. {how_to_go_on(run)}")
        return 1
    return 0


def how_to_go_on(run: TrainingRun) -> str:
    """What to do after a run that did not reach its end."""
    if run.folder is None:
        return "Nothing was trained yet; start it again."
    if run.checkpoint() is not None:
        return f"The rows so far are kept. Go on with: zotune train --resume {shlex.quote(str(run.folder))}"
    if run.config.save_ckpt:
        return "The rows so far are kept, but there was no checkpoint yet; a smaller --save_every makes them sooner."
    return "The rows so far are kept. There is no checkpoint to go on from; --save_ckpt makes them."


def run_training(config: TrainConfig, console: Console) -> Path:
    """Train as `config` says, human lines to `console`, and return the run folder.

    Raises `ConfigError` for settings that cannot be used and `NonFiniteLossError` when the loss is NaN or infinite.
    """
    run = TrainingRun(config, console)
    try:
        return run.execute()
    finally:
        run.close()
