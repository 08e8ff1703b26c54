"""The run folder: a name that is never used twice, the settings, and the checkpoints in it."""

import datetime
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any, Final

import zotune
from zotune.config import TrainConfig, dump_settings

CONFIG: Final = "config.json"
_PACKAGES: Final = ("torch", "transformers", "accelerate", "datasets", "numpy", "numba")


def make_run_folder(config: TrainConfig) -> Path:
    """Make `results/<model>/<task>/<algorithm>-<UTC time>-s<init_seed>-t<trial>` and return it.

    A name that is taken gets -2, -3 and so on: no run writes over another one.
    """
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
    write_json(folder / CONFIG, {**dump_settings(config), **facts, "versions": versions})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` in one piece, so that no reader finds half a file."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    part.replace(path)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of the run, or None; one that was being written when the run died is left out."""
    steps = {
        int(checkpoint.name.removeprefix("checkpoint-")): checkpoint
        for checkpoint in folder.glob("checkpoint-*")
        # The library writes the trainer's state after everything else.
        if checkpoint.name.removeprefix("checkpoint-").isdigit() and (checkpoint / "trainer_state.json").is_file()
    }
    return steps[max(steps)] if steps else None
