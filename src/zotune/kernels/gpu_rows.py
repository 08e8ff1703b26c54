"""The Triton kernels for matrices whose directions have structure along their rows.

A row is generated once, kept in a scratch row of the program in compute type (it stays in the cache), multiplied with
a vector, and read again.  Sums have a fixed order: 256 lanes along the row, then a tree; no atomic additions.
"""

from __future__ import annotations

import triton
import triton.language as tl

from zotune.kernels.gpu_elements import sums
from zotune.kernels.gpu_noise import (
    HEADER,
    TERM,
    draw,
    lanes,
    number,
    read,
    read_key,
    scalar,
    words,
    write,
    write_stochastic,
)


@triton.jit
def dot(x, a, columns, COMPUTE: tl.constexpr):
    """Dot product of two rows; see `zotune.kernels.reference.row_dot`."""
    lane = tl.arange(0, 256)
    total = tl.zeros((256,), COMPUTE)
    for first in range(0, columns, 256):
        at = first + lane
        mask = at < columns
        total += read(x + at, mask, COMPUTE) * read(a + at, mask, COMPUTE)
    for level in tl.static_range(8):  # a sum of two has one order, however Triton reduces
        total = tl.sum(tl.reshape(total, (2, 128 >> level)), axis=0)
    return tl.sum(total, axis=0)


@triton.jit
def place(tile, origin, G: tl.constexpr):
    """Columns of quarter 0 of tiles G * tile, ... in the row that begins at element ``origin``."""
    g, r, column = lanes(G)
    first = (tl.cast(tile, tl.int64) * (1024 * G) - origin).to(tl.int32)
    return first + (g * 1024 + r * 32 + column).to(tl.int32)


@triton.jit
def keep(scratch, at, columns, z0, z1, z2, z3):
    """Store four quarters in the scratch row."""
    tl.store(scratch + at, z0, mask=(at >= 0) & (at < columns))
    tl.store(scratch + at + 256, z1, mask=(at >= -256) & (at < columns - 256))
    tl.store(scratch + at + 512, z2, mask=(at >= -512) & (at < columns - 512))
    tl.store(scratch + at + 768, z3, mask=(at >= -768) & (at < columns - 768))


@triton.jit
def correct(
    out, w, a, scratch, decay, first, at, columns, product, word, STOCHASTIC: tl.constexpr, COMPUTE: tl.constexpr
):
    """Finish columns ``at`` of the row that begins at element ``first`` of the tensors."""
    mask = (at >= 0) & (at < columns)
    acc = read(scratch + at, mask, COMPUTE) - product * read(a + at, mask, COMPUTE)
    if w is not None:
        acc = read(w + first + at, mask, COMPUTE) * decay + acc
    if STOCHASTIC:
        write_stochastic(out + first + at, acc, word, mask)
    else:
        write(out + first + at, acc, mask)


@triton.jit(do_not_specialize=["terms", "parameter", "second", "count"])
def rank_one(
    out, w, a, rows, scratch, table, terms, parameter, second: tl.int64, start: tl.int64, count, columns,
    G: tl.constexpr, SIGNS: tl.constexpr, STOCHASTIC: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """``out = round(w * decay + A - b (A a) a^T)``, A = sum_k c_k z_k; ``second`` holds the bits of b.

    Rows are dealt out to programs.
    """
    decay, b = number(table, 0, COMPUTE), scalar(second, COMPUTE)
    scratch += tl.program_id(0).to(tl.int64) * columns
    for row in range(tl.program_id(0), count, tl.num_programs(0)):
        first = tl.cast(row, tl.int64) * columns
        origin = start + first
        if rows is not None:
            origin = tl.load(rows + row) * columns
        begin, end = origin // (1024 * G), (origin + columns - 1) // (1024 * G) + 1
        for tile in range(begin, end):
            z0, z1, z2, z3, _, _, _, _ = sums(tile, table, terms, parameter, G, SIGNS, False, COMPUTE)
            keep(scratch, place(tile, origin, G), columns, z0, z1, z2, z3)
        tl.debug_barrier()  # what follows reads what other threads have written
        product = dot(scratch, a, columns, COMPUTE) * b
        for tile in range(begin, end):
            word0, word1, word2, word3 = 0, 0, 0, 0
            if STOCHASTIC:
                seed, c1, c2, c3 = read_key(table, 1, parameter)
                word0, word1, word2, word3 = words(tile, seed, c1, c2, c3, G)
            at = place(tile, origin, G)
            correct(out, w, a, scratch, decay, first, at, columns, product, word0, STOCHASTIC, COMPUTE)
            correct(out, w, a, scratch, decay, first, at + 256, columns, product, word1, STOCHASTIC, COMPUTE)
            correct(out, w, a, scratch, decay, first, at + 512, columns, product, word2, STOCHASTIC, COMPUTE)
            correct(out, w, a, scratch, decay, first, at + 768, columns, product, word3, STOCHASTIC, COMPUTE)
        tl.debug_barrier()


@triton.jit(do_not_specialize=["terms", "parameter", "count", "block"])
def gram(
    q, p, a, scratch, table, terms, parameter, count, columns, block,
    G: tl.constexpr, SIGNS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Of each block of rows the sums of c_k d u (added to ``q``) and of c_k d^2 (into ``p``), with d = u a."""
    program = tl.program_id(0).to(tl.int64)
    scratch += program * columns
    q += program * columns
    total = tl.full((), 0, COMPUTE)
    lane = tl.arange(0, 256)
    for row in range(program * block, tl.minimum(program * block + block, count)):
        origin = tl.cast(row, tl.int64) * columns
        for k in range(terms):
            seed, c1, c2, c3 = read_key(table, HEADER + TERM * k, parameter)
            for tile in range(origin // (1024 * G), (origin + columns - 1) // (1024 * G) + 1):
                z0, z1, z2, z3 = draw(tile, seed, c1, c2, c3, G, SIGNS)
                keep(scratch, place(tile, origin, G), columns, z0, z1, z2, z3)
            tl.debug_barrier()
            product = dot(scratch, a, columns, COMPUTE)
            scaled = product * number(table, HEADER + TERM * k + 3, COMPUTE)
            for first in range(0, columns, 256):
                at = first + lane
                mask = at < columns
                change = read(scratch + at, mask, COMPUTE) * scaled
                tl.store(q + at, read(q + at, mask, COMPUTE) + change, mask=mask)
            total += product * scaled
            tl.debug_barrier()
    tl.store(p + program, total)
