"""Perturbed weights in parts: the rows of an embedding that the batch uses, and a large linear layer block by block.

While the owner of such a parameter runs, a stand-in takes the parameter's place. ``embedding`` and ``linear`` are
answered from a small scratch buffer; any other function that is handed the stand-in gets the whole perturbed weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from zotune.evaluators.intercept import Function, originals
from zotune.evaluators.scratch import Scratch
from zotune.perturbations import Part, Slot

Write: TypeAlias = Callable[[Slot, Tensor, Part | None], None]

SMALL_TABLE = 1 << 15  # elements: to find the rows of a smaller table costs more than to write all of them
SMALL_BLOCK = 1 << 20  # elements: a block is not made smaller for the sake of a small model
_SHARE = 0.01  # of the weights, that scratch may take
_ALIGNED = 64  # rows


def block_size(slots: Sequence[Slot]) -> int:
    """Elements that a block of a large linear layer may have: a hundredth of all.

    That keeps the peak at that of inference, and in models of billions of weights leaves all but the head whole.
    """
    return max(SMALL_BLOCK, int(_SHARE * sum(slot.param.numel() for slot in slots)))


def divisible(slot: Slot) -> bool:
    """Whether the parameter is large enough to be read in parts, and its rows are those of its logical matrix."""
    param = slot.param
    turned = slot.perturbation.matrix and slot.group["input_dim"] == 0
    return param.dim() == 2 and param.numel() > SMALL_TABLE and not turned and type(param) is nn.Parameter


def in_parts(module: nn.Module, slot: Slot, block: int) -> bool:
    """Whether the forward of this owner should read a divisible parameter in parts."""
    return isinstance(module, nn.Embedding) or (isinstance(module, nn.Linear) and slot.param.numel() > block)


class Reader:
    """Handler of a stand-in, for one forward of the owner.

    Args:
        slot: the parameter.
        write: writes the perturbed weights, or a part of them.
        scratch: where to.
        block: see `block_size`.
        whole: called when the parameter itself must point to perturbed weights; does nothing if it does.
        pointed: whether it does.
    """

    def __init__(
        self,
        slot: Slot,
        write: Write,
        scratch: Scratch,
        block: int,
        whole: Callable[[], None],
        pointed: Callable[[], bool],
    ) -> None:
        self._slot, self._write, self._scratch, self._block = slot, write, scratch, block
        self._whole, self._pointed = whole, pointed
        self.active = True

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `zotune.evaluators.intercept.Handler`."""
        args, kwargs = originals(args, kwargs)
        if self.active and not self._pointed():
            if func is functional.embedding:
                answer = self._embedding(*args, **kwargs)
            elif func is functional.linear:
                answer = self._linear(*args, **kwargs)
            else:
                answer = None
            if answer is not None:
                return answer
            self._whole()
        return func(*args, **kwargs)

    def _plain(self, tensor: Any, weight: Any) -> bool:
        """Whether a function of the tensor and the weight can be taken apart."""
        return (
            weight is self._slot.param
            and type(tensor) is Tensor
            and tensor.layout is torch.strided
            and tensor.device == weight.device
            and not torch.is_grad_enabled()  # a graph would refer to scratch that is written again
            and torch._C._functorch.peek_interpreter_stack() is None
        )

    def _embedding(  # the signature of torch.nn.functional.embedding
        self,
        input: Any,
        weight: Any,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,  # noqa: ARG002
        scale_grad_by_freq: bool = False,  # noqa: ARG002
        sparse: bool = False,  # noqa: ARG002
    ) -> Tensor | None:
        """The looked-up rows; None if the whole table is needed, or for torch to say what is wrong."""
        count, width = self._slot.param.shape
        if not self._plain(input, weight) or max_norm is not None or input.numel() == 0:
            return None
        if input.dtype not in (torch.int64, torch.int32) or not -count <= (padding_idx or 0) < count:
            return None
        rows, places = torch.unique(input, return_inverse=True)
        if rows.numel() >= count or int(rows[0]) < 0 or int(rows[-1]) >= count:
            return None
        buffer = self._take(rows.numel() * width)
        table = buffer[: rows.numel() * width].view(-1, width)
        self._write(self._slot, table, Part(rows=rows.long()))
        answer = functional.embedding(places, table)
        del table
        self._scratch.give_back(buffer)
        return answer

    def _linear(self, input: Any, weight: Any, bias: Any = None) -> Tensor | None:
        """The product, from blocks of rows; None if the whole matrix is needed, or for torch to say what is wrong."""
        count, width = self._slot.param.shape
        if not self._plain(input, weight) or input.dim() == 0 or input.shape[-1] != width:
            return None
        autocast = torch.is_autocast_enabled(input.device.type)
        if input.dtype is not weight.dtype and not autocast:
            return None
        if bias is not None and (bias.shape != (count,) or weight.dtype is not bias.dtype):
            return None
        height = -(-count // -(-count * width // self._block))  # blocks of about the same height, ...
        if height > _ALIGNED:  # ... aligned: a product that begins elsewhere in a row of the result is a tenth slower
            height = -(-height // _ALIGNED) * _ALIGNED
        buffer = self._take(height * width)
        rows = input.reshape(-1, width)
        answer = None if autocast else rows.new_empty((rows.shape[0], count))
        for first in range(0, count, height):
            last = min(first + height, count)
            block = buffer[: (last - first) * width].view(-1, width)
            self._write(self._slot, block, Part(first=first, last=last))
            part = None if bias is None else bias[first:last]
            if answer is None or autocast:  # only the product tells the type that autocast chooses
                product = functional.linear(rows, block, part)
                answer = product.new_empty((rows.shape[0], count)) if answer is None else answer
                answer[:, first:last] = product
            elif part is None:  # written where it belongs: a copy would cost a tenth of the product
                torch.mm(rows, block.t(), out=answer[:, first:last])
            else:
                torch.addmm(part, rows, block.t(), out=answer[:, first:last])
        del block
        self._scratch.give_back(buffer)
        assert answer is not None
        shaped: Tensor = answer.view(*input.shape[:-1], count)
        return shaped

    def _take(self, size: int) -> Tensor:
        return self._scratch.take(size, self._slot.param.device, self._slot.param.dtype)
