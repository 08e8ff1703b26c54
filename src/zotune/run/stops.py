"""Ctrl-C and SIGTERM as exceptions, so that a stopped run finishes its files, and no second one breaks that off."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

_Handler = Callable[..., Any] | signal.Handlers
_STOPS = (signal.SIGINT, signal.SIGTERM)


class Terminated(BaseException):
    """The process was asked to end by SIGTERM."""


def _raise(*_: object) -> NoReturn:
    # A second request must not break off the finishing that the first one began.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


@contextlib.contextmanager
def _handlers(sigint: _Handler, sigterm: _Handler) -> Iterator[None]:
    """These handlers for the length of the block; outside the main thread, which alone may set any, no change."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [signal.signal(number, handler) for number, handler in zip(_STOPS, (sigint, sigterm), strict=True)]
    try:
        yield
    finally:
        for number, handler in zip(_STOPS, before, strict=True):
            signal.signal(number, handler)


def terminable() -> contextlib.AbstractContextManager[None]:
    """Turn Ctrl-C into `KeyboardInterrupt` and SIGTERM into `Terminated` for the length of the block."""
    return _handlers(signal.default_int_handler, _raise)


def undisturbed() -> contextlib.AbstractContextManager[None]:
    """Let Ctrl-C and SIGTERM pass for the length of the block: the files of a run are being finished."""
    return _handlers(signal.SIG_IGN, signal.SIG_IGN)
