"""The elementwise Triton kernel: sums of noise, low-rank products and dense addends, written to weights in one pass."""

from __future__ import annotations

import triton
import triton.language as tl

from zotune.kernels.gpu_noise import (
    HEADER,
    TERM,
    divide_by_root,
    draw,
    lanes,
    minus_zero,
    number,
    read,
    read_key,
    scalar,
    words,
    write,
    write_stochastic,
)


@triton.jit
def low_rank(acc, u, vt, first, at, mask, columns, rank, COMPUTE: tl.constexpr):
    """acc + sum_k u[i, k] vt[k, j] for the elements ``first + at`` of a matrix; those outside the mask are not used."""
    row = tl.maximum(first, 0) // columns
    at = at + (first - row * columns).to(tl.int32)
    below = at // columns  # 32-bit: rows after ``row``
    column = at - below * columns
    left, right = u + row * rank, vt
    for _ in range(rank):
        acc += read(left + below * rank, mask, COMPUTE) * read(right + column, mask, COMPUTE)
        left += 1
        right += columns
    return acc


@triton.jit
def quarter(
    out, w, h, x, u, vt, decay, second, first, at, low, high, columns, rank, acc, squares, word,
    SQUARES: tl.constexpr, STOCHASTIC: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Finish elements ``first + at`` of the tensors, low <= at < high, from their sums."""
    mask = (at >= low) & (at < high)
    if vt is not None:
        acc = low_rank(acc, u, vt, first, at, mask, columns, rank, COMPUTE)
    if h is not None:
        scale = read(h + first + at, mask, COMPUTE, 1)  # outside: a number that can be divided by
        if SQUARES:
            scale = scale * (squares + second)
            write(h + first + at, scale, mask)
        if out is not None:
            acc = divide_by_root(acc, scale)
    if x is not None:
        acc = acc + read(x + first + at, mask, COMPUTE) * second
    if w is not None:
        acc = read(w + first + at, mask, COMPUTE) * decay + acc
    if out is not None:
        if STOCHASTIC:
            write_stochastic(out + first + at, acc, word, mask)
        else:
            write(out + first + at, acc, mask)


@triton.jit
def sums(
    tile, table, terms, parameter, G: tl.constexpr, SIGNS: tl.constexpr, SQUARES: tl.constexpr, COMPUTE: tl.constexpr
):
    """sum_k c_k z_k of the four quarters of tiles G * tile, ...; then those of the squares, with the second factors."""
    zero = minus_zero(G, COMPUTE)
    acc0, acc1, acc2, acc3 = zero, zero, zero, zero
    squares0, squares1, squares2, squares3 = zero, zero, zero, zero
    for k in range(terms):
        at = HEADER + TERM * k
        seed, c1, c2, c3 = read_key(table, at, parameter)
        z0, z1, z2, z3 = draw(tile, seed, c1, c2, c3, G, SIGNS)
        c = number(table, at + 3, COMPUTE)
        z0, z1, z2, z3 = z0.to(COMPUTE), z1.to(COMPUTE), z2.to(COMPUTE), z3.to(COMPUTE)
        acc0, acc1, acc2, acc3 = acc0 + z0 * c, acc1 + z1 * c, acc2 + z2 * c, acc3 + z3 * c
        if SQUARES:
            c = number(table, at + 4, COMPUTE)
            squares0, squares1 = squares0 + z0 * z0 * c, squares1 + z1 * z1 * c
            squares2, squares3 = squares2 + z2 * z2 * c, squares3 + z3 * z3 * c
    return acc0, acc1, acc2, acc3, squares0, squares1, squares2, squares3


@triton.jit
def window(program, origin, size, G: tl.constexpr):
    """For the elements from ``origin`` on of the whole tensor, ``size`` of them: the program's tile; number of its
    first element, counted from the origin; which elements of the tile, low <= i < high, are meant."""
    tile = origin // (1024 * G) + program
    shift = tile * (1024 * G) - origin
    return tile, shift, tl.maximum(-shift, 0).to(tl.int32), tl.minimum(size - shift, 1024 * G).to(tl.int32)


@triton.jit(do_not_specialize=["terms", "parameter", "second", "rank", "groups"])
def elements(
    out, w, h, x, u, vt, rows, table, terms, parameter, second: tl.int64, start: tl.int64, size: tl.int64,
    columns, rank, groups,
    G: tl.constexpr, SIGNS: tl.constexpr, SQUARES: tl.constexpr, STOCHASTIC: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """``out = round(w * decay + (sum_k c_k z_k) / sqrt(h) + c x + u vt)``; with SQUARES, h is scaled first.

    ``second`` holds the bits of c, or with SQUARES of the addend of h's factor.
    ``groups`` programs share ``size`` elements, which are those from ``start`` on of the whole tensor or, with
    ``rows``, from ``rows[i] * size`` on.
    """
    program = tl.program_id(0).to(tl.int64)
    origin, first = tl.cast(start, tl.int64), tl.cast(0, tl.int64)
    if rows is not None:
        row = program // groups
        program = program % groups
        origin, first = tl.load(rows + row) * size, row * size
    tile, shift, low, high = window(program, origin, size, G)
    acc0, acc1, acc2, acc3, squares0, squares1, squares2, squares3 = sums(
        tile, table, terms, parameter, G, SIGNS, SQUARES, COMPUTE
    )
    word0, word1, word2, word3 = 0, 0, 0, 0
    if STOCHASTIC:
        seed, c1, c2, c3 = read_key(table, 1, parameter)
        word0, word1, word2, word3 = words(tile, seed, c1, c2, c3, G)
    g, r, column = lanes(G)
    at = (g * 1024 + r * 32 + column).to(tl.int32)
    first += shift
    decay, second = number(table, 0, COMPUTE), scalar(second, COMPUTE)
    quarter(out, w, h, x, u, vt, decay, second, first, at, low, high, columns, rank, acc0, squares0, word0,
            SQUARES, STOCHASTIC, COMPUTE)  # fmt: skip
    quarter(out, w, h, x, u, vt, decay, second, first, at + 256, low, high, columns, rank, acc1, squares1, word1,
            SQUARES, STOCHASTIC, COMPUTE)  # fmt: skip
    quarter(out, w, h, x, u, vt, decay, second, first, at + 512, low, high, columns, rank, acc2, squares2, word2,
            SQUARES, STOCHASTIC, COMPUTE)  # fmt: skip
    quarter(out, w, h, x, u, vt, decay, second, first, at + 768, low, high, columns, rank, acc3, squares3, word3,
            SQUARES, STOCHASTIC, COMPUTE)  # fmt: skip
