"""The settings of a run that goes on: those it was started with, but for the few that leave its results alone."""

import dataclasses
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from zotune.config.algorithms import EMBEDDED
from zotune.config.checks import TUNINGS
from zotune.config.errors import ConfigError, shortened
from zotune.config.train import FLAGS, TrainConfig, load_settings

MAY_CHANGE: Final = frozenset({"resume", "device", "backend", "logging", "save_every", "on_out_of_memory"})
"""Flags allowed beside `--resume`: where the run computes and what it writes, not what it computes."""


CHECKSUM: Final = "checksum"
_PLACES: Final = ("model_name", "data_dir", "train_file", "validation_file", "tuning", "trainer_options")
"""Settings that can be paths."""


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """What is written as config.json, with a CRC-32 of all of it at its end."""
    bare = {name: value for name, value in content.items() if name != CHECKSUM}
    return {**bare, CHECKSUM: zlib.crc32(json.dumps(bare, sort_keys=True).encode())}


def resumed_config(values: Mapping[str, Any]) -> TrainConfig:
    """The settings in the `config.json` of the run folder `values["resume"]`, changed by the others of `values`.

    Raises `ConfigError` when the folder holds no run, or when a value would change the run's results.
    """
    run = Path(values["resume"])
    if refused := sorted(set(values) - MAY_CHANGE - {"objective"}):
        raise ConfigError(
            f"--resume goes on with the settings of the run, so --{refused[0]} cannot be given with it; leave it out."
        )
    try:
        saved = json.loads((run / "config.json").read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(
            f"{shortened(run)} is no run folder, because it has no config.json that can be read; check --resume."
        ) from None
    except (ValueError, RecursionError):  # no UTF-8, no JSON, or nested without end
        raise ConfigError(f"{run / 'config.json'} cannot be read as JSON, so the run cannot go on.") from None
    if not isinstance(saved, dict) or "algorithm" not in saved:
        raise ConfigError(f"{run / 'config.json'} holds no settings, so the run cannot go on.")
    if with_checksum(saved)[CHECKSUM] != saved.get(CHECKSUM):
        raise ConfigError(
            f"{run / 'config.json'} is not as the run wrote it, and with other settings the run cannot go on;"
            " restore it or start a new run."
        )
    try:
        settings = load_settings({name: value for name, value in saved.items() if name in FLAGS})
    except ConfigError as error:
        raise ConfigError(f"{run / 'config.json'} is damaged, so the run cannot go on: {error}") from None
    _check_objective(settings.objective, values.get("objective"))
    return dataclasses.replace(_found_again(settings, saved.get("working_directory")), **values)


def _found_again(settings: TrainConfig, place: Any) -> TrainConfig:
    """The settings with paths that were relative to the folder in which the run began, where that still has them."""
    if not isinstance(place, str):
        return settings
    changes: dict[str, Any] = {}
    for name in _PLACES:
        value = getattr(settings, name)
        if value is None or value == EMBEDDED or (name == "tuning" and value in TUNINGS):
            continue
        path = Path(place) / Path(str(value)).expanduser()
        if path.exists() and path.resolve() != Path(str(value)).expanduser().resolve():
            changes[name] = path if isinstance(value, Path) else str(path)
    return dataclasses.replace(settings, **changes)


def _check_objective(saved: str | None, given: str | None) -> None:
    """Code runs because a person has named it, not because a file has."""
    if given is not None and given != saved:
        raise ConfigError(
            "--resume goes on with the settings of the run, so --objective cannot be another; leave it out."
        )
    if saved is not None and ".py:" in saved and given is None:
        raise ConfigError(
            f"The run's objective is a program, {shortened(saved)}; if that file is to be run, say so again with "
            f"--objective {shortened(saved)}."
        )
