"""Between torch and the compiled kernels: arguments and threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from zotune.kernels.cpu_write import NOTHING, OTHER, OWN
from zotune.noise import Key

Array: TypeAlias = np.ndarray[Any, Any]

_SERIAL_BELOW = 1 << 16  # starting threads costs more than this many elements
_NO_KEY = (0,) * 5


@dataclass(frozen=True, slots=True)
class Constants:
    """Stand-ins for arguments that are left out, of one compute type."""

    vector: Array
    matrix: Array


_FLOAT32 = Constants(np.empty(0, np.float32), np.empty((0, 0), np.float32))
_FLOAT64 = Constants(np.empty(0, np.float64), np.empty((0, 0), np.float64))


def constants(tensor: Tensor) -> Constants:
    """Those of the compute type of a tensor."""
    return _FLOAT64 if tensor.dtype is torch.float64 else _FLOAT32


def array_of(tensor: Tensor, dimensions: int = 1) -> Array:
    """A contiguous tensor's memory, flat or as a matrix; bfloat16 as int16, float16 as uint16."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.dim() != dimensions:
        tensor = tensor.view(-1)
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.view(torch.int16)
    elif tensor.dtype is torch.float16:
        tensor = tensor.view(torch.uint16)
    array: Array = tensor.numpy()
    return array


def common(out: Tensor, w: Tensor | None, rounding: Key | None, dimensions: int = 1) -> tuple[Array, Array, int, bool]:
    """``out``, ``w``, what ``w`` is, and whether rounding is stochastic."""
    target = array_of(out, dimensions)
    rounded = rounding is not None and out.dtype.itemsize == 2
    if w is None:
        return target, target, NOTHING, rounded
    if w is out or w.data_ptr() == out.data_ptr():
        return target, target, OWN, rounded
    return target, array_of(w, dimensions), OTHER, rounded


def packed(
    numbers: tuple[float, ...], terms: Sequence[tuple[float, Key]], rounding: Key | None, dtype: np.dtype[Any]
) -> tuple[Array, Array]:
    """(numbers..., c_1, ..., c_K), and the words of the keys of the terms and of rounding, (K + 1, 5)."""
    words = [key.words() for _, key in terms]
    words.append(_NO_KEY if rounding is None else rounding.words())
    return np.array([*numbers, *(c for c, _ in terms)], dtype), np.array(words, np.uint32)


_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)  # threads do not survive a fork


def run(kernel: Callable[..., None], parts: int, size: int, *args: Any) -> None:
    """``kernel(0, parts, *args)``, cut into as many pieces as torch has threads when there is enough to do.

    Plain Python threads around compiled code that releases the interpreter: no second compilation, no second thread
    library in the process.
    """
    global _pool
    pieces = 1 if size < _SERIAL_BELOW else min(torch.get_num_threads(), parts)
    if pieces == 1:
        kernel(0, parts, *args)
        return
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="zotune")
    bounds = [parts * i // pieces for i in range(pieces + 1)]
    futures = [_pool.submit(kernel, *pair, *args) for pair in pairwise(bounds[1:])]
    kernel(bounds[0], bounds[1], *args)
    for future in futures:
        future.result()
