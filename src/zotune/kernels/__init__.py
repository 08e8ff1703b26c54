"""The numerical kernels: every place where random directions meet weights.

``combine`` is the one primitive; perturbing, updating, momentum and switching between points all call it.  It reads
and writes each weight once, whatever the number of directions.  Backends give the same bits:

- ``reference``: plain torch, the specification, any device;
- ``numba``: the CPU, many times faster;
- ``triton``: NVIDIA GPUs, where the package triton is installed.

``backend=None`` picks numba for tensors on the CPU, triton for those on an NVIDIA GPU, and the reference elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zotune.kernels.backends import BACKENDS, DTYPES, check_backend, choose
from zotune.kernels.layout import contiguous, copy_back, pieces, turned
from zotune.kernels.reference import tree_sum
from zotune.noise import NOISES, Key, Noise

__all__ = [
    "BACKENDS",
    "DTYPES",
    "NOISES",
    "check_backend",
    "combine",
    "combine_rows",
    "combine_sequence",
    "combine_with_gram",
    "combine_with_squares",
    "row_gram",
    "scale_by_squares",
    "tree_sum",
    "warm_up",
]


def combine(
    out: Tensor,
    w: Tensor | None,
    *,
    decay: float = 1.0,
    terms: Sequence[tuple[float, Key]] = (),
    noise: Noise = "gaussian",
    precision: Tensor | None = None,
    dense: tuple[float, Tensor] | None = None,
    rounding: Key | None = None,
    start: int = 0,
    rows: Tensor | None = None,
    backend: str | None = None,
) -> None:
    """``out = round(w * decay + (sum_k c_k z(key_k)) / sqrt(precision) + c x)``, elementwise.

    Args:
        out: float tensor of any shape and strides; written.  It may be ``w`` itself.
        w: tensor of out's shape and dtype, or None for zero.
        decay: factor on ``w``.
        terms: pairs (c_k, key_k), added in this order.
        noise: distribution of z.
        precision: positive tensor of out's shape in the compute dtype (float64 for float64 weights, float32 otherwise).
        dense: (c, x) with x of out's shape in the compute dtype.
        rounding: key of the bits for stochastic rounding to bfloat16 or float16; None rounds to nearest.
        start: number of out's first element in the tensor whose noise is meant, row-major: out is a part of it (a
            shard, a block of rows).
        rows: (k,) int64, numbers of out's rows in the matrix whose noise is meant, for ``out`` of shape (k, n); the
            other way to name a part.
        backend: one of `BACKENDS`, or None.
    """
    # compiled code does not look at bounds
    assert w is None or w.shape == out.shape
    assert precision is None or precision.shape == out.shape
    assert dense is None or dense[1].shape == out.shape
    assert rows is None or (out.dim() == 2 and rows.shape == out.shape[:1] and rows.dtype is torch.int64)
    parts = pieces(out, w)
    for own, first in parts:
        combine(
            out[own],
            None if w is None else w[own],
            decay=decay,
            terms=terms,
            noise=noise,
            precision=None if precision is None else precision[own],
            dense=None if dense is None else (dense[0], dense[1][own]),
            rounding=rounding,
            start=start + first if rows is None else 0,
            rows=None if rows is None else rows[own],
            backend=backend,
        )
    if parts:
        return
    target, w = contiguous(out, w)
    rows = None if rows is None else rows.contiguous()
    precision = None if precision is None else precision.contiguous()
    dense = None if dense is None else (dense[0], dense[1].contiguous())
    choose(backend, out).combine(
        target,
        w,
        decay=decay,
        terms=terms,
        noise=noise,
        precision=precision,
        dense=dense,
        rounding=rounding,
        start=start,
        rows=rows,
    )
    copy_back(out, target)


def combine_rows(
    out: Tensor,
    w: Tensor | None,
    *,
    decay: float = 1.0,
    terms: Sequence[tuple[float, Key]] = (),
    noise: Noise = "gaussian",
    rank_one: tuple[float, Tensor] | None = None,
    low_rank: tuple[Tensor, Tensor] | None = None,
    rounding: Key | None = None,
    start: int = 0,
    rows: Tensor | None = None,
    backend: str | None = None,
) -> None:
    """``out = round(w * decay + G)`` for a matrix (m, n), where G has structure along its rows.

    With ``low_rank = (U, V^T)`` of shapes (m, r) and (r, n):  G = U V^T.
    Otherwise G = sum_k c_k z(key_k), and with ``rank_one = (b, a)``, a of shape (n,):  G <- G - b (G a) a^T.
    The factors are in the compute dtype; U is that of the rows of ``out``.  The other arguments are as in `combine`.
    """
    assert out.dim() == 2
    assert w is None or w.shape == out.shape
    assert rank_one is None or rank_one[1].shape == out.shape[1:]
    assert low_rank is None or (low_rank[0].shape[0], low_rank[1].shape[1]) == tuple(out.shape)
    assert rows is None or (rows.shape == out.shape[:1] and rows.dtype is torch.int64)
    if rank_one is None and low_rank is None:
        combine(
            out,
            w,
            decay=decay,
            terms=terms,
            noise=noise,
            rounding=rounding,
            start=start,
            rows=rows,
            backend=backend,
        )
        return
    if low_rank is not None and rows is None and turned(out, w) and (rounding is None or out.dtype.itemsize != 2):
        # stored the other way round: the transposed product is the same sum for every weight
        u, vt = low_rank
        combine_rows(
            out.t(),
            None if w is None else w.t(),
            decay=decay,
            low_rank=(vt.t(), u.t()),
            backend=backend,
        )
        return
    parts = pieces(out, w)
    for own, first in parts:
        combine_rows(
            out[own],
            None if w is None else w[own],
            decay=decay,
            terms=terms,
            noise=noise,
            rank_one=rank_one,
            low_rank=None if low_rank is None else (low_rank[0][own], low_rank[1]),
            rounding=rounding,
            start=start + first if rows is None else 0,
            rows=None if rows is None else rows[own],
            backend=backend,
        )
    if parts:
        return
    target, w = contiguous(out, w)
    rows = None if rows is None else rows.contiguous()
    rank_one = None if rank_one is None else (rank_one[0], rank_one[1].contiguous())
    if low_rank is not None:
        low_rank = (low_rank[0].contiguous(), low_rank[1].contiguous())
    choose(backend, out).combine_rows(
        target,
        w,
        decay=decay,
        terms=terms,
        noise=noise,
        rank_one=rank_one,
        low_rank=low_rank,
        rounding=rounding,
        start=start,
        rows=rows,
    )
    copy_back(out, target)


def combine_sequence(
    w: Tensor,
    steps: Sequence[tuple[float, Sequence[tuple[float, Key]], Key | None]],
    *,
    noise: Noise = "gaussian",
    start: int = 0,
    backend: str | None = None,
) -> None:
    """``w <- round(w * decay + sum_k c_k z(key_k))`` for one (decay, terms, rounding) after another, in place.

    On the CPU the weights are read and written once for all steps.  The bits are those of a `combine` for each, the
    other arguments as there.
    """
    parts = pieces(w, w)
    for own, first in parts:
        combine_sequence(w[own], steps, noise=noise, start=start + first, backend=backend)
    if not parts:
        target, _ = contiguous(w, w)
        choose(backend, w).combine_sequence(target, steps, noise=noise, start=start)
        copy_back(w, target)


def combine_with_gram(
    out: Tensor,
    w: Tensor | None,
    *,
    terms: Sequence[tuple[float, Key]],
    gram: Sequence[float],
    rank_one: tuple[float, Tensor],
    decay: float = 1.0,
    noise: Noise = "gaussian",
    rounding: Key | None = None,
    backend: str | None = None,
) -> tuple[Tensor, float]:
    """`combine_rows` with ``rank_one`` and `row_gram` of the same noise with the factors ``gram``, one per term.

    On the CPU the noise is generated once.  The bits are those of the two calls, the arguments as in `combine_rows`.
    """
    assert out.dim() == 2
    assert w is None or w.shape == out.shape
    assert rank_one[1].shape == out.shape[1:]
    assert len(gram) == len(terms)
    target, w = contiguous(out, w)
    rank_one = (rank_one[0], rank_one[1].contiguous())
    result: tuple[Tensor, float] = choose(backend, out).combine_with_gram(
        target, w, decay=decay, terms=terms, gram=gram, rank_one=rank_one, noise=noise, rounding=rounding
    )
    copy_back(out, target)
    return result


def combine_with_squares(
    out: Tensor,
    w: Tensor | None,
    h: Tensor,
    *,
    terms: Sequence[tuple[float, Key]],
    squares: Sequence[float],
    keep: float,
    decay: float = 1.0,
    noise: Noise = "gaussian",
    rounding: Key | None = None,
    backend: str | None = None,
) -> None:
    """``h <- h * (keep + sum_k squares_k z_k^2)``, then `combine` with the new ``h`` as ``precision``.

    The noise is generated once; the bits are those of `scale_by_squares` and `combine`.  ``h`` is contiguous, in the
    compute dtype and shaped as out.  The other arguments are as in `combine`.
    """
    assert len(squares) == len(terms)
    assert w is None or w.shape == out.shape
    assert h.shape == out.shape
    target, w = contiguous(out, w)
    choose(backend, out).combine_with_squares(
        target, w, h, decay=decay, terms=terms, squares=squares, keep=keep, noise=noise, rounding=rounding
    )
    copy_back(out, target)


def row_gram(
    terms: Sequence[tuple[float, Key]], a: Tensor, rows: int, *, noise: Noise = "gaussian", backend: str | None = None
) -> tuple[Tensor, float]:
    """``(sum_k c_k U_k^T (U_k a), sum_k c_k |U_k a|^2)`` with U_k = z(key_k) of shape (rows, n) and a of shape (n,)."""
    result: tuple[Tensor, float] = choose(backend, a).row_gram(terms, a, rows, noise=noise)
    return result


def scale_by_squares(
    h: Tensor,
    *,
    decay: float,
    terms: Sequence[tuple[float, Key]],
    noise: Noise = "gaussian",
    backend: str | None = None,
) -> None:
    """``h <- h * (decay + sum_k c_k z(key_k)^2)``, elementwise and in place; h is contiguous float32 or float64."""
    choose(backend, h).scale_by_squares(h, decay=decay, terms=terms, noise=noise)


def warm_up(dtype: torch.dtype, *, device: torch.device | str = "cpu", backend: str | None = None) -> None:
    """Compile, or read from the cache, what no step of an optimizer on a few numbers would: the writing of listed rows.

    A step of the optimizer itself on a small matrix and a small vector of this type does the rest, since compiled code
    depends on types only and not on shapes.
    """
    rows = torch.zeros(1, dtype=torch.int64, device=device)
    combine(torch.empty(1, 1, dtype=dtype, device=device), None, terms=[(1.0, Key(0))], rows=rows, backend=backend)
