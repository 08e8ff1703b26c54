"""What the libraries say during a run, brought to the person at the console or kept away."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import transformers

logger = logging.getLogger("zotune")


@contextmanager
def quiet_libraries(say: Callable[[str], None]) -> Iterator[None]:
    """Warnings of zotune go to `say`, those of transformers, which are for its programmers, nowhere."""
    library = logging.getLogger("transformers")
    level = library.level
    library.setLevel(logging.ERROR)
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    handler = _ConsoleHandler(say)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        library.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()  # type: ignore[no-untyped-call]


class _ConsoleHandler(logging.Handler):
    """Brings the package's warnings to the run's console."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        # Training and validation rows often give rise to the same line.
        if (message := record.getMessage()) not in self._said:
            self._said.add(message)
            self._say(message)
