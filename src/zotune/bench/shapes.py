"""What a model needs for one forward pass, told from its shapes: nothing is loaded, nothing is computed.

The model is built on torch's meta device, where tensors have a shape and no memory, and run once while the sizes of
all live intermediate tensors are added up.  Attention counts as the fused kernels of torch do it: without a matrix of
scores.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from zotune.evaluators.gather import block_size
from zotune.noise import Key
from zotune.perturbations import Slot


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """A model and a batch in numbers.

    Attributes:
        tokens: of the batch.
        parameters: of the model.
        trained: shapes of the trained parameters.
        width: bytes of one weight.
        weights: bytes of all parameters and buffers.
        activations: largest sum of bytes of intermediate tensors in the forward pass.
        scratch: bytes of the perturbed weights that a query holds at a time.
        flops: floating-point operations of the forward pass, two for a multiplication with addition.
    """

    tokens: int
    parameters: int
    trained: tuple[torch.Size, ...]
    width: int
    weights: int
    activations: int
    scratch: int
    flops: int

    @property
    def inference(self) -> int:
        """Bytes of a forward pass."""
        return self.weights + self.activations

    @property
    def trained_parameters(self) -> int:
        """Number of trained weights."""
        return sum(shape.numel() for shape in self.trained)


def shapes_of(model: nn.Module, *, rows: int, length: int) -> Shapes:
    """The numbers of one forward pass of ``rows`` x ``length`` tokens; ``model`` is on the meta device.

    Raises:
        RuntimeError: if the forward pass needs the values of its tensors.
    """
    stored = [*model.parameters(), *model.buffers()]
    ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
    attention, live = _FusedAttention(), _Live(stored)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), attention, counter, live:
        model(input_ids=ids)
    return Shapes(
        tokens=rows * length,
        parameters=sum(p.numel() for p in model.parameters()),
        trained=tuple(p.shape for p in model.parameters() if p.requires_grad),
        width=next(model.parameters()).element_size(),
        weights=sum(tensor.numel() * tensor.element_size() for tensor in stored),
        activations=live.peak,
        scratch=_scratch(model),
        flops=counter.get_total_flops() + attention.flops,
    )


def _scratch(model: nn.Module) -> int:
    """The trained weights of one module are perturbed at a time: of an embedding only the rows that are read, and of a
    large head one block after another."""
    trained = [p for p in model.parameters() if p.requires_grad]
    block = block_size([Slot(param=p, name="", group={}, key=Key(0), state={}) for p in trained])
    return max(
        (
            sum(min(p.numel(), block) * p.element_size() for p in module.parameters(recurse=False) if p.requires_grad)
            for module in model.modules()
            if not isinstance(module, nn.Embedding)
        ),
        default=0,
    )


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of tensors that are alive, without the given ones."""

    def __init__(self, stored: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in stored}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return True  # models ask about masks: whether all positions are the usual ones
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        number, size = storage._cdata, storage.nbytes()
        if number not in self._known:
            self._known.add(number)
            self._now += size
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._free, number, size)

    def _free(self, number: int, size: int) -> None:
        self._known.discard(number)
        self._now -= size


class _FusedAttention(TorchFunctionMode):
    """Attention that makes its result only; counts its operations."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention and len(args) >= 3:
            query, key, value = args[:3]
            pairs = query.shape[:-1].numel() * key.shape[-2]
            self.flops += 2 * pairs * (query.shape[-1] + value.shape[-1])
            return query.new_empty((*query.shape[:-1], value.shape[-1]))
        return func(*args, **(kwargs or {}))
