"""Memory for perturbed weights, used again from module to module."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Number of references to a storage, torch's own count (also used by its CUDA graphs). Without it no buffer is reused.
_count: Callable[[int], int] | None = getattr(torch._C, "_storage_Use_Count", None)


def _references(buffer: Tensor) -> int:
    assert _count is not None
    return _count(buffer.untyped_storage()._cdata)


_ALONE = 0 if _count is None else _references(torch.empty(1))


_ROOMY = 16  # a buffer this many times too large is left for those who need it


class Scratch:
    """Flat buffers that are taken and given back.

    A view of perturbed weights may outlive the forward it was made in (a module that returns a slice of its
    parameter).  Memory that such a view still refers to is left to it and never handed out again.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[torch.device, torch.dtype, bool], list[Tensor]] = {}

    def take(self, size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor of one dimension with ``size`` or more elements: the smallest that is free.

        Where there is none one is made.  One that is free and too small is given up for it, so that there are no more
        of them than are used at a time; but a bias does not take the memory of a matrix, which would then need another.
        """
        # tensors born in inference mode cannot be written outside it, so they are kept apart
        free = self._free.setdefault((device, dtype, torch.is_inference_mode_enabled()), [])
        sizes = [buffer.numel() for buffer in free]
        fitting = [room for room in sizes if size <= room <= _ROOMY * size]
        if fitting:
            return free.pop(sizes.index(min(fitting)))
        if any(room < size for room in sizes):  # freed before the larger one is made
            free.pop(sizes.index(max(room for room in sizes if room < size)))
        return torch.empty(size, dtype=dtype, device=device)

    def give_back(self, buffer: Tensor) -> None:
        """Accept a buffer for reuse, if nothing else refers to its memory."""
        if _count is not None and _references(buffer) == _ALONE:
            self._free.setdefault((buffer.device, buffer.dtype, buffer.is_inference()), []).append(buffer)

    def numel(self) -> int:
        """Elements kept for reuse."""
        return sum(buffer.numel() for free in self._free.values() for buffer in free)
