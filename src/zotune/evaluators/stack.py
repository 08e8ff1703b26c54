"""Torch functions at the perturbed weights of several probes, for the length of one forward.

A mode sees every torch function called from Python.  Those that are given a perturbed parameter, or what was made of
one, do not see it: products with a matrix add the low-rank term of every group to the product with the stored weights,
norms scale each group by its own gains, and all others run group by group, see `zotune.evaluators.grouped`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from zotune.estimators import Probe
from zotune.evaluators.base import Writer
from zotune.evaluators.formulas import FORMULAS, add_low_rank
from zotune.evaluators.grouped import (
    BATCHED,
    Parts,
    UnsupportedError,
    agree,
    each,
    kind,
    mark,
    name_of,
    rows_of,
    various,
    whole_of,
)
from zotune.evaluators.intercept import METADATA, SIZES
from zotune.evaluators.rowtable import FRESH, TABLE
from zotune.evaluators.rowwise import BY_GROUP, SHARED, keeps_order
from zotune.evaluators.shared import ORIGINS, Shared
from zotune.evaluators.watch import Regions, address_of
from zotune.perturbations import Slot

_KEPT = 0.02
"""Share of a matrix's memory that the factors of its perturbation may take."""


class Stack(TorchFunctionMode):
    """Torch functions at perturbed weights, for the length of one forward of all groups.

    Attributes:
        groups: number of probes.
        path: every torch function that was called, with the one before it.
        slow: how often each function ran group by group.
    """

    def __init__(self, slots: Sequence[Slot], probes: Sequence[Probe], write: Writer) -> None:
        super().__init__()
        self._slots = {id(slot.param): slot for slot in slots}
        self._probes, self._write = probes, write
        self.groups = len(probes)
        self._factors: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}
        self._vectors: dict[int, Tensor] = {}
        self._regions: Regions | None = None  # of stored weights; made only for a forward that is watched
        self._busy = False
        self._shared = Shared(self.groups)
        self._last: Any = None
        self.path: set[tuple[Any, Any]] = set()
        self.slow: dict[Any, int] = {}
        # Small factors are made now and kept: between large products this would run on cold caches.
        for slot in slots:
            if slot.param.dim() < 2:
                self.vectors(slot)
            elif self._small(slot):
                self.rows_cols(slot.param, slot.param.dtype)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in METADATA:
            return self._metadata(func, args, kwargs)
        self.path.add((self._last, func))
        self._last = func
        differs, batched = self._look((*args, *kwargs.values()) if kwargs else args)
        if differs:
            return self._varied(func, args, kwargs, batched)
        if batched:
            return self._batched(func, args, kwargs)
        result = func(*args, **kwargs)
        if self.groups > 1 and func in ORIGINS:
            self._shared.note_origin(func, args, kwargs, result)
        return result

    def _look(self, args: Any) -> tuple[bool, bool]:
        """Whether a tensor among the arguments differs between groups, and whether one is batched."""
        various = batched = False
        for arg in args:
            if isinstance(arg, Tensor):
                if id(arg) in self._slots:
                    various = True
                elif self.groups > 1:
                    what = kind(arg)
                    if what is BATCHED:
                        batched = True
                        if not self._shared.rows:
                            self._shared.rows = arg.shape[0]
                    elif isinstance(what, list):
                        various = True
                    elif self._shared.changed and address_of(arg) in self._shared.changed:
                        raise UnsupportedError("rows are written to a tensor that is read through another view")
            elif isinstance(arg, (list, tuple)):
                inside = self._look(arg)
                various, batched = various or inside[0], batched or inside[1]
            elif isinstance(arg, slice):
                inside = self._look((arg.start, arg.stop, arg.step))
                various, batched = various or inside[0], batched or inside[1]
        return various, batched

    def _metadata(self, func: Any, args: Any, kwargs: Any) -> Any:
        what = kind(args[0])
        if isinstance(what, list) and func in SIZES:
            return agree([func(one, *args[1:], **kwargs) for one in what], name_of(func))
        if what is BATCHED and func in _COUNTS:  # goes with sums over all elements, which are those of one group
            return func(*args, **kwargs) // self.groups
        return func(*args, **kwargs)

    # ------------------------------------------------------------------------------ functions of batched tensors

    def _batched(self, func: Any, args: Any, kwargs: Any) -> Any:
        rule = TABLE.get(func)
        how = BY_GROUP if rule is None else rule(self._shared, args, kwargs)
        if how is BY_GROUP:
            return self._by_group(func, args, kwargs)
        if self._shared.made:
            self._shared.note_written(func, args, kwargs)
        result = func(*args, **kwargs)
        if how is SHARED:
            if func in ORIGINS:
                self._shared.note_origin(func, args, kwargs, result)
        elif rule is not keeps_order:
            _mark_all(result)
        elif result.dim() and result.shape[0] % self.groups == 0:
            mark(result, BATCHED)
        else:
            return self._by_group(func, args, kwargs)
        return result

    def _by_group(self, func: Any, args: Any, kwargs: Any) -> Any:
        self.slow[func] = self.slow.get(func, 0) + 1
        self._shared.refuse_unknown_rows(func, args, kwargs)
        if self._shared.made:
            self._shared.note_written(func, args, kwargs)
        return each(func, self.groups, args, kwargs, self._pick, self._shared.rows // self.groups)

    def _varied(self, func: Any, args: Any, kwargs: Any, batched: bool) -> Any:
        """A function of various tensors."""
        if self.groups > 1:
            if func in FRESH:
                whole, named = _whole(args), {key: _whole(value) for key, value in kwargs.items()}
                if any(new is not old for new, old in zip(whole, args, strict=True)):
                    various_left, _ = self._look((*whole, *named.values()))
                    result = (
                        self._varied(func, whole, named, True) if various_left else self._batched(func, whole, named)
                    )
                    return result if batched else self._in_parts(result)
            self._shared.recognise((*args, *kwargs.values()))
        self._busy = True
        try:
            formula = FORMULAS.get(func)
            if formula is not None:
                result = formula(self, *args, **kwargs)
                if result is not NotImplemented:
                    return mark(result, BATCHED)
            if self.groups == 1:
                return each(func, 1, args, kwargs, self._pick)
            return self._by_group(func, args, kwargs)
        finally:
            self._busy = False

    def _in_parts(self, result: Any) -> Any:
        """Each group's part of a batched tensor: so Python goes on seeing the sizes of one group."""
        if isinstance(result, Tensor) and kind(result) is BATCHED and result.shape[0] != self._shared.rows:
            return various(Parts(rows_of(result, group, self.groups) for group in range(self.groups)))
        return result

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
        return rows_of(tensor, group, self.groups) if what is BATCHED else tensor

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
        return self.groups == 1 or kind(x) is BATCHED

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


def _mark_all(result: Any) -> None:
    if isinstance(result, Tensor):
        if kind(result) is None:
            mark(result, BATCHED)
    elif isinstance(result, (list, tuple)):
        for item in result:
            _mark_all(item)


def _whole(value: Any) -> Any:
    """Parts put together, and arguments with parts among them; all else as it is."""
    if isinstance(value, Tensor):
        what = kind(value)
        if isinstance(what, Parts):
            whole = whole_of(what)
            return mark(torch.cat(what) if whole is None else whole, BATCHED)
    elif isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value):
        items = [_whole(item) for item in value]
        if any(new is not old for new, old in zip(items, value, strict=True)):
            return type(value)(items)
    return value


_COUNTS = frozenset((Tensor.numel, Tensor.nelement, torch.numel))
