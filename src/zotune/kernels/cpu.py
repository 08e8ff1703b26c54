"""The kernels for the CPU, compiled by numba: the same bits as the specification in ``reference.py``, many times
faster.

One source serves all weight types: numba compiles it per array type, and half-precision numbers travel as uint16.
``fastmath`` stays off
everywhere: a fused multiply-add would change bits.  Work is cut into fixed tiles (or fixed blocks of rows), so that
the number of threads cannot change a result.  Compiled code is cached on disk beside this file, or in numba's user
cache where that is not writable.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from zotune.kernels.cpu_half import load, round_to
from zotune.kernels.cpu_noise import KERNEL, accumulate, fill_words
from zotune.kernels.reference import ROW_BLOCK
from zotune.noise import Key, Noise

u32 = np.uint32
TILE = 4096  # elements worked on at a time: four Gaussian tiles or one Rademacher tile
_SERIAL_BELOW = 1 << 16  # starting threads costs more than this many elements


@njit(**KERNEL)
def _finish(buf, out, w, has_w, decay, bf16, stochastic, key, start):
    """out = round(w * decay + buf), where element 0 is element ``start`` of the whole tensor."""
    if has_w:
        for i in range(out.size):
            buf[i] = load(w, i, bf16) * decay + buf[i]
    if stochastic:
        tiles = (start + out.size + 1023) // 1024 - start // 1024
        word = np.empty(tiles * 1024, u32)
        fill_words(word, start // 1024, tiles, key)
        part = word[start % 1024 :]
        for i in range(out.size):
            out[i] = round_to(out, buf[i], bf16, True, part[i])
    else:
        for i in range(out.size):
            out[i] = round_to(out, buf[i], bf16, False, u32(0))


@njit(**KERNEL)
def _combine_tile(t, origin, out, w, has_w, decay, keys, c, signs, h, x, cx, bf16, stochastic, round_key):
    """Tile ``t`` of those that ``out`` touches; ``out`` is the whole tensor from element ``origin`` on."""
    tile = origin // TILE + t
    start, stop = max(tile * TILE, origin) - origin, min(tile * TILE + TILE, origin + out.size) - origin
    work = np.zeros(TILE, c.dtype)
    buf = work
    if c.size:
        buf = work[accumulate(work, origin + start, origin + stop, keys, c, signs) :]
    if h.size:
        part = h[start:stop]
        for i in range(part.size):
            buf[i] = buf[i] / np.sqrt(part[i])
    if x.size:
        part = x[start:stop]
        for i in range(part.size):
            buf[i] += part[i] * cx
    _finish(buf, out[start:stop], w[start:stop], has_w, decay, bf16, stochastic, round_key, origin + start)


@njit(**KERNEL)
def _combine(first, last, origin, out, w, has_w, decay, keys, c, signs, h, x, cx, bf16, stochastic, key):
    for t in range(first, last):
        _combine_tile(t, origin, out, w, has_w, decay, keys, c, signs, h, x, cx, bf16, stochastic, key)


@njit(**KERNEL)
def _gather(first, last, rows, out, w, has_w, decay, keys, c, signs, h, a, b, u, vt, bf16, stochastic, key):
    """Rows first..last-1 of ``out``, which are rows ``rows[first..last-1]`` of the whole matrix."""
    n = out.shape[1]
    work = np.empty(n + 2 * TILE, c.dtype)
    scratch = np.empty(_power_of_two(n), c.dtype)
    for i in range(first, last):
        start = rows[i] * n
        buf = work
        buf[:n] = 0
        if u.size:
            for k in range(vt.shape[0]):
                for j in range(n):
                    buf[j] += u[i, k] * vt[k, j]
        elif c.size:
            buf = work[accumulate(work, start, start + n, keys, c, signs) :]
        if h.size:
            for j in range(n):
                buf[j] = buf[j] / np.sqrt(h[i, j])
        if a.size:
            dot = _dot(buf[:n], a, scratch) * b
            for j in range(n):
                buf[j] -= dot * a[j]
        _finish(buf[:n], out[i], w[i], has_w, decay, bf16, stochastic, key, start)


@njit(**KERNEL)
def _tree_sum(buf, size):
    """Sum of buf[:size], size a power of two, by halving; overwrites buf."""
    while size > 1:
        size //= 2
        low, high = buf[:size], buf[size : 2 * size]
        for i in range(size):
            low[i] += high[i]
    return buf[0]


@njit(**KERNEL)
def _dot(row, a, scratch):
    for j in range(a.size):
        scratch[j] = row[j] * a[j]
    scratch[a.size :] = 0
    return _tree_sum(scratch, scratch.size)


@njit(**KERNEL)
def _power_of_two(n):
    size = 1
    while size < n:
        size *= 2
    return size


@njit(**KERNEL)
def _rows_block(t, origin, out, w, has_w, decay, keys, c, signs, a, b, u, vt, bf16, stochastic, key):
    m, n = out.shape
    first, last = t * ROW_BLOCK, min((t + 1) * ROW_BLOCK, m)
    start, stop = first * n, last * n
    buf = np.zeros(stop - start + 2 * TILE, c.dtype)
    offset = 0
    if u.size:
        for i in range(last - first):
            row = buf[i * n : i * n + n]
            for k in range(vt.shape[0]):
                factor, direction = u[first + i, k], vt[k]
                for j in range(n):
                    row[j] += factor * direction[j]
    else:
        offset = accumulate(buf, origin + start, origin + stop, keys, c, signs)
    if a.size:
        scratch = np.empty(_power_of_two(n), c.dtype)
        for i in range(last - first):
            row = buf[offset + i * n : offset + i * n + n]
            dot = _dot(row, a, scratch) * b
            for j in range(n):
                row[j] -= dot * a[j]
    flat, source = out.reshape(-1), w.reshape(-1)
    _finish(buf[offset:], flat[start:stop], source[start:stop], has_w, decay, bf16, stochastic, key, origin + start)


@njit(**KERNEL)
def _rows(first, last, origin, out, w, has_w, decay, keys, c, signs, a, b, u, vt, bf16, stochastic, key):
    for t in range(first, last):
        _rows_block(t, origin, out, w, has_w, decay, keys, c, signs, a, b, u, vt, bf16, stochastic, key)


@njit(**KERNEL)
def _gram_block(t, rows, a, key, one, signs, squares, total):
    """Of one block of rows: (U a)_i^2 into ``squares``, sum_i U_i (U a)_i into ``total``."""
    n = a.size
    first, last = t * ROW_BLOCK, min((t + 1) * ROW_BLOCK, rows)
    buf = np.empty((last - first) * n + 2 * TILE, a.dtype)
    offset = accumulate(buf, first * n, last * n, key, one, signs)
    scratch = np.empty(_power_of_two(n), a.dtype)
    for i in range(last - first):
        row = buf[offset + i * n : offset + i * n + n]
        dot = _dot(row, a, scratch)
        squares[first + i] = dot * dot
        for j in range(n):
            total[j] += row[j] * dot


@njit(**KERNEL)
def _gram(first, last, rows, a, key, one, signs, squares, sums):
    for t in range(first, last):
        _gram_block(t, rows, a, key, one, signs, squares, sums[t])


@njit(**KERNEL)
def _sum_rows(sums):
    """Sum of the rows of ``sums``, a power of two of them, by halving; overwrites."""
    size = sums.shape[0]
    while size > 1:
        size //= 2
        for i in range(size):
            low, high = sums[i], sums[size + i]
            for j in range(low.size):
                low[j] += high[j]


@njit(**KERNEL)
def _squares_tile(t, h, decay, keys, c, one, signs):
    part = h[t * TILE : (t + 1) * TILE]
    z, acc = np.empty(TILE, h.dtype), np.zeros(TILE, h.dtype)
    for k in range(c.size):
        accumulate(z, t * TILE, t * TILE + part.size, keys[k : k + 1], one, signs)
        for i in range(part.size):
            acc[i] += z[i] * z[i] * c[k]
    for i in range(part.size):
        part[i] *= acc[i] + decay


@njit(**KERNEL)
def _squares(first, last, h, decay, keys, c, one, signs):
    for t in range(first, last):
        _squares_tile(t, h, decay, keys, c, one, signs)


# ------------------------------------------------------------------------------------------------ torch side


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The tensor's memory as an array; half precision as uint16."""
    tensor = tensor.detach()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        return tensor.view(torch.int16).numpy().view(np.uint16)
    array: np.ndarray[Any, Any] = tensor.numpy()
    return array


def _terms(
    terms: Sequence[tuple[float, Key]], dtype: np.dtype[Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    keys = np.array([key.words() for _, key in terms], dtype=np.uint32).reshape(-1, 5)
    return keys, np.array([c for c, _ in terms], dtype=dtype)


def _round_key(rounding: Key | None) -> np.ndarray[Any, Any]:
    return np.array(rounding.words() if rounding is not None else (0,) * 5, dtype=np.uint32)


_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)  # threads do not survive a fork


def _run(kernel: Callable[..., None], parts: int, size: int, *args: Any) -> None:
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


def _dtype(out: Tensor) -> np.dtype[Any]:
    return np.dtype(np.float64 if out.dtype is torch.float64 else np.float32)


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
    """See `zotune.kernels.combine`."""
    if out.numel() == 0:
        return
    dtype = _dtype(out)
    keys, c = _terms(terms, dtype)
    nothing = np.empty(0, dtype)
    if rows is not None:
        _gather_rows(out, w, rows, decay, keys, c, noise, precision, None, None, rounding)
        return
    target = _array(out.view(-1))
    half = target.dtype == np.uint16
    _run(
        _combine,
        -(-(start + out.numel()) // TILE) - start // TILE,
        out.numel(),
        start,
        target,
        target if w is None else _array(w.view(-1)),
        w is not None,
        dtype.type(decay),
        keys,
        c,
        noise == "rademacher",
        nothing if precision is None else _array(precision.view(-1)),
        nothing if dense is None else _array(dense[1].view(-1)),
        dtype.type(0 if dense is None else dense[0]),
        out.dtype is torch.bfloat16,
        half and rounding is not None,
        _round_key(rounding),
    )


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
    if out.numel() == 0:
        return
    dtype = _dtype(out)
    keys, c = _terms(terms, dtype)
    none, empty = np.empty(0, dtype), np.empty((0, 0), dtype)
    if rows is not None:
        _gather_rows(out, w, rows, decay, keys, c, noise, None, rank_one, low_rank, rounding)
        return
    target = _array(out)
    half = target.dtype == np.uint16
    _run(
        _rows,
        -(-out.shape[0] // ROW_BLOCK),
        out.numel(),
        start,
        target,
        target if w is None else _array(w),
        w is not None,
        dtype.type(decay),
        keys,
        c,
        noise == "rademacher",
        none if rank_one is None else _array(rank_one[1].contiguous()),
        dtype.type(0 if rank_one is None else rank_one[0]),
        empty if low_rank is None else _array(low_rank[0]),
        empty if low_rank is None else _array(low_rank[1]),
        out.dtype is torch.bfloat16,
        half and rounding is not None,
        _round_key(rounding),
    )


def _gather_rows(
    out: Tensor,
    w: Tensor | None,
    rows: Tensor,
    decay: float,
    keys: np.ndarray[Any, Any],
    c: np.ndarray[Any, Any],
    noise: Noise,
    precision: Tensor | None,
    rank_one: tuple[float, Tensor] | None,
    low_rank: tuple[Tensor, Tensor] | None,
    rounding: Key | None,
) -> None:
    dtype, target = c.dtype, _array(out)
    none, empty = np.empty(0, dtype), np.empty((0, 0), dtype)
    _run(
        _gather,
        out.shape[0],
        out.numel(),
        rows.numpy(),
        target,
        target if w is None else _array(w),
        w is not None,
        dtype.type(decay),
        keys,
        c,
        noise == "rademacher",
        empty if precision is None else _array(precision),
        none if rank_one is None else _array(rank_one[1].contiguous()),
        dtype.type(0 if rank_one is None else rank_one[0]),
        empty if low_rank is None else _array(low_rank[0]),
        empty if low_rank is None else _array(low_rank[1]),
        out.dtype is torch.bfloat16,
        target.dtype == np.uint16 and rounding is not None,
        _round_key(rounding),
    )


def row_gram(terms: Sequence[tuple[float, Key]], a: Tensor, rows: int, *, noise: Noise) -> tuple[Tensor, float]:
    """See `zotune.kernels.row_gram`."""
    array = _array(a.contiguous())
    dtype, one = array.dtype, np.ones(1, array.dtype)
    q, p = np.zeros_like(array), 0.0
    blocks = -(-rows // ROW_BLOCK)
    for c, key in terms:
        squares = np.zeros(_ceil_power_of_two(rows), dtype)
        sums = np.zeros((_ceil_power_of_two(blocks), array.size), dtype)
        words = _terms([(1.0, key)], dtype)[0]
        _run(_gram, blocks, rows * array.size, rows, array, words, one, noise == "rademacher", squares, sums)
        _sum_rows(sums)
        q = q + sums[0] * dtype.type(c)
        p += c * float(_tree_sum(squares, squares.size))
    return torch.from_numpy(q), p


def scale_by_squares(h: Tensor, *, decay: float, terms: Sequence[tuple[float, Key]], noise: Noise) -> None:
    """See `zotune.kernels.scale_by_squares`."""
    if h.numel() == 0:
        return
    array = _array(h.view(-1))
    keys, c = _terms(terms, array.dtype)
    _run(
        _squares,
        -(-array.size // TILE),
        array.size,
        array,
        array.dtype.type(decay),
        keys,
        c,
        np.ones(1, array.dtype),
        noise == "rademacher",
    )


def _ceil_power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()
