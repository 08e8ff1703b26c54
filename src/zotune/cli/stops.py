"""Ctrl-C and SIGTERM before there is a run: one sentence and the exit code, from wherever they come."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn


def _leave(number: int, _frame: object) -> NoReturn:
    # An exception could end as the traceback of an import, or be swallowed by one; there is nothing to finish yet.
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write("Stopped before this command had done anything.\n")
        sys.stderr.flush()
    os._exit(128 + number)


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Leave the process at Ctrl-C (130) or SIGTERM (143) during the block, but for runs, which handle them.

    Outside the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
