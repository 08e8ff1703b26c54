"""Functions of a user's own, by file and name."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn


class ObjectiveError(RuntimeError):
    """A function of a user's own raised, or gave something that is no loss."""


def as_objective(spec: str, function: Callable[..., Any]) -> Callable[..., float | torch.Tensor]:
    """The function, with what goes wrong in it said in one sentence that names it.

    The result raises:
        ObjectiveError: the function raised, or its result is no real number and no tensor with one.
    """

    def objective(model: nn.Module, batch: Mapping[str, Any]) -> float | torch.Tensor:
        try:
            value = function(model, batch)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except (Exception, SystemExit) as error:
            said = (str(error).strip().splitlines() or [""])[0].rstrip(".")
            raise ObjectiveError(f"The objective {spec} raised {type(error).__name__} ({said})") from error
        if isinstance(value, torch.Tensor):
            if value.numel() == 1 and not value.is_complex():
                return value
            what = f"a tensor of shape {tuple(value.shape)}"
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            return value
        else:
            what = type(value).__name__
        raise ObjectiveError(f"The objective {spec} returned {what}; let it return a number or a one-element tensor")

    return objective


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
