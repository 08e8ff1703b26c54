"""One process a run folder: a second one would write into the same files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from zotune.config import ConfigError, shortened

try:
    import fcntl

    _lock: Callable[[int, int], None] | None = fcntl.flock
    _how, _wait = fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_EX
except ImportError:  # Windows has other locks; there the folder is not guarded
    _lock, _how, _wait = None, 0, 0

LOCK: Final = "run.lock"


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Wait until no other process of this machine is in such a block with the same file."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if _lock is not None:
            _lock(handle, _wait)
        yield
    finally:
        os.close(handle)


class FolderLock:
    """Held for as long as the process trains in the folder; the system frees it when the process dies.

    Args:
        folder: of the run.

    Raises:
        ConfigError: another process holds it, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigError(
                f"{shortened(folder)} cannot be written ({error.strerror}), so no run goes on in it."
            ) from error
        if _lock is None:
            return
        try:
            _lock(self._handle, _how)
        except OSError:
            holder = os.pread(self._handle, 20, 0).decode("ascii", "replace").strip()
            os.close(self._handle)
            who = f"process {holder}" if holder.isdecimal() else "another process"
            raise ConfigError(
                f"{shortened(folder)} is being trained by {who}; wait for its end or stop it first."
            ) from None
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, str(os.getpid()).encode("ascii"), 0)

    def release(self) -> None:
        """Let others in."""
        os.close(self._handle)
