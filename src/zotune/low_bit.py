"""How update rules keep their state: in float32, in bfloat16, or in blocks of eight bits.

A rule goes through a parameter part by part (`parts`), so that what it holds in float32 at a time has a bounded size,
whatever the size of the tensor.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from zotune import kernels
from zotune.noise import Key
from zotune.perturbations import Part, Slot, address

BLOCK = 256
"""Numbers that share one float32 scale."""

CHUNK = 1 << 18
"""Elements worked on at a time, if a part of so few is possible: one MB in float32, which a cache holds."""

_SMALLEST = 4096  # smaller tensors stay in float32, as in Dettmers et al. 2022: they cost little and matter much


def parts(slot: Slot) -> Sequence[Part | None]:
    """The parameter as consecutive blocks of rows of its logical shape, or ``[None]`` for the whole of it.

    Each begins at a multiple of `BLOCK` elements and has about `CHUNK` of them, or the fewest rows for which that is
    possible, at most 256.
    """
    shape = slot.shape
    rows, row = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    if rows * row <= CHUNK:
        return [None]
    unit = BLOCK // math.gcd(row, BLOCK)
    step = unit * max(1, CHUNK // (unit * row))
    return [Part(first, min(first + step, rows)) for first in range(0, rows, step)]


class Storage:
    """Keeps one tensor of state as it is, in float32 (float64 for float64 weights); base class of the others.

    Attributes:
        bits: of one number.
    """

    bits: ClassVar[int] = 32

    def load(self, slot: Slot, name: str, part: Part | None) -> Tensor:
        """The state ``name``, zero at first, of a part of the parameter: in the compute dtype, shaped as the part of
        `Slot.logical`.  The caller may write to it, and must `save` it then."""
        whole = _zeros_at_first(slot, name, slot.dtype)
        return whole if part is None else part.take(whole)

    def save(self, slot: Slot, name: str, value: Tensor, part: Part | None, rounding: Key) -> None:
        """Keep ``value``, which `load` gave; ``rounding`` is the key of the bits for stochastic rounding."""

    @staticmethod
    def covers(slot: Slot) -> bool:
        """Whether fewer than 32 bits are used for this parameter: not for small ones, nor for float64."""
        return math.prod(slot.param.shape) >= _SMALLEST and slot.dtype is torch.float32


class Bfloat16(Storage):
    """Two bytes a number, rounded stochastically: what is lost in one step is not lost on average."""

    bits = 16

    def load(self, slot: Slot, name: str, part: Part | None) -> Tensor:
        """See `Storage.load`."""
        if not self.covers(slot):
            return super().load(slot, name, part)
        whole = _zeros_at_first(slot, name, torch.bfloat16)
        return (whole if part is None else part.take(whole)).float()

    def save(self, slot: Slot, name: str, value: Tensor, part: Part | None, rounding: Key) -> None:
        """See `Storage.save`."""
        if self.covers(slot):
            whole: Tensor = slot.state[name]
            out = whole if part is None else part.take(whole)
            key = rounding.at(tag="state")
            kernels.combine(out, None, dense=(1.0, value), rounding=key, backend=slot.backend, **address(slot, part))


class Blocks(Storage):
    """One byte a number, and one float32 scale for every 256 of them; base class.

    Stored are ``<name>_codes``, uint8 of the logical shape, and ``<name>_scales``, float32.
    """

    bits = 8

    def encode(self, name: str, values: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (uint8) and scales of flat float32 values; the last block may be shorter."""
        raise NotImplementedError

    def decode(self, name: str, codes: Tensor, scales: Tensor) -> Tensor:
        """Flat float32 values of flat codes."""
        raise NotImplementedError

    def load(self, slot: Slot, name: str, part: Part | None) -> Tensor:
        """See `Storage.load`."""
        if not self.covers(slot):
            return super().load(slot, name, part)
        shape = slot.shape if part is None else (part.last - part.first, *slot.shape[1:])
        if f"{name}_codes" not in slot.state:
            return torch.zeros(shape, dtype=torch.float32, device=slot.param.device)
        return self.decode(name, *self._stored(slot, name, part)).view(shape)

    def save(self, slot: Slot, name: str, value: Tensor, part: Part | None, rounding: Key) -> None:  # noqa: ARG002
        """See `Storage.save`."""
        if not self.covers(slot):
            return
        if f"{name}_codes" not in slot.state:
            # the same bytes for "no scale yet": a block whose scale is zero is zero whatever its codes
            size, device = math.prod(slot.shape), slot.param.device
            slot.state[f"{name}_codes"] = torch.zeros(slot.shape, dtype=torch.uint8, device=device)
            slot.state[f"{name}_scales"] = torch.zeros(-(-size // BLOCK), dtype=torch.float32, device=device)
        for stored, new in zip(self._stored(slot, name, part), self.encode(name, value.reshape(-1)), strict=True):
            stored.copy_(new)

    @staticmethod
    def _stored(slot: Slot, name: str, part: Part | None) -> tuple[Tensor, Tensor]:
        """Views of the codes and scales of a part."""
        codes, scales = slot.state[f"{name}_codes"].view(-1), slot.state[f"{name}_scales"]
        if part is None:
            return codes, scales
        row = math.prod(slot.shape[1:])
        first, last = part.first * row, part.last * row
        return codes[first:last], scales[first // BLOCK : -(-last // BLOCK)]


class Float8(Blocks):
    """E4M3 numbers (four bits of exponent, three of mantissa; OCP 8-bit floating point, 2023), the largest of a block
    scaled to 448.

    Rounded to nearest: the relative error is 1/16 at most and 2.6 % in the mean, for numbers down to 1/28,000 of the
    largest of their block.  That is right for what changes by more than the error in each step, like a sum that keeps
    0.9 of itself.
    """

    def __init__(self) -> None:
        self._numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()

    def encode(self, name: str, values: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """See `Blocks.encode`."""
        blocks = pad(values, (0, -values.numel() % BLOCK)).view(-1, BLOCK)
        scales = blocks.abs().amax(dim=1) / _LARGEST
        # blocks of zeros (and of numbers that small) have no scale
        factors = torch.where(scales > _NO_SCALE, 1.0 / scales, 0.0)
        scaled = blocks * factors[:, None]
        return scaled.to(torch.float8_e4m3fn).view(torch.uint8).view(-1)[: values.numel()], scales

    def decode(self, name: str, codes: Tensor, scales: Tensor) -> Tensor:  # noqa: ARG002
        """See `Blocks.decode`."""
        # looking the 256 numbers up takes a processor a fifth of the time of torch's conversion
        table = self._numbers = self._numbers.to(codes.device)
        blocks = table.index_select(0, pad(codes, (0, -codes.numel() % BLOCK)).int()).view(-1, BLOCK)
        return blocks.mul_(scales[:, None]).view(-1)[: codes.numel()]


_LARGEST = 448.0
_NO_SCALE = 1e-36


class Dynamic8(Blocks):
    """The 8-bit codes of Adam's two moments, "m" and "v" (Dettmers et al. 2022, "8-bit optimizers via block-wise
    quantization"), by bitsandbytes.

    "v" is kept as its square root: a code that is linear in v would round small moments to zero, and dividing by the
    root of zero would make the step explode.

    Raises:
        ValueError: if bitsandbytes is not installed.
    """

    def __init__(self) -> None:
        # on machines without its 4-bit kernels bitsandbytes says so when it is imported; they are not used here
        talk = logging.getLogger("bitsandbytes.backends.cpu.ops")
        silent, talk.disabled = talk.disabled, True
        try:
            import bitsandbytes.functional
        except ImportError:
            raise ValueError(
                "bits=8 needs the package bitsandbytes: pip install 'zotune[low-bit]', or use bits=32"
            ) from None
        finally:
            talk.disabled = silent
        self._functional: Any = bitsandbytes.functional
        self._codes: dict[str, Tensor] = {
            name: self._functional.create_dynamic_map(signed=name == "m") for name in ("m", "v")
        }

    def encode(self, name: str, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `Blocks.encode`."""
        values = values.sqrt() if name == "v" else values
        codes, how = self._functional.quantize_blockwise(values, code=self._map(name, values), blocksize=BLOCK)
        return codes, how.absmax

    def decode(self, name: str, codes: Tensor, scales: Tensor) -> Tensor:
        """See `Blocks.decode`."""
        values: Tensor = self._functional.dequantize_blockwise(
            codes, absmax=scales, code=self._map(name, codes), blocksize=BLOCK
        )
        return values.square_() if name == "v" else values

    def _map(self, name: str, like: Tensor) -> Tensor:
        code = self._codes[name] = self._codes[name].to(like.device)
        return code


def _zeros_at_first(slot: Slot, name: str, dtype: torch.dtype) -> Tensor:
    if name not in slot.state:
        slot.state[name] = torch.zeros(slot.shape, dtype=dtype, device=slot.param.device)
    tensor: Tensor = slot.state[name]
    return tensor


STORAGES: dict[int, type[Storage]] = {32: Storage, 16: Bfloat16, 8: Float8}
"""By bits, for accumulators that change by a good part of themselves in each step."""
