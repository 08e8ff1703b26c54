"""The kernels for NVIDIA GPUs, in Triton: the same bits as the specification in ``reference.py``.

`elements` (gpu_elements.py) is the one pass over the weights: each program writes tiles of 4,096 elements (1,024 for
listed rows), and each weight is read and written once whatever the number of directions.  `rank_one` and `gram`
(gpu_rows.py) deal rows out to programs.  What a launch needs to know of its directions lies in a small table on the
GPU, which is copied once for all parameters of a model; their number is not compiled in.

How it was checked:

- In Triton's interpreter, on a CPU: the bits are those of the specification for every kernel, weight type, noise,
  rounding, part of a tensor, and for counters above 2**32 (tests/triton_bits.py).
- Compiled for sm_90 (H100, H200) with Triton 3.9: in the PTX no floating-point instruction is fused, approximate or
  flushes to zero, and there are no atomic additions (tests/test_triton.py).  Writing a bfloat16 weight with one
  direction takes 69 machine instructions with Gaussian noise and 19 with signs, counted in the code.
- Never yet run on a GPU: neither bits nor times are measured there, and numbers of warps and programs are guesses.

Rounding to bfloat16 is the GPU's instruction when compiled and integer arithmetic in the interpreter, whose own does
not round ties to even.  Triton 3.2 (of torch 2.6) flushes numbers below 2**-126 to zero in the square root of and the
division by ``precision``, and only there; on other GPUs than NVIDIA's nothing was checked.
"""

from __future__ import annotations

import contextlib
import functools
import struct
from collections.abc import Sequence
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from zotune.kernels import gpu_rows
from zotune.kernels.gpu_elements import elements
from zotune.kernels.gpu_noise import INTERPRETED
from zotune.kernels.reference import gram_rows, tree_sum
from zotune.noise import Key, Noise

_TILE = 1024  # elements of a Gaussian tile
_ROW_PROGRAMS = 1024  # programs that share the rows of a matrix: enough to fill a GPU, and one row of scratch for each


def check_device(device: torch.device) -> None:
    """Raise ValueError for a device that Triton cannot serve."""
    if device.type == "cpu" and not INTERPRETED.value:
        raise ValueError(
            "the triton backend works on a GPU: leave backend out, or set TRITON_INTERPRET=1 before Python starts to "
            "run it in Triton's interpreter"
        )


def _bits(value: float) -> int:
    word: int = struct.unpack("<q", struct.pack("<d", value))[0]
    return word


def _key(key: Key, parameter: int) -> tuple[int, int, int]:
    k0, k1, c1, c2, c3 = key.words()
    return _signed(k1 << 32 | k0), _signed(c2 << 32 | c1 ^ parameter << 8), c3


def _signed(word: int) -> int:
    return word - (word >> 63 << 64)


@functools.lru_cache(maxsize=64)
def _copy(words: tuple[int, ...], device: torch.device) -> Tensor:
    """The words on the device.  The copy waits for the GPU, so it must not be made for every parameter."""
    return torch.tensor(words, dtype=torch.int64, device=device)


def _table(
    decay: float,
    rounding: Key | None,
    terms: Sequence[tuple[float, Key]],
    factors: Sequence[float],
    device: torch.device,
) -> tuple[Tensor, int]:
    """What a launch needs to know, as int64 on the device, and the parameter's number.

    The words are the bits of ``decay``, the key of the rounding, and of every term its key, its coefficient and its
    factor.  Keys are relative to the parameter: the words are those of all parameters in a pass over a model.
    """
    parameter = terms[0][1].parameter if terms else rounding.parameter if rounding is not None else 0
    words = [_bits(decay), *(_key(rounding, parameter) if rounding is not None else (0, 0, 0))]
    for i, (c, key) in enumerate(terms):
        words += (*_key(key, parameter), _bits(c), _bits(factors[i] if factors else 0.0))
    return _copy(tuple(words), device), parameter


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device: make ``device`` that."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)


def _compute(tensor: Tensor) -> tl.dtype:
    return tl.float64 if tensor.dtype is torch.float64 else tl.float32


def _elements(
    out: Tensor | None,
    w: Tensor | None,
    *,
    like: Tensor,
    decay: float = 1.0,
    terms: Sequence[tuple[float, Key]] = (),
    noise: Noise = "gaussian",
    h: Tensor | None = None,
    factors: Sequence[float] = (),
    squares: bool = False,
    second: float = 0.0,
    x: Tensor | None = None,
    low_rank: tuple[Tensor, Tensor] | None = None,
    rounding: Key | None = None,
    start: int = 0,
    rows: Tensor | None = None,
) -> None:
    """Launch `zotune.kernels.gpu_elements.elements` over tensors shaped as ``like``, whose type decides."""
    if like.numel() == 0:
        return
    stochastic = rounding is not None and like.element_size() == 2
    table, parameter = _table(decay, rounding if stochastic else None, terms, factors, like.device)
    columns = like.shape[-1] if like.dim() else 1
    u, vt = low_rank if low_rank is not None else (None, None)
    if rows is None:
        tiles, size = 4, like.numel()
        groups = -(-(start % (tiles * _TILE) + size) // (tiles * _TILE))
        programs = groups
    else:
        tiles, size = 1, columns
        groups = columns // _TILE if columns % _TILE == 0 else (columns - 1) // _TILE + 2
        programs = groups * like.shape[0]
    # One block serves 128 signs, but four normals: fewer threads share its work.
    signs = noise == "rademacher"
    with _on(like.device):
        elements[(programs,)](
            out, w, h, x, u, vt, rows, table, len(terms), parameter, _bits(second), start, size, columns,
            0 if vt is None else vt.shape[0], groups,
            G=tiles, SIGNS=signs, SQUARES=squares, STOCHASTIC=stochastic,
            COMPUTE=_compute(like),
            num_warps=tiles if signs else 2 * tiles, enable_fp_fusion=False,
        )  # fmt: skip


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
    if w is None and not terms and dense is None:
        out.zero_()
        return
    c, x = dense if dense is not None else (0.0, None)
    h = precision if terms else None
    _elements(
        out, w, like=out, decay=decay, terms=terms, noise=noise, h=h, second=c, x=x, rounding=rounding, start=start,
        rows=rows,
    )  # fmt: skip


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
    """See `zotune.kernels.combine_with_squares`."""
    if terms:
        _elements(
            out, w, like=out, decay=decay, terms=terms, noise=noise, h=h, factors=squares, squares=True, second=keep,
            rounding=rounding,
        )  # fmt: skip
        return
    scale_by_squares(h, decay=keep, terms=(), noise=noise)
    combine(
        out, w, decay=decay, terms=(), noise=noise, precision=None, dense=None, rounding=rounding, start=0, rows=None
    )


def scale_by_squares(h: Tensor, *, decay: float, terms: Sequence[tuple[float, Key]], noise: Noise) -> None:
    """See `zotune.kernels.scale_by_squares`."""
    own, factors = [(0.0, key) for _, key in terms], [c for c, _ in terms]
    _elements(None, None, like=h, terms=own, noise=noise, h=h, factors=factors, squares=True, second=decay)


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
    if low_rank is not None and low_rank[1].shape[0] == 0:
        terms, low_rank = (), None
    if low_rank is not None:
        assert rank_one is None
        _elements(out, w, like=out, decay=decay, low_rank=low_rank, rounding=rounding, start=start, rows=rows)
    elif rank_one is not None and terms:
        _rank_one(out, w, decay, terms, noise, rank_one, rounding, start, rows)
    else:
        combine(
            out, w, decay=decay, terms=terms, noise=noise, precision=None, dense=None, rounding=rounding, start=start,
            rows=rows,
        )  # fmt: skip


def _rank_one(
    out: Tensor,
    w: Tensor | None,
    decay: float,
    terms: Sequence[tuple[float, Key]],
    noise: Noise,
    rank_one: tuple[float, Tensor],
    rounding: Key | None,
    start: int,
    rows: Tensor | None,
) -> None:
    count, columns = out.shape
    if out.numel() == 0:
        return
    b, a = rank_one
    programs = min(count, _ROW_PROGRAMS)
    stochastic = rounding is not None and out.element_size() == 2
    table, parameter = _table(decay, rounding if stochastic else None, terms, (), out.device)
    with _on(out.device):
        gpu_rows.rank_one[(programs,)](
            out, w, a, rows, a.new_empty((programs, columns)), table, len(terms), parameter, _bits(b), start, count,
            columns,
            G=1, SIGNS=noise == "rademacher", STOCHASTIC=stochastic, COMPUTE=_compute(out),
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip


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
    """See `zotune.kernels.combine_with_gram`.

    The noise is generated twice: one generation would have to keep a row of every term between its two readings.
    """
    own = [(c, key) for c, (_, key) in zip(gram, terms, strict=True)]
    sums = row_gram(own, rank_one[1], out.shape[0], noise=noise)
    combine_rows(
        out, w, decay=decay, terms=terms, noise=noise, rank_one=rank_one, low_rank=None, rounding=rounding, start=0,
        rows=None,
    )  # fmt: skip
    return sums


def row_gram(terms: Sequence[tuple[float, Key]], a: Tensor, rows: int, *, noise: Noise) -> tuple[Tensor, float]:
    """See `zotune.kernels.row_gram`."""
    a, columns, block = a.contiguous(), a.numel(), gram_rows(rows)
    if rows * columns == 0 or not terms:
        return torch.zeros_like(a), 0.0
    blocks = -(-rows // block)
    q, p = a.new_zeros((blocks, columns)), a.new_empty(blocks)
    table, parameter = _table(1.0, None, terms, (), a.device)
    with _on(a.device):
        gpu_rows.gram[(blocks,)](
            q, p, a, torch.empty_like(q), table, len(terms), parameter, rows, columns, block,
            G=1, SIGNS=noise == "rademacher", COMPUTE=_compute(a), num_warps=8, enable_fp_fusion=False,
        )  # fmt: skip
    return tree_sum(q, 0), float(tree_sum(p, 0))
