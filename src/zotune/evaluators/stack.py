"""Torch functions at the perturbed weights of several probes, for the length of one forward.

A mode sees every torch function called from Python.  Those that are given a perturbed parameter, or what was made of
one, do not see it: products with a matrix add the low-rank term of every group to the product with the stored weights,
norms scale each group by its own gains, and all others run group by group, see `zotune.evaluators.grouped`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from zotune.estimators import Probe
from zotune.evaluators.base import Writer
from zotune.evaluators.grouped import BATCHED, UnsupportedError, each, kind, mark, rows_of
from zotune.evaluators.intercept import METADATA
from zotune.evaluators.watch import Regions, address_of
from zotune.perturbations import Slot

_KEPT = 0.02
"""Share of a matrix's memory that the factors of its perturbation may take."""


class Stack(TorchFunctionMode):
    """Torch functions at perturbed weights, for the length of one forward of all groups."""

    def __init__(self, slots: Sequence[Slot], probes: Sequence[Probe], write: Writer) -> None:
        super().__init__()
        self._slots = {id(slot.param): slot for slot in slots}
        self._probes, self._write = probes, write
        self.groups = len(probes)
        self._factors: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}
        self._vectors: dict[int, Tensor] = {}
        self._regions: Regions | None = None  # of stored weights; made only for a forward that is watched
        self._busy = False
        self._rows = 0  # of the batch of all groups, once a tensor of it was seen
        # Small factors are made now and kept: between large products this would run on cold caches.
        for slot in slots:
            if slot.param.dim() < 2:
                self.vectors(slot)
            elif self._small(slot):
                self.rows_cols(slot.param, slot.param.dtype)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        various, batched = self._look(args)
        if kwargs:
            more = self._look(kwargs.values())
            various, batched = various or more[0], batched or more[1]
        if not various or func in METADATA:
            result = func(*args, **kwargs)
            if batched or (func in _CONSTANT and self._has_all_rows(result)):
                _mark_all(result)
            return result
        if self.groups > 1:
            self._recognise((*args, *kwargs.values()))
        self._busy = True
        try:
            special = _SPECIAL.get(func)
            if special is not None:
                result = special(self, *args, **kwargs)
                if result is not NotImplemented:
                    return mark(result, BATCHED)
            return each(func, self.groups, args, kwargs, self._pick)
        finally:
            self._busy = False

    def _look(self, args: Any) -> tuple[bool, bool]:
        """Whether a tensor among the arguments differs between groups, and whether one is batched."""
        various = batched = False
        for arg in args:
            if isinstance(arg, Tensor):
                if id(arg) in self._slots:
                    various = True
                elif self.groups > 1:
                    what = kind(arg)
                    if what == BATCHED:
                        batched = True
                        self._rows = self._rows or (arg.shape[0] if arg.dim() else 0)
                    elif what is not None:
                        various = True
            elif isinstance(arg, (list, tuple)):
                inside = self._look(arg)
                various, batched = various or inside[0], batched or inside[1]
        return various, batched

    def _has_all_rows(self, tensor: Any) -> bool:
        return self._rows > 1 and isinstance(tensor, Tensor) and tensor.dim() > 1 and tensor.shape[0] == self._rows

    def _recognise(self, args: Sequence[Any]) -> None:
        """Models expand what is the same for all rows (token types, positions) to the number of rows: batched, too."""
        for tensor in args:
            if (
                isinstance(tensor, Tensor)
                and kind(tensor) is None
                and self._has_all_rows(tensor)
                and tensor.stride(0) == 0
            ):
                mark(tensor, BATCHED)

    def answer(self, read: Tensor) -> Tensor:
        """Called for every tensor that an operator reads: those of stored weights must be meant.

        Raises:
            UnsupportedError: if they are not.
        """
        if not self._busy:
            if self._regions is None:
                self._regions = Regions({number: slot.param.data for number, slot in self._slots.items()})
            address = address_of(read)
            numbers = [] if address is None else self._regions.touched(address, read)
            if numbers:
                raise UnsupportedError(
                    f"{self._slots[numbers[0]].name} is read where torch functions cannot be replaced"
                )
        return read

    # ------------------------------------------------------------------------------ what a group sees

    def _pick(self, tensor: Tensor, group: int) -> Tensor:
        slot = self._slots.get(id(tensor))
        if slot is not None:
            return self._written(slot, group)
        what = kind(tensor)
        if isinstance(what, list):
            value: Tensor = what[group]
            return value
        return rows_of(tensor, group, self.groups, self._rows) if what == BATCHED else tensor

    def _written(self, slot: Slot, group: int) -> Tensor:
        """The parameter's perturbed values; those of vectors are kept, being small."""
        if slot.param.dim() >= 2:
            out = torch.empty(slot.shape, dtype=slot.param.dtype, device=slot.param.device)
            self._write(slot, self._probes[group], out)
            return slot.stored(out)
        return self.vectors(slot)[group]

    def vectors(self, slot: Slot) -> Tensor:
        """Perturbed values of a vector, (groups, n)."""
        values = self._vectors.get(id(slot.param))
        if values is None:
            values = torch.empty((self.groups, *slot.shape), dtype=slot.param.dtype, device=slot.param.device)
            for probe, out in zip(self._probes, values, strict=True):
                self._write(slot, probe, out)
            self._vectors[id(slot.param)] = values
        return values

    def rows_cols(self, param: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """Factors (R, C) of the perturbation R^T C of a stored matrix, contiguous, each (groups, r, .) or (1, r, .)."""
        slot = self.slot(param)
        if slot is None or param.dim() != 2:
            return None
        found = self._factors.get((id(param), dtype))
        if found is None:
            # Transposed: products with two or three columns are many times slower than with as many rows.
            u, v = (x.to(dtype).transpose(1, 2).contiguous() for x in self._write.low_rank(slot, self._probes))
            found = (v, u) if slot.group["input_dim"] == 0 else (u, v)
            if self._small(slot):
                self._factors[id(param), dtype] = found
        return found

    def _small(self, slot: Slot) -> bool:
        """Whether all groups' factors of a matrix may be kept: they take little of the memory of its weights."""
        rank = slot.perturbation.rank if slot.param.dim() == 2 else 0
        return 0 < rank * (self.groups * slot.shape[0] + slot.shape[1]) <= _KEPT * slot.param.numel()

    def usable(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        """Whether a product takes the formula: batched rows, and parameters as they are."""
        slot = self._slots.get(id(weight))
        if slot is not None and weight.dim() != 2:
            return False
        plain = (slot is not None or kind(weight) is None) and (
            bias is None or id(bias) in self._slots or kind(bias) is None
        )
        return plain and self.has_rows(x)

    def has_rows(self, x: Tensor) -> bool:
        """Whether the tensor's first dimension is made of all groups' rows."""
        return self.groups == 1 or (
            kind(x) == BATCHED and x.dim() > 0 and x.shape[0] % max(self._rows, self.groups) == 0
        )

    def slot(self, tensor: object) -> Slot | None:
        """The slot of a perturbed parameter."""
        return self._slots.get(id(tensor))

    def product(self, y: Tensor, x: Tensor, left: Tensor | None, right: Tensor | None, bias: Tensor | None) -> Tensor:
        """y + (x left) right^T + bias, with the factors and biases of every group; changes y."""
        own = None if bias is None else self.slot(bias)
        if left is not None and right is not None:
            if left.shape[0] == 1:
                columns = functional.linear(x, left[0])
            else:
                columns = x.reshape(self.groups, -1, x.shape[-1]) @ left.transpose(1, 2)
            columns = columns.reshape(self.groups, -1, left.shape[1])
            add_low_rank(y, columns, right, None if own is None else self.vectors(own))
        elif own is not None:
            y.view(self.groups, -1, y.shape[-1]).add_(self.vectors(own).unsqueeze(1))
        return y


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


def _mark_all(result: Any) -> None:
    if isinstance(result, Tensor):
        if kind(result) is None:
            mark(result, BATCHED)
    elif isinstance(result, (list, tuple)):
        for item in result:
            _mark_all(item)


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


_CONSTANT = frozenset((torch.zeros, torch.ones, torch.full))
"""Functions that give equal rows."""

_SPECIAL: dict[Any, Callable[..., Any]] = {
    functional.linear: _linear,
    torch.addmm: _addmm,
    functional.embedding: _embedding,
    functional.layer_norm: _layer_norm,
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _times),
}
