"""Finding reads of weights outside the forward of their owner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from zotune.checks import extent


def at(memory: torch.UntypedStorage, like: Tensor) -> Tensor:
    """The tensor that sees a copy of a storage as ``like`` sees the storage."""
    new = torch.empty(0, dtype=like.dtype, device=like.device)
    return new.set_(memory, like.storage_offset(), like.size(), like.stride())


def address_of(tensor: Tensor) -> int | None:
    """Address of a tensor's storage; None for tensors without one."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return None


class Regions:
    """Where stored weights lie.

    Args:
        stored: stored weights by the number of their parameter; several may lie in one storage.
    """

    def __init__(self, stored: Mapping[int, Tensor]) -> None:
        self._by_address: dict[int, list[tuple[int, int, int]]] = {}
        for number, tensor in stored.items():
            if tensor.numel():
                address = tensor.untyped_storage().data_ptr()
                self._by_address.setdefault(address, []).append((number, *extent(tensor)))

    def touched(self, address: int, read: Tensor) -> list[int]:
        """Numbers of the parameters whose stored weights a tensor, whose storage has the address, shares."""
        regions = self._by_address.get(address)
        if regions is None:
            return []
        begin, end = extent(read)
        return [number for number, first, last in regions if begin < last and first < end]


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets every operator read what ``answer`` gives in place of its tensors."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._answer = answer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Tensor, self._answer, (args, kwargs or {}))
        return func(*args, **kwargs)
