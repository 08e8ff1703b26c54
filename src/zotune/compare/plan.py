"""The runs of a comparison, made from its settings and checked before the first of them begins."""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from zotune.config import ConfigError, TrainConfig, config_from_text, shortened
from zotune.config.compare import CompareConfig, Entry, Given, as_words, read_settings, settings_of

LONGEST_SLUG: Final = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One run: a method and a trial.

    Attributes:
        entry: the method with its own flags.
        trial: number of the repetition.
        given: all flags of the run but for those that say where it goes.
        folder: that the run's folder and log go to.
    """

    entry: Entry
    trial: int
    given: Given
    folder: Path

    @property
    def words(self) -> list[str]:
        """The command line of the run, without the word zotune and without --results."""
        return ["train", *as_words(self.given)]

    @property
    def config(self) -> TrainConfig:
        """The run's settings, with defaults in place of what was left out."""
        return config_from_text(self.given).resolved()

    def __str__(self) -> str:
        return f"{self.entry.label}, trial {self.trial}"


def cells_of(config: CompareConfig, shared: Mapping[str, str | bool], out: Path) -> list[Cell]:
    """Every run, trial by trial, so that a comparison that is stopped has as many of one method as of another.

    Args:
        config: the comparison.
        shared: flags of all runs.
        out: its folder.

    Raises:
        ConfigError: a run's settings cannot be used.
    """
    entries = config.entries()
    _check_given(config, shared, entries)
    cells = [
        Cell(
            entry=entry,
            trial=trial,
            given=_given(config, shared, entry, trial),
            folder=out / "runs" / slug(entry.label) / f"trial-{trial}",
        )
        for trial in range(config.trials)
        for entry in entries
    ]
    for cell in cells[: len(entries)]:
        _check(cell, len(entries))
    return cells


def _check_given(config: CompareConfig, shared: Mapping[str, str | bool], entries: Sequence[Entry]) -> None:
    """Refuse a flag for all runs that the settings of a method would overrule in silence."""
    if config.settings is None:
        return
    tuned = read_settings(config.settings)
    for entry in entries:
        if both := sorted(settings_of(tuned, entry.label, entry.method).keys() & shared.keys()):
            raise ConfigError(
                f"{shortened(config.settings)} has {', '.join(f'--{name}' for name in both)} for {entry.label}, and the"
                " command gives it for all runs; leave one of them out."
            )


def _given(config: CompareConfig, shared: Mapping[str, str | bool], entry: Entry, trial: int) -> Given:
    return {
        **shared,
        "algorithm": entry.algorithm,
        **entry.given,
        "trial": str(trial),
        "budget_queries": str(config.budget_queries),
        "evaluations": str(config.evaluations),
    }


def _check(cell: Cell, methods: int) -> None:
    try:
        cell.config.validate()
    except ConfigError as error:
        if methods == 1:
            raise
        raise ConfigError(f"{cell.entry.label}: {error}") from error


def slug(label: str) -> str:
    """A name of a folder for a label, another one for another label."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-")
    if plain == label:
        return plain
    return f"{plain[:LONGEST_SLUG]}-{zlib.crc32(label.encode()):08x}"


def place_of(config: CompareConfig, shared: Mapping[str, str | bool]) -> Path:
    """The folder of a comparison: one of tuned methods is not the one of the same methods with their defaults."""
    if config.out is not None:
        return config.out
    model, task = model_and_task(shared)
    return Path("results") / "compare" / model / (task if config.settings is None else f"{task}-tuned")


def model_and_task(shared: Mapping[str, str | bool]) -> tuple[str, str]:
    """Names of folders for the model and the data of runs."""
    run = config_from_text(shared)
    model = Path(run.model_name).expanduser().resolve().name or "model"
    return model, run.task if run.train_file is None else slug(Path(run.train_file).stem) or "own"


def refuse_folder(out: Path, files: Sequence[str], what: str) -> None:
    """Raise `ConfigError` for a folder with one of the files of a ``what``, whose runs would be mixed with others."""
    if any((out / name).exists() for name in files):
        raise ConfigError(f"{shortened(out)} is the folder of a {what}; give another --out.")
