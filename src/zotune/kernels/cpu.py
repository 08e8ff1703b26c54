"""The kernels for the CPU, compiled by numba: the same bits as the specification in ``reference.py``, many times
faster.

One source serves all weight types: numba compiles it per array type.  ``fastmath`` stays off everywhere: a fused
multiply-add would change bits.  Work is cut into fixed tiles (or blocks of rows, in ``cpu_rows.py``), so that the
number of threads cannot change a result.  Compiled code is cached on disk beside this file, or in numba's user cache
where that is not writable.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from torch import Tensor

from zotune.kernels.cpu_arrays import array_of, common, constants, packed, run
from zotune.kernels.cpu_noise import KERNEL, WORDS, accumulate
from zotune.kernels.cpu_rows import combine_rows, combine_with_gram, row_gram
from zotune.kernels.cpu_write import NOTHING, OWN, TILE, fill_neutral, write, write_signs
from zotune.noise import Key, Noise

__all__ = [
    "combine",
    "combine_rows",
    "combine_sequence",
    "combine_with_gram",
    "combine_with_squares",
    "row_gram",
    "scale_by_squares",
]

u32 = np.uint32


@njit(**KERNEL)
def _tile(buf, word, start, out, w, source, numbers, keys, signs, h, x, rounded):
    """``out`` is what one tile holds from element ``start`` on; numbers = (decay, factor of x, c_1, ..., c_K)."""
    stop = start + out.size
    c = numbers[2:]
    if c.size:
        buf = buf[accumulate(buf, word, start, stop, keys, c, signs) :]
        if h.size:
            for i in range(out.size):
                buf[i] = buf[i] / np.sqrt(h[i])
        if x.size:
            for i in range(out.size):
                buf[i] += x[i] * numbers[1]
    elif x.size:
        for i in range(out.size):
            buf[i] = x[i] * numbers[1]
    else:
        fill_neutral(buf[: out.size], source)
    write(out, w, source, numbers[0], buf, rounded, keys[c.size], start)


@njit(**KERNEL)
def _span(buf, word, start, out, w, source, numbers, keys, signs, h, x, rounded):
    """Any number of elements, of which the first is element ``start`` of the whole tensor."""
    at = 0
    plain = signs and numbers.size == 3 and source != NOTHING and not (h.size or x.size or rounded)
    while at < out.size:
        if plain and (start + at) % TILE == 0 and out.size - at >= TILE:  # the usual query and update
            end = at + (out.size - at) // TILE * TILE
            write_signs(out[at:end], w[at:end], source, numbers[0], word, (start + at) // TILE, keys[0], numbers[2])
            at = end
            continue
        end = min(out.size, ((start + at) // TILE + 1) * TILE - start)
        h_part, x_part = (h[at:end] if h.size else h), (x[at:end] if x.size else x)
        part, w_part = out[at:end], w[at:end]
        _tile(buf, word, start + at, part, w_part, source, numbers, keys, signs, h_part, x_part, rounded)
        at = end


@njit(**KERNEL)
def _combine(first, last, start, out, w, source, numbers, keys, signs, h, x, rounded):
    """Tiles first..last-1 of those that ``out``, the whole tensor from element ``start`` on, touches."""
    buf, word = np.empty(TILE, numbers.dtype), np.empty(WORDS, u32)
    tile = start // TILE
    at, end = max((tile + first) * TILE - start, 0), min((tile + last) * TILE - start, out.size)
    h_part, x_part = (h[at:end] if h.size else h), (x[at:end] if x.size else x)
    part, w_part = out[at:end], w[at:end]
    _span(buf, word, start + at, part, w_part, source, numbers, keys, signs, h_part, x_part, rounded)


@njit(**KERNEL)
def _sequence(first, last, start, out, counts, numbers, keys, signs, rounded):
    """Tiles first..last-1 as in `_combine`; step s has the first ``counts[s]`` terms of row s, and a tile makes all
    steps before the next one is touched."""
    buf, word, nothing = np.empty(TILE, numbers.dtype), np.empty(WORDS, u32), np.empty(0, numbers.dtype)
    tile = start // TILE
    for t in range(tile + first, tile + last):
        at, end = max(t * TILE - start, 0), min((t + 1) * TILE - start, out.size)
        part = out[at:end]
        for s in range(counts.size):
            row, own = numbers[s], keys[s]
            c, key = row[: 2 + counts[s]], own[: 1 + counts[s]]
            _span(buf, word, start + at, part, part, OWN, c, key, signs, nothing, nothing, rounded[s])


@njit(**KERNEL)
def _combine_listed(first, last, columns, rows, out, w, source, numbers, keys, signs, h, x, rounded):
    """Rows first..last-1 of ``out`` (flat), which are rows ``rows[first..last-1]`` of the whole matrix."""
    buf, word = np.empty(TILE, numbers.dtype), np.empty(WORDS, u32)
    for i in range(first, last):
        at, end = i * columns, (i + 1) * columns
        h_part, x_part = (h[at:end] if h.size else h), (x[at:end] if x.size else x)
        part, w_part = out[at:end], w[at:end]
        _span(buf, word, rows[i] * columns, part, w_part, source, numbers, keys, signs, h_part, x_part, rounded)


@njit(**KERNEL)
def _squares(first, last, out, w, source, numbers, squares, keys, signs, h, rounded):
    """h <- h * (sum_k squares_k z_k^2 + squares_K) and, if there is an ``out``, round(w * decay + sum / sqrt(h))."""
    z, acc, factor = np.empty(TILE, h.dtype), np.empty(TILE, h.dtype), np.empty(TILE, h.dtype)
    word, one, count = np.empty(WORDS, u32), np.ones(1, h.dtype), squares.size - 1
    for t in range(first, last):
        start, stop = t * TILE, min(t * TILE + TILE, h.size)
        part = h[start:stop]
        for k in range(count):
            accumulate(z, word, start, stop, keys[k : k + 1], one, signs)
            c, g = numbers[2 + k], squares[k]
            if k == 0:
                for i in range(part.size):
                    acc[i], factor[i] = z[i] * c, z[i] * z[i] * g
            else:
                for i in range(part.size):
                    acc[i] += z[i] * c
                    factor[i] += z[i] * z[i] * g
        if count == 0:
            fill_neutral(factor, 1)
        for i in range(part.size):
            part[i] *= factor[i] + squares[count]
        if out.size:
            if count:
                for i in range(part.size):
                    acc[i] = acc[i] / np.sqrt(part[i])
            else:
                fill_neutral(acc, source)
            write(out[start:stop], w[start:stop], source, numbers[0], acc, rounded, keys[count], start)


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
    size = out.numel()
    if size == 0:
        return
    nothing = constants(out).vector
    target, source_array, source, rounded = common(out, w, rounding)
    numbers, keys = packed((decay, 0.0 if dense is None else dense[0]), terms, rounding, nothing.dtype)
    arguments = (
        target,
        source_array,
        source,
        numbers,
        keys,
        noise == "rademacher",
        nothing if precision is None else array_of(precision),
        nothing if dense is None else array_of(dense[1]),
        rounded,
    )
    if rows is None:
        run(_combine, (start + size - 1) // TILE - start // TILE + 1, size, start, *arguments)
    else:
        run(_combine_listed, out.shape[0], size, out.shape[1], rows.numpy(), *arguments)


def combine_sequence(
    w: Tensor, steps: Sequence[tuple[float, Sequence[tuple[float, Key]], Key | None]], *, noise: Noise, start: int
) -> None:
    """See `zotune.kernels.combine_sequence`."""
    size = w.numel()
    if size == 0 or not steps:
        return
    dtype = constants(w).vector.dtype
    counts = np.array([len(terms) for _, terms, _ in steps], np.int64)
    numbers = np.zeros((len(steps), 2 + counts.max()), dtype)
    keys = np.zeros((len(steps), 1 + counts.max(), 5), np.uint32)
    for s, (decay, terms, rounding) in enumerate(steps):
        own, words = packed((decay, 0.0), terms, rounding, dtype)
        numbers[s, : own.size], keys[s, : len(words)] = own, words
    rounded = np.array([rounding is not None and w.dtype.itemsize == 2 for _, _, rounding in steps])
    arguments = (array_of(w), counts, numbers, keys, noise == "rademacher", rounded)
    run(_sequence, (start + size - 1) // TILE - start // TILE + 1, size * len(steps), start, *arguments)


def combine_with_squares(
    out: Tensor,
    w: Tensor | None,
    h: Tensor,
    *,
    decay: float,
    terms: Sequence[tuple[float, Key]],
    squares: Sequence[float],
    keep: float,
    noise: Noise,
    rounding: Key | None,
) -> None:
    """See `zotune.kernels.combine_with_squares`."""
    size = out.numel()
    if size == 0:
        return
    target, source_array, source, rounded = common(out, w, rounding)
    numbers, keys = packed((decay, 0.0), terms, rounding, constants(out).vector.dtype)
    factors = np.array((*squares, keep), numbers.dtype)
    signs, h_array = noise == "rademacher", array_of(h)
    tiles = -(-size // TILE)
    run(_squares, tiles, size, target, source_array, source, numbers, factors, keys, signs, h_array, rounded)


def scale_by_squares(h: Tensor, *, decay: float, terms: Sequence[tuple[float, Key]], noise: Noise) -> None:
    """See `zotune.kernels.scale_by_squares`."""
    size = h.numel()
    if size == 0:
        return
    nothing = constants(h).vector
    numbers, keys = packed((0.0, 0.0), terms, None, nothing.dtype)
    factors = np.array((*(c for c, _ in terms), decay), numbers.dtype)
    signs, array = noise == "rademacher", array_of(h)
    run(_squares, -(-size // TILE), size, nothing, nothing, 0, numbers, factors, keys, signs, array, False)
