"""Ctrl-C, SIGTERM and timers wait while weights are being written.

Their handlers raise exceptions wherever Python happens to be, also between a context manager's work and the block that
would undo it.  So they are held back around everything of ours that must be done as a whole, and let through only
while a function of the user runs in its midst.
"""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, ParamSpec, TypeAlias, TypeVar

T = TypeVar("T")
P = ParamSpec("P")
Handler: TypeAlias = Callable[[int, FrameType | None], Any]

_NAMES = ("SIGINT", "SIGTERM", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGBREAK")
_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
"""Those whose handlers raise exceptions in programs: requests to stop, and deadlines."""


class Delayed:
    """See `delayed`.  Signals outside the block, or while a function is let through, are answered as they come."""

    def __init__(self) -> None:
        self._handlers: dict[int, Handler] = {}
        self._outer: Delayed | None = None  # a block around this one
        self._arrived: list[tuple[int, FrameType | None]] = []
        self._open = False  # one assignment opens and closes: no handler can run in the midst of it
        self._over = False

    def __enter__(self) -> Delayed:
        try:
            for number in _SIGNALS:
                handler = _real(number, signal.getsignal(number))
                if callable(handler):
                    self._handlers[number] = handler
                    owner = getattr(handler, "__self__", None)
                    self._outer = owner if isinstance(owner, Delayed) else self._outer
                    signal.signal(number, self._arrive)
        except BaseException:  # of a handler that was not replaced yet
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def through(self, function: Callable[[], T]) -> T:
        """The function's result; a signal is answered in its midst, and one that has waited before it begins."""
        if self._outer is not None:
            return self._outer.through(lambda: self._alone(function))
        return self._alone(function)

    def _alone(self, function: Callable[[], T]) -> T:
        self._open = True
        try:
            self._answer()
            return function()
        finally:
            self._open = False

    def _arrive(self, number: int, frame: FrameType | None) -> None:
        if self._open:
            self._handlers[number](number, frame)
        else:
            self._arrived.append((number, frame))

    def _end(self) -> None:
        try:
            try:
                self._restore()
            except BaseException:  # of a handler that is back: the others have their turn
                self._restore()
                raise
        finally:
            self._open = self._over = True  # a handler that could not be put back passes all on, and is found later
            self._answer()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._arrive:  # the function may have set its own
                signal.signal(number, handler)

    def _answer(self) -> None:
        """Answer what has arrived; a handler that raises an exception does not keep the others from their turn."""
        raised: BaseException | None = None
        while self._arrived:
            number, frame = self._arrived.pop(0)
            try:
                self._handlers[number](number, frame)
            except BaseException as error:
                error.__context__ = error.__context__ or raised
                raised = error
        if raised is not None:
            raise raised


def _real(number: int, handler: Any) -> Any:
    """The handler that was there before those of blocks that are over."""
    while isinstance(own := getattr(handler, "__self__", None), Delayed) and own._over:
        handler = own._handlers[number]
    return handler


class _Nothing(Delayed):
    """Outside the main thread no handler of Python runs."""

    def __enter__(self) -> Delayed:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def held(function: Callable[P, T]) -> Callable[P, T]:
    """The function in a block of its own.  Outermost among decorators: whatever torch's set is set back."""

    @functools.wraps(function)
    def whole(*args: P.args, **kwargs: P.kwargs) -> T:
        with delayed():
            return function(*args, **kwargs)

    return whole


def delayed() -> Delayed:
    """Signals that arrive in the block are answered at its end, by the handlers that were there.

    An update that breaks off half way would leave weights of two steps.

    Example:
        >>> with delayed() as signals:
        ...     value = signals.through(lambda: 1)  # may be interrupted; what is around it not
        >>> value
        1
    """
    return Delayed() if threading.current_thread() is threading.main_thread() else _Nothing()
