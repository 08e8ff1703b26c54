"""Kernels for matrices whose directions have structure along the rows: LOREN's correction, LOZO's low rank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numba import njit
from torch import Tensor

from zotune.kernels.cpu_arrays import Array, array_of, common, constants, packed, run
from zotune.kernels.cpu_half import load, nearest
from zotune.kernels.cpu_noise import INLINE, KERNEL, SIGN_TILE, WORDS, accumulate
from zotune.kernels.cpu_write import NOTHING, OTHER, OWN, TILE, fill_neutral, write
from zotune.kernels.reference import LANES, gram_rows
from zotune.noise import Key, Noise

u32 = np.uint32
_BLOCK = 1 << 15  # elements of a block of rows: they stay in the cache between the noise and the write


@njit(**KERNEL)
def _dot(row, a, lanes):
    """`reference.row_dot` of one row; ``lanes`` is room for the partial sums."""
    lanes[:] = 0
    for first in range(0, row.size, LANES):
        x, y = row[first : first + LANES], a[first : first + LANES]
        for j in range(x.size):
            lanes[j] += x[j] * y[j]
    size = LANES
    while size > 1:
        size //= 2
        low, high = lanes[:size], lanes[size : 2 * size]
        for j in range(size):
            low[j] += high[j]
    return lanes[0]


@njit(**KERNEL)
def _subtract(row, a, factor):
    for j in range(row.size):
        row[j] -= a[j] * factor


@njit(**KERNEL)
def _write_all(out, w, source, decay, buf, rounded, key, start):
    for at in range(0, out.size, TILE):
        end = min(at + TILE, out.size)
        write(out[at:end], w[at:end], source, decay, buf[at:end], rounded, key, start + at)


@njit(**KERNEL)
def _rank_one_rows(buf, word, lanes, start, out, w, source, numbers, keys, signs, a, rounded):
    """Some rows, flat, of which the first element is element ``start`` of the matrix; numbers = (decay, b, c...)."""
    c, n = numbers[2:], a.size
    if c.size:
        buf = buf[accumulate(buf, word, start, start + out.size, keys, c, signs) :]
        for at in range(0, out.size, n):
            row = buf[at : at + n]
            _subtract(row, a, _dot(row, a, lanes) * numbers[1])
    else:
        fill_neutral(buf[: out.size], source)
    _write_all(out, w, source, numbers[0], buf, rounded, keys[c.size], start)


@njit(**KERNEL)
def _rank_one(first, last, step, start, rows, out, w, source, numbers, keys, signs, a, rounded):
    """Blocks first..last-1 of ``step`` rows of ``out`` (flat).  With ``rows``, of one row, whose number is listed."""
    n = a.size
    word, lanes = np.empty(WORDS, u32), np.empty(LANES, numbers.dtype)
    buf = np.empty(step * n + 2 * SIGN_TILE, numbers.dtype)
    for t in range(first, last):
        at, end = t * step * n, min((t + 1) * step * n, out.size)
        here = rows[t] * n if rows.size else start + at
        part, w_part = out[at:end], w[at:end]
        _rank_one_rows(buf, word, lanes, here, part, w_part, source, numbers, keys, signs, a, rounded)


@njit(**INLINE)
def _two(out, w, decay, u0, u1, v0, v1):
    for j in range(out.size):
        out[j] = nearest(out, load(w, j) * decay + (v0[j] * u0 + v1[j] * u1))


@njit(**KERNEL)
def _low_rank_row(buf, out, w, source, decay, u, vt, rounded, key, start):
    """One row, in pieces that stay in the cache; two terms at a time."""
    rank = u.size
    if rank == 2 and not rounded and source == OWN:
        _two(out, out, decay, u[0], u[1], vt[0], vt[1])
        return
    if rank == 2 and not rounded and source == OTHER:
        _two(out, w, decay, u[0], u[1], vt[0], vt[1])
        return
    for at in range(0, out.size, TILE):
        end = min(at + TILE, out.size)
        part, v0, first = buf[: end - at], vt[0, at:end], u[0]
        for j in range(part.size):
            part[j] = v0[j] * first
        for k in range(1, rank - 1, 2):
            v1, v2, u1, u2 = vt[k, at:end], vt[k + 1, at:end], u[k], u[k + 1]
            for j in range(part.size):
                part[j] = part[j] + v1[j] * u1 + v2[j] * u2
        if rank % 2 == 0:
            v1, u1 = vt[rank - 1, at:end], u[rank - 1]
            for j in range(part.size):
                part[j] += v1[j] * u1
        write(out[at:end], w[at:end], source, decay, part, rounded, key, start + at)


@njit(**KERNEL)
def _low_rank(first, last, start, rows, out, w, source, numbers, keys, u, vt, rounded):
    """Rows first..last-1 of ``out`` (flat)."""
    n, buf = vt.shape[1], np.empty(TILE, numbers.dtype)
    for i in range(first, last):
        here = rows[i] * n if rows.size else start + i * n
        part, w_part = out[i * n : i * n + n], w[i * n : i * n + n]
        _low_rank_row(buf, part, w_part, source, numbers[0], u[i], vt, rounded, keys[0], here)


@njit(**KERNEL)
def _gram(first, last, step, block, rows, out, w, source, numbers, gram, keys, signs, a, rounded, q, p):
    """Blocks first..last-1 of ``block`` rows, ``step`` at a time: sums into q[t], p[t]; an ``out`` is written as well.

    numbers = (decay, b, c_1, ..., c_K).
    """
    n, terms, dtype = a.size, gram.size, numbers.dtype
    word, lanes, one = np.empty(WORDS, u32), np.empty(LANES, dtype), np.ones(1, dtype)
    room = step * n + 2 * SIGN_TILE
    noise, buf = np.empty((terms, room), dtype), np.empty(step * n, dtype)
    for t in range(first, last):
        sums = q[t]
        stop = min((t + 1) * block, rows)
        for i in range(t * block, stop, step):
            start, count = i * n, min(step, stop - i)
            offset = 0
            for k in range(terms):
                offset = accumulate(noise[k], word, start, start + count * n, keys[k : k + 1], one, signs)
            for r in range(count):
                row = buf[r * n : r * n + n]
                for k in range(terms):
                    u = noise[k, offset + r * n : offset + r * n + n]
                    d, c = _dot(u, a, lanes), numbers[2 + k]
                    factor = d * gram[k]
                    p[t] += d * factor
                    if k == 0:
                        for j in range(n):
                            sums[j] += u[j] * factor
                            row[j] = u[j] * c
                    else:
                        for j in range(n):
                            sums[j] += u[j] * factor
                            row[j] += u[j] * c
                if out.size:
                    _subtract(row, a, _dot(row, a, lanes) * numbers[1])
            if out.size:
                end = start + count * n
                _write_all(out[start:end], w[start:end], source, numbers[0], buf, rounded, keys[terms], start)


@njit(**KERNEL)
def _sum_blocks(q, p):
    """Tree sums over the blocks, into q[0] and p[0]."""
    count, size = p.size, 1
    while size < count:
        size *= 2
    while size > 1:
        size //= 2
        for i in range(count - size):  # what lies beyond count is zero and changes nothing
            low, high = q[i], q[size + i]
            for j in range(low.size):
                low[j] += high[j]
            p[i] += p[size + i]
        count = min(count, size)


def _rows_of(elements: int, columns: int) -> int:
    """A power of two of rows of about so many elements: usually whole tiles, and none is generated twice."""
    return 1 << max(elements // columns, 1).bit_length() - 1


_NO_ROWS = np.empty(0, np.int64)


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
    """See `zotune.kernels.combine_rows`."""
    size = out.numel()
    if size == 0:
        return
    m, n = out.shape
    dtype = constants(out).vector.dtype
    listed = _NO_ROWS if rows is None else rows.numpy()
    target, source_array, source, rounded = common(out, w, rounding)
    if low_rank is not None:
        numbers, keys = packed((decay,), (), rounding, dtype)
        u, vt = array_of(low_rank[0], 2), array_of(low_rank[1], 2)
        run(_low_rank, m, size, start, listed, target, source_array, source, numbers, keys, u, vt, rounded)
        return
    assert rank_one is not None
    step = 1 if rows is not None else _rows_of(_BLOCK, n)
    numbers, keys = packed((decay, rank_one[0]), terms, rounding, dtype)
    arguments = (target, source_array, source, numbers, keys, noise == "rademacher", array_of(rank_one[1]), rounded)
    run(_rank_one, -(-m // step), size, step, start, listed, *arguments)


def combine_with_gram(
    out: Tensor,
    w: Tensor | None,
    *,
    decay: float,
    terms: Sequence[tuple[float, Key]],
    gram: Sequence[float],
    rank_one: tuple[float, Tensor],
    noise: Noise,
    rounding: Key | None,
) -> tuple[Tensor, float]:
    """See `zotune.kernels.combine_with_gram`."""
    if out.numel() == 0 or not terms:
        combine_rows(
            out,
            w,
            decay=decay,
            terms=terms,
            noise=noise,
            rank_one=rank_one,
            low_rank=None,
            rounding=rounding,
            start=0,
            rows=None,
        )
        return torch.zeros_like(rank_one[1]), 0.0
    written = common(out, w, rounding)
    numbers, keys = packed((decay, rank_one[0]), terms, rounding, constants(out).vector.dtype)
    factors = np.array(gram, numbers.dtype)
    return _sums(out.shape[0], rank_one[1], written, numbers, factors, keys, noise)


def row_gram(terms: Sequence[tuple[float, Key]], a: Tensor, rows: int, *, noise: Noise) -> tuple[Tensor, float]:
    """See `zotune.kernels.row_gram`."""
    if rows * a.numel() == 0 or not terms:
        return torch.zeros_like(a), 0.0
    nothing = constants(a).vector
    numbers, keys = packed((0.0, 0.0), terms, None, nothing.dtype)
    return _sums(rows, a, (nothing, nothing, NOTHING, False), numbers, numbers[2:], keys, noise)


def _sums(
    rows: int,
    a: Tensor,
    written: tuple[Array, Array, int, bool],
    numbers: Array,
    gram: Array,
    keys: Array,
    noise: Noise,
) -> tuple[Tensor, float]:
    """Run `_gram` and add up what its blocks give; ``written`` is `common` of out and w."""
    out, w, source, rounded = written
    array, block = array_of(a), gram_rows(rows)
    blocks = -(-rows // block)
    q, p = np.zeros((blocks, array.size), array.dtype), np.zeros(blocks, array.dtype)
    step = min(block, _rows_of(4 * _BLOCK // gram.size, array.size))
    signs = noise == "rademacher"
    arguments = (step, block, rows, out, w, source, numbers, gram, keys, signs, array, rounded, q, p)
    run(_gram, blocks, rows * array.size, *arguments)
    _sum_blocks(q, p)
    return torch.from_numpy(q[0].copy()), float(p[0])
