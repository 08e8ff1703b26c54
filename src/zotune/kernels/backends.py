"""The backends, and which one works on a tensor."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import logging
from types import ModuleType

import torch
from torch import Tensor

from zotune.kernels import reference

BACKENDS = ("numba", "triton", "reference")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_backend(name: str | None) -> None:
    """Raise ValueError unless ``name`` is None or one of `BACKENDS`."""
    if name is not None and name not in BACKENDS:
        close = difflib.get_close_matches(str(name), BACKENDS, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(BACKENDS)}"
        raise ValueError(f"unknown backend {name!r}: {hint}")


def choose(name: str | None, tensor: Tensor) -> ModuleType:
    """The module that works on a tensor; None chooses the fastest.

    Raises:
        ValueError: if that backend cannot work on the tensor, or is not installed.
    """
    if name is None:
        name = default(tensor.device.type)
    if name == "reference":
        return reference
    if name == "triton":
        return _triton(tensor.device)
    if tensor.device.type != "cpu":
        raise ValueError(f"the numba backend works on the CPU, not on {tensor.device}: leave backend out")
    return _numba()


@functools.cache
def default(device: str) -> str:
    """Name of the backend for a type of device."""
    if device == "cpu":
        return "numba"
    if device != "cuda" or torch.version.cuda is None:
        return "reference"
    if importlib.util.find_spec("triton") is not None:
        return "triton"
    logging.getLogger(__name__).warning(
        "the kernels run in plain torch, many times slower than in Triton: install the package triton"
    )
    return "reference"


@functools.cache
def _triton(device: torch.device) -> ModuleType:
    try:
        from zotune.kernels import gpu  # imported on first use: triton is optional
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "triton":
            raise
        raise ValueError("the triton backend needs the package triton: install it, or leave backend out") from None
    gpu.check_device(device)
    return gpu


@functools.cache
def _numba() -> ModuleType:
    from zotune.kernels import cpu  # compiled on first use

    return cpu
