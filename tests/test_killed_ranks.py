"""Two processes of one run are killed for real, and the run goes on to the same bits."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_runs import TINY, shelf, workshop
from kill_matrix import difference, folder_of, read_steps

__all__ = ["shelf", "workshop"]  # fixtures, for pytest to find in this module
pytestmark = pytest.mark.usefixtures("workshop")

ROOT = Path(__file__).resolve().parents[1]
STARTER = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc_per_node",
    "2",
    str(ROOT / "main.py"),
]
LONG = [*TINY, "--epochs", "8", "--eval_every", "1.34", "--save_ckpt", "--save_every", "1.34", "--full_parameter"]
WORDS = [*LONG, "--algorithm", "LOREN", "--momentum", "0.9", "--early_stopping", "--patience", "9"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def start(*words: str, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as lines:
        return subprocess.Popen([*STARTER, *words], env=ENVIRONMENT, stdout=lines, stderr=lines, start_new_session=True)


def everything_of(starter: subprocess.Popen[bytes]) -> list[int]:
    """The starter and its descendants; workers are in sessions of their own."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parent = dict(tuple(map(int, line.split())) for line in listed.splitlines())
    found = [starter.pid]
    for number in found:  # grows while it is walked through
        found += [child for child, own in parent.items() if own == number]
    return found


def kill(numbers: list[int]) -> None:
    for number in numbers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def wait_for_steps(place: Path, steps: int, starter: subprocess.Popen[bytes]) -> Path:
    """The run's folder, as soon as its trajectory holds so many steps."""
    end = time.monotonic() + 200
    while time.monotonic() < end:
        run = folder_of(place)
        if run is not None and (run / "trajectory.zo").exists() and read_steps(run) >= steps:
            return run
        assert starter.poll() is None, "it ended before"
        time.sleep(0.01)
    raise AssertionError("it has made no steps")


def only_worker(starter: subprocess.Popen[bytes], rank: str) -> list[int]:
    """The process of one rank, by its environment."""
    return [
        number
        for number in everything_of(starter)[1:]
        if f"\0RANK={rank}\0".encode() in b"\0" + Path(f"/proc/{number}/environ").read_bytes()
    ]


@pytest.fixture
def whole(workshop: Path) -> Path:
    log = workshop / "whole.log"
    assert start(*WORDS, "--results", "whole", log=log).wait(timeout=240) == 0, log.read_text()
    run = folder_of(workshop / "whole")
    assert run is not None
    return run


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="Finding the processes of a run needs /proc.")
def test_all_processes_killed_then_one_of_them(workshop: Path, whole: Path) -> None:
    log, place = workshop / "killed.log", workshop / "killed"
    first = start(*WORDS, "--results", "killed", log=log)
    run = wait_for_steps(place, 5, first)
    kill(everything_of(first))
    first.wait(timeout=60)
    killed_at = read_steps(run)

    second = start("--resume", str(run), log=log)
    wait_for_steps(place, killed_at + 6, second)
    victims = only_worker(second, "1")  # as the system does when memory runs out
    assert len(victims) == 1
    kill(victims)
    assert second.wait(timeout=120) != 0  # the starter ends the other process
    kill(everything_of(second))
    assert 5 <= killed_at < read_steps(run) < 24

    assert start("--resume", str(run), log=log).wait(timeout=240) == 0, log.read_text()
    assert difference(run, whole) == ""
