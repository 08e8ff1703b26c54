"""Runs that are killed (SIGKILL) and go on: methods x moments, each compared with a run that was left alone.

    python tests/kill_matrix.py [--methods LOREN ...] [--moments 20] [--kills 2] [--seed 0]

Half of the moments are chosen in the program (in a query, in an update, in a checkpoint, in half a line of metrics.csv,
...), the others at random in time.  A run that goes on is killed again, at a random time, until it was killed
``--kills`` times.  Each run is a process of its own on a tiny random model.  A cell passes if the last resumed run ends
with exit code 0 and has the same rows, the same trajectory and the same bits of weights as the run that was left alone.
Prints a line for each cell; the exit code is the number of cells that failed, at most 100.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import command_runs
import tiny_models
import torch
from safetensors.torch import load_file

from zotune.cli import main
from zotune.hf import lifecycle
from zotune.hf.recorder import RunRecorder
from zotune.hf.trainer import ZOTrainer
from zotune.kernels import warm_up
from zotune.perturbations import Slot
from zotune.trajectory import Recorder, read

METHODS = {
    "MeZO": "ZO --momentum 0",
    "MeZO, momentum": "ZO --momentum 0.9",
    "ZO-Adam": "ZOAdam",
    "ZO-Adam, 8 bits": "ZOAdam --low_bit_adam 8",
    "MeZO-SVRG": "ZOSVRG --q 3 --anneal 2",
    "LOZO": "LOZO --step_interval 4",
    "LOZO-M": "LOZO --step_interval 4 --momentum 0.9",
    "HiZOO": "HiZOO --hessian_smooth_type constant1e-4",
    "LOREN": "LOREN --momentum 0.9 --momentum_bits 8",
    "FZOO": "FZOO",
}
EVERY = [
    "--epochs",
    "5",
    "--eval_every",
    "0.67",
    "--save_ckpt",
    "--save_every",
    "0.67",
    "--early_stopping",
    "--patience",
    "3",
    "--full_parameter",
]


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(owner: object, name: str, count: int, before: Callable[..., object] = lambda *_: None) -> None:
    """Let the process die when a function is called for the ``count``-th time, after ``before``."""
    real, calls = getattr(owner, name), []

    def function(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == count:
            before(*args)
            die()
        return real(*args, **kwargs)

    setattr(owner, name, function)


def _half_a_row(recorder: RunRecorder, *_: object) -> None:
    with recorder.path.open("a") as file:
        file.write("train,3,0.9")


def _half_a_record(recorder: Recorder, *_: object) -> None:
    recorder._file.seek(recorder._end)
    recorder._file.write(b"S\x10abc")


MOMENTS: dict[str, Callable[[], None]] = {
    "in the first query": lambda: at_call(ZOTrainer, "_estimate", 1),
    "in a query": lambda: at_call(ZOTrainer, "_estimate", 7),
    "in the first updates": lambda: at_call(Slot, "keep", 20),  # some are made to warm up
    "in an update": lambda: at_call(Slot, "keep", 100),
    "before a row": lambda: at_call(RunRecorder, "on_step_end", 6),
    "in a row": lambda: at_call(RunRecorder, "_write", 9, _half_a_row),
    "in a record": lambda: at_call(Recorder, "_append", 4, _half_a_record),
    "in an evaluation": lambda: at_call(ZOTrainer, "prediction_step", 3),
    "after an evaluation": lambda: at_call(RunRecorder, "on_evaluate", 3),
    "in a checkpoint": lambda: at_call(lifecycle, "publish", 2),
    "before pruning": lambda: at_call(lifecycle, "prune", 3),
}
"""What kills the process, set up in it before it starts."""


def child(words: list[str], log: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Start ``zotune`` in a process of its own; its number."""
    sys.stdout.flush()
    number = os.fork()
    if number:
        return number
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        prepare()
        os._exit(main(words))
    finally:
        os._exit(99)


def wait(number: int) -> int:
    """Exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def folder_of(place: Path) -> Path | None:
    return next((path.parent for path in place.glob("*/*/*/config.json")), None)


def difference(run: Path, whole: Path) -> str:
    """What differs between two runs; empty if nothing does."""
    if command_runs.rows_of(run) != command_runs.rows_of(whole):
        return "metrics.csv differs"
    steps = [
        [item for item in read(path / "trajectory.zo").items() if getattr(item, "kind", "") != "weights"]
        for path in (run, whole)
    ]
    if steps[0] != steps[1]:
        return "trajectory.zo differs"
    for name in ("last", "best"):
        if (run / name).is_dir() != (whole / name).is_dir():
            return f"{name} is there once"
        if (whole / name).is_dir():
            mine, other = (load_file(path / name / "model.safetensors") for path in (run, whole))
            if mine.keys() != other.keys() or not all(torch.equal(mine[key], other[key]) for key in mine):
                return f"weights of {name} differ"
    return ""


def killed_after(delay: float, words: list[str], log: Path) -> int:
    """Start a process and kill it after some seconds; its exit code, which is 0 if it had ended before."""
    number = child(words, log)
    time.sleep(delay)
    os.kill(number, signal.SIGKILL)
    return wait(number)


def cell(words: list[str], whole: Path, place: Path, moment: str, delays: list[float]) -> str:
    """Kill a run, let it go on, kill it again, ..., compare; a word on how it went."""
    log, again = place.with_suffix(".log"), ["train", "--resume"]
    words = [*words, "--results", str(place)]
    if moment in MOMENTS:
        code, rest = wait(child(words, log, MOMENTS[moment])), delays
    else:
        code, rest = killed_after(delays[0], words, log), delays[1:]
    run = folder_of(place)
    if code != -signal.SIGKILL:
        return f"not killed (exit code {code})" if moment in MOMENTS or code or run is None else "ended before"
    if run is None or not (run / "trajectory.zo").exists():
        return "ok, nothing was begun yet"
    steps = [read_steps(run)]
    for delay in rest:
        code = killed_after(delay, [*again, str(run)], log)
        if code != -signal.SIGKILL:
            break
        steps.append(read_steps(run))
    else:
        code = wait(child([*again, str(run)], log))
    if code:
        return f"FAILED: exit code {code}, see {log}"
    found = difference(run, whole)
    return f"FAILED: {found}, see {log}" if found else f"ok, killed at step {' and '.join(map(str, steps))}"


def read_steps(run: Path) -> int:
    try:
        return read(run / "trajectory.zo").end
    except ValueError:
        return 0


def matrix(options: argparse.Namespace, place: Path) -> int:
    """All cells; the number of those that failed."""
    tiny_models.save(place / "model", "llama")
    command_runs.write_sst2(place / "data", command_runs.ROWS)
    os.chdir(place)
    tiny = [word.replace("../", "") for word in command_runs.TINY]
    warm_up(torch.float32)
    failed, draw = 0, random.Random(options.seed)
    for method in options.methods or METHODS:
        words = ["train", *tiny, *EVERY, "--algorithm", *METHODS[method].split()]
        name = method.replace(", ", "-").replace(" ", "-")
        for again in ("first", name):  # the first one may compile
            begin = time.monotonic()
            code = wait(child([*words, "--results", str(place / again)], place / f"{again}.log"))
            took = time.monotonic() - begin
        whole = folder_of(place / name)
        if code or whole is None:
            print(f"{method:16} the run that is left alone ended with exit code {code}: see {place / name}.log")
            return 100
        chosen = list(MOMENTS)[: max(1, (options.moments + 1) // 2)]
        chosen += ["at random"] * (options.moments - len(chosen))
        for number, moment in enumerate(chosen):
            delays = [draw.uniform(0.1, 1.0) * took for _ in range(options.kills - (moment in MOMENTS))]
            said = cell(words, whole, place / f"{name}-{number}", moment, delays)
            failed += not said.startswith(("ok", "ended"))
            when = moment if moment in MOMENTS else f"after {delays[0]:.2f} of {took:.2f} s"
            print(f"{method:16} {when:24} {said}", flush=True)
    return failed


def run(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--kills", type=int, default=2, help="most kills of a run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the runs; otherwise a temporary one")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    if options.keep is not None:
        options.keep.mkdir(parents=True)
        failed = matrix(options, options.keep.resolve())
    else:
        with tempfile.TemporaryDirectory() as place:
            failed = matrix(options, Path(place))
            os.chdir("/")
    print(f"{failed} failed" if failed else "all passed")
    return min(failed, 100)


if __name__ == "__main__":
    sys.exit(run())
