"""The console that people read: standard error, and silent on every process but the first."""

import os

from rich.console import Console


def standard_error() -> Console:
    """A console on standard error; under torchrun only that of rank 0 writes."""
    return Console(stderr=True, highlight=False, quiet=int(os.environ.get("RANK", "0")) != 0)


def say(console: Console, sentence: str) -> None:
    """Write one line as it is: no wrapping, and brackets are no markup."""
    console.print(sentence, markup=False, soft_wrap=True)
