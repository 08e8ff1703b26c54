"""Rules that tell, from its arguments, whether a torch function acts on each index of dimension 0 by itself.

Dimension 0 of a batched tensor is the concatenation of equal parts, one per group.  A function that acts on each of
its indices by itself, or keeps row-major order, gives every group what it would get from its own part alone; so it
may run once for all groups.  A rule says so for the arguments at hand, all of which it must have looked at, and
doubts whatever it does not know: `BY_GROUP` is never wrong, only slower.  `zotune.evaluators.rowtable` has the rule of
every function.

A shared tensor beside batched ones must be the same for each index of dimension 0: there it has size 1, or no such
dimension, or it is a copy for every group, see `Context.copies`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from zotune.evaluators.grouped import BATCHED, kind

BY_ROW, BY_GROUP, SHARED = True, False, None
"""Runs once and is batched; runs group by group; runs once and is shared, as no batched tensor's values matter."""


class Context(Protocol):
    """What a rule knows of the forward."""

    groups: int

    def copies(self, tensor: Tensor) -> bool:
        """Whether a shared tensor, known to have been made with the number of all rows, has equal parts for all
        groups; it counts as batched from then on.

        Raises:
            UnsupportedError: if its parts differ, so that nothing tells what a group's own tensor would be.
        """

    def numbers(self, tensor: Tensor) -> bool:
        """Whether a tensor of whole numbers counts the rows: 0, 1, 2 and so on."""


Args: TypeAlias = Sequence[Any]
Kwargs: TypeAlias = Mapping[str, Any]
Rule: TypeAlias = Callable[[Context, Args, Kwargs], "bool | None"]


def keeps_order(context: Context, args: Args, kwargs: Kwargs) -> bool | None:  # noqa: ARG001
    """Row-major views: right if the result's dimension 0 can be cut into groups, as `Stack` sees when it has run.

    A group's part is a run of ``numel / groups`` elements before and after.
    """
    if not args:
        return BY_GROUP
    return BY_ROW if kind(args[0]) is BATCHED else SHARED


# ------------------------------------------------------------------------------------- tensors side by side


def aligned(context: Context, tensors: Iterable[Tensor], least: int = 1) -> bool:
    """Whether all batched tensors meet in dimension 0 of what all broadcast to, which has ``least`` or more."""
    dims = size = widest = 0
    shared = []
    for tensor in tensors:
        own = tensor.dim()
        if own > widest:
            widest = own
        if kind(tensor) is not BATCHED:
            shared.append(tensor)
        elif dims == 0:
            dims, size = own, tensor.shape[0]
        elif own != dims or tensor.shape[0] != size:
            return False
    if widest != dims or dims < least:
        return False
    for tensor in shared:
        if tensor.dim() < dims or tensor.shape[0] == 1:
            continue
        # In separate forwards its size must be that of a group's rows: it was made with the number of rows.
        if tensor.shape[0] != size or not context.copies(tensor):
            return False
    return True


def elementwise(context: Context, args: Args, kwargs: Kwargs) -> bool | None:
    """Each element of the result is made of those at its place."""
    tensors = [value for value in args if isinstance(value, Tensor)]
    if kwargs:
        if "out" in kwargs:
            return BY_GROUP
        tensors += [value for value in kwargs.values() if isinstance(value, Tensor)]
    return aligned(context, tensors) if len(tensors) > 1 else len(tensors) == 1 and kind(tensors[0]) is BATCHED


def extremum(context: Context, args: Args, kwargs: Kwargs) -> bool | None:
    """``max`` and ``min``: of two tensors, or along a dimension."""
    two = (len(args) > 1 and isinstance(args[1], Tensor)) or "other" in kwargs
    return elementwise(context, args, kwargs) if two else _along_one(context, args, kwargs)


def choice(context: Context, args: Args, kwargs: Kwargs) -> bool | None:
    """``where`` with something to choose from; without, it gives places in all rows."""
    return elementwise(context, args, kwargs) if len(args) + len(kwargs) > 2 else BY_GROUP


def pointwise_loss(context: Context, args: Args, kwargs: Kwargs) -> bool | None:
    """Losses that are not reduced."""
    return elementwise(context, args, kwargs) if kwargs.get("reduction") == "none" and len(args) < 3 else BY_GROUP


def class_loss(context: Context, args: Args, kwargs: Kwargs) -> bool | None:
    """Cross entropy without a reduction."""
    x, target = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "target")
    weight = argument(args, kwargs, 2, "weight")
    if kwargs.get("reduction") != "none" or len(args) > 3 or kwargs.get("reduce") is not None:
        return BY_GROUP
    if not is_batched(x) or x.dim() < 2 or not isinstance(target, Tensor) or is_batched(weight):
        return BY_GROUP
    return same_rows(context, (x, target))


def same_rows(context: Context, tensors: Sequence[Tensor]) -> bool:
    """Whether dimension 0 of every tensor holds the same rows."""
    size = next((tensor.shape[0] for tensor in tensors if kind(tensor) is BATCHED), 0)
    if any(tensor.dim() == 0 or tensor.shape[0] != size for tensor in tensors):
        return False
    return all(kind(tensor) is BATCHED or context.copies(tensor) for tensor in tensors)


def like_first(context: Context, args: Args, kwargs: Kwargs) -> bool | None:  # noqa: ARG001
    """The first argument in another form; of others only form matters."""
    if not args or "out" in kwargs:
        return BY_GROUP
    return BY_ROW if kind(args[0]) is BATCHED else SHARED


def no_values(context: Context, args: Args, kwargs: Kwargs) -> bool | None:  # noqa: ARG001
    """New tensors of a given size: the batched tensor lends its type alone."""
    return SHARED


# ------------------------------------------------------------------------------------- along dimensions


def not_first(dim: Any, dims: int) -> bool:
    """Whether a dimension, or each of several, is none but the first of ``dims``."""
    if type(dim) is int:
        return dims > 0 and dim % dims != 0
    return isinstance(dim, (tuple, list)) and len(dim) > 0 and all(not_first(one, dims) for one in dim)


def along(position: int = 1, default: Any = None, name: str = "dim", grow: int = 0) -> Rule:
    """A function of one tensor along the dimensions that its argument ``name`` at ``position`` gives.

    Args:
        position: of the argument.
        default: its default.
        name: its name.
        grow: dimensions that the result has and the dimension is counted in.
    """

    def rule(context: Context, args: Args, kwargs: Kwargs) -> bool | None:  # noqa: ARG001
        if not is_alone(args, kwargs):
            return BY_GROUP
        if len(args) > position:
            dim = args[position]
        else:
            dim = kwargs[name] if name in kwargs else kwargs.get("axis", default)
        return not_first(dim, args[0].dim() + grow)

    return rule


_along_one = along()


def along_all(context: Context, args: Args, kwargs: Kwargs) -> bool | None:  # noqa: ARG001
    """``transpose``, ``movedim``, ``flip``: every number given is a dimension, and none may be the first."""
    dims = flat((*args[1:], *kwargs.values()))
    return is_alone(args, kwargs) and not_first(dims, args[0].dim())


def permuted(context: Context, args: Args, kwargs: Kwargs) -> bool | None:  # noqa: ARG001
    """``permute``: the first dimension stays."""
    dims = flat((*args[1:], *kwargs.values()))
    return is_alone(args, kwargs) and len(dims) > 0 and dims[0] % args[0].dim() == 0


def diagonal(context: Context, args: Args, kwargs: Kwargs) -> bool | None:  # noqa: ARG001
    """``diagonal``: of two dimensions, by default the first two."""
    dims = [argument(args, kwargs, 2, "dim1", 0), argument(args, kwargs, 3, "dim2", 1)]
    return is_alone(args, kwargs) and not_first(dims, args[0].dim())


def matrices(context: Context, args: Args, kwargs: Kwargs) -> bool | None:  # noqa: ARG001
    """Functions of the last two dimensions."""
    return is_alone(args, kwargs) and args[0].dim() > 2


def squeezed(context: Context, args: Args, kwargs: Kwargs) -> bool | None:
    """``squeeze`` would drop the first dimension in a forward of a single row."""
    dim = argument(args, kwargs, 1, "dim")
    return is_alone(args, kwargs) and (args[0].shape[0] != context.groups or not_first(dim, args[0].dim()))


def expanded(context: Context, args: Args, kwargs: Kwargs) -> bool | None:  # noqa: ARG001
    """``expand`` along other dimensions than the first."""
    x, sizes = args[0], flat((*args[1:], *kwargs.values()))
    if not is_batched(x):
        return SHARED
    return len(sizes) == x.dim() and sizes[0] in (-1, x.shape[0])


def expanded_as(context: Context, args: Args, kwargs: Kwargs) -> bool | None:
    """``expand_as``: of the other tensor, only the size matters."""
    return elementwise(context, args, kwargs) if is_batched(args[0]) else SHARED


def repeated(context: Context, args: Args, kwargs: Kwargs) -> bool | None:  # noqa: ARG001
    """``repeat`` along other dimensions than the first."""
    sizes = flat((*args[1:], *kwargs.values()))
    return is_alone(args, kwargs) and len(sizes) == args[0].dim() and sizes[0] == 1


def interleaved(context: Context, args: Args, kwargs: Kwargs) -> bool | None:  # noqa: ARG001
    """``repeat_interleave`` by a number keeps the order of rows."""
    return is_alone(args, kwargs) and isinstance(argument(args, kwargs, 1, "repeats"), int)


def padded(context: Context, args: Args, kwargs: Kwargs) -> bool | None:  # noqa: ARG001
    """``pad`` of other dimensions than the first."""
    sizes = argument(args, kwargs, 1, "pad", ())
    return is_alone(args, kwargs) and len(sizes) // 2 < args[0].dim()


def joined(grow: int = 0) -> Rule:
    """``cat`` and ``stack``."""

    def rule(context: Context, args: Args, kwargs: Kwargs) -> bool | None:
        parts = args[0] if args else ()
        if "out" in kwargs or not isinstance(parts, (tuple, list)):
            return BY_GROUP
        parts = [part for part in parts if part.dim() != 1 or part.shape[0]]  # an empty one of any shape is left out
        if len({part.dim() for part in parts}) != 1:
            return BY_GROUP
        dim = argument(args, kwargs, 1, "dim", kwargs.get("axis", 0))
        return not_first(dim, parts[0].dim() + grow) and same_rows(context, parts)

    return rule


def gathered(context: Context, args: Args, kwargs: Kwargs) -> bool | None:
    """``gather``, ``scatter`` and their kin: within each row, if the dimension is another."""
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    dim = argument(args, kwargs, 1, "dim")
    if "out" in kwargs or len({tensor.dim() for tensor in tensors}) != 1 or not not_first(dim, tensors[0].dim()):
        return BY_GROUP
    return same_rows(context, tensors)


def selected(context: Context, args: Args, kwargs: Kwargs) -> bool | None:  # noqa: ARG001
    """``index_select`` by numbers that all rows share."""
    return first_only(args, kwargs) and not_first(argument(args, kwargs, 1, "dim"), args[0].dim())


# ------------------------------------------------------------------------------------- helpers


def is_batched(value: Any) -> bool:
    """Whether a value is a batched tensor."""
    return isinstance(value, Tensor) and kind(value) is BATCHED


def first_only(args: Args, kwargs: Kwargs) -> bool:
    """Whether the first argument alone is batched, and nothing is written elsewhere."""
    if not args or not is_batched(args[0]) or "out" in kwargs:
        return False
    return not any(is_batched(value) for value in (*args[1:], *kwargs.values()))


def is_alone(args: Args, kwargs: Kwargs) -> bool:
    """Whether the first argument is batched and there is no other tensor."""
    if not args or not is_batched(args[0]):
        return False
    if any(isinstance(value, Tensor) for value in args[1:]):
        return False
    return not kwargs or not ("out" in kwargs or any(isinstance(value, Tensor) for value in kwargs.values()))


def argument(args: Args, kwargs: Kwargs, position: int, name: str, default: Any = None) -> Any:
    """An argument, given by position or by name."""
    return args[position] if len(args) > position else kwargs.get(name, default)


def flat(values: Iterable[Any]) -> list[Any]:
    """Values and those inside lists, in order."""
    items: list[Any] = []
    for value in values:
        items.extend(value if isinstance(value, (tuple, list)) else (value,))
    return items
