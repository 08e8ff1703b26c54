"""The numerical kernels: every place where random directions meet weights.

``combine`` is the one primitive; perturbing, updating, momentum and switching between points all call it.  It reads
and writes each weight once, whatever the number of directions.  Backends give the same bits:

- ``reference``: plain torch, the specification, any device;
- ``numba``: the CPU, many times faster.

``backend=None`` picks numba for tensors on the CPU and the reference elsewhere.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from zotune.kernels import reference
from zotune.kernels.reference import tree_sum
from zotune.noise import NOISES, Key, Noise

__all__ = ["BACKENDS", "NOISES", "check_backend", "combine", "combine_rows", "row_gram", "scale_by_squares", "tree_sum"]

BACKENDS = ("numba", "reference")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_backend(name: str | None) -> None:
    """Raise ValueError unless ``name`` is None or one of `BACKENDS`."""
    if name is not None and name not in BACKENDS:
        close = difflib.get_close_matches(str(name), BACKENDS, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(BACKENDS)}"
        raise ValueError(f"unknown backend {name!r}: {hint}")


def _backend(name: str | None, tensor: Tensor) -> ModuleType:
    if name == "reference" or (name is None and tensor.device.type != "cpu"):
        return reference
    if tensor.device.type != "cpu":
        raise ValueError(f"the numba backend works on the CPU, not on {tensor.device}: leave backend out")
    return _numba()


@functools.cache
def _numba() -> ModuleType:
    from zotune.kernels import cpu  # compiled on first use

    return cpu


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
    target = out if out.is_contiguous() else torch.empty(out.shape, dtype=out.dtype, device=out.device)
    w = None if w is None else (target if w is out and target is out else w.contiguous())
    precision = None if precision is None else precision.contiguous()
    dense = None if dense is None else (dense[0], dense[1].contiguous())
    _backend(backend, out).combine(
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
    if target is not out:
        out.copy_(target)


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
    target = out if out.is_contiguous() else torch.empty(out.shape, dtype=out.dtype, device=out.device)
    w = None if w is None else (target if w is out and target is out else w.contiguous())
    if low_rank is not None:
        low_rank = (low_rank[0].contiguous(), low_rank[1].contiguous())
    _backend(backend, out).combine_rows(
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
    if target is not out:
        out.copy_(target)


def row_gram(
    terms: Sequence[tuple[float, Key]], a: Tensor, rows: int, *, noise: Noise = "gaussian", backend: str | None = None
) -> tuple[Tensor, float]:
    """``(sum_k c_k U_k^T (U_k a), sum_k c_k |U_k a|^2)`` with U_k = z(key_k) of shape (rows, n) and a of shape (n,)."""
    result: tuple[Tensor, float] = _backend(backend, a).row_gram(terms, a, rows, noise=noise)
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
    _backend(backend, h).scale_by_squares(h, decay=decay, terms=terms, noise=noise)
