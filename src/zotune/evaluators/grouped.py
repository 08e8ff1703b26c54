"""Values that differ between the probes of one stacked forward, and torch functions evaluated on them.

Inside a stacked forward every tensor is one of three things:

- *batched*: dimension 0 is the concatenation of equal parts, one for each group, in the groups' order (the rows of the
  batch are the first example);
- *various*: one tensor per group (perturbed weights, and whatever cannot be concatenated);
- *shared*: the same for all groups.

A function of batched and shared tensors that acts on each index of dimension 0 by itself runs once
(`zotune.evaluators.rowwise`), and its result is batched.  Every other function of batched or various tensors is
evaluated group by group, on the group's part.  Its results are concatenated again if they have a group's rows.  Others
remain various, so that Python sees the sizes that it would see in a separate forward; and so do views, as what is
written to them must reach the tensor that they show.  With a single group there is nothing to tell apart.

What a tensor is, is kept as an attribute on the tensor object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from zotune.evaluators.watch import address_of

_MARK = "_zotune_groups"
BATCHED = "batched"
COPIES, NUMBERS = "copies", "numbers"
"""Shared tensors known to have equal parts for all groups, and to count 0, 1, 2 and so on."""


class Parts(list[Tensor]):
    """A various tensor made of batched ones: may be put together for functions that only read it."""


class UnsupportedError(RuntimeError):
    """A function whose result cannot be told for each group."""


def mark(tensor: Tensor, value: object) -> Tensor:
    """Note that the tensor is batched (`BATCHED`), or that it stands for the given tensors, one a group."""
    setattr(tensor, _MARK, value)
    return tensor


def kind(tensor: Tensor) -> object:
    """`BATCHED`, a list with one tensor per group, or another value for a shared tensor (most often None)."""
    return getattr(tensor, _MARK, None)


def repeat(batch: Any, groups: int) -> Any:
    """The batch, repeated ``groups`` times: group 0's rows first, then those of group 1, and so on.

    Args:
        batch: a tensor, or a mapping, list or tuple of tensors and other things.  Tensors with at least one dimension
            are repeated along the first; the rest is passed on.
        groups: 1 or more.

    Returns:
        New tensors in plain dictionaries, lists and tuples.
    """
    if isinstance(batch, Tensor):
        if batch.dim() == 0:
            return batch
        rows = batch.clone() if groups == 1 else batch.repeat(groups, *[1] * (batch.dim() - 1))
        return mark(rows, BATCHED)
    if isinstance(batch, Mapping):
        return {key: repeat(value, groups) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return (list if isinstance(batch, list) else tuple)(repeat(value, groups) for value in batch)
    return batch


def split(batch: Any, groups: int) -> list[Any]:
    """Each group's part of what a model gave for a batch made by `repeat`: what comes after sees one group alone.

    Args:
        batch: a tensor, or a mapping, list or tuple of tensors and other things.
        groups: as for `repeat`.

    Returns:
        For each group a tensor, or a plain dictionary, list or tuple.

    Raises:
        UnsupportedError: if there are several groups and no tensor knows of them.
    """
    if groups > 1 and not _knows_groups(batch):
        raise UnsupportedError("what is to be split does not come from a batch made by zotune.repeat")
    with torch._C.DisableTorchFunction():
        return [_part(batch, group, groups) for group in range(groups)]


def _knows_groups(batch: Any) -> bool:
    if isinstance(batch, Tensor):
        return kind(batch) is BATCHED or isinstance(kind(batch), list)
    if isinstance(batch, Mapping):
        batch = batch.values()
    elif not isinstance(batch, (list, tuple)):
        return False
    return any(map(_knows_groups, batch))


def _part(batch: Any, group: int, groups: int) -> Any:
    if isinstance(batch, Tensor):
        what = kind(batch)
        if isinstance(what, list):
            return what[group]
        return rows_of(batch, group, groups) if what is BATCHED else batch
    if isinstance(batch, Mapping):
        return {key: _part(value, group, groups) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return (list if isinstance(batch, list) else tuple)(_part(value, group, groups) for value in batch)
    return batch


Pick = Callable[[Tensor, int], Tensor]


def each(
    function: Callable[..., Any], groups: int, args: Sequence[Any], kwargs: Mapping[str, Any], pick: Pick, rows: int = 0
) -> Any:
    """The function's value for every group, put together again.

    Args:
        function: a torch function, one of whose tensors is various or batched.
        groups: their number.
        args: its arguments.
        kwargs: its keyword arguments.
        pick: gives the tensor that a group sees in place of an argument.
        rows: of a group in the batch.

    Raises:
        UnsupportedError: it writes to a shared tensor, or its value is not a tensor and differs between groups.
    """
    name, changed = name_of(function), written(function, args, kwargs)
    if changed is not None and groups > 1 and (kind(changed) is not BATCHED and not isinstance(kind(changed), list)):
        raise UnsupportedError(f"{name} writes what differs between groups to a tensor shared by them")
    given = tensors_in((*args, *kwargs.values()))
    batched = any(kind(tensor) is BATCHED or isinstance(kind(tensor), Parts) for tensor in given)
    sizes = {rows} | {tensor.shape[0] // groups for tensor in given if kind(tensor) is BATCHED}
    results, shown = [], False
    for group in range(groups):
        own = [_map(arg, group, pick) for arg in args]
        named = {key: _map(arg, group, pick) for key, arg in kwargs.items()}
        before = tensors_in((*own, *named.values()))
        shape = before[0].shape
        results.append(function(*own, **named))
        if batched:
            memory = {address_of(tensor) for tensor in before}
            shown = shown or any(address_of(result) in memory for result in tensors_in(results[-1:]))
        if changed is not None and before[0].shape != shape and kind(changed) is BATCHED:
            raise UnsupportedError(f"{name} changes the shape of a batched tensor")
    if changed is not None and isinstance(results[0], Tensor):
        return changed
    return _join(results, batched, shown, sizes, name)


def rows_of(tensor: Tensor, group: int, groups: int) -> Tensor:
    """A group's part of a batched tensor, as a view.

    Raises:
        UnsupportedError: if its first dimension is not made of equal parts.
    """
    if tensor.dim() == 0 or groups == 1:
        return tensor
    if tensor.shape[0] % groups:
        raise UnsupportedError(f"a tensor of shape {tuple(tensor.shape)} is not made of equal parts of {groups} groups")
    size = tensor.shape[0] // groups
    return tensor.narrow(0, group * size, size)


def _map(arg: Any, group: int, pick: Pick) -> Any:
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


def _join(results: list[Any], batched: bool, shown: bool, sizes: set[int], name: str) -> Any:
    first = results[0]
    if isinstance(first, Tensor):
        if len(results) == 1:
            return first
        if not batched:
            return various(results)
        whole = whole_of(results) if shown else None
        if whole is not None:
            return mark(whole, BATCHED)
        alike = first.dim() > 0 and all(result.shape == first.shape for result in results)
        if alike and not shown and first.shape[0] in sizes:
            return mark(torch.cat(results), BATCHED)
        return various(Parts(results) if alike else results)
    if isinstance(first, (list, tuple)):
        if len({len(result) for result in results}) > 1:
            raise UnsupportedError(f"{name} gives {len(first)} values for one group and not for another")
        items = [_join(list(items), batched, shown, sizes, name) for items in zip(*results, strict=True)]
        return type(first)(items)
    agree([*results], name)
    return first


def whole_of(parts: list[Tensor]) -> Tensor | None:
    """The view that consists of the given ones, if they lie one after another."""
    first = parts[0]
    if first.dim() == 0 or first.is_sparse or address_of(first) is None:
        return None
    step = first.shape[0] * first.stride(0)
    for number, part in enumerate(parts):
        if part.shape != first.shape or part.stride() != first.stride() or address_of(part) != address_of(first):
            return None
        if part.storage_offset() != first.storage_offset() + number * step:
            return None
    return first.as_strided((len(parts) * first.shape[0], *first.shape[1:]), first.stride())


def various(tensors: list[Tensor]) -> Tensor:
    """A tensor that stands for one of each group."""
    return mark(tensors[0].view_as(tensors[0]), tensors)


def agree(answers: Sequence[Any], name: str) -> Any:
    """The answer that is the same for all groups.

    Raises:
        UnsupportedError: if it is not.
    """
    first = answers[0]
    for answer in answers[1:]:
        if type(answer) is not type(first) or not bool(numpy.all(answer == first)):
            raise UnsupportedError(f"{name} gives {first!r} for one group and {answer!r} for another")
    return first


def name_of(function: Any) -> str:
    """A function's name, for messages."""
    return str(getattr(function, "__name__", function))


def written(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The tensor that the function changes in place, if any."""
    if isinstance(kwargs.get("out"), Tensor):
        tensor: Tensor = kwargs["out"]
        return tensor
    name = name_of(function)
    in_place = name.endswith("_") and not name.endswith("__")
    if (
        in_place
        or name == "__setitem__"
        or (name.startswith("__i") and name.endswith("__") and name[3:-2] in _IN_PLACE)
    ):
        return args[0] if args and isinstance(args[0], Tensor) else None
    return None


_IN_PLACE = {"add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift", "matmul"}
