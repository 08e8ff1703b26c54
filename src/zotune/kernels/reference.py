"""The specification of the kernels in plain torch, on any device.

Every other backend must give these bits.  The arithmetic is float32 (float64 for float64 weights): only ``+ - * /``,
IEEE square roots and integer-float conversions, in the written order, never fused.  The noise is that of
`zotune.kernels.reference_noise`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from zotune.kernels.reference_noise import (
    MASK,
    Place,
    draw,
    gaussian,
    philox,
    rademacher,
    square_root,
    words,
    words_at,
)
from zotune.noise import Key, Noise

__all__ = [
    "LANES",
    "combine",
    "combine_rows",
    "combine_sequence",
    "combine_with_gram",
    "combine_with_squares",
    "draw",
    "gaussian",
    "gram_rows",
    "philox",
    "rademacher",
    "row_dot",
    "row_gram",
    "scale_by_squares",
    "tree_sum",
    "words",
    "words_at",
]

_CHUNK = 1 << 20  # elements worked on at a time; a multiple of both tiles
LANES = 256  # partial sums of a row's dot product
_GRAM_BLOCKS = 256  # at most this many blocks of rows, ...
_GRAM_ROWS = 16  # ... of at least this many rows each, have column sums of their own


def gram_rows(rows: int) -> int:
    """Rows in one block of `row_gram`: their products are added in sequence, the blocks as a tree."""
    return max(_GRAM_ROWS, -(-rows // _GRAM_BLOCKS))


def _place(start: int, rows: Tensor | None, columns: int, first: int, last: int) -> Place:
    """Numbers, in the whole tensor, of the elements first..last-1 of a part of it."""
    if rows is None:
        return start + first, start + last
    element = torch.arange(first, last, device=rows.device)
    return rows[element // columns] * columns + element % columns


def _accumulate(
    terms: Sequence[tuple[float, Key]],
    noise: Noise,
    place: Place,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor | None:
    """sum_k c_k z(key_k) over the elements of ``place``, added in the order of the terms; None without terms."""
    acc = None
    for c, key in terms:
        term = draw(noise, key, place, device).to(dtype) * _scalar(c, dtype, device)
        acc = term if acc is None else acc + term
    return acc


def _scalar(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(value, dtype=dtype, device=device)


def _add(w: Tensor | None, decay: float, acc: Tensor | None, out: Tensor) -> Tensor:
    """w * decay + acc in the compute type, each where there is one; shaped as ``out``."""
    dtype = _compute(out)
    if w is None:
        return torch.zeros(out.shape, dtype=dtype, device=out.device) if acc is None else acc
    scaled = w.to(dtype) * _scalar(decay, dtype, out.device)
    return scaled if acc is None else scaled + acc


def _compute(out: Tensor) -> torch.dtype:
    return torch.float64 if out.dtype is torch.float64 else torch.float32


def _store(out: Tensor, values: Tensor, rounding: Key | None, place: Place) -> None:
    """Write ``values`` to the flat slice ``out``; half precision is rounded stochastically when a key is given."""
    if rounding is None or out.dtype not in (torch.bfloat16, torch.float16):
        out.copy_(values)
        return
    bits = values.view(torch.int32).to(torch.int64) & MASK
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
    dtype, device = _compute(out), out.device
    flat = out.view(-1)
    for first in range(0, flat.numel(), _CHUNK):
        last = min(first + _CHUNK, flat.numel())
        place = _place(start, rows, out.shape[-1] if out.dim() else 1, first, last)
        acc = _accumulate(terms, noise, place, dtype, device)
        if precision is not None and acc is not None:
            acc = acc / square_root(precision.view(-1)[first:last])
        if dense is not None:
            change = dense[1].view(-1)[first:last] * _scalar(dense[0], dtype, device)
            acc = change if acc is None else acc + change
        part = flat[first:last]
        _store(part, _add(None if w is None else w.view(-1)[first:last], decay, acc, part), rounding, place)


def combine_sequence(
    w: Tensor, steps: Sequence[tuple[float, Sequence[tuple[float, Key]], Key | None]], *, noise: Noise, start: int
) -> None:
    """A `combine` for each step; see `zotune.kernels.combine_sequence`."""
    for decay, terms, rounding in steps:
        combine(
            w,
            w,
            decay=decay,
            terms=terms,
            noise=noise,
            precision=None,
            dense=None,
            rounding=rounding,
            start=start,
            rows=None,
        )


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
    """Two calls that the other backends do in one pass; see `zotune.kernels.combine_with_squares`."""
    own = [(c, key) for c, (_, key) in zip(squares, terms, strict=True)]
    scale_by_squares(h, decay=keep, terms=own, noise=noise)
    combine(
        out,
        w,
        decay=decay,
        terms=terms,
        noise=noise,
        precision=h,
        dense=None,
        rounding=rounding,
        start=0,
        rows=None,
    )


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


def row_dot(x: Tensor, a: Tensor) -> Tensor:
    """Dot products of the rows of ``x`` (rows, n) with ``a`` (n,): `LANES` partial sums, the l-th of the products
    l, l + LANES, l + 2 LANES, ..., each in this order from zero; then a `tree_sum` of the lanes."""
    products = x * a
    lanes = products.new_zeros((x.shape[0], LANES))
    for first in range(0, x.shape[1], LANES):
        part = products[:, first : first + LANES]
        lanes[:, : part.shape[1]] += part
    return tree_sum(lanes, 1)


def _row_blocks(rows: int, columns: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    step = multiple * max(1, _CHUNK // max(1, multiple * columns))
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
    m, n = out.shape
    if out.numel() == 0:
        return
    for first, last in _row_blocks(m, n):
        place = _place(start, rows, n, first * n, last * n)
        acc: Tensor | None = None
        if low_rank is not None:
            u, vt = low_rank
            for k in range(vt.shape[0]):
                term = u[first:last, k : k + 1] * vt[k]
                acc = term if acc is None else acc + term
        else:
            acc = _accumulate(terms, noise, place, _compute(out), out.device)
            acc = None if acc is None else acc.view(-1, n)
        if rank_one is not None and acc is not None:
            b, a = rank_one
            dot = row_dot(acc, a) * _scalar(b, acc.dtype, acc.device)
            acc = acc - dot[:, None] * a
        part = out[first:last]
        values = _add(None if w is None else w[first:last], decay, acc, part)
        _store(part.view(-1), values.reshape(-1), rounding, place)


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
    """Two calls that the other backends do in one pass; see `zotune.kernels.combine_with_gram`."""
    own = [(c, key) for c, (_, key) in zip(gram, terms, strict=True)]
    sums = row_gram(own, rank_one[1], out.shape[0], noise=noise)
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
    return sums


def row_gram(terms: Sequence[tuple[float, Key]], a: Tensor, rows: int, *, noise: Noise) -> tuple[Tensor, float]:
    """(sum_k c_k U_k^T (U_k a), sum_k c_k |U_k a|^2) for U_k = z(key_k) of shape (rows, n).

    With d = U_k a of one row and t = d c_k:  q += u t,  p += d t, in a block of `gram_rows` rows from zero, row after
    row, within a row term after term; then the blocks as a `tree_sum`.
    """
    n, dtype, device, block = a.numel(), a.dtype, a.device, gram_rows(rows)
    if rows * n == 0 or not terms:
        return torch.zeros_like(a), 0.0
    blocks = -(-rows // block)
    q, p = torch.zeros((blocks, n), dtype=dtype, device=device), torch.zeros(blocks, dtype=dtype, device=device)
    for first, last in _row_blocks(rows, n, block):
        u = [draw(noise, key, (first * n, last * n), device).to(dtype).view(-1, n) for _, key in terms]
        dots = [row_dot(part, a) for part in u]
        for i in range(min(block, last - first)):  # the i-th row of every block at once
            own = slice(first // block, first // block + -(-(last - first - i) // block))
            for (c, _), rows_k, dot in zip(terms, u, dots, strict=True):
                t = dot[i::block] * _scalar(c, dtype, device)
                q[own] += rows_k[i::block] * t[:, None]
                p[own] += dot[i::block] * t
    return tree_sum(q, 0), float(tree_sum(p, 0))


def scale_by_squares(h: Tensor, *, decay: float, terms: Sequence[tuple[float, Key]], noise: Noise) -> None:
    """h <- h * (sum_k c_k z_k^2 + decay), in place."""
    flat = h.view(-1)
    for start in range(0, flat.numel(), _CHUNK):
        stop = min(start + _CHUNK, flat.numel())
        factor = _scalar(decay, h.dtype, h.device)
        acc: Tensor | None = None
        for c, key in terms:
            z = draw(noise, key, (start, stop), h.device).to(h.dtype)
            term = z * z * _scalar(c, h.dtype, h.device)
            acc = term if acc is None else acc + term
        flat[start:stop] *= factor if acc is None else acc + factor
