"""Noise in plain torch, on any device: Philox, normals and signs, and the functions they are made of.

The specification of `zotune.noise`, see there for the layout.  The arithmetic is that of `zotune.kernels.reference`.
Random words are held in int64, which torch has on every device.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from zotune.noise import Key, Noise

MASK = 0xFFFFFFFF


def philox(block: Tensor, key: Key) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four 32-bit words (int64 tensors) of each 128-bit output number in ``block`` (int64)."""
    k0, k1, c1, c2, c3 = key.words()
    x0, x1 = block & MASK, (block >> 32) | c1
    x2, x3 = torch.full_like(block, c2), torch.full_like(block, c3)
    for _ in range(10):
        # int64 products wrap modulo 2**64, which leaves both 32-bit halves exact
        p0, p1 = x0 * 0xD2511F53, x2 * 0xCD9E8D57
        x0, x1, x2, x3 = (p1 >> 32 & MASK) ^ x1 ^ k0, p1 & MASK, (p0 >> 32 & MASK) ^ x3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return x0, x1, x2, x3


def _blocks(start: int, stop: int, tile: int, per_tile: int, device: torch.device) -> Tensor:
    """Numbers of the blocks of all tiles touched by elements start..stop-1, shape (tiles, per_tile)."""
    first, last = start // tile, -(-stop // tile)
    return torch.arange(first * per_tile, last * per_tile, device=device).view(-1, per_tile)


def words(key: Key, start: int, stop: int, device: torch.device) -> Tensor:
    """Raw 32-bit words of elements start..stop-1 in the Gaussian layout, int64."""
    x = torch.stack(philox(_blocks(start, stop, 1024, 256, device), key), dim=1).flatten()
    offset = start % 1024
    return x[offset : offset + stop - start]


def gaussian(key: Key, start: int, stop: int, device: torch.device) -> Tensor:
    """Standard normals of elements start..stop-1, float32."""
    x0, x1, x2, x3 = philox(_blocks(start, stop, 1024, 256, device), key)
    z = torch.stack((*_box_muller(x0, x1), *_box_muller(x2, x3)), dim=1).flatten()
    offset = start % 1024
    return z[offset : offset + stop - start]


def rademacher(key: Key, start: int, stop: int, device: torch.device) -> Tensor:
    """Signs of elements start..stop-1, float32."""
    x = torch.stack(philox(_blocks(start, stop, 4096, 32, device), key), dim=1)  # (tile, word, lane)
    shifts = torch.arange(31, -1, -1, device=device).view(1, 1, 32, 1)
    z = (1 - 2 * (x.unsqueeze(2) >> shifts & 1)).to(torch.float32).flatten()
    offset = start % 4096
    return z[offset : offset + stop - start]


Place: TypeAlias = "tuple[int, int] | Tensor"
"""Which elements of the whole tensor are meant: start and stop of a range, or their numbers as int64, shape (n,)."""


def words_at(key: Key, place: Place, device: torch.device) -> Tensor:
    """Raw 32-bit words of the elements of ``place`` in the Gaussian layout, int64."""
    if isinstance(place, tuple):
        return words(key, *place, device)
    return torch.stack(philox(place // 1024 * 256 + place % 256, key)).gather(0, (place % 1024 // 256)[None])[0]


def draw(noise: Noise, key: Key, place: Place, device: torch.device) -> Tensor:
    """The noise of the elements of ``place``, float32."""
    if isinstance(place, tuple):
        return (gaussian if noise == "gaussian" else rademacher)(key, *place, device)
    if noise == "gaussian":
        x0, x1, x2, x3 = philox(place // 1024 * 256 + place % 256, key)
        word = place % 1024 // 256
        cos, sin = _box_muller(torch.where(word < 2, x0, x2), torch.where(word < 2, x1, x3))
        return torch.where(word % 2 == 0, cos, sin)
    x = torch.stack(philox(place // 4096 * 32 + place % 32, key)).gather(0, (place % 4096 // 1024)[None])[0]
    return (1 - 2 * (x >> 31 - place % 1024 // 32 & 1)).to(torch.float32)


def square_root(x: Tensor) -> Tensor:
    """IEEE square root.  On CPUs torch's own is off by an ulp now and then: float32 goes through float64, float64
    through numpy."""
    if x.dtype is torch.float64 and x.device.type == "cpu":
        return torch.from_numpy(np.sqrt(x.numpy()))
    return torch.sqrt(x.double()).to(x.dtype)


def _log(u: Tensor) -> Tensor:
    """Natural logarithm of float32 numbers in (0, 1]: exponent and a polynomial of degree nine in the mantissa minus
    one."""
    b = u.view(torch.int32)
    e = (b - 0x3F3504F3) >> 23
    x = (b - (e << 23)).view(torch.float32) - 1.0
    p = x * 7.0376836292e-2 - 1.1514610310e-1
    for c in (1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1):
        p = p * x + c
    p = p * x + 3.3333331174e-1
    xx = x * x
    p = p * x * xx
    p = p - xx * 0.5
    return x + p + e.to(torch.float32) * 0.69314718056


def _box_muller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two normals from two words: radius from the 24 high bits of ``a``; quadrant and angle within it from ``b``."""
    u = ((a >> 8).to(torch.float32) + 0.5) * 2.0**-24
    r = square_root(_log(u) * -2.0)
    quadrant = b >> 30
    fraction = (b << 2 & MASK) >> 8  # of a quadrant, in [-1/2, 1/2) after the sign is put back
    f = (fraction - ((fraction >> 23) << 24)).to(torch.float32) * 2.0**-24
    f2 = f * f
    s = f2 * -0.004681754135318687 + 0.07969262624616703
    s = s * f2 + -0.6459640975062462
    s = s * f2 + 1.5707963267948966
    s = s * f
    c = f2 * 0.0009192602748394265 + -0.020863480763352960
    c = c * f2 + 0.25366950790104797
    c = c * f2 + -1.2337005501361697
    c = c * f2 + 1.0
    odd = (quadrant & 1) != 0
    sin, cos = torch.where(odd, c, s), torch.where(odd, s, c)
    sin = torch.where((quadrant & 2) != 0, -sin, sin)
    cos = torch.where((quadrant + 1 & 2) != 0, -cos, cos)
    return r * cos, r * sin
