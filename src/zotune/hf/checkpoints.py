"""Checkpoints that are whole or not there: written under another name, synced, described, renamed."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Final

MANIFEST: Final = "files.json"
"""In every checkpoint: size and CRC-32 of its other files."""

STAGING: Final = ".saving"
_PREFIX: Final = "checkpoint-"
_CHUNK: Final = 1 << 22


def publish(staging: Path, place: Path) -> None:
    """Describe and sync the files of a folder, and give it its name; a folder of that name is replaced.

    Raises:
        OSError: the disk is full or may not be written.
    """
    files = [path for path in sorted(staging.rglob("*")) if path.is_file()]
    manifest = {path.relative_to(staging).as_posix(): [path.stat().st_size, _checksum(path)] for path in files}
    (staging / MANIFEST).write_text(json.dumps({"files": manifest}, indent=1) + "\n", encoding="utf-8")
    for path in (*files, staging / MANIFEST, staging):
        _sync(path)
    if place.exists():  # an incomplete one of an earlier try: it goes only now that there is a better one
        shutil.rmtree(place)
    os.replace(staging, place)
    _sync(place.parent)


def sync(folder: Path) -> None:
    """Bring the files of a folder to the disk."""
    for path in (*sorted(folder.rglob("*")), folder):
        _sync(path)


def verified(checkpoint: Path) -> bool:
    """Whether a checkpoint has all its files, bit for bit as they were written."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        return bool(files) and all(
            (checkpoint / name).stat().st_size == size and _checksum(checkpoint / name) == checksum
            for name, (size, checksum) in files.items()
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False


def step_of(checkpoint: Path) -> int | None:
    """The step in the name of a checkpoint's folder; None if it is no such folder."""
    digits = checkpoint.name.removeprefix(_PREFIX)
    whole = checkpoint.name.startswith(_PREFIX) and digits.isdecimal() and len(digits) < 20 and checkpoint.is_dir()
    return int(digits) if whole else None


def by_step(folder: Path) -> list[Path]:
    """The folders of checkpoints, newest first, whole or not."""
    found = {step: path for path in folder.glob(f"{_PREFIX}*") if (step := step_of(path)) is not None}
    return [found[step] for step in sorted(found, reverse=True)]


def prune(folder: Path, limit: int | None, keep: Path | None) -> None:
    """Delete all but the newest checkpoints, and one that is to be kept; called once the newest has been verified."""
    if limit is None or limit <= 0:
        return
    for old in by_step(folder)[limit:]:
        if keep is None or old.resolve() != keep.resolve():
            shutil.rmtree(old, ignore_errors=True)


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
