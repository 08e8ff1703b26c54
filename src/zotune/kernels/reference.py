"""The specification of the kernels in plain torch, on any device.

Every other backend must give these bits.  The arithmetic is float32 (float64 for float64 weights): only ``+ - * /``,
IEEE square roots and integer-float conversions, in the written order, never fused.  Random words are held in int64,
which torch has on every device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from zotune.noise import Key, Noise

_MASK = 0xFFFFFFFF
_CHUNK = 1 << 20  # elements worked on at a time; a multiple of both tiles
ROW_BLOCK = 32  # rows whose column sums are added in sequence before the blocks are added as a tree


def philox(block: Tensor, key: Key) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four 32-bit words (int64 tensors) of each 128-bit output number in ``block`` (int64)."""
    k0, k1, c1, c2, c3 = key.words()
    x0, x1 = block & _MASK, (block >> 32) | c1
    x2, x3 = torch.full_like(block, c2), torch.full_like(block, c3)
    for _ in range(10):
        # int64 products wrap modulo 2**64, which leaves both 32-bit halves exact
        p0, p1 = x0 * 0xD2511F53, x2 * 0xCD9E8D57
        x0, x1, x2, x3 = (p1 >> 32 & _MASK) ^ x1 ^ k0, p1 & _MASK, (p0 >> 32 & _MASK) ^ x3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
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


def _place(start: int, rows: Tensor | None, columns: int, first: int, last: int) -> Place:
    """Numbers, in the whole tensor, of the elements first..last-1 of a part of it."""
    if rows is None:
        return start + first, start + last
    element = torch.arange(first, last, device=rows.device)
    return rows[element // columns] * columns + element % columns


def _sqrt(x: Tensor) -> Tensor:
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
    r = _sqrt(_log(u) * -2.0)
    quadrant = b >> 30
    fraction = (b << 2 & _MASK) >> 8  # of a quadrant, in [-1/2, 1/2) after the sign is put back
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


def _accumulate(
    terms: Sequence[tuple[float, Key]],
    noise: Noise,
    place: Place,
    size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """sum_k c_k z(key_k) over the ``size`` elements of ``place``, added in the order of the terms."""
    acc = torch.zeros(size, dtype=dtype, device=device)
    for c, key in terms:
        acc = acc + draw(noise, key, place, device).to(dtype) * torch.tensor(c, dtype=dtype, device=device)
    return acc


def _store(out: Tensor, values: Tensor, rounding: Key | None, place: Place) -> None:
    """Write ``values`` to the flat slice ``out``; half precision is rounded stochastically when a key is given."""
    if rounding is None or out.dtype not in (torch.bfloat16, torch.float16):
        out.copy_(values)
        return
    bits = values.view(torch.int32).to(torch.int64) & _MASK
    sign, magnitude = bits >> 31, bits & 0x7FFFFFFF
    r = words_at(rounding, place, out.device)
    if out.dtype is torch.bfloat16:
        half = magnitude + (r >> 16) >> 16
        bad = magnitude >= 0x7F800000
    else:
        # Below 2**-14 the spacing of float16 is constant: adding 2**-14 lines the mantissa up with it.
        small = magnitude < 113 << 23
        lifted = (values.abs() + 2.0**-14).view(torch.int32).to(torch.int64)
        half = torch.where(small, lifted, magnitude) + (r >> 19) >> 13
        half = torch.clamp(half - torch.where(small, 113 << 10, 112 << 10), max=0x7C00)
        bad = magnitude >= 0x7F800000
    signed = half | sign << 15
    signed = torch.where(signed >= 1 << 15, signed - (1 << 16), signed).to(torch.int16)
    out.copy_(torch.where(bad, values.to(out.dtype), signed.view(out.dtype)))


def combine(
    out: Tensor,
    w: Tensor | None,
    *,
    decay: float,
    terms: Sequence[tuple[float, Key]],
    noise: Noise,
    precision: Tensor | None,
    dense: tuple[float, Tensor] | None,
    rounding: Key | None,
    start: int,
    rows: Tensor | None,
) -> None:
    """out = round(w * decay + (sum_k c_k z_k) / sqrt(precision) + c x); see `zotune.kernels.combine`."""
    compute = torch.float64 if out.dtype is torch.float64 else torch.float32
    flat = out.view(-1)
    for first in range(0, flat.numel(), _CHUNK):
        last = min(first + _CHUNK, flat.numel())
        place = _place(start, rows, out.shape[-1] if out.dim() else 1, first, last)
        acc = _accumulate(terms, noise, place, last - first, compute, out.device)
        if precision is not None:
            acc = acc / _sqrt(precision.view(-1)[first:last])
        if dense is not None:
            acc = acc + dense[1].view(-1)[first:last] * torch.tensor(dense[0], dtype=compute, device=out.device)
        if w is not None:
            acc = w.view(-1)[first:last].to(compute) * torch.tensor(decay, dtype=compute, device=out.device) + acc
        _store(flat[first:last], acc, rounding, place)


def tree_sum(x: Tensor, dim: int) -> Tensor:
    """Sum along ``dim`` by halving a zero-padded power of two: few roundings, and the same bits on any number of
    threads."""
    x = x.movedim(dim, 0)
    size = 1 << max(x.shape[0] - 1, 0).bit_length()
    if size != x.shape[0]:
        x = torch.cat((x, x.new_zeros((size - x.shape[0], *x.shape[1:]))))
    while x.shape[0] > 1:
        half = x.shape[0] // 2
        x = x[:half] + x[half:]
    return x[0]


def _row_blocks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    step = ROW_BLOCK * max(1, _CHUNK // max(1, ROW_BLOCK * columns))
    for first in range(0, rows, step):
        yield first, min(first + step, rows)


def combine_rows(
    out: Tensor,
    w: Tensor | None,
    *,
    decay: float,
    terms: Sequence[tuple[float, Key]],
    noise: Noise,
    rank_one: tuple[float, Tensor] | None,
    low_rank: tuple[Tensor, Tensor] | None,
    rounding: Key | None,
    start: int,
    rows: Tensor | None,
) -> None:
    """The same for a matrix whose directions have structure along its rows; see `zotune.kernels.combine_rows`."""
    compute = torch.float64 if out.dtype is torch.float64 else torch.float32
    m, n = out.shape
    if out.numel() == 0:
        return
    for first, last in _row_blocks(m, n):
        place = _place(start, rows, n, first * n, last * n)
        if low_rank is not None:
            u, vt = low_rank
            acc = torch.zeros((last - first, n), dtype=compute, device=out.device)
            for k in range(vt.shape[0]):
                acc = acc + u[first:last, k : k + 1] * vt[k]
        else:
            acc = _accumulate(terms, noise, place, (last - first) * n, compute, out.device).view(-1, n)
        if rank_one is not None:
            b, a = rank_one
            dot = tree_sum(acc * a, 1) * torch.tensor(b, dtype=compute, device=out.device)
            acc = acc - dot[:, None] * a
        if w is not None:
            acc = w[first:last].to(compute) * torch.tensor(decay, dtype=compute, device=out.device) + acc
        _store(out[first:last].view(-1), acc.reshape(-1), rounding, place)


def row_gram(terms: Sequence[tuple[float, Key]], a: Tensor, rows: int, *, noise: Noise) -> tuple[Tensor, float]:
    """(sum_k c_k U_k^T (U_k a), sum_k c_k |U_k a|^2) for U_k = z(key_k) of shape (rows, n)."""
    n, dtype, device = a.numel(), a.dtype, a.device
    total_q, total_p = torch.zeros_like(a), 0.0
    if rows * n == 0:
        return total_q, total_p
    for c, key in terms:
        sums, squares = [], []
        for first, last in _row_blocks(rows, n):
            u = draw(noise, key, (first * n, last * n), device).to(dtype).view(-1, n)
            dot = tree_sum(u * a, 1)
            squares.append(dot * dot)
            for block in range(0, last - first, ROW_BLOCK):
                q = torch.zeros_like(a)
                for i in range(block, min(block + ROW_BLOCK, last - first)):
                    q = q + u[i] * dot[i]
                sums.append(q)
        total_q = total_q + tree_sum(torch.stack(sums), 0) * torch.tensor(c, dtype=dtype, device=device)
        total_p += c * float(tree_sum(torch.cat(squares), 0))
    return total_q, total_p


def scale_by_squares(h: Tensor, *, decay: float, terms: Sequence[tuple[float, Key]], noise: Noise) -> None:
    """h <- h * (decay + sum_k c_k z_k^2), in place."""
    flat = h.view(-1)
    for start in range(0, flat.numel(), _CHUNK):
        stop = min(start + _CHUNK, flat.numel())
        acc = torch.zeros(stop - start, dtype=h.dtype, device=h.device)
        for c, key in terms:
            z = draw(noise, key, (start, stop), h.device).to(h.dtype)
            acc = acc + z * z * torch.tensor(c, dtype=h.dtype, device=h.device)
        flat[start:stop] *= acc + torch.tensor(decay, dtype=h.dtype, device=h.device)
