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
    """`reference.row_dot` of one row; ``lanes`` is room for the partial sums.

    Three products a lane at a time, and halves of 256 lanes at fixed distances: the lanes are read and written less
    often, and no addresses are compared.
    """
    for j in range(LANES):
        lanes[j] = 0
    whole = row.size // (3 * LANES)
    for c in range(whole):
        x, y = row[c * 3 * LANES : (c + 1) * 3 * LANES], a[c * 3 * LANES : (c + 1) * 3 * LANES]
        for j in range(LANES):
            lanes[j] = lanes[j] + x[j] * y[j] + x[j + LANES] * y[j + LANES] + x[j + 2 * LANES] * y[j + 2 * LANES]
    for first in range(whole * 3 * LANES, row.size, LANES):
        x, y = row[first : first + LANES], a[first : first + LANES]
        for j in range(x.size):
            lanes[j] += x[j] * y[j]
    for j in range(128):
        lanes[j] += lanes[j + 128]
    for j in range(64):
        lanes[j] += lanes[j + 64]
    for j in range(32):
        lanes[j] += lanes[j + 32]
    for j in range(16):
        lanes[j] += lanes[j + 16]
    for j in range(8):
        lanes[j] += lanes[j + 8]
    for j in range(4):
        lanes[j] += lanes[j + 4]
    return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])


@njit(**KERNEL)
def _write_all(out, w, source, decay, buf, rounded, key, start):
    for at in range(0, out.size, TILE):
        end = min(at + TILE, out.size)
        write(out[at:end], w[at:end], source, decay, buf[at:end], rounded, key, start + at)


@njit(**KERNEL)
def _correct(buf, lanes, factors, start, out, w, source, numbers, key, a, rounded):
    """out = round(w * decay + G - b (G a) a^T) for the rows G in ``buf``; numbers = (decay, b, ...).

    All products come first: rows that are read and written one after another are what the memory is fast at.
    """
    n, decay = a.size, numbers[0]
    for i in range(out.size // n):
        factors[i] = _dot(buf[i * n : i * n + n], a, lanes) * numbers[1]
    for i in range(out.size // n):
        at, end, factor = i * n, i * n + n, factors[i]
        row, own = buf[at:end], out[at:end]
        if rounded or source == NOTHING:
            for j in range(n):
                row[j] -= a[j] * factor
        elif source == OWN:
            for j in range(n):
                own[j] = nearest(own, load(own, j) * decay + (row[j] - a[j] * factor))
        else:
            old = w[at:end]
            for j in range(n):
                own[j] = nearest(own, load(old, j) * decay + (row[j] - a[j] * factor))
    if rounded or source == NOTHING:
        _write_all(out, w, source, decay, buf, rounded, key, start)


@njit(**KERNEL)
def _rank_one_rows(buf, word, lanes, factors, start, out, w, source, numbers, keys, signs, a, rounded):
    """Some rows, flat, of which the first element is element ``start`` of the matrix; numbers = (decay, b, c...)."""
    c = numbers[2:]
    if c.size:
        buf = buf[accumulate(buf, word, start, start + out.size, keys, c, signs) :]
        _correct(buf, lanes, factors, start, out, w, source, numbers, keys[c.size], a, rounded)
    else:
        fill_neutral(buf[: out.size], source)
        _write_all(out, w, source, numbers[0], buf, rounded, keys[c.size], start)


@njit(**KERNEL)
def _rank_one(first, last, step, start, rows, out, w, source, numbers, keys, signs, a, rounded):
    """Blocks first..last-1 of ``step`` rows of ``out`` (flat).  With ``rows``, of one row, whose number is listed."""
    n = a.size
    word, lanes = np.empty(WORDS, u32), np.empty(LANES, numbers.dtype)
    buf, factors = np.empty(step * n + 2 * SIGN_TILE, numbers.dtype), np.empty(step, numbers.dtype)
    for t in range(first, last):
        at, end = t * step * n, min((t + 1) * step * n, out.size)
        here = rows[t] * n if rows.size else start + at
        part, w_part = out[at:end], w[at:end]
        _rank_one_rows(buf, word, lanes, factors, here, part, w_part, source, numbers, keys, signs, a, rounded)


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
def _add_one(sums, row, u, f, c, first):
    """sums += u f, row (+)= u c."""
    if first:
        for j in range(u.size):
            sums[j] += u[j] * f
            row[j] = u[j] * c
    else:
        for j in range(u.size):
            sums[j] += u[j] * f
            row[j] += u[j] * c


@njit(**KERNEL)
def _add_two(sums, row, u, v, f, g, c, d, first):
    """`_add_one` of u, then of v."""
    if first:
        for j in range(u.size):
            sums[j] = sums[j] + u[j] * f + v[j] * g
            row[j] = u[j] * c + v[j] * d
    else:
        for j in range(u.size):
            sums[j] = sums[j] + u[j] * f + v[j] * g
            row[j] = row[j] + u[j] * c + v[j] * d


@njit(**KERNEL)
def _gram(first, last, step, block, rows, out, w, source, numbers, gram, keys, signs, a, rounded, q, p):
    """Blocks first..last-1 of ``block`` rows, ``step`` at a time: sums into q[t], p[t]; an ``out`` is written as well.

    numbers = (decay, b, c_1, ..., c_K).
    """
    n, terms, dtype = a.size, gram.size, numbers.dtype
    word, lanes, one = np.empty(WORDS, u32), np.empty(LANES, dtype), np.ones(1, dtype)
    room = step * n + 2 * SIGN_TILE
    noise, buf, factors = np.empty((terms, room), dtype), np.empty(step * n, dtype), np.empty(step, dtype)
    for t in range(first, last):
        sums = q[t]
        stop = min((t + 1) * block, rows)
        for i in range(t * block, stop, step):
            start, count = i * n, min(step, stop - i)
            offset = 0
            for k in range(terms):
                offset = accumulate(noise[k], word, start, start + count * n, keys[k : k + 1], one, signs)
            for r in range(count):
                row, at = buf[r * n : r * n + n], offset + r * n
                for k in range(0, terms - 1, 2):
                    u, v = noise[k, at : at + n], noise[k + 1, at : at + n]
                    d, e = _dot(u, a, lanes), _dot(v, a, lanes)
                    f, g = d * gram[k], e * gram[k + 1]
                    p[t] = p[t] + d * f + e * g
                    _add_two(sums, row, u, v, f, g, numbers[2 + k], numbers[3 + k], k == 0)
                if terms % 2:
                    u, k = noise[terms - 1, at : at + n], terms - 1
                    d = _dot(u, a, lanes)
                    p[t] += d * (d * gram[k])
                    _add_one(sums, row, u, d * gram[k], numbers[2 + k], k == 0)
            if out.size:
                end = start + count * n
                part, w_part = out[start:end], w[start:end]
                _correct(buf, lanes, factors, start, part, w_part, source, numbers, keys[terms], a, rounded)


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
