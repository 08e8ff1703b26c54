"""Rules of `zotune.evaluators.rowwise` for products, norms, attention, and for reading and writing by an index."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zotune.evaluators.grouped import BATCHED, kind
from zotune.evaluators.rowwise import (
    BY_GROUP,
    Args,
    Context,
    Kwargs,
    Rule,
    aligned,
    argument,
    first_only,
    is_alone,
    is_batched,
    same_rows,
)


def of_rows(least: int) -> Rule:
    """The first argument has ``least`` dimensions, and all others are shared weights."""

    def rule(context: Context, args: Args, kwargs: Kwargs) -> bool | None:  # noqa: ARG001
        return first_only(args, kwargs) and args[0].dim() >= least

    return rule


def trailing_norm(context: Context, args: Args, kwargs: Kwargs) -> bool | None:  # noqa: ARG001
    """Norms over the last dimensions."""
    shape = argument(args, kwargs, 1, "normalized_shape", ())
    return first_only(args, kwargs) and args[0].dim() > len(shape)


def batch_norm(context: Context, args: Args, kwargs: Kwargs) -> bool | None:  # noqa: ARG001
    """Batch norm by stored statistics."""
    stored = argument(args, kwargs, 5, "training", False) is False
    return stored and first_only(args, kwargs) and args[0].dim() > 1


def embedding(context: Context, args: Args, kwargs: Kwargs) -> bool | None:  # noqa: ARG001
    """Rows of a shared table, which ``max_norm`` would change."""
    return first_only(args, kwargs) and argument(args, kwargs, 3, "max_norm") is None


def classes(context: Context, args: Args, kwargs: Kwargs) -> bool | None:  # noqa: ARG001
    """``one_hot`` of a given number of classes; else it is the largest of all rows."""
    return is_alone(args, kwargs) and argument(args, kwargs, 1, "num_classes", -1) > 0


def matmul(context: Context, args: Args, kwargs: Kwargs) -> bool | None:
    """Rows times a shared matrix, or a product for each index of dimension 0."""
    a, b = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "other")
    if "out" in kwargs or not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return BY_GROUP
    if is_batched(a) and not is_batched(b) and b.dim() < 3:
        return a.dim() >= 2
    return aligned(context, (a, b), least=3)


def batch_matmul(context: Context, args: Args, kwargs: Kwargs) -> bool | None:
    """``bmm``, ``baddbmm``: a product for each index of dimension 0."""
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    return "out" not in kwargs and aligned(context, tensors, least=3)


def addmm(context: Context, args: Args, kwargs: Kwargs) -> bool | None:  # noqa: ARG001
    """A shared vector plus rows times a shared matrix."""
    if "out" in kwargs or len(args) < 3 or is_batched(args[2]) or is_batched(args[0]):
        return BY_GROUP
    return is_batched(args[1]) and args[0].dim() < 2


def attention(context: Context, args: Args, kwargs: Kwargs) -> bool | None:
    """``scaled_dot_product_attention``."""
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    return len(args) >= 3 and all(map(is_batched, args[:3])) and aligned(context, tensors, least=3)


def einsum(context: Context, args: Args, kwargs: Kwargs) -> bool | None:  # noqa: ARG001
    """Sums in which dimension 0 of all batched operands, and of the result, has one letter that no other has."""
    equation = args[0] if args else None
    operands = args[1] if len(args) == 2 and isinstance(args[1], (list, tuple)) else args[1:]
    if not isinstance(equation, str) or "->" not in equation:
        return BY_GROUP
    left, _, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(operands) or "." in equation or not right:
        return BY_GROUP
    row = right[0]
    for term, operand in zip(terms, operands, strict=True):
        if is_batched(operand):
            if not term.startswith(row) or term.count(row) != 1:
                return BY_GROUP
        elif row in term:
            return BY_GROUP
    return right.count(row) == 1


# ------------------------------------------------------------------------------------- indices


def getitem(context: Context, args: Args, kwargs: Kwargs) -> bool | None:  # noqa: ARG001
    """Reading by an index that takes all of dimension 0, or of every row an entry of its own."""
    x, index = args
    return is_batched(x) and (keeps_rows(x, index) or _own_entries(context, x, index))


def setitem(context: Context, args: Args, kwargs: Kwargs) -> bool | None:  # noqa: ARG001
    """Writing by an index that takes all of dimension 0."""
    x, index, value = args
    number = not isinstance(value, Tensor) or value.dim() == 0
    if number and is_batched(index) and index.dtype is torch.bool:
        return is_batched(x) and index.dim() <= x.dim() and index.shape[0] == x.shape[0]
    if not keeps_rows(x, index):
        return BY_GROUP
    if number:
        return is_batched(x)
    place = x[index]
    if value.dim() > place.dim() or (is_batched(value) and value.dim() != place.dim()):
        return BY_GROUP
    if value.dim() < place.dim() or (value.shape[0] == 1 and not is_batched(value)):
        return is_batched(x)
    return same_rows(context, (x, value))


def keeps_rows(x: Tensor, index: Any) -> bool:
    """Whether an index takes all of dimension 0, in order, and leaves it in front."""
    if index is Ellipsis:
        return x.dim() > 0
    if _is_all(index):
        return True
    if not isinstance(index, tuple) or not index:
        return False
    first, rest = index[0], index[1:]
    if not all(_is_plain(item) for item in rest):
        return False
    if first is Ellipsis:
        if sum(map(_taken, rest)) >= x.dim():
            return False
    elif not _is_all(first):
        return False
    # Several tensors stay where they are if they are neighbours; else their dimensions go to the front.
    places = [number for number, item in enumerate(rest) if isinstance(item, (Tensor, list))]
    return len(places) < 2 or places[-1] - places[0] == len(places) - 1


def _own_entries(context: Context, x: Tensor, index: Any) -> bool:
    """Whether an index pairs the number of each row with entries for that row."""
    index = (index,) if isinstance(index, Tensor) else index
    if not isinstance(index, tuple) or not index or not isinstance(index[0], Tensor):
        return False
    rows, others = index[0], [item for item in index[1:] if isinstance(item, Tensor)]
    if kind(rows) is BATCHED or rows.dim() == 0 or not (rows.numel() == rows.shape[0] == x.shape[0]):
        return False
    if len(others) != len(index) - 1 or not all(_is_own(rows, item) for item in others):
        return False
    return context.numbers(rows)


def _is_own(rows: Tensor, entries: Tensor) -> bool:
    if kind(entries) is BATCHED:
        return entries.dim() == rows.dim() and entries.shape[0] == rows.shape[0]
    return entries.dim() < rows.dim() or (entries.dim() == rows.dim() and entries.shape[0] == 1)


def _is_all(item: Any) -> bool:
    return isinstance(item, slice) and item.start is None and item.stop is None and item.step is None


def _is_plain(item: Any) -> bool:
    """Whether a part of an index is the same for all rows."""
    if isinstance(item, bool):
        return False
    if isinstance(item, slice):
        return not any(isinstance(end, Tensor) for end in (item.start, item.stop, item.step))
    if isinstance(item, list):
        return all(isinstance(number, int) for number in item)
    return (
        item is None or item is Ellipsis or isinstance(item, int) or (isinstance(item, Tensor) and not is_batched(item))
    )


def _taken(item: Any) -> int:
    """Dimensions that a part of an index takes."""
    if item is None or item is Ellipsis:
        return 0
    return item.dim() if isinstance(item, Tensor) and item.dtype in _MASKS else 1


_MASKS = (torch.bool, torch.uint8)
