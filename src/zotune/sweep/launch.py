"""A search as the command line sees it: runs in one process or several, the best settings as commands."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from optuna.trial import FrozenTrial
from rich.console import Console

from zotune.compare.plan import model_and_task, refuse_folder
from zotune.config import ConfigError, shortened
from zotune.config.compare import Entry, Given, as_words
from zotune.config.sweep import SweepConfig
from zotune.config.tuned import TUNED_FOR, circumstances
from zotune.reports.sweep import write_sweep
from zotune.run.folder import unwritten
from zotune.run.launch import write_path
from zotune.run.lock import one_at_a_time
from zotune.run.machine import gpu_for
from zotune.run.stops import Terminated, terminable
from zotune.sweep.database import FAILED, failure
from zotune.sweep.draws import CANDIDATES
from zotune.sweep.spaces import RATES, Choice, Range, as_given, read_space
from zotune.sweep.study import BEGUN, DONE, Search, merge_json, shown, shown_score

BEST = "best.json"
WRITING = "write.lock"
STOPPED: Final = 130
"""Exit code of a search that a person stopped."""
_Stage = Literal["run", "confirm"]
_POLL: Final = 2.0
_STAGES: Final[tuple[_Stage, ...]] = ("run", "confirm")


def launch(config: SweepConfig, shared: Mapping[str, str | bool], console: Console) -> int:
    """Search; lines for the person on ``console``, the path of best.json on standard output; the exit code.

    0: done; 1: a process of the search crashed, or nothing can be written; 2: wrong settings; 130: stopped.
    """

    def say(sentence: str) -> None:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    code = _guarded(config, shared, say, lambda: _sweep(config, shared, say))
    if code == STOPPED:
        say("Stopped. The finished runs are kept; the same command goes on.")
    return code


def _guarded(
    config: SweepConfig, shared: Mapping[str, str | bool], say: Callable[[str], None], work: Callable[[], int]
) -> int:
    """Do the work, with a sentence for what hinders it; the exit code."""
    try:
        with terminable():
            return work()
    except ConfigError as error:
        say(str(error))
        return 2
    except (KeyboardInterrupt, Terminated):
        return STOPPED
    except FAILED as error:
        say(failure(config, _place_of(config, shared), error))
        return 1
    except OSError as error:
        say(unwritten(error, _place_of(config, shared)))
        return 1


def _place_of(config: SweepConfig, shared: Mapping[str, str | bool]) -> Path:
    return config.out or Path("results") / "sweep" / Path(*model_and_task(shared))


def _sweep(config: SweepConfig, shared: Mapping[str, str | bool], say: Callable[[str], None]) -> int:
    out = _place_of(config, shared)
    refuse_folder(out, ("report.html", "runs.csv"), "comparison")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {shortened(out)} cannot be made ({error.strerror}); give another folder.") from error
    methods = {entry.method for entry in config.entries()}
    if unused := [method for method in read_space(config.space) if method not in methods]:
        raise ConfigError(f"--space has {unused[0]}, which --algorithms does not name; leave it out or name it.")
    searches = [Search(config, shared, entry, out, say=say) for entry in config.entries()]
    for search in searches:
        search.prepare()
    crashed = False
    for search in searches:
        whole = True
        for stage in _STAGES:
            done = config.jobs == 1 or _side_by_side(config, shared, search.entry, out, stage)
            whole = whole and done
            if done:
                _complete(search, stage, say)
            with one_at_a_time(out / WRITING):
                _keep_best(out, [search])
        if whole and not search.are_confirmed(search.ranked()):
            say(_too_little(search, config))  # here, because each process of the search would say it
        crashed = crashed or not whole
        _say_best(search, say)
    with one_at_a_time(out / WRITING):  # processes that share a search come to its end at the same moment
        _keep_best(out, searches)
        write_sweep(out, searches, config.metric)
    if crashed:
        say("A process of the search crashed; the same command goes on.")
    write_path(out / BEST)
    return int(crashed)


def _complete(search: Search, stage: _Stage, say: Callable[[str], None]) -> None:
    """Do what is left of a stage, and wait for other processes and machines that have begun the rest."""
    told = False
    while True:
        getattr(search, stage)()
        if not (busy := search.busy):
            return
        if not told:
            say(f"{search.entry.label}: {busy} runs of other processes go on; waiting for their end.")
            told = True
        time.sleep(_POLL)


def _keep_best(out: Path, searches: list[Search]) -> None:
    best = [(search, trial) for search in searches if (trial := search.best()) is not None]
    merge_json(out / BEST, {search.entry.label: _flags(search, trial) for search, trial in best})
    circumstances_of = {search.entry.label: circumstances(search.settings_of(trial)) for search, trial in best}
    merge_json(out / TUNED_FOR, circumstances_of)


def _side_by_side(
    config: SweepConfig, shared: Mapping[str, str | bool], entry: Entry, out: Path, stage: _Stage
) -> bool:
    """Run a stage of a search in processes of its own, one after the other of the GPUs for each; whether all came to
    their end."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // config.jobs)))
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads can hang
    workers = []
    for number in range(config.jobs):
        own = {**shared, **gpu_for(number, {*shared, *entry.given})}
        workers.append(context.Process(target=_work, args=(config, own, entry, out, stage)))
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except BaseException:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()
        raise
    return all(worker.exitcode == 0 for worker in workers)


def _work(config: SweepConfig, shared: Given, entry: Entry, out: Path, stage: _Stage) -> None:
    console = Console(stderr=True, highlight=False)

    def say(sentence: str) -> None:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def work() -> int:
        getattr(Search(config, shared, entry, out, say=say), stage)()
        return 0

    raise SystemExit(_guarded(config, shared, say, work))


def _flags(search: Search, trial: FrozenTrial) -> dict[str, Any]:
    """The flags of the method that make a run like the best one."""
    return {**search.entry.given, **trial.params}


def _say_best(search: Search, say: Callable[[str], None]) -> None:
    trial = search.best()
    spent = search.spent() + search.draws.spent
    if trial is None:
        say(f"{search.entry.label}: {_without_best(search, spent)}")
        return
    given = {**search.base, **as_given({name: _plain(value) for name, value in trial.params.items()})}
    del given["evaluations"]
    tried = len(search.trials(*DONE))
    runs = "all runs" if tried >= search.goal else f"{tried} of {search.goal} runs fitted into the budget, which"
    say(f"{search.entry.label}: {runs} took {spent:,} forward passes. {_result(search, trial)}:")
    say("zotune train " + shlex.join(as_words(given)))
    for name, choice in (search.space or {}).items():
        if _at_an_end(name, choice, trial.params[name]):
            value = shown(trial.params[name])
            say(
                f"The best {name}, {value}, is at the end of its range; give --space with a wider one, and a new --out."
            )


def _result(search: Search, trial: FrozenTrial) -> str:
    """What the best settings gave, and which of it their command gives."""
    metric, first, again = f"validation {search.metric}", shown_score(trial.value), search.draws.values(trial.number)
    if not again:
        return f"The best settings gave a {metric} of {first}, in one run, which this command makes again"
    every = ", ".join([first, *map(shown_score, again)])
    return (
        f"The best settings gave a {metric} of {search.draws.mean(trial):.4f}, the mean over {1 + len(again)} draws"
        f" ({every}); this command is the first of them, which gave {first}"
    )


def _too_little(search: Search, config: SweepConfig) -> str:
    return (
        f"{search.entry.label}: --total_queries leaves too little for --confirmations {config.confirmations} of"
        f" {CANDIDATES} settings; those without count with their one run."
    )


def _without_best(search: Search, spent: int) -> str:
    """Why there is no best run, and what to do."""
    if not search.trials(*BEGUN):
        return f"no run began, because {spent:,} forward passes leave nothing of --total_queries; give more."
    if not search.trials(*DONE):
        return f"no run came to its end in {spent:,} forward passes; the same command goes on."
    return f"all runs diverged or were broken off, in {spent:,} forward passes; give --space with lower rates."


def _at_an_end(name: str, choice: Range | Choice, value: Any) -> bool:
    """Whether better values may lie beyond; of lists only those of rates are the beginning of something."""
    if isinstance(choice, Range):
        return not choice.low * 1.5 < value < choice.high / 1.5
    return name in RATES and len(choice.values) > 1 and value in (min(choice.values), max(choice.values))


def _plain(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
