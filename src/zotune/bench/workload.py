"""A model and a batch of random tokens: the forward pass that a step is compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A batch and the model that reads it.

    Attributes:
        model: forward(input_ids, attention_mask) gives ``logits`` of shape (rows, labels) or (rows, length,
            vocabulary).
        ids: token numbers, int64, shape (rows, length).
        labels: int64, shape (rows,).
    """

    model: nn.Module
    ids: Tensor
    labels: Tensor

    @property
    def size(self) -> str:
        """Rows x length."""
        return f"{self.ids.size(0)} x {self.ids.size(1)}"

    def loss(self) -> Tensor:
        """Mean cross entropy of the batch, float32; of a language model at the last position."""
        logits = self.model(input_ids=self.ids, attention_mask=torch.ones_like(self.ids)).logits
        if logits.dim() == 3:
            logits = logits[:, -1]
        return functional.cross_entropy(logits.float(), self.labels)

    def doubled(self) -> Workload:
        """The batch twice."""
        return Workload(model=self.model, ids=self.ids.repeat(2, 1), labels=self.labels.repeat(2))

    def shortened(self) -> Workload:
        """Two tokens of the batch, the last ones, for what has to happen once."""
        return Workload(model=self.model, ids=self.ids[:1, -2:], labels=self.labels[:1])

    @torch.no_grad()
    def forward(self) -> float:
        """One forward pass and its loss as a number, what every query costs at least."""
        return float(self.loss())


def random_workload(model: nn.Module, *, rows: int, length: int, vocabulary: int, labels: int) -> Workload:
    """Random tokens on the model's device; the same for the same shape.

    Number 0 to 4 are left out, which most vocabularies keep for padding and the like, where there are others.  For an
    encoder with a decoder the last token of each row is the end token, where such classifiers read their answer.
    """
    device = next(model.parameters()).device
    lowest = 5 if vocabulary > 5 else 0
    numbers = torch.arange(rows * length, device=device, dtype=torch.int64)
    # A multiplicative hash: spread over the vocabulary, no generator, and cheap on every device.
    mixed = (numbers * 2654435761 + 97) % 4294967296
    ids = (lowest + mixed * (vocabulary - lowest) // 4294967296).view(rows, length)
    assert math.prod(ids.shape) == rows * length
    config: Any = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False) and isinstance(end := config.eos_token_id, int):
        ids = torch.where(ids == end, ids - 1, ids)
        ids[:, -1] = end
    return Workload(model=model, ids=ids, labels=torch.arange(rows, device=device) % labels)


class _OneLayer(nn.Module):
    """A linear layer that answers like a classifier of any batch of one row."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("x", torch.ones(1, layer.in_features, device=layer.weight.device).to(layer.weight.dtype))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:  # noqa: ARG002
        x = cast(Tensor, self.x)
        return SimpleNamespace(logits=self.layer(x.expand(len(input_ids), -1)))


def one_layer(outputs: int, inputs: int, device: torch.device, dtype: torch.dtype) -> Workload:
    """A linear layer and one row of ones: a step on it is passes over its weights and next to nothing else."""
    model = _OneLayer(nn.Linear(inputs, outputs, bias=False, device=device, dtype=dtype))
    return random_workload(model, rows=1, length=2, vocabulary=1, labels=1)
