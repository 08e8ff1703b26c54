"""Processes, of one machine or of several, that share a study.

Each one that trains says so in the database once a minute.  What a process had begun that is silent for `SILENT`
seconds, or is of this machine and no more, may be begun by another.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import optuna
from optuna.trial import FrozenTrial, TrialState

PROCESS: Final = "process"
"""Attribute of a trial: who trains it."""

EVERY: Final = 60.0
SILENT: Final = 900.0
"""Seconds: a minute's sign of life may wait for the database or a suspended machine, and clocks differ."""


def _machine() -> str:
    """Name of what process numbers belong to: a boot of a machine, and in it a container."""
    names = [platform.node().replace(":", "-")]
    with contextlib.suppress(OSError):  # not on Linux
        names += [Path("/proc/sys/kernel/random/boot_id").read_text()[:8], str(os.stat("/proc/self/ns/pid").st_ino)]
    return "/".join(names)


_MACHINE, _BORN = _machine(), time.time_ns()


def this_process() -> str:
    """Its name in the database; no two processes have the same."""
    return f"{_MACHINE}:{os.getpid()}:{_BORN}"


@contextlib.contextmanager
def alive(study: optuna.Study) -> Iterator[None]:
    """Give signs of life for as long as the block runs."""
    done = threading.Event()

    def beat() -> None:
        while True:
            with contextlib.suppress(Exception):  # a database that does not answer now will in a minute
                study.set_user_attr(_sign(this_process()), time.time())
            if done.wait(EVERY):
                return

    thread = threading.Thread(target=beat, daemon=True, name="signs of life")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def forget_dead(study: optuna.Study) -> None:
    """Let what dead processes have begun count as failed."""
    signs = study.user_attrs
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        process = str(trial.user_attrs.get(PROCESS, ""))
        begun = trial.datetime_start.timestamp() if trial.datetime_start is not None else 0.0
        if _is_dead(process, signs.get(_sign(process), begun)):
            told(study, trial.number, state=TrialState.FAIL)


def told(
    study: optuna.Study, trial: optuna.Trial | int, value: float | None = None, *, state: TrialState
) -> FrozenTrial | None:
    """Tell a trial's end; None if another process, which took this one for dead, has told another."""
    try:
        return study.tell(trial, value, state=state)
    except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
        number = trial if isinstance(trial, int) else trial.number
        if study.get_trials(deepcopy=False)[number].state is TrialState.RUNNING:
            raise
        return None


def _sign(process: str) -> str:
    return f"alive {process}"


def _is_dead(process: str, sign: float) -> bool:
    machine, _, rest = process.partition(":")
    number = rest.partition(":")[0]
    if machine == _MACHINE and number.isdecimal() and not _exists(int(number)):
        return True
    return time.time() - sign > SILENT


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
