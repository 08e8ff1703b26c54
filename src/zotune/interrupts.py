"""Ctrl-C and SIGTERM wait while weights are being written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def delayed() -> Iterator[None]:
    """Requests to stop that arrive in the block are answered at its end, by the handlers that were there.

    An update that breaks off half way would leave weights of two steps.  Outside the main thread no handler of Python
    runs, and nothing is to be done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[tuple[int, FrameType | None]] = []
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    own = [number for number, handler in before.items() if callable(handler)]
    for number in own:
        signal.signal(number, lambda *request: arrived.append(request))
    try:
        yield
    finally:
        for number in own:
            signal.signal(number, before[number])
        for request, frame in arrived:
            handler = before[signal.Signals(request)]
            assert callable(handler)
            handler(request, frame)
