"""Torch functions that are given perturbed parameters and take one pass over the rows of all groups.

Each function has the arguments of the torch function that it replaces, after the stack, and gives NotImplemented where
the formula does not hold: then the torch function runs as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from zotune.evaluators.groups import Groups

if TYPE_CHECKING:
    from zotune.evaluators.stack import Stack


def add_low_rank(y: Tensor, columns: Tensor, right: Tensor, bias: Tensor | None = None) -> None:
    """y += columns right + bias, group by group.

    Shapes: y of groups * rows * m elements, columns (groups, rows, k), right (groups or 1, k, m), bias (groups, m).
    """
    groups = columns.shape[0]
    y3 = y.view(groups, -1, y.shape[-1])
    right = right.expand(groups, -1, -1)
    tracked = y.requires_grad or columns.requires_grad  # of a closure with gradients inside
    alike = y.dtype in (torch.float32, torch.float64) and columns.dtype == right.dtype == y.dtype
    if y.device.type == "cpu" and alike and not tracked:
        from zotune.kernels.cpu_forward import add_products  # compiled on first use

        add_products(y3, columns, right, None if bias is None else bias.to(y.dtype))
        return
    if bias is not None:  # rides along as one more term
        columns = functional.pad(columns, (0, 1), value=1.0)
        right = torch.cat((right, bias.to(right.dtype).unsqueeze(1)), 1)
    y3.baddbmm_(columns.to(y.dtype), right.to(y.dtype))


def _untracked(stack: Stack, bias: Tensor | None) -> Tensor | None:
    return None if stack.slot(bias) is not None else bias


def _fits(bias: Tensor | None, outputs: int) -> bool:
    """Whether there is no bias, or one that is not broadcast."""
    return bias is None or tuple(bias.shape) == (outputs,)


def _linear(stack: Stack, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """x W^T + bias."""
    if not stack.usable(input, weight, bias) or not _fits(bias, weight.shape[0]):
        return NotImplemented
    fixed = _untracked(stack, bias)
    rows, cols = stack.rows_cols(weight, input.dtype) or (None, None)
    return stack.product(lambda x: functional.linear(x, weight, fixed), input, cols, rows, bias)


def _addmm(
    stack: Stack, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1, **out: Any
) -> Any:
    """bias + x W with W (inputs, outputs)."""
    if out or beta != 1 or alpha != 1 or not stack.usable(mat1, mat2, input) or not _fits(input, mat2.shape[-1]):
        return NotImplemented
    fixed = _untracked(stack, input)

    def multiply(x: Tensor) -> Tensor:
        if fixed is None:
            return x @ mat2
        return torch.addmm(fixed, x.reshape(-1, x.shape[-1]), mat2).view(*x.shape[:-1], -1)

    rows, cols = stack.rows_cols(mat2, mat1.dtype) or (None, None)
    return stack.product(multiply, mat1, rows, cols, input)


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
    rows, cols = stack.rows_cols(weight, weight.dtype) or (None, None)
    if rows is None or cols is None:
        return NotImplemented
    stack.check_rows(input.numel())
    groups = stack.groups
    batched = groups.is_batched(input)
    ids = groups.whole(input) if batched else input
    y = functional.embedding(ids, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    if not batched and groups.level is not None:
        y = y.expand(groups.count, *y.shape).contiguous()
    own = rows.transpose(1, 2)  # (groups or 1, entries, r)
    ids = ids.reshape(groups.count if batched else 1, -1)
    if own.shape[0] == groups.count > 1:
        ids = ids + torch.arange(groups.count, device=ids.device)[:, None] * own.shape[1]
    columns = functional.embedding(ids, own.reshape(-1, own.shape[2]))
    add_low_rank(y, columns.expand(groups.count, -1, -1).contiguous(), cols)
    return stack.result(y)


def _layer_norm(
    stack: Stack,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """Gains and biases in one pass over all groups; half precision would be rounded twice and goes group by group."""
    groups = stack.groups
    if weight is None or bias is None or groups.level is None or input.dtype not in (torch.float32, torch.float64):
        return NotImplemented
    gain, shift = stack.slot(weight), stack.slot(bias)
    if gain is None or shift is None or weight.dim() != 1 or not groups.is_batched(input):
        return NotImplemented
    y = functional.layer_norm(groups.whole(input), normalized_shape, None, None, eps)
    y3 = y.view(groups.count, -1, y.shape[-1])
    torch.addcmul(stack.vectors(shift).unsqueeze(1), y3, stack.vectors(gain).unsqueeze(1), out=y3)
    return groups.batched(y)


def attention(
    groups: Groups,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Any:
    """``scaled_dot_product_attention`` over the rows of all groups, which torch has no batching rule for on the CPU."""
    tensors = [query, key, value]
    if dropout_p or any(x.dim() != 4 or x.shape[0] != query.shape[0] for x in tensors):
        return NotImplemented
    if not any(map(groups.is_batched, tensors)):
        return NotImplemented
    if attn_mask is not None:
        if groups.is_batched(attn_mask) and attn_mask.dim() != 4:
            return NotImplemented
        if attn_mask.dim() == 4 and (groups.is_batched(attn_mask) or attn_mask.shape[0] != 1):
            attn_mask = _rows_of_all(groups, attn_mask.expand(len(query), -1, -1, -1))
    q, k, v = (_rows_of_all(groups, x) for x in tensors)
    y = functional.scaled_dot_product_attention(q, k, v, attn_mask, 0.0, is_causal, **options)
    return groups.batched(torch.unflatten(y, 0, (groups.count, -1)))


def _rows_of_all(groups: Groups, x: Tensor) -> Tensor:
    """(groups * rows, ...) from a plain or batched tensor (rows, ...)."""
    whole = groups.whole(x) if groups.is_batched(x) else x.expand(groups.count, *x.shape)
    return whole.flatten(0, 1)


FORMULAS: dict[Any, Callable[..., Any]] = {
    functional.linear: _linear,
    torch.addmm: _addmm,
    functional.embedding: _embedding,
    functional.layer_norm: _layer_norm,
}

NORMS = frozenset(
    getattr(functional, name) for name in ("layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm")
)
"""Functions whose results torch's batching rules round once more."""

GRADIENTS = frozenset((torch.autograd.grad, torch.autograd.backward, Tensor.backward))

SET_DATA: Any = Tensor.data.__set__  # type: ignore[attr-defined]

BY_GROUP = frozenset(
    found
    for name in ("roll", "index_fill", "as_strided", "as_strided_scatter", "addbmm")
    for home in (torch, Tensor)
    for spelling in (name, f"{name}_")
    if (found := getattr(home, spelling, None)) is not None
)
"""Functions whose batching rules in torch mix groups, for tensors without a dimension or by strides."""
