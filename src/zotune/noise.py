"""Random numbers as pure functions of a key.

There is no generator and no state: ``normal(key, shape)`` gives the same bits whenever, wherever and in whatever
order it is called.  The bits come from Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2,
3").

The 64-bit Philox key is the seed of the run.  The 128-bit counter is the address of the number:

| word | bits                                          | meaning                                                  |
|------|-----------------------------------------------|----------------------------------------------------------|
| 0    | 32                                            | block, low word                                          |
| 1    | 8 (low) block, high bits; 24 (high) parameter | block = running number of a 128-bit output of one tensor |
| 2    | 32                                            | step                                                     |
| 3    | 8 (low) tag; 24 (high) query                  | tag = what the numbers are for, see `TAGS`               |

Every field has its own bits, so two different keys never share a block, and a new kind of draw (a new tag) cannot
shift another.

Element ``i`` (row-major in the whole tensor) of a *Gaussian* tensor lies in tile ``i // 1024``; inside the tile, word
``j = i % 1024 // 256`` of block ``256 * tile + i % 256`` belongs to it.  Words (0, 1) and (2, 3) of a block are each
turned into two standard normals by Box-Muller.  Element ``i`` of a *Rademacher* tensor lies in tile ``i // 4096``:
word ``i % 4096 // 1024``, bit ``31 - i % 1024 // 32`` of block ``32 * tile + i % 32``; a set bit is -1.  Rounding
bits are laid out as Gaussian words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Noise: TypeAlias = Literal["gaussian", "rademacher"]
NOISES: tuple[Noise, ...] = ("gaussian", "rademacher")

TAGS = {"z": 0, "V": 1, "a": 2, "rounding": 3, "state": 4}
"""What a draw is for: a direction's coordinates, LOZO's V, LOREN's first a, the bits of stochastic rounding of weights
and of state."""

_LIMITS = {"seed": 64, "step": 32, "query": 24, "parameter": 24}


@dataclass(frozen=True, slots=True)
class Key:
    """The address of a tensor of random numbers.

    Args:
        seed: of the run, below 2**64.
        step: iteration, below 2**32.
        query: number of the direction inside the step, below 2**24.
        parameter: number of the parameter, below 2**24.
        tag: one of `TAGS`.

    Raises:
        ValueError: if a field is negative or does not fit its bits.
    """

    seed: int
    step: int = 0
    query: int = 0
    parameter: int = 0
    tag: str = "z"

    def __post_init__(self) -> None:
        if type(self.seed) is type(self.step) is type(self.query) is type(self.parameter) is int and (
            self.seed >> 64 == self.step >> 32 == self.query >> 24 == self.parameter >> 24 == 0 and self.tag in TAGS
        ):
            return  # keys are made for every parameter and query: the usual case takes one expression
        for field, bits in _LIMITS.items():
            value = getattr(self, field)
            if not isinstance(value, int):
                raise ValueError(f"{field}={value!r}: choose a whole number")
            if not 0 <= value < 1 << bits:
                raise ValueError(f"{field}={value} does not fit: choose 0 <= {field} < 2**{bits}")
        if self.tag not in TAGS:
            raise ValueError(f"unknown tag {self.tag!r}: choose one of {', '.join(TAGS)}")

    def at(self, *, step: int | None = None, query: int | None = None, tag: str | None = None) -> Key:
        """The same key with some fields changed."""
        return Key(
            self.seed,
            self.step if step is None else step,
            self.query if query is None else query,
            self.parameter,
            self.tag if tag is None else tag,
        )

    def words(self) -> tuple[int, int, int, int, int]:
        """(key word 0, key word 1, counter word 1 of block 0, counter word 2, counter word 3)."""
        return (
            self.seed & 0xFFFFFFFF,
            self.seed >> 32,
            self.parameter << 8,
            self.step,
            TAGS[self.tag] | self.query << 8,
        )


def normal(
    key: Key, shape: Sequence[int], *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Tensor:
    """Independent N(0, 1) numbers of the given shape; drawn in float32 (|z| <= 5.9), then cast to ``dtype``."""
    return _draw(key, shape, "gaussian", device, dtype)


def rademacher(
    key: Key, shape: Sequence[int], *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Tensor:
    """Independent signs, +1 or -1 with probability 1/2 each."""
    return _draw(key, shape, "rademacher", device, dtype)


def _draw(key: Key, shape: Sequence[int], noise: Noise, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    from zotune.kernels import combine  # the kernels import this module for Key

    out = torch.empty(tuple(shape), device=device, dtype=torch.float32)
    combine(out, None, terms=[(1.0, key)], noise=noise)
    return out.to(dtype)
