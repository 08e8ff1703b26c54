"""Eight-bit optimizer states through bitsandbytes (Dettmers et al. 2022, "8-bit optimizers via block-wise
quantization")."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from zotune.perturbations import Slot

_BLOCK = 256
_SMALLEST = 4096  # smaller tensors stay in float32, as in the paper


class BlockwiseCodec:
    """Stores the two moments of Adam as blocks of 256 bytes, each block with one float32 scale.

    The second moment is kept as its square root: a linear-in-v code would round small moments to zero, and dividing
    by the root of zero would make the step explode.

    Raises:
        ValueError: if bitsandbytes is not installed.
    """

    def __init__(self) -> None:
        try:
            import bitsandbytes.functional
        except ImportError:
            raise ValueError(
                "bits=8 needs the package bitsandbytes: pip install 'zotune[low-bit]', or use bits=32"
            ) from None
        functional: Any = bitsandbytes.functional
        self._functional = functional
        self._codes = {
            "m": functional.create_dynamic_map(signed=True),
            "v": functional.create_dynamic_map(signed=False),
        }

    def covers(self, slot: Slot) -> bool:
        """Whether the moments of this parameter are stored in eight bits."""
        return math.prod(slot.param.shape) >= _SMALLEST and slot.dtype is torch.float32

    def load(self, slot: Slot, name: str) -> Tensor:
        """The moment ``name`` ("m" or "v") as a float32 tensor of the slot's logical shape; zeros at first."""
        device = slot.param.device
        if f"{name}_codes" not in slot.state:
            return torch.zeros(slot.shape, dtype=torch.float32, device=device)
        value: Tensor = self._functional.dequantize_blockwise(
            slot.state[f"{name}_codes"],
            absmax=slot.state[f"{name}_scales"],
            code=self._codes[name].to(device),
            blocksize=_BLOCK,
        )
        value = value.view(slot.shape)
        return value.square_() if name == "v" else value

    def save(self, slot: Slot, name: str, value: Tensor) -> None:
        """Replace the stored moment ``name``."""
        value = value.sqrt() if name == "v" else value
        codes, quantisation = self._functional.quantize_blockwise(
            value.contiguous(), code=self._codes[name].to(value.device), blocksize=_BLOCK
        )
        slot.state[f"{name}_codes"], slot.state[f"{name}_scales"] = codes, quantisation.absmax
