"""The database of a search: a file of SQLite in its folder, or what --storage names; and what to say when it fails."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import optuna
from sqlalchemy.exc import SQLAlchemyError

from zotune.config import ConfigError, shortened
from zotune.config.sweep import SweepConfig
from zotune.run.lock import one_at_a_time

FILE: Final = "sweep.db"
FAILED: Final = (optuna.exceptions.StorageInternalError, SQLAlchemyError)
"""What a database raises that cannot be read or written any more."""

_GOES_ON = "the same command goes on"
_ADVICE: Final = (
    (("full",), f"Make room; {_GOES_ON}."),
    (("readonly", "unable to open"), f"Let it be written, or give another {{flag}}; {_GOES_ON}."),
    (("locked",), "Another program holds it; try again."),
    (("malformed", "not a database", "no such", "corrupt"), "Restore it, or give another {flag}."),
)
"""Words of SQLite's reasons, and what a person can do."""


def storage_of(config: SweepConfig, out: Path) -> optuna.storages.BaseStorage:
    """The database of a search.

    Raises:
        ConfigError: it cannot be opened.
    """
    url = config.storage
    if config.jobs > 1 and url in ("sqlite://", "sqlite:///:memory:"):
        raise ConfigError(f"--storage {url} is in the memory of one process, and --jobs makes several; give a file.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _opened(config, out)
    except Exception as error:
        advice = _advice(config, error) or ("Restore it, or give another --out." if url is None else "Give another.")
        raise ConfigError(f"{_name(config, out)} cannot be opened ({_reason(error)}). {advice}") from error


def _opened(config: SweepConfig, out: Path) -> optuna.storages.BaseStorage:
    """Opened a second time where another machine was just making the tables of a new database."""
    try:
        return _opened_alone(config, out)
    except Exception as error:
        if not any(word in _reason(error).casefold() for word in _MADE_TWICE):
            raise
    time.sleep(_PAUSE)
    return _opened_alone(config, out)


def _opened_alone(config: SweepConfig, out: Path) -> optuna.storages.BaseStorage:
    """One process of this machine at a time, because two that make its tables get in each other's way."""
    path = lock_of(config, out)
    able = os.access(path if path.exists() else path.parent, os.W_OK)  # where it is not the database says so
    with one_at_a_time(path) if able else contextlib.nullcontext():
        return optuna.storages.get_storage(_in_folder(out) if config.storage is None else config.storage)


_MADE_TWICE: Final = ("unique", "already exists", "duplicate")
_PAUSE: Final = 2.0
"""Seconds in which another machine makes its tables."""

_ASKING: Final = "ask.lock"


def lock_of(config: SweepConfig, out: Path) -> Path:
    """What the processes of this machine that share a database lock: beside it, if it is a file."""
    kind, _, file = (config.storage or "").partition("sqlite:///")
    return Path(f"{file}.lock") if file and not kind and not file.startswith(":") else out / _ASKING


def _in_folder(out: Path) -> optuna.storages.RDBStorage:
    # In a URL a ?, a % or a brace of the folder's name would mean something else, so the path goes past it.
    connect = partial(sqlite3.connect, str((out / FILE).resolve()), check_same_thread=False, timeout=60.0)
    return optuna.storages.RDBStorage(f"sqlite:///{FILE}", engine_kwargs={"creator": connect})


def failure(config: SweepConfig, out: Path, error: BaseException) -> str:
    """The sentences for a database that was opened and then raised one of `FAILED`."""
    advice = _advice(config, error) or f"See that it can be read and written; {_GOES_ON}."
    damaged = advice.startswith("Restore")
    return f"{_name(config, out)} cannot be {'read' if damaged else 'written'} ({_reason(error)}). {advice}"


@contextlib.contextmanager
def at_failure(note: Callable[[], object]) -> Iterator[None]:
    """Call ``note`` if the block raises.

    What the database then has against the note is passed over: the block's own error says more.
    """
    try:
        yield
    except BaseException:
        with contextlib.suppress(*FAILED):
            note()
        raise


def _name(config: SweepConfig, out: Path) -> str:
    return f"The database {shortened(out / FILE)}" if config.storage is None else f"--storage {config.storage}"


def _reason(error: BaseException) -> str:
    """What the innermost cause says, in one line."""
    while (inner := getattr(error, "orig", None) or error.__cause__) is not None:
        error = inner
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _advice(config: SweepConfig, error: BaseException) -> str:
    reason = _reason(error)
    found = [advice for words, advice in _ADVICE if any(word in reason for word in words)]
    return found[0].format(flag="--out" if config.storage is None else "--storage") if found else ""
