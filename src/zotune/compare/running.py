"""The runs of a comparison as processes of their own, some at a time, and each resumed where it stands.

A process a run: memory is that of the run alone, and a crash ends one run.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from zotune.compare.plan import Cell
from zotune.config import MEASURED, TRAJECTORY, ConfigError, config_from_text, dump_settings, shortened
from zotune.config.compare import Given, as_words
from zotune.hf.progress import clock
from zotune.reports.rows import Row, read_rows, training_seconds
from zotune.run.checkpoints import newest_checkpoint
from zotune.run.folder import read_facts, write_json
from zotune.run.lock import FolderLock
from zotune.run.machine import gpu_for
from zotune.trajectory import TrajectoryError, read

State = Literal["finished", "diverged", "begun", "absent"]

CELL: Final = "run.json"
"""In a cell's folder: the command of its run."""

LOG: Final = "run.log"
"""In a cell's folder: what the run said."""

BLOWN: Final = 3.0
"""How many times the validation loss before the first step a later one may be before the run counts as diverged."""

_ENDS: Final[dict[str, State]] = {"finished": "finished", "non-finite loss": "diverged"}
_POLL = 0.05


class RefusedError(ConfigError):
    """A run could not use its settings; the message is what it said."""


class Runs:
    """Runs cells; what a cell has is on disk, so that a second call goes on.

    Args:
        cells: of the comparison.
        jobs: processes at once.
        say: takes a line for the person.
    """

    def __init__(self, cells: Sequence[Cell], *, jobs: int, say: Callable[[str], None]) -> None:
        self._cells, self._jobs, self._say = cells, jobs, say
        self._live: dict[int, tuple[Cell, subprocess.Popen[bytes], float]] = {}  # by slot
        self.crashed: list[Cell] = []

    def check(self) -> None:
        """Raise `ConfigError` if a cell's folder holds the run of another command."""
        for cell in self._cells:
            if run_folder(cell.folder) is None:
                continue
            known = _given(cell.folder)
            if known is None:
                raise ConfigError(f"{shortened(cell.folder)} holds a run that is not known here; give another --out.")
            if difference := _difference(known, cell.given):
                raise ConfigError(
                    f"{shortened(cell.folder)} holds a run with other settings ({difference}); give another --out, or"
                    " the settings that it began with."
                )

    def all(self) -> None:
        """Run every cell that is not finished.

        Raises:
            RefusedError: a run ended with exit code 2; the others are stopped.
            KeyboardInterrupt, Terminated: a request to stop; all runs have finished their steps and kept their files.
        """
        waiting = [cell for cell in self._cells if state_of(cell.folder) not in ("finished", "diverged")]
        done, durations = len(self._cells) - len(waiting), list[float]()
        if done:
            self._say(f"{done} of {len(self._cells)} runs are there already.")
        try:
            while waiting or self._live:
                for slot in range(self._jobs):
                    if slot not in self._live and waiting:
                        cell = waiting.pop(0)
                        self._live[slot] = (cell, self._start(cell, slot), time.monotonic())
                time.sleep(_POLL)
                for slot, (cell, process, begun) in list(self._live.items()):
                    if (code := process.poll()) is not None:
                        del self._live[slot]
                        done += 1
                        durations.append(time.monotonic() - begun)
                        left = (len(waiting) + len(self._live)) * sum(durations) / len(durations) / self._jobs
                        self._ended(cell, code, f"[{done}/{len(self._cells)}]", left)
        finally:
            self._stop()

    def _start(self, cell: Cell, slot: int) -> subprocess.Popen[bytes]:
        cell.folder.mkdir(parents=True, exist_ok=True)
        run = run_folder(cell.folder)
        words = [*cell.words, "--results", str(cell.folder / "results")]
        if run is not None:
            _free(run)
            if can_go_on(run):
                words = ["train", "--resume", str(run), *_program(cell)]
            else:  # before its first step, or a first-order run, which keeps nothing to go on from
                shutil.rmtree(run)
        write_json(cell.folder / CELL, {"given": cell.given, "name": str(cell)})
        if self._jobs > 1:
            words += as_words(gpu_for(slot, cell.given))
        threads = str(max(1, (os.cpu_count() or 1) // self._jobs))
        with (cell.folder / LOG).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "zotune", *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={"OMP_NUM_THREADS": threads, **os.environ},
                start_new_session=True,  # Ctrl-C is for this process, which hands it on once
            )

    def _ended(self, cell: Cell, code: int, number: str, left: float) -> None:
        if code == 2:
            raise RefusedError(f"{cell}: {_last_line(cell.folder / LOG)}")
        remaining = f", about {clock(left)} left" if left else ""
        if code == 3 and run_folder(cell.folder) is None:  # before its first step, where a rate is measured
            self.crashed.append(cell)
            self._say(f"{number} {cell}: {_last_line(cell.folder / LOG)}{remaining}")
            return
        if code in (0, 3):
            self._say(f"{number} {cell}: {_outcome(cell.folder)}{remaining}")
            return
        self.crashed.append(cell)
        how = f"was killed by signal {-code}" if code < 0 else f"broke off; {shortened(cell.folder / LOG)} says why"
        self._say(f"{number} {cell} {how}{remaining}")

    def _stop(self) -> None:
        """Let the runs that are under way finish their steps, and wait for them."""
        for _, process, _ in self._live.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for _, process, _ in self._live.values():
            process.wait()
        self._live.clear()


def state_of(folder: Path) -> State:
    """How far the run of a cell has come."""
    run = run_folder(folder)
    if run is None:
        return "absent"
    try:
        status = json.loads((run / "summary.json").read_text(encoding="utf-8")).get("status")
    except (OSError, ValueError, AttributeError):
        return "begun"
    return _ENDS.get(status, "begun") if isinstance(status, str) else "begun"


def others_in(out: Path, cells: Sequence[Cell]) -> list[str]:
    """Finished runs in the folder of a comparison that are none of its cells, by method and trial."""
    own, found = {cell.folder.resolve() for cell in cells}, []
    for path in sorted((out / "runs").glob(f"*/*/{CELL}")):
        if path.parent.resolve() not in own and state_of(path.parent) in ("finished", "diverged"):
            found.append(_noted(path.parent, "name") or f"{path.parent.parent.name}, {path.parent.name}")
    return found


def run_folder(folder: Path) -> Path | None:
    """The run folder in a cell's folder, the newest if there are several."""
    found = sorted((folder / "results").glob("*/*/*/config.json"), key=lambda path: path.stat().st_mtime)
    return found[-1].parent if found else None


def can_go_on(run: Path) -> bool:
    """Whether `--resume` finds something in a run folder to go on from."""
    try:
        recorded = read(run / TRAJECTORY).end > 0
    except (TrajectoryError, OSError):
        recorded = False
    return recorded or newest_checkpoint(run) is not None


def _free(run: Path) -> None:
    """Raise `ConfigError` while another process trains in a run folder, as one does whose parent was killed."""
    FolderLock(run).release()


def _given(folder: Path) -> Given | None:
    known = _noted(folder, "given")
    return known if isinstance(known, dict) else None


def _noted(folder: Path, what: str) -> Any:
    """An entry of a cell's `CELL`, None where there is none."""
    try:
        return json.loads((folder / CELL).read_text(encoding="utf-8"))[what]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _difference(known: Given, given: Given) -> str:
    """The first setting in which two runs differ, with both values; "" where there is none."""
    try:
        before = dump_settings(config_from_text(known).resolved())
    except (ConfigError, KeyError, TypeError):
        return "which cannot be read"
    now = dump_settings(config_from_text(given).resolved())
    for name, value in now.items():
        if before.get(name) != value:
            return f"--{name} {shortened(before.get(name))} there, {shortened(value)} now"
    return ""


def _program(cell: Cell) -> list[str]:
    objective = cell.given.get("objective")
    return ["--objective", str(objective)] if ".py:" in str(objective) else []


def _outcome(folder: Path) -> str:
    run = run_folder(folder)
    assert run is not None
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    if summary["status"] != "finished":
        return f"the loss became infinite or NaN in step {summary['steps'] + 1}"
    final = summary.get("final") or {}
    scores = ", ".join(f"{name} {final[name]:.4f}" for name in ("loss", "accuracy") if final.get(name) is not None)
    train, evaluations = read_rows(run)
    if has_blown(evaluations):
        scores = f"diverged, its loss rose above {BLOWN:g} times the first"
    measuring = float((read_facts(run).get(MEASURED) or {}).get("seconds") or 0.0)
    seconds = measuring + max(training_seconds(train, evaluations).values())
    return f"{scores or 'done'} in {clock(seconds)} of training"


def has_blown(evaluations: Sequence[Row]) -> bool:
    """Whether a run of finite losses has lost what it began with."""
    losses = [row["loss"] for row in evaluations if "loss" in row]
    return len(losses) > 1 and max(losses) > BLOWN * losses[0] > 0.0


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
