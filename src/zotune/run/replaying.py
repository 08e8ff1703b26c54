"""`zotune replay` as the command line sees it: exit codes, sentences, and a folder that is whole or not there."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zotune.config import ConfigError, ReplayConfig, TrainConfig, as_sentence, shortened
from zotune.config.replay import trajectory_of
from zotune.run.launch import write_path
from zotune.run.machine import choose_machine
from zotune.run.rebuilding import begin
from zotune.run.speech import quiet_libraries
from zotune.run.stops import Terminated, terminable, undisturbed
from zotune.trajectory import Event, Trajectory, TrajectoryError, go_on, read
from zotune.trajectory.replay import CHECKED

logger = logging.getLogger("zotune")

Say = Callable[[str], None]


def launch(config: ReplayConfig, console: Console) -> int:
    """Rebuild the model, say how it went on `console`, write its folder's path to standard output.

    Returns:
        The exit code: 0, 1 for a crash, 2 for files that cannot be used, 130 and 143 when stopped.
    """

    def say(sentence: str) -> None:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    try:
        with terminable(), quiet_libraries(say):
            out = _replay(config, console, say)
    except (ConfigError, TrajectoryError) as error:
        say(as_sentence(str(error)))
        return 2
    except (KeyboardInterrupt, Terminated) as stop:
        say("Stopped; no model was written.")
        return 143 if isinstance(stop, Terminated) else 130
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
        say(f"The replay broke off with {type(error).__name__}: {reason}. No model was written.")
        logger.debug("replay broke off", exc_info=error)
        return 1
    write_path(out)
    return 0


def _replay(config: ReplayConfig, console: Console, say: Say) -> Path:
    assert config.run is not None
    assert config.out is not None
    trajectory = read(trajectory_of(config.run))
    end = _end(trajectory, config.step, say)
    device = choose_machine(TrainConfig(device=config.device), say).device
    model, tokenizer, optimizer = begin(trajectory, config, device)
    with _folder(config.out) as part:
        _check_room(model, part, config.out)
        first, queries, seconds = optimizer.t, optimizer.queries, time.perf_counter()
        with _progress(console, first, end) as progress:
            go_on(trajectory, optimizer, until=end, progress=progress)
        seconds = time.perf_counter() - seconds
        _save(model, tokenizer, part, config.out)
        with undisturbed():
            _publish(part, config.out)
    steps = end - first
    each = f", {1e9 * seconds / (steps * trajectory.header.elements):.2f} ns per weight and step" if steps else ""
    say(
        f"{steps} steps from {first} to {end}, which took {optimizer.queries - queries} queries in training, replayed "
        f"in {seconds:.1f} s{each}; {_checked(trajectory, first, end)}."
    )
    return config.out


def _end(trajectory: Trajectory, step: int | None, say: Say) -> int:
    """The number of steps to end with; what is wrong with the file is told, or refused where it decides the result."""
    if step is not None and not trajectory.header.start <= step <= trajectory.end:
        raise ConfigError(f"--step {step} is not in {trajectory.path}, which ends with step {trajectory.end}.")
    if trajectory.problem is not None:
        if step is None and not trajectory.torn:
            raise ConfigError(
                f"{trajectory.problem} Restore the file, or take the weights before the damage with --step "
                f"{trajectory.end}."
            )
        say(trajectory.problem)
    return trajectory.end if step is None else step


def _checked(trajectory: Trajectory, first: int, end: int) -> str:
    """Which digests of the file the weights have been compared with on the way."""
    told = [item.step for item in trajectory.items() if isinstance(item, Event) and item.kind == CHECKED]
    passed = [step for step in told if first <= step <= end]
    if passed and passed[-1] == end:
        return "the weights have the digest that was recorded with them"
    if passed:
        return f"the weights had the digest recorded after step {passed[-1]}, the last one before these"
    if first == trajectory.header.start:
        return "the first weights have the recorded digest; for the last ones the file has none"
    return "the file has no digest of these weights, so they were not checked"


# ---------------------------------------------------------------------------------------------- progress


@contextlib.contextmanager
def _progress(console: Console, first: int, end: int) -> Iterator[Callable[[int], None] | None]:
    """A bar with the steps, their rate and the time that remains; nothing where there is no terminal."""
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[rate]}"))
    start = time.perf_counter()
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=end, completed=first, rate="")

        def show(step: int) -> None:
            rate = (step - first) / max(time.perf_counter() - start, 1e-9)
            bar.update(task, completed=step, rate=f"{rate:.1f} steps/s")

        yield show


# ---------------------------------------------------------------------------------------------- the folder


@contextlib.contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """A folder beside `out`, or inside where that is an empty folder, for a model in the making; gone at the end."""
    there = out.is_dir()
    try:
        if not there:
            out.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{out.name[:100]}-", suffix=".part", dir=out if there else out.parent))
    except OSError as error:
        raise ConfigError(
            f"--out {shortened(out)} cannot be made ({error.strerror}); name a folder in one that can be written."
        ) from error
    try:
        yield part
    finally:
        with undisturbed():
            shutil.rmtree(part, ignore_errors=True)


def _check_room(model: PreTrainedModel, part: Path, out: Path) -> None:
    need = sum(p.numel() * p.element_size() for p in model.parameters())
    free = shutil.disk_usage(part).free
    if free < need:
        raise ConfigError(
            f"The model needs {need / 1e6:.0f} MB and {shortened(out)} has {free / 1e6:.0f} MB free; make room, or name"
            " a folder on another disk."
        )


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, part: Path, out: Path) -> None:
    try:
        model.save_pretrained(part)
        if tokenizer is not None:
            tokenizer.save_pretrained(part)
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o777 & ~umask)  # that of the temporary folder is for its owner alone
    except OSError as error:
        raise ConfigError(
            f"--out {shortened(out)} could not be written ({error.strerror or error}); make room, or name another "
            "folder, and replay again."
        ) from error


def _publish(part: Path, out: Path) -> None:
    """Give the finished folder its name; an empty folder that was there gets the files, the configuration last."""
    try:
        if not out.is_dir():
            part.rename(out)
            return
        if part.parent != out:
            raise FileExistsError(17, "somebody else has made it meanwhile")
        for path in sorted(part.iterdir(), key=lambda path: path.name == "config.json"):
            path.rename(out / path.name)
    except OSError as error:
        raise ConfigError(f"--out {shortened(out)} could not be written ({error.strerror}); name another.") from error
