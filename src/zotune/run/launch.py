"""A run as the command line sees it: exit codes and sentences for everything that can end it."""

import errno
import os
import re
import shlex
import sys
import traceback
from pathlib import Path

from rich.console import Console
from safetensors import SafetensorError

from zotune import NonFiniteLossError
from zotune.config import AUTO, ConfigError, TrainConfig
from zotune.hf.own import ObjectiveError
from zotune.hf.portions import MemoryShortError
from zotune.run.folder import has_steps
from zotune.run.stops import Terminated, terminable, undisturbed
from zotune.run.training import TrainingRun
from zotune.trajectory import TrajectoryError

_PLACES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""Errors of the place that is written to, not of the program."""


def launch(config: TrainConfig, console: Console) -> int:
    """Train, say how it went on `console`, write the run folder's path to standard output; return the exit code.

    0: done; 1: crash; 2: wrong settings; 3: infinite or NaN loss; 130: stopped by Ctrl-C or SIGTERM.
    """
    run = TrainingRun(config, console)
    try:
        with terminable(run.stop):
            code = _guarded(run)
    finally:
        run.close()
    if run.folder is not None and run.first and code != 2:
        write_path(run.folder)
    return code


def write_path(path: Path) -> None:
    """One line on standard output, byte for byte the path: the name of a folder need not be text."""
    sys.stdout.flush()
    if (raw := getattr(sys.stdout, "buffer", None)) is not None:
        raw.write(os.fsencode(path) + b"\n")
    else:  # a program has put a stream of text there
        sys.stdout.write(f"{path}\n")
    sys.stdout.flush()


def _guarded(run: TrainingRun) -> int:
    try:
        run.execute()
    except ConfigError as error:
        run.say(str(error))
        return 2
    except NonFiniteLossError as error:
        with undisturbed():
            run.finish("non-finite loss")
            run.say(_non_finite(run, error))
        return 3
    except MemoryShortError as error:
        with undisturbed():
            run.finish("out of memory")
            run.say(f"{_memory(error)} {how_to_go_on(run)}")
        return 1
    except (KeyboardInterrupt, Terminated):
        with undisturbed():
            run.finish("stopped")
            run.say(f"Stopped. {how_to_go_on(run)}")
        return 130
    except (TrajectoryError, OSError, SafetensorError) as error:
        met = _of_place(error) if isinstance(error, SafetensorError) else error
        if isinstance(met, OSError) and met.errno not in _PLACES:
            return _crashed(run, error)
        with undisturbed():
            reason = str(met)
            if isinstance(met, OSError):
                reason = f"{met.filename or 'A file of the run'} cannot be written ({met.strerror}); make room for it"
            run.finish("stopped")
            run.say(f"{reason}. {how_to_go_on(run)}")
        return 1
    except Exception as error:
        # Whatever else goes wrong is a defect or the machine's: the person gets a sentence, the log the details.
        return _crashed(run, error)
    return 0


def _non_finite(run: TrainingRun, error: NonFiniteLossError) -> str:
    if run.config.lr == AUTO:
        return (
            f"The loss is {error.loss} where --lr auto measures; lower --perturbation_scale, or begin with weights"
            " whose loss is finite."
        )
    lower = "--lr or --perturbation_scale" if run.config.zeroth_order else "--lr"
    kept = " The rows so far are kept." if _trained(run) else ""
    return f"The loss is {error.loss} at step {error.step + 1}; lower {lower}.{kept}"


def _of_place(error: SafetensorError) -> OSError:
    """The error of the system that safetensors has met; it says the number in its text."""
    found = re.search(r"os error (\d+)", str(error))
    number = int(found[1]) if found else -1
    return OSError(number, os.strerror(number) if found else str(error))


def _memory(error: MemoryShortError) -> str:
    """What to do when a forward pass found no memory."""
    sentence = f"{str(error)[:1].upper()}{str(error)[1:]}"
    if error.rows > 1 and not error.halved:
        return f"{sentence}; give --on_out_of_memory halve, or in a new run a smaller --batchsize_limit."
    return f"{sentence}; give a smaller --max_seq_length, --bf16 or a smaller model."


def _crashed(run: TrainingRun, error: Exception) -> int:
    with undisturbed():
        details = _log(run, error)
        run.finish("crashed")
        what = str(error) if isinstance(error, ObjectiveError) else f"The run broke off with {type(error).__name__}"
        run.say(f"{what}; {details}. {how_to_go_on(run)}")
    return 1


def _log(run: TrainingRun, error: Exception) -> str:
    """Write the traceback to the run folder and say where it is, or what the error was where nothing can be written."""
    try:
        log = run.log_path()
        with log.open("a", encoding="utf-8", errors="backslashreplace") as lines:
            traceback.print_exception(error, file=lines)
    except (OSError, ConfigError) as refused:
        reason = (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
        return f"it says {reason!r}, and error.log cannot be written ({refused})"
    return f"the details are in {log}"


def how_to_go_on(run: TrainingRun) -> str:
    """What to do after a run that did not reach its end."""
    if run.folder is not None and (run.recorded() or run.checkpoint() is not None):
        kept = "No step is lost" if run.recorded() else "The rows so far are kept"
        objective = run.config.objective or ""
        again = f" --objective {shlex.quote(objective)}" if ".py:" in objective else ""
        return f"{kept}. Go on with: zotune train --resume {shlex.quote(str(run.folder))}{again}"
    if not _trained(run):
        return "Nothing was trained yet; start it again."
    if run.config.save_ckpt:
        return "The rows so far are kept, but there was no checkpoint yet; a smaller --save_every makes them sooner."
    return "The rows so far are kept. There is no checkpoint to go on from; --save_ckpt makes them."


def _trained(run: TrainingRun) -> bool:
    return run.folder is not None and has_steps(run.folder)


def run_training(config: TrainConfig, console: Console) -> Path:
    """Train as `config` says, human lines to `console`, and return the run folder.

    Raises `ConfigError` for settings that cannot be used and `NonFiniteLossError` when the loss is NaN or infinite.
    """
    run = TrainingRun(config, console)
    try:
        return run.execute()
    finally:
        run.close()
