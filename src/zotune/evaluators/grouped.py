"""Values that differ between the probes of one stacked forward, and torch functions evaluated on them.

Inside a stacked forward every tensor is one of three things:

- *batched*: the rows of all groups one after another along dimension 0, group by group;
- *various*: one tensor per group (perturbed weights, and what is made of them alone);
- *shared*: the same for all groups.

A function of various and batched tensors is evaluated group by group, on the group's rows, and its results are
concatenated: batched.  A function of various and shared tensors gives a various one.  All other functions run once;
their results are batched if an argument was.  With a single group there is nothing to tell apart.

What a tensor is, is kept as an attribute on the tensor object.  An operation that moves the rows to another dimension
breaks the rule unseen; `zotune.evaluators.stacked` therefore checks the losses against separate forwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_MARK = "_zotune_groups"
BATCHED = "batched"


class UnsupportedError(RuntimeError):
    """A function whose result cannot be told for each group."""


def mark(tensor: Tensor, value: object) -> Tensor:
    """Note that the tensor is batched (`BATCHED`), or that it stands for the given tensors, one a group."""
    setattr(tensor, _MARK, value)
    return tensor


def kind(tensor: Tensor) -> object:
    """`BATCHED`, a list with one tensor per group, or None for a shared tensor."""
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
        rows = batch.view_as(batch) if groups == 1 else batch.repeat(groups, *[1] * (batch.dim() - 1))
        return mark(rows, BATCHED)
    if isinstance(batch, Mapping):
        return {key: repeat(value, groups) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return (list if isinstance(batch, list) else tuple)(repeat(value, groups) for value in batch)
    return batch


Pick = Callable[[Tensor, int], Tensor]


def each(function: Callable[..., Any], groups: int, args: Sequence[Any], kwargs: Mapping[str, Any], pick: Pick) -> Any:
    """The function's value for every group, put together again.

    Args:
        function: a torch function, one of whose tensors is various.
        groups: their number.
        args: its arguments.
        kwargs: its keyword arguments.
        pick: gives the tensor that a group sees in place of an argument.

    Raises:
        UnsupportedError: it writes to a shared tensor, or its value is not a tensor and differs between groups.
    """
    written = _written(function, args, kwargs)
    if written is not None and groups > 1 and kind(written) is None:
        raise UnsupportedError(f"{_name(function)} writes what differs between groups to a tensor shared by them")
    batched = any(kind(tensor) == BATCHED for tensor in _tensors((*args, *kwargs.values())))
    results = []
    for group in range(groups):
        own = [_map(arg, group, groups, pick) for arg in args]
        results.append(function(*own, **{key: _map(arg, group, groups, pick) for key, arg in kwargs.items()}))
    if written is not None and isinstance(results[0], Tensor):
        return written
    return _join(results, batched, _name(function))


def rows_of(tensor: Tensor, group: int, groups: int, rows: int) -> Tensor:
    """A group's rows of a batched tensor, as a view.

    Args:
        tensor: its first dimension holds the rows of all groups, or each of them several times (flattened tokens).
        group: number of the group.
        groups: their number.
        rows: of all groups together.

    Raises:
        UnsupportedError: if its first dimension is not a multiple of the rows: some are missing, or it is another one.
    """
    if tensor.dim() == 0 or groups == 1:
        return tensor
    if tensor.shape[0] % max(rows, groups):
        raise UnsupportedError(
            f"a tensor of shape {tuple(tensor.shape)} is not made of the {rows} rows of {groups} groups"
        )
    size = tensor.shape[0] // groups
    return tensor.narrow(0, group * size, size)


def _map(arg: Any, group: int, groups: int, pick: Pick) -> Any:
    if isinstance(arg, Tensor):
        return pick(arg, group)
    if isinstance(arg, (list, tuple)) and any(isinstance(item, (Tensor, list, tuple)) for item in arg):
        return type(arg)([_map(item, group, groups, pick) for item in arg])
    return arg


def _tensors(args: Sequence[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for arg in args:
        if isinstance(arg, Tensor):
            found.append(arg)
        elif isinstance(arg, (list, tuple)):
            found.extend(_tensors(arg))
    return found


def _join(results: list[Any], batched: bool, name: str) -> Any:
    first = results[0]
    if isinstance(first, Tensor):
        if len(results) == 1:
            return first
        if not batched:
            return mark(first.view_as(first), results)
        if first.dim() == 0:
            raise UnsupportedError(f"{name} reduces all rows of a group to a number inside the model")
        return mark(torch.cat(results), BATCHED)
    if isinstance(first, (list, tuple)):
        return type(first)([_join(list(items), batched, name) for items in zip(*results, strict=True)])
    if any(result != first for result in results[1:]):
        raise UnsupportedError(f"{name} gives {first!r} for one group and {results[-1]!r} for another")
    return first


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", function))


def _written(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The tensor that the function changes in place, if any."""
    if isinstance(kwargs.get("out"), Tensor):
        tensor: Tensor = kwargs["out"]
        return tensor
    name = _name(function)
    in_place = name.endswith("_") and not name.endswith("__")
    if (
        in_place
        or name == "__setitem__"
        or (name.startswith("__i") and name.endswith("__") and name[3:-2] in _IN_PLACE)
    ):
        return args[0] if args and isinstance(args[0], Tensor) else None
    return None


_IN_PLACE = {"add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift", "matmul"}
