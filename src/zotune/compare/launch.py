"""A comparison as the command line sees it: run what is missing, write the report, say where it is."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from rich.console import Console

from zotune.bench.machine import describe
from zotune.compare.curves import read_results
from zotune.compare.plan import Cell, cells_of, place_of, refuse_folder
from zotune.compare.running import Runs, others_in
from zotune.config import AUTO, ConfigError, config_from_text, notices, shortened
from zotune.config.compare import CompareConfig, read_settings
from zotune.config.tuned import other_than_tuned
from zotune.reports.comparison.conclusion import best_run, conclusion
from zotune.reports.comparison.costs import differing, trained
from zotune.reports.comparison.findings import Findings, listed
from zotune.reports.comparison.writing import write_report
from zotune.run.budget import step_costs
from zotune.run.folder import unwritten
from zotune.run.launch import write_path
from zotune.run.lock import FolderLock
from zotune.run.rates import most_forwards
from zotune.run.stops import Terminated, terminable


def launch(config: CompareConfig, shared: Mapping[str, str | bool], console: Console) -> int:
    """Compare; lines for the person on ``console``, the path of the page on standard output; the exit code.

    0: done; 1: a run crashed (the report has the others); 2: wrong settings; 130: stopped.
    """

    def say(sentence: str) -> None:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    try:
        with terminable():
            return _compare(config, shared, say)
    except ConfigError as error:
        say(str(error))
        return 2
    except (KeyboardInterrupt, Terminated):
        say("Stopped. Finished runs and the steps of zeroth-order ones are kept; the same command goes on.")
        return 130
    except OSError as error:
        say(unwritten(error, place_of(config, shared)))
        return 1


def _compare(config: CompareConfig, shared: Mapping[str, str | bool], say: Callable[[str], None]) -> int:
    out = place_of(config, shared)
    cells = cells_of(config, shared, out)
    firsts = cells[: len(config.entries())]
    for cell in firsts:
        for line in notices(config_from_text(cell.given), cell.entry.given.keys()):
            say(f"{cell.entry.label}: {line}")
    if config.settings is not None:
        tuned = read_settings(config.settings)
        untuned = [e.label for e in config.entries() if e.label not in tuned and e.method not in tuned]
        if untuned:
            say(f"{shortened(config.settings)} has nothing for {', '.join(untuned)}, which run with the defaults.")
        named = {name for entry in config.entries() for name in (entry.label, entry.method)}
        if unused := [name for name in tuned if name not in named]:
            say(f"{shortened(config.settings)} has {', '.join(unused)} too, which --algorithms does not name.")
        for line in dict.fromkeys(line for cell in firsts for line in _other_than_tuned(config.settings, cell)):
            say(line)
    for cell in firsts:
        _check_budget(cell)
    refuse_folder(out, ("sweep.db", "trials.csv"), "search")
    runs = Runs(cells, jobs=config.jobs, say=say)
    runs.check()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {shortened(out)} cannot be made ({error.strerror}); give another folder.") from error
    lock = FolderLock(out)
    try:
        methods = ", ".join(entry.label for entry in config.entries())
        trials = f"{config.trials} trial{'s' * (config.trials > 1)} each"
        say(f"{methods}: {trials}, {config.budget_queries:,} forward passes of one example a run.")
        runs.all()
        page = _report(config, cells, out, say)
        if left_out := others_in(out, cells):
            say(
                f"{shortened(out)} has finished runs of {'; '.join(left_out)} too. They are not in the report, which is"
                " of what the command names: give all --algorithms and --trials that it shall have."
            )
    finally:
        lock.release()
    for cell in runs.crashed:
        say(f"{cell} is not in the report, because it broke off; the same command tries it again.")
    if page is not None:
        write_path(page)
    return 1 if runs.crashed else 0


def _other_than_tuned(settings: Path, cell: Cell) -> list[str]:
    return other_than_tuned(settings, (cell.entry.label, cell.entry.method), cell.config)


def _check_budget(cell: Cell) -> None:
    """Refuse a budget that measuring a rate could use up, before there is a run."""
    settings = config_from_text(cell.given).resolved()
    if settings.lr != AUTO or settings.budget_queries is None:
        return
    most = most_forwards(settings) + next(step_costs(settings, settings.samplesize or settings.batchsize))
    if settings.budget_queries <= most:
        raise ConfigError(
            f"{cell.entry.label}: --lr auto and the first step may take {most:,} forward passes, and --budget_queries"
            f" is {settings.budget_queries:,}; give several times as many, or a number as --lr."
        )


def _report(config: CompareConfig, cells: list[Cell], out: Path, say: Callable[[str], None]) -> Path | None:
    """Write the report and say what it says; None where no run has come to its end."""
    results = read_results(cells)
    if not results:
        return None
    labels = [entry.label for entry in config.entries()]
    findings = Findings(
        by_label={label: [result for result in results if result.label == label] for label in labels},
        reference=config.chosen_reference,
        aim=config.aim,
        trials=config.trials,
    )
    said = conclusion(findings, config.budget_queries)
    for sentence in said:
        say(sentence)
    again = None
    if (best := best_run(findings)) is not None:
        again = (
            f"The first run of {best.label} again, whose mean loss is lowest, with its models kept:",
            f"{shlex.join(best.command)} --save_ckpt",
        )
        say("\n".join(again))
    first = cells[0].config
    if names := differing(findings):
        say(f"The methods differ in {listed([f'--{name}' for name in names])} too, see the settings in the report.")
    model, data = Path(first.model_name).name, first.task if first.train_file is None else Path(first.train_file).name
    trials = f"{config.trials} trial{'s' * (config.trials > 1)}"
    bands = "; bands are one standard deviation" if config.trials > 1 else ""
    about = (
        f"{config.budget_queries:,} forward passes of one example for every run (a backward pass counts as two),"
        f" {trials} of each method{bands}. Tuning: {trained(findings)}."
    )
    device = torch.device(str(results[0].settings.get("device_used", "cpu")))
    machine = ", ".join(f"{name} {value}" for name, value in describe(device).items() if name != "threads")
    return write_report(
        out,
        findings,
        budget=config.budget_queries,
        said=said,
        again=again,
        about=about,
        title=f"{data} with {model}",
        machine=f"Machine of this report: {machine}; {config.jobs} run{'s' * (config.jobs > 1)} at once",
    )
