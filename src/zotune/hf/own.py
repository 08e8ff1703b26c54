"""Functions of a user's own, by file and name."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any


def load_function(spec: str) -> Callable[..., Any]:
    """The function that ``FILE.py:NAME`` names.

    Raises:
        ValueError: no such file, a file that cannot be run, or none of that name in it.
    """
    file, _, name = spec.rpartition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"There is no file {file}; give FILE.py:FUNCTION.")
    module_spec = importlib.util.spec_from_file_location(f"zotune_own_{path.stem}", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{file} cannot be run: {type(error).__name__}: {error}.") from error
    function: Any = getattr(module, name, None)
    if not callable(function):
        there = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        like = difflib.get_close_matches(name, there, 1)
        hint = f"did you mean {like[0]!r}?" if like else f"it has {', '.join(there) or 'none'}."
        raise ValueError(f"{file} has no function {name!r}; {hint}")
    found: Callable[..., Any] = function
    return found
