"""SIGTERM as an exception, so that a stopped run finishes its files as it does after Ctrl-C."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import NoReturn


class Terminated(BaseException):
    """The process was asked to end by SIGTERM."""


def _raise(*_: object) -> NoReturn:
    # A second request must not break off the finishing that the first one began.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Turn SIGTERM into `Terminated` for the length of the block; outside the main thread, change nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
