"""Checks of hyperparameters and parameters, and the checksum of weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from zotune.kernels.backends import DTYPES


def check_number(name: str, value: Any, *, at_least: float | None = None, above: float | None = None) -> None:
    """Raise ValueError unless ``value`` is a finite number in the range."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    number = number or (isinstance(value, Tensor) and value.numel() == 1)
    limit = f"at least {at_least:g}" if at_least is not None else f"above {above:g}"
    low = at_least if at_least is not None else above
    assert low is not None
    if not number or not math.isfinite(value) or value < low or (above is not None and value == low):
        raise ValueError(f"{name}={value!r}: choose a number {limit}")


def check_unit_interval(name: str, value: Any) -> None:
    """Raise ValueError unless 0 <= value < 1."""
    check_number(name, value, at_least=0.0)
    if value >= 1.0:
        raise ValueError(f"{name}={value!r}: choose a number from 0 up to but not including 1")


def check_count(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is a whole number, 1 or more."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}: choose a whole number, 1 or more")


def check_parameter(param: Tensor) -> None:
    """Raise ValueError unless the parameter can be perturbed."""
    if param.dtype not in DTYPES:
        raise ValueError(
            f"a parameter of type {param.dtype} cannot be perturbed: "
            "leave quantised weights out and train adapters, or load the model in float32, bfloat16 or float16"
        )
    if param.is_meta:
        raise ValueError("a parameter is on the meta device and has no values: load the model's weights first")
    if any(stride == 0 and size > 1 for size, stride in zip(param.size(), param.stride(), strict=True)):
        raise ValueError("a parameter's elements share memory (it was made by expand): use its contiguous copy")


def check_memory(params: Iterable[Tensor]) -> None:
    """Raise ValueError if parameters share memory: an update of one would change another."""
    by_storage: dict[int, list[Tensor]] = {}
    for param in params:
        if param.numel():
            by_storage.setdefault(param.untyped_storage().data_ptr(), []).append(param)
    for sharing in by_storage.values():
        extents = sorted(extent(param) for param in sharing)
        if any(begin < end for (_, end), (begin, _) in itertools.pairwise(extents)):
            raise ValueError(
                "two parameters share memory, or one is listed twice: "
                "list each once, and tie weights as one Parameter object or copy them"
            )


def extent(tensor: Tensor) -> tuple[int, int]:
    """First byte of a tensor's elements in its storage, and the one after the last."""
    if tensor.numel() == 0:
        return 0, 0
    last = sum(int((size - 1) * stride) for size, stride in zip(tensor.size(), tensor.stride(), strict=True))
    begin = int(tensor.storage_offset())
    return begin * tensor.element_size(), (begin + last + 1) * tensor.element_size()


def digest(params: Iterable[Any]) -> int:
    """A 64-bit checksum of the bits of parameters (or of (name, parameter) pairs): equal for equal bits, on any
    device."""
    total = 0
    for item in params:
        tensor = item[1] if isinstance(item, tuple) else item
        bits = tensor.detach().contiguous().view(-1).view(_INTEGER[tensor.element_size()])
        for start in range(0, bits.numel(), _SUM):
            total = (total * 6364136223846793005 + _places_sum(bits[start : start + _SUM], start)) & 0xFFFFFFFFFFFFFFFF
    return total


def _places_sum(bits: Tensor, start: int) -> int:
    """sum_i bits_i * (i * step + first) modulo 2**64, with i the place in the whole tensor.

    The factors are odd: no change of a single element, not even of its highest bit, multiplies to zero.
    """
    step, first = 5308871522, 0x9E3779B97F4A7C1
    block = _BLOCK if bits.device.type == "cpu" else _SUM
    place = torch.arange(min(block, bits.numel()), device=bits.device) * step
    weighted = torch.zeros((), dtype=torch.int64, device=bits.device)
    for at in range(0, bits.numel(), block):  # blocks that lie in the cache
        part = bits[at : at + block].to(torch.int64)
        offset = _wrapped((start + at) * step + first)
        weighted += part.sum() * offset + part.mul_(place[: part.numel()]).sum()
    return int(weighted)


def _wrapped(number: int) -> int:
    """As an int64 holds it."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


_SUM = 1 << 22  # elements of a sum; another number gives other checksums
_BLOCK = 1 << 15  # elements of them worked on at a time

# eight bytes count as two halves: the highest bit of an int64, times anything odd, is always the same
_INTEGER: dict[int, torch.dtype] = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int32}
