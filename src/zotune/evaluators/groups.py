"""Values that differ between the probes of one stacked forward.

Python goes through the closure once, and sees the shapes that it would see in a forward of one probe.  A tensor that
differs between probes is one of two things:

- *batched*: a tensor of ``torch.vmap``, whose hidden dimension holds one value for each group (a group is a probe of
  the forward).  torch's batching rules run a function of batched tensors once, for all groups;
- *various*: a plain tensor that stands for a list with one tensor per group, noted as an attribute of the tensor
  object.  So is what no batching rule covers: shapes that differ between groups, views of their tensors, and tensors
  that were made plain and take what differs between groups later on.

All others are the same for all groups, such as the batch itself.  A function that torch cannot batch, and every
function of various tensors, is evaluated group by group; results of one shape become a batched tensor again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy
import torch
import torch.utils
from torch import Tensor
from torch._C import _functorch

from zotune.evaluators.watch import address_of

_MARK = "_zotune_groups"


class UnsupportedError(RuntimeError):
    """A function whose result cannot be told for each group."""


class Groups:
    """The groups of one forward.

    Attributes:
        count: their number.
        level: of the enclosing ``torch.vmap``; None if there is one group and nothing to tell apart.
        changed: addresses of plain tensors that took what differs between groups.
        shared: addresses of memory that several groups see, or that is a copy of weights: no view of it may be written.
        problem: why the forward is of no use, also if the closure has caught the error.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.level: int | None = None
        self.changed: set[int] = set()
        self.shared: set[int] = set()
        self.problem: str | None = None
        self._marked: list[Tensor] = []
        self._separated: list[Tensor] = []
        self._made: list[weakref.ref[Tensor]] = []

    # ------------------------------------------------------------------------------ what a tensor is

    def is_batched(self, tensor: Tensor) -> bool:
        """Whether a tensor has the hidden dimension."""
        return self.level is not None and _functorch.maybe_get_level(tensor) == self.level

    def differs(self, tensor: Tensor) -> bool:
        """Whether a tensor is batched or various."""
        return various_of(tensor) is not None or self.is_batched(tensor)

    def whole(self, tensor: Tensor) -> Tensor:
        """A batched tensor with its hidden dimension in front: (groups, ...)."""
        place = _functorch.maybe_get_bdim(tensor)
        plain: Tensor = _functorch.get_unwrapped(tensor)
        return plain if place == 0 else plain.movedim(place, 0)

    def batched(self, whole: Tensor) -> Tensor:
        """The batched tensor whose values are (groups, ...)."""
        assert self.level is not None
        tensor: Tensor = _functorch._add_batch_dim(whole, 0, self.level)
        return tensor

    def various(self, tensors: Sequence[Tensor]) -> Tensor:
        """A tensor that stands for one of each group."""
        return self._mark(tensors[0].view_as(tensors[0]), tensors)

    def _mark(self, tensor: Tensor, parts: Sequence[Tensor]) -> Tensor:
        setattr(tensor, _MARK, list(parts))
        self._marked.append(tensor)
        return tensor

    def note(self, result: Any) -> None:
        """Remember the batched tensors of a result, in case they outlive the forward."""
        if isinstance(result, Tensor):
            if _functorch.maybe_get_level(result) == self.level:
                self._made.append(weakref.ref(result))
        elif isinstance(result, (list, tuple)):
            for item in result:
                self.note(item)

    def forget(self) -> None:
        """Tensors that outlive the forward become plain ones, with the values of the last group: those that separate
        forwards would have left."""
        for tensor in self._marked:
            parts = various_of(tensor)
            assert parts is not None
            if any(tensor is kept for kept in self._separated):
                tensor.copy_(parts[-1])
            else:
                tensor.data = parts[-1]
            delattr(tensor, _MARK)
        self._marked.clear()
        self._separated.clear()
        there = [made() for made in self._made]
        alive = {id(tensor): tensor for tensor in there if tensor is not None}
        there.clear()
        self._made.clear()  # weak references would hinder the exchange
        with torch.no_grad():
            for tensor in alive.values():
                torch.utils.swap_tensors(tensor, self.whole(tensor)[-1].clone())  # type: ignore[no-untyped-call]

    def part(self, tensor: Tensor, group: int) -> Tensor:
        """What a group sees in place of a tensor."""
        parts = various_of(tensor)
        if parts is not None:
            return parts[group]
        return self.whole(tensor)[group] if self.is_batched(tensor) else tensor

    def parts(self, value: Any, group: int) -> Any:
        """What a group sees in place of a tensor, or of the tensors inside mappings, lists, tuples and dataclasses that
        torch knows as containers."""
        from torch.utils._pytree import tree_map

        def own(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                return self.part(leaf, group)
            return leaf.copy() if isinstance(leaf, numpy.ndarray) else leaf

        return tree_map(own, value)

    # ------------------------------------------------------------------------------ group by group

    def each(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        pick: Callable[[Tensor, int], Tensor],
    ) -> Any:
        """The function's value for every group, put together again.

        Args:
            function: a torch function.
            args: its arguments.
            kwargs: its keyword arguments.
            pick: gives the tensor that a group sees in place of an argument.

        Raises:
            UnsupportedError: its value is not a tensor and differs between groups.
        """
        name, targets = name_of(function), written(function, args, kwargs)
        for target in targets if self.count > 1 else ():
            self._prepare(target, name)
        results, shown = [], False
        for group in range(self.count):
            own = [_map(arg, group, pick) for arg in args]
            named = {key: _map(arg, group, pick) for key, arg in kwargs.items()}
            before = tensors_in((*own, *named.values()))
            shapes = [tensor.shape for tensor in before]
            results.append(function(*own, **named))
            if targets and [tensor.shape for tensor in before] != shapes:
                raise UnsupportedError(f"{name} changes the shape of a tensor")
            if self.count > 1:
                shown = self._note_views(results[-1], before, args, kwargs) or shown
        if targets and name not in _STATISTICS:
            out = kwargs.get("out", targets[0])
            if isinstance(results[0], Tensor) or isinstance(out, (list, tuple)):
                return out
        return self._join(results, shown, name)

    def _note_views(self, result: Any, before: Sequence[Tensor], args: Any, kwargs: Any) -> bool:
        """Whether a result shares memory with what it is made of; if that is not the group's own, it must not be
        written."""
        memory = {address_of(tensor) for tensor in before}
        seen = {address_of(tensor) for tensor in tensors_in([result])}
        if seen.isdisjoint(memory):
            return False
        own = {
            address_of(self.part(t, g)) for t in tensors_in((*args, *kwargs.values())) if self.differs(t) for g in (0,)
        }
        own |= {address_of(part) for t in tensors_in((*args, *kwargs.values())) for part in various_of(t) or ()}
        self.shared |= {address for address in seen & memory - own if address is not None}
        return True

    def _prepare(self, target: Tensor, name: str) -> None:
        """Before a tensor is written: each group must have its own.

        Raises:
            UnsupportedError: it cannot.
        """
        parts = various_of(target)
        if any(address_of(part) in self.shared for part in ([target] if parts is None else parts)):
            raise UnsupportedError(f"{name} writes to memory that queries share, or to a copy of weights")
        if not self.differs(target):
            self._separate(target)

    def _separate(self, tensor: Tensor) -> None:
        """A plain tensor that is about to take what differs between groups: each gets a copy, the first one itself.

        Other views of it must not be used any more, see `changed`.
        """
        address = address_of(tensor)
        if address is None or tensor.is_sparse:
            raise UnsupportedError("what differs between queries is written to a tensor that is not dense")
        own = tensor.view_as(tensor)
        self.changed.add(address)
        self._separated.append(tensor)
        self._mark(tensor, [own, *(_copy(tensor) for _ in range(self.count - 1))])

    def _join(self, results: list[Any], shown: bool, name: str) -> Any:
        first = results[0]
        if self.count == 1:
            return first
        if isinstance(first, Tensor):
            alike = all(result.shape == first.shape and result.dtype == first.dtype for result in results)
            if alike and not shown and not first.is_sparse:
                return self.batched(torch.stack(results))
            return self.various(results)
        if name in _MEMORY:
            raise UnsupportedError(f"{name} shows the memory of one query")
        if isinstance(first, (list, tuple)):
            if len({len(result) for result in results}) > 1:
                raise UnsupportedError(f"{name} gives {len(first)} values for one query and not for another")
            items = [self._join(list(items), shown, name) for items in zip(*results, strict=True)]
            return type(first)(items)
        return agree(results, name)


def various_of(tensor: Tensor) -> list[Tensor] | None:
    """The tensors that a various one stands for, one a group; else None."""
    return getattr(tensor, _MARK, None)


def _copy(tensor: Tensor) -> Tensor:
    """A copy with the same strides, as far as elements do not overlap."""
    return torch.empty_like(tensor).copy_(tensor)


def _map(arg: Any, group: int, pick: Callable[[Tensor, int], Tensor]) -> Any:
    if isinstance(arg, Tensor):
        return pick(arg, group)
    if isinstance(arg, (list, tuple)) and any(isinstance(item, (Tensor, list, tuple, slice)) for item in arg):
        return type(arg)([_map(item, group, pick) for item in arg])
    if isinstance(arg, slice):
        return slice(*(_map(end, group, pick) for end in (arg.start, arg.stop, arg.step)))
    return arg


def tensors_in(args: Iterable[Any]) -> list[Tensor]:
    """All tensors among arguments and inside their lists, tuples and slices."""
    found: list[Tensor] = []
    for arg in args:
        if isinstance(arg, Tensor):
            found.append(arg)
        elif isinstance(arg, (list, tuple)):
            found.extend(tensors_in(arg))
        elif isinstance(arg, slice):
            found.extend(tensors_in((arg.start, arg.stop, arg.step)))
    return found


def agree(answers: Sequence[Any], name: str) -> Any:
    """The answer that is the same for all groups.

    Raises:
        UnsupportedError: if it is not.
    """
    first = answers[0]
    for answer in answers[1:]:
        if type(answer) is not type(first) or not bool(numpy.all(answer == first)):
            raise UnsupportedError(f"{name} gives {first!r} for one query and {answer!r} for another")
    return first


def name_of(function: Any) -> str:
    """A function's name, for messages."""
    return str(getattr(function, "__name__", function))


def written(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that the function changes in place."""
    if kwargs.get("out") is not None:
        return tensors_in([kwargs["out"]])
    name = name_of(function).split(".")[0]  # of an operator: add_.Tensor
    if name in _STATISTICS:
        running = [*args[1:3], kwargs.get("running_mean"), kwargs.get("running_var")]
        given = [value for value in (*args[3:], *kwargs.values()) if isinstance(value, bool)]
        trains = any(given) if given else name == "instance_norm"
        return [tensor for tensor in running if isinstance(tensor, Tensor)] if trains else []
    in_place = name.endswith("_") and not name.endswith("__")
    if (
        in_place
        or name in ("__setitem__", "__set__")
        or kwargs.get("inplace") is True
        or (name.startswith("__i") and name.endswith("__") and name[3:-2] in _IN_PLACE)
    ):
        return tensors_in(args[:1])
    return []


_IN_PLACE = {"add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift", "matmul"}

_STATISTICS = {"batch_norm", "instance_norm", "native_batch_norm"}

_MEMORY = {"numpy", "__array__", "data_ptr", "untyped_storage", "storage", "__dlpack__"}
"""Functions that give the memory of a tensor away."""
