"""Shared tensors of a stacked forward that were made with the number of all rows.

Python reads the number of rows from a batched tensor's shape, and makes positions, masks and row numbers of that size.
Beside a batched tensor such a one has to be cut into the groups' parts.  That is right if its parts are equal; if they
are not, nothing tells what a group's own tensor would be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zotune.evaluators.grouped import (
    BATCHED,
    COPIES,
    NUMBERS,
    UnsupportedError,
    kind,
    mark,
    name_of,
    tensors_in,
    written,
)
from zotune.evaluators.rowproducts import keeps_rows
from zotune.evaluators.watch import address_of


class Shared:
    """What is known of the shared tensors of one forward; see also `zotune.evaluators.rowwise.Context`.

    Attributes:
        groups: their number.
        rows: of the batch of all groups, once a tensor of it was seen.
        made: by address, shared tensors that count as batched.
        changed: addresses of those that rows were written to.
    """

    def __init__(self, groups: int) -> None:
        self.groups, self.rows = groups, 0
        self.made: dict[int, Tensor] = {}
        self.changed: set[int] = set()

    def copies(self, tensor: Tensor) -> bool:
        """See `zotune.evaluators.rowwise.Context`."""
        if not self._has_copies(tensor):
            raise UnsupportedError(
                f"a tensor of shape {tuple(tensor.shape)} was made for the rows of all {self.groups} groups, and "
                "nothing tells what it is for one"
            )
        mark(tensor, BATCHED)
        address = address_of(tensor)
        if address is not None:
            self.made[address] = tensor
        return True

    def _has_copies(self, tensor: Tensor) -> bool:
        """Whether a shared tensor can be cut into equal parts for all groups."""
        if tensor.shape[0] % self.groups:
            return False
        if tensor.stride(0) == 0 or kind(tensor) is COPIES:
            return True
        parts = tensor.reshape(self.groups, -1)
        return bool((parts[1:] == parts[:1]).all())

    def numbers(self, tensor: Tensor) -> bool:
        """See `zotune.evaluators.rowwise.Context`."""
        if kind(tensor) is NUMBERS:
            return True
        whole = tensor.dtype in (torch.int64, torch.int32)
        return whole and torch.equal(tensor.reshape(-1), torch.arange(tensor.numel()).to(tensor))

    def note_origin(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Constants and repetitions have equal parts, and ranges count, which later on only a comparison would tell."""
        if not isinstance(result, Tensor) or result.dim() == 0 or kind(result) is not None:
            return
        if func is torch.arange:
            if len(args) == 1 and not isinstance(args[0], float) and not kwargs.keys() & {"start", "end", "step"}:
                mark(result, NUMBERS)
        elif func is Tensor.__getitem__:
            if kind(args[0]) is NUMBERS and keeps_rows(*args) and result.numel() == args[0].shape[0] == result.shape[0]:
                mark(result, NUMBERS)
        elif func is Tensor.repeat:
            first = args[1][0] if isinstance(args[1], (tuple, list)) else args[1]
            if first % self.groups == 0:
                mark(result, COPIES)
        elif result.shape[0] % self.groups == 0:
            mark(result, COPIES)

    def note_written(self, func: Any, args: Any, kwargs: Any) -> None:
        """Other views of a shared tensor that takes what differs between groups must not be used any more."""
        tensor = written(func, args, kwargs)
        if tensor is not None and (address := address_of(tensor)) in self.made:
            self.changed.add(address)

    def recognise(self, args: Sequence[Any]) -> None:
        """Models make what is the same for all rows (token types, positions) once for each row: batched, too."""
        for tensor in args:
            if (
                isinstance(tensor, Tensor)
                and self._is_unknown(tensor)
                and tensor.dim() > 1
                and tensor.shape[0] == self.rows
                and self._has_copies(tensor)
            ):
                self.copies(tensor)

    def refuse_unknown_rows(self, func: Any, args: Any, kwargs: Any) -> None:
        """A shared tensor with as many rows as a batched one: whether a group sees all of it cannot be told."""
        tensors = tensors_in((*args, *kwargs.values()))
        batched = [tensor for tensor in tensors if kind(tensor) is BATCHED]
        if not batched:
            return
        if func is Tensor.__setitem__:
            self._number_entries(*args)
        sizes, dims = {self.rows, *(tensor.shape[0] for tensor in batched)}, max(tensor.dim() for tensor in batched)
        for tensor in tensors:
            if not self._is_unknown(tensor) or tensor.dim() == 0 or tensor.shape[0] not in sizes:
                continue
            if tensor.dim() >= dims or not (tensor.is_floating_point() or tensor.is_complex()):
                raise UnsupportedError(
                    f"{name_of(func)} is given a tensor of shape {tuple(tensor.shape)}, which may be one for the "
                    f"rows of all {self.groups} groups"
                )

    def _number_entries(self, x: Tensor, index: Any, value: Any) -> None:
        """Row numbers written at a group's own places, as when a permutation is inverted: each group counts its own."""
        if not isinstance(index, Tensor) or not isinstance(value, Tensor) or kind(value) is not NUMBERS:
            return
        if kind(x) is BATCHED and kind(index) is BATCHED and index.shape == value.shape and not _is_mask(index):
            mark(value, [value[: len(value) // self.groups]] * self.groups)

    def _is_unknown(self, tensor: Tensor) -> bool:
        """Whether a tensor counts as shared and may have been made in this forward."""
        what = kind(tensor)
        return what is not BATCHED and not isinstance(what, list) and not isinstance(tensor, nn.Parameter)


def _is_mask(index: Tensor) -> bool:
    return index.dtype in (torch.bool, torch.uint8)


ORIGINS = frozenset(getattr(torch, name) for name in ("zeros", "ones", "full", "empty", "arange")) | frozenset(
    getattr(Tensor, name) for name in ("new_zeros", "new_ones", "new_full", "new_empty", "repeat", "__getitem__")
)
"""Functions whose results are known to have equal parts, or to count."""
