"""The run folder: a name that is never used twice, the settings and the rows in it."""

import csv
import datetime
import errno
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any, Final

import zotune
from zotune.config import ConfigError, TrainConfig, dump_settings, shortened
from zotune.config.resume import with_checksum
from zotune.reports.rows import read_rows

CONFIG: Final = "config.json"
_PACKAGES: Final = ("torch", "transformers", "accelerate", "datasets", "numpy", "numba")


def make_run_folder(config: TrainConfig) -> Path:
    """Make `results/<model>/<task>/<algorithm>-<UTC time>-s<init_seed>-t<trial>` and return it.

    A name that is taken gets -2, -3 and so on: no run writes over another one.  Raises `ConfigError` when the folder
    cannot be made.
    """
    try:
        return _make_run_folder(config)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(
            f"No run folder can be made in --results {shortened(config.results)} ({reason}); give another folder."
        ) from error


def _make_run_folder(config: TrainConfig) -> Path:
    time = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    model = Path(config.model_name).expanduser().resolve().name if config.model_name else "model"
    name = f"{config.algorithm}-{time}-s{config.init_seed}-t{config.trial}"
    parent = config.results / model / config.task
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def write_config(folder: Path, config: TrainConfig, facts: dict[str, Any]) -> None:
    """Write `config.json`: every setting, defaults included, then `facts` about the run and the versions."""
    versions = {"zotune": zotune.__version__, "python": platform.python_version()} | {
        package: importlib.metadata.version(package) for package in _PACKAGES
    }
    place = {"working_directory": str(Path.cwd())}
    write_json(folder / CONFIG, with_checksum({**dump_settings(config), **facts, **place, "versions": versions}))


def read_facts(folder: Path) -> dict[str, Any]:
    """What `write_config` has written; it has been checked when the settings were read."""
    content: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` in one piece, so that no reader finds half a file."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def unwritten(error: OSError, place: Path) -> str:
    """The sentences for a file of a comparison or search that could not be written; ``place`` is the folder of all."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    file = shortened(error.filename) if error.filename else f"A file in {shortened(place)}"
    return (
        f"{file} cannot be written ({error.strerror or error})."
        f" {'Make room; the' if full else 'The'} same command goes on."
    )


def has_steps(folder: Path) -> bool:
    """Whether metrics.csv has the row of a training step."""
    try:
        return bool(read_rows(folder)[0])
    except (OSError, ValueError, csv.Error):
        return False
