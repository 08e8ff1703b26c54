"""Ctrl-C, SIGTERM and timers wait while weights are being written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGBREAK")
_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
"""Those whose handlers raise exceptions in programs: requests to stop, and deadlines."""


@contextmanager
def delayed() -> Iterator[None]:
    """Signals that arrive in the block are answered at its end, by the handlers that were there.

    An update that breaks off half way would leave weights of two steps.  Outside the main thread no handler of Python
    runs, and nothing is to be done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[tuple[int, FrameType | None]] = []
    with ExitStack() as answers:  # a handler that raises an exception does not keep the others from their turn

        def answer(handler: Callable[[int, FrameType | None], object], number: int) -> None:
            for request in [request for request in arrived if request[0] == number]:
                handler(*request)

        def restore(number: int, handler: Callable[[int, FrameType | None], object]) -> None:
            signal.signal(number, handler)

        before = {number: signal.getsignal(number) for number in _SIGNALS}
        own = {number: handler for number, handler in before.items() if callable(handler)}
        for number, handler in own.items():
            answers.callback(answer, handler, number)
        for number, handler in own.items():
            answers.callback(restore, number, handler)
            signal.signal(number, lambda *request: arrived.append(request))
        yield
