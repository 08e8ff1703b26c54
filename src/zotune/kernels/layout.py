"""Matrices whose memory is not in row-major order: what a backend reads and writes in their place."""

from __future__ import annotations

import torch
from torch import Tensor

_PIECE = 1 << 17  # elements of a matrix that are copied at a time when its memory has another order


def contiguous(out: Tensor, w: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """What a backend writes and reads: the tensors themselves, or copies in row-major order."""
    if out.is_contiguous():
        return out, None if w is None else row_major(w)
    if w is not None and same_memory(out, w):
        target = row_major(out)
        return target, target
    return torch.empty(out.shape, dtype=out.dtype, device=out.device), None if w is None else row_major(w)


def row_major(x: Tensor) -> Tensor:
    """``x.contiguous()``; of a turned matrix in two steps that torch does quickly, where one is slow."""
    return x.t().contiguous().t().contiguous() if x.dim() == 2 and x.stride(0) == 1 else x.contiguous()


def copy_back(out: Tensor, target: Tensor) -> None:
    """``out.copy_(target)``, the same way."""
    if target is out:
        return
    if out.dim() == 2 and out.stride(0) == 1:
        out.t().copy_(target.t().contiguous())
    else:
        out.copy_(target)


def same_memory(out: Tensor, w: Tensor) -> bool:
    """Whether both are one tensor."""
    return w is out or (w.data_ptr() == out.data_ptr() and w.stride() == out.stride())


def turned(out: Tensor, w: Tensor | None) -> bool:
    """Whether both matrices are stored transposed."""
    return not out.is_contiguous() and out.t().is_contiguous() and (w is None or w.t().is_contiguous())


def pieces(out: Tensor, w: Tensor | None) -> list[tuple[slice, int]]:
    """Blocks of rows, each with the number of its first element, so that no large tensor is copied as a whole; none
    where no copy is needed or the tensor is small."""
    if (out.is_contiguous() and (w is None or w.is_contiguous())) or out.numel() <= _PIECE:
        return []
    m = out.shape[0]
    columns = out.numel() // m
    step = max(1, _PIECE // columns)
    return [(slice(i, min(i + step, m)), i * columns) for i in range(0, m, step)] if step < m else []
