"""Torch functions at the perturbed weights of several probes, for the length of one forward.

A mode sees every torch function called from Python.  Those that are given a perturbed parameter, or a various tensor,
do not see it: products with a matrix add the low-rank term of every group to the product with the stored weights,
vectors become batched tensors, and all others run group by group, see `zotune.evaluators.groups`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from zotune.estimators import Probe
from zotune.evaluators.base import Writer
from zotune.evaluators.formulas import BY_GROUP, FORMULAS, GRADIENTS, NORMS, SET_DATA, add_low_rank, attention
from zotune.evaluators.groups import Groups, UnsupportedError, agree, name_of, tensors_in, various_of, written
from zotune.evaluators.intercept import METADATA, SIZES
from zotune.evaluators.watch import Regions, address_of
from zotune.perturbations import Slot

_KEPT = 0.02
"""Share of a matrix's memory that the factors of its perturbation may take."""

_NOT_BATCHED = (RuntimeError, ValueError, TypeError, IndexError)
"""What torch raises for functions that it has no batching rule for."""


class TooManyRowsError(BaseException):
    """The forward has more rows than are worth stacking; begin again with fewer groups.

    Not an `Exception`, so that no closure takes it for a problem of its own.

    Attributes:
        rows: of one group.
    """

    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self.rows = rows


class Stack(TorchFunctionMode):
    """Torch functions at perturbed weights, for the length of one forward of all groups.

    Args:
        slots: the perturbed parameters.
        probes: one for each group.
        write: see `Writer`.
        most: rows of all groups in a product with a matrix.

    Attributes:
        groups: see `zotune.evaluators.groups.Groups`.
        path: every torch function that was called, with the one before it.
        slow: how often each function ran group by group.
    """

    def __init__(self, slots: Sequence[Slot], probes: Sequence[Probe], write: Writer, most: int) -> None:
        super().__init__()
        self._slots = {id(slot.param): slot for slot in slots}
        self._probes, self._write, self._most = probes, write, most
        self.groups = Groups(len(probes))
        self._factors: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}
        self._vectors: dict[int, Tensor] = {}
        self._regions: Regions | None = None  # of stored weights; made only for a forward that is watched
        self._stored = {address_of(slot.param) for slot in slots} - {None}
        self._busy = False
        self._last: Any = None
        self.path: set[tuple[Any, Any]] = set()
        self.slow: dict[Any, int] = {}
        self._prepared = False

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self.groups.forget()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in METADATA:
            return self._metadata(func, args, kwargs or {})
        self.path.add((self._last, func))
        self._last = func
        if self.groups.level is None:
            return self._answered(func, args, kwargs or {})
        try:
            result = self._answered(func, args, kwargs or {})
        except UnsupportedError as error:
            self.groups.problem = self.groups.problem or str(error)  # the closure may catch it and go on
            raise
        self.groups.note(result)
        return result

    def _answered(self, func: Any, args: Any, kwargs: Any) -> Any:
        if self._is_varied(args) or (kwargs and self._is_varied(kwargs.values())):
            self._busy = True
            try:
                return self._varied(func, args, kwargs)
            finally:
                self._busy = False
        if self.groups.level is None:
            return func(*args, **kwargs)
        return self._batched(func, args, kwargs)

    def _is_varied(self, args: Iterable[Any]) -> bool:
        """Whether a perturbed parameter or a various tensor is among the arguments.

        Raises:
            UnsupportedError: one of them shows the memory of stored weights, or of what has become various.
        """
        for arg in args:
            if isinstance(arg, Tensor):
                if id(arg) in self._slots or various_of(arg) is not None:
                    return True
                if self.groups.level is not None and not self.groups.is_batched(arg):
                    self._check_memory(arg)
            elif isinstance(arg, (list, tuple)):
                if self._is_varied(arg):
                    return True
            elif isinstance(arg, slice) and self._is_varied((arg.start, arg.stop, arg.step)):
                return True
        return False

    def _check_memory(self, tensor: Tensor) -> None:
        while _functorch.is_functorch_wrapped_tensor(tensor):
            tensor = _functorch.get_unwrapped(tensor)
        address = address_of(tensor)
        if address in self.groups.changed:
            raise UnsupportedError("what differs between queries is read through another view of its tensor")
        if address is not None and address in self._stored:
            if self._regions is None:
                self._regions = Regions({number: slot.param.data for number, slot in self._slots.items()})
            for number in self._regions.touched(address, tensor):
                raise UnsupportedError(f"{self._slots[number].name} is read through another tensor of its memory")

    def _metadata(self, func: Any, args: Any, kwargs: Any) -> Any:
        parts = various_of(args[0])
        if parts is not None and func in SIZES:
            return agree([func(one, *args[1:], **kwargs) for one in parts], name_of(func))
        return func(*args, **kwargs)

    def _batched(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A function of plain and batched tensors: by torch's batching rules, and where there are none by groups."""
        if func in GRADIENTS:
            raise UnsupportedError("the closure computes gradients, which would be sums over queries")
        if func == SET_DATA and self._is_batched(args, kwargs):
            raise UnsupportedError("the data of a tensor that differs between queries is exchanged")
        if kwargs.get("generator") is not None:
            if self._is_batched(args, kwargs):
                raise UnsupportedError(f"{name_of(func)} draws from a generator, each query its own numbers")
            with torch._C._DisableFuncTorch():
                return func(*args, **kwargs)
        if func in BY_GROUP and self._is_batched(args, kwargs):
            return self.by_group(func, args, kwargs)
        if func is Tensor.__getitem__ and self._is_picked(args[1]):
            return self.by_group(func, args, kwargs)  # a view, of which torch's batching rule makes a copy
        try:
            if func is functional.scaled_dot_product_attention:
                result = attention(self.groups, *args, **kwargs)
                if result is not NotImplemented:
                    return result
            return func(*args, **kwargs)
        except _NOT_BATCHED as error:
            if "random" in str(error) and "operation" in str(error):
                raise UnsupportedError(f"{name_of(func)} draws random numbers, each query its own") from error
            if not self._is_batched(args, kwargs):
                raise
        return self.by_group(func, args, kwargs)

    def _is_batched(self, args: Any, kwargs: Any) -> bool:
        return any(map(self.groups.is_batched, tensors_in((*args, *kwargs.values()))))

    def _is_picked(self, index: Any) -> bool:
        """Whether an index holds a number that differs between groups."""
        parts = index if isinstance(index, tuple) else (index,)
        return any(isinstance(part, Tensor) and part.dim() == 0 and self.groups.is_batched(part) for part in parts)

    def by_group(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The function of every group's part."""
        self.slow[func] = self.slow.get(func, 0) + 1
        return self.groups.each(func, args, kwargs, self._pick)

    def _varied(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A function of perturbed parameters or various tensors."""
        if self.groups.level is not None and _functorch.maybe_current_level() != self.groups.level:
            raise UnsupportedError("weights are read inside a transformation of torch.func")
        for target in written(func, args, kwargs):
            if id(target) in self._slots:
                raise UnsupportedError(f"{name_of(func)} writes to the weights of {self._slots[id(target)].name}")
        if self.groups.level is not None and kwargs.get("generator") is not None:
            raise UnsupportedError(f"{name_of(func)} draws from a generator, each query its own numbers")
        formula = FORMULAS.get(func)
        if formula is not None:
            result = formula(self, *args, **kwargs)
            if result is not NotImplemented:
                return result
        if self.groups.level is not None and func not in NORMS:
            whole = [self._lifted(arg) for arg in args]
            named = {key: self._lifted(value) for key, value in kwargs.items()}
            if not (self._is_varied(whole) or self._is_varied(named.values())):
                return self._batched(func, whole, named)
        return self.by_group(func, args, kwargs)

    def _lifted(self, value: Any) -> Any:
        """Vectors of perturbed parameters as batched tensors, being small; all else as it is."""
        if isinstance(value, Tensor):
            slot = self._slots.get(id(value))
            return value if slot is None or slot.param.dim() >= 2 else self.groups.batched(self.vectors(slot))
        if isinstance(value, (list, tuple)) and any(id(item) in self._slots for item in value):
            return type(value)([self._lifted(item) for item in value])
        return value

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
        return self.groups.part(tensor, group) if slot is None else self._written(slot, group)

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
            values = torch.empty((self.groups.count, *slot.shape), dtype=slot.param.dtype, device=slot.param.device)
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
        return 0 < rank * (self.groups.count * slot.shape[0] + slot.shape[1]) <= _KEPT * slot.param.numel()

    def slot(self, tensor: object) -> Slot | None:
        """The slot of a perturbed parameter."""
        return self._slots.get(id(tensor))

    def usable(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        """Whether a product takes the formula: rows of all groups, a perturbed matrix or bias, and nothing else."""
        slot = self._slots.get(id(weight))
        if (slot is None and self.groups.differs(weight)) or (slot is not None and weight.dim() != 2):
            return False
        if bias is not None and id(bias) not in self._slots and self.groups.differs(bias):
            return False
        return various_of(x) is None and id(x) not in self._slots

    def check_rows(self, rows: int) -> None:
        """Called with the rows of a group before a product.

        Raises:
            TooManyRowsError: if those of all groups are too many.
        """
        if self.groups.count > 1 and rows * self.groups.count > self._most:
            raise TooManyRowsError(rows)
        if not self._prepared:
            self._prepared = True
            # Small factors are made now and kept: between large products this would run on cold caches.
            for slot in self._slots.values():
                if slot.param.dim() < 2:
                    self.vectors(slot)
                elif self._small(slot):
                    self.rows_cols(slot.param, slot.param.dtype)

    def product(
        self, multiply: Callable[[Tensor], Tensor], x: Tensor, left: Tensor | None, right: Tensor | None, bias: object
    ) -> Tensor:
        """multiply(x) + (x left^T) right + bias, with the factors and biases of every group.

        Args:
            multiply: the function of ``x`` at the stored weights, without a perturbed bias.
            x: rows, plain or batched, (..., n).
            left: (groups or 1, r, n), or None.
            right: (groups or 1, r, m), or None.
            bias: of the product; added if it is perturbed.

        Returns:
            Plain if there is one group, else batched.
        """
        self.check_rows(x.numel() // max(1, x.shape[-1]))
        batched, own, count = self.groups.is_batched(x), self.slot(bias), self.groups.count
        if batched:
            x = self.groups.whole(x)
        y = multiply(x)
        if not batched and self.groups.level is not None:
            y = y.expand(count, *y.shape)
        y = y.contiguous()
        if left is not None and right is not None:
            rows = x.reshape(count if batched else 1, -1, x.shape[-1])
            columns = functional.linear(rows, left[0]) if left.shape[0] == 1 else rows @ left.transpose(1, 2)
            if columns.shape[0] != count:
                columns = columns.expand(count, -1, -1).contiguous()
            add_low_rank(y, columns, right, None if own is None else self.vectors(own))
        elif own is not None:
            y.view(count, -1, y.shape[-1]).add_(self.vectors(own).unsqueeze(1))
        return self.result(y)

    def result(self, whole: Tensor) -> Tensor:
        """A tensor with the values of all groups, (groups, ...), as Python goes on with it."""
        return whole if self.groups.level is None else self.groups.batched(whole)
