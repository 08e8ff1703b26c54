"""The error of a wrong setting, and the sentence that names the nearest right one."""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one sentence for the person who gave it."""


def nearest(name: str, choices: Iterable[str], *, prefix: str = "") -> str:
    """The end of a sentence about a wrong name: `"; did you mean x?"`, or `"."` when no choice is like it.

    `prefix` is put before the choice, such as the dashes of a flag.
    """
    by_lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"; did you mean {prefix}{by_lower[found[0]]}?" if found else "."


def shortened(text: object) -> str:
    """`text` as a sentence can hold it: the middle of a very long one is left out."""
    whole = str(text)
    return whole if len(whole) <= 200 else f"{whole[:100]}...{whole[-50:]}"


def as_sentence(text: str) -> str:
    """An error's message with a capital letter, unless it begins with a name, and a full stop."""
    if text.split(" ", 1)[0] in ("it", "its", "step", "the"):
        text = text[0].upper() + text[1:]
    return text if text.endswith((".", "?")) else f"{text}."
