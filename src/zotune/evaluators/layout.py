"""How the parameters of a step are perturbed, and where in scratch memory."""

from __future__ import annotations

import enum
import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from zotune.evaluators.gather import block_size, divisible
from zotune.perturbations import Slot


class Mode(enum.Enum):
    """How one parameter is perturbed."""

    OWNER = enum.auto()
    """During the forward of the module that owns it."""
    HELD = enum.auto()
    """During the whole query, by pointing the parameter at other memory."""
    WRITTEN = enum.auto()
    """During the whole query, by writing its memory and restoring it from a copy."""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """What queries ask of a slot, put together once for all probes of a step.

    Attributes:
        slot: the slot.
        shape: of its logical weights.
        strides: of those weights in scratch memory.
        room: elements of scratch to reserve.
        kind: device and type.
        divisible: whether it may be read in parts.
        turned: whether the parameter sees its memory otherwise than the logical weights do.
    """

    slot: Slot
    shape: torch.Size
    strides: tuple[int, ...]
    room: int
    kind: tuple[torch.device, torch.dtype]
    divisible: bool
    turned: bool


class Layout:
    """The places of parameters, by the parameters' ids.

    Args:
        slots: the parameters.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.places: dict[int, Place] = {}
        self.block = block_size(slots)
        self._key = self._key_of(slots)
        for slot in slots:
            param, shape = slot.param, slot.shape
            strides = tuple(itertools.accumulate(shape[:0:-1], operator.mul, initial=1))[::-1]
            room = -(-param.numel() // 64) * 64  # keeps neighbours aligned
            self.places[id(param)] = Place(
                slot=slot,
                shape=shape,
                strides=strides[: len(shape)],
                room=room,
                kind=(param.device, param.dtype),
                divisible=divisible(slot),
                turned=shape != param.shape or slot.group["input_dim"] == 0,
            )

    @staticmethod
    def _key_of(slots: Sequence[Slot]) -> list[Any]:
        return [(id(s), s.param.shape, s.param.dtype, s.param.device, s.group["input_dim"]) for s in slots]

    def fits(self, slots: Sequence[Slot]) -> bool:
        """Whether nothing has changed since it was made."""
        return self._key == self._key_of(slots)
