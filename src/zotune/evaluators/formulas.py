"""Torch functions that are given perturbed parameters and take one pass over the rows of all groups.

Each function has the arguments of the torch function that it replaces, after the stack, and gives NotImplemented where
the formula does not hold: then the torch function runs group by group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from zotune.evaluators.stack import Stack


def add_low_rank(y: Tensor, columns: Tensor, right: Tensor, bias: Tensor | None = None) -> None:
    """y += columns right + bias, group by group.

    Shapes: y (groups * rows, ..., m), columns (groups, rows, k), right (groups or 1, k, m), bias (groups, m).
    """
    groups = columns.shape[0]
    y3 = y.view(groups, -1, y.shape[-1])
    right = right.expand(groups, -1, -1)
    if y.device.type == "cpu" and y.dtype in (torch.float32, torch.float64) and columns.dtype == right.dtype == y.dtype:
        from zotune.kernels.cpu_forward import add_products  # compiled on first use

        add_products(y3, columns, right, None if bias is None else bias.to(y.dtype))
        return
    if bias is not None:  # rides along as one more term
        columns = functional.pad(columns, (0, 1), value=1.0)
        right = torch.cat((right, bias.to(right.dtype).unsqueeze(1)), 1)
    y3.baddbmm_(columns.to(y.dtype), right.to(y.dtype))


def _untracked(stack: Stack, bias: Tensor | None) -> Tensor | None:
    return None if stack.slot(bias) is not None else bias


def _linear(stack: Stack, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """x W^T + bias."""
    if not stack.usable(input, weight, bias) or input.dim() < 2:
        return NotImplemented
    y = functional.linear(input, weight, _untracked(stack, bias))
    rows, cols = stack.rows_cols(weight, input.dtype) or (None, None)
    return stack.product(y, input, cols, rows, bias)


def _addmm(
    stack: Stack, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1, **out: Any
) -> Any:
    """bias + x W with W (inputs, outputs)."""
    if out or beta != 1 or alpha != 1 or input.dim() != 1 or not stack.usable(mat1, mat2, input):
        return NotImplemented
    fixed = _untracked(stack, input)
    y = mat1 @ mat2 if fixed is None else torch.addmm(fixed, mat1, mat2)
    rows, cols = stack.rows_cols(mat2, mat1.dtype) or (None, None)
    return stack.product(y, mat1, rows, cols, input)


def _embedding(
    stack: Stack,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    """Rows of W."""
    if max_norm is not None or not stack.usable(input, weight, None) or input.numel() == 0:
        return NotImplemented
    y = functional.embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    rows, cols = stack.rows_cols(weight, weight.dtype) or (None, None)
    if rows is None or cols is None:
        return NotImplemented
    groups, own = stack.groups, rows.transpose(1, 2)  # (groups or 1, entries, r)
    ids = input.reshape(groups, -1)
    if own.shape[0] == groups > 1:
        ids = ids + torch.arange(groups, device=ids.device)[:, None] * own.shape[1]
    add_low_rank(y, functional.embedding(ids, own.reshape(-1, own.shape[2])), cols)
    return y


def _layer_norm(
    stack: Stack,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """Gains and biases in one pass over all groups; half precision would be rounded twice and goes group by group."""
    if weight is None or bias is None or stack.groups == 1 or input.dtype not in (torch.float32, torch.float64):
        return NotImplemented
    gain, shift = stack.slot(weight), stack.slot(bias)
    if gain is None or shift is None or weight.dim() != 1 or not stack.has_rows(input):
        return NotImplemented
    y = functional.layer_norm(input, normalized_shape, None, None, eps)
    y3 = y.view(stack.groups, -1, y.shape[-1])
    torch.addcmul(stack.vectors(shift).unsqueeze(1), y3, stack.vectors(gain).unsqueeze(1), out=y3)
    return y


def _times(stack: Stack, input: Tensor, other: Any) -> Any:
    """Gain times rows (the norm of Llama and its kin)."""
    gain, x = (input, other) if stack.slot(input) is not None else (other, input)
    slot = stack.slot(gain)
    if slot is None or stack.groups == 1 or not isinstance(x, Tensor) or not stack.has_rows(x):
        return NotImplemented
    if gain.dim() != 1 or x.dim() < 2 or gain.shape[0] != x.shape[-1]:
        return NotImplemented
    y: Tensor = x.reshape(stack.groups, -1, x.shape[-1]) * stack.vectors(slot).unsqueeze(1)
    return y.view(x.shape)


FORMULAS: dict[Any, Callable[..., Any]] = {
    functional.linear: _linear,
    torch.addmm: _addmm,
    functional.embedding: _embedding,
    functional.layer_norm: _layer_norm,
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _times),
}
