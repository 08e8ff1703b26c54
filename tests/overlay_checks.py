"""What the tests of the overlay share: models, losses, and the comparison with explicitly perturbed copies."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from zotune import MeZO, Overlay, digest
from zotune.optimizer import ZerothOrder

EPS = 0.1
Loss = Callable[[nn.Module], torch.Tensor]


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The module with its default initialisation; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval()


def numbers(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def explicit(model: nn.Module, loss: Loss, optimizer: ZerothOrder) -> list[float]:
    """Losses of the coming step from deep copies whose weights are perturbed through the kernels."""
    names = {id(p): n for n, p in model.named_parameters()}
    slots = optimizer._active()
    optimizer._refresh(slots)
    losses = []
    for probe in optimizer.plan():
        twin = copy.deepcopy(model)
        weights = dict(twin.named_parameters())
        for slot in slots:
            out = torch.empty(slot.shape, dtype=slot.param.dtype)
            optimizer._write_probe(slot, probe, out)
            with torch.no_grad():
                weights[names[id(slot.param)]].copy_(slot.stored(out))
        with torch.no_grad():
            losses.append(float(loss(twin)))
    return losses


def told(model: nn.Module, loss: Loss, optimizer: ZerothOrder) -> list[float]:
    """Losses of the coming step as the optimizer asks for them."""
    losses: list[float] = []

    def closure() -> torch.Tensor:
        value = loss(model)
        losses.append(float(value))
        return value

    optimizer.step(closure)
    return losses


def agree(model: nn.Module, loss: Loss, optimizer: ZerothOrder, steps: int = 3) -> None:
    """Each probe of each step has the loss of the explicitly perturbed copy, and lr=0 leaves the bits."""
    stored = {name: p.detach().clone() for name, p in model.named_parameters()}
    before = digest(model.parameters())
    for step in range(steps):
        wanted = explicit(model, loss, optimizer)
        assert told(model, loss, optimizer) == wanted, f"step {step}"
        assert all(torch.equal(p, stored[name]) for name, p in model.named_parameters())
    assert digest(model.parameters()) == before
    assert len(set(wanted)) > 1, "the loss does not depend on the perturbation: the test shows nothing"


def overlaid(model: nn.Module, cls: type[ZerothOrder] = MeZO, **options: Any) -> ZerothOrder:
    return cls(model.named_parameters(), lr=0.0, eps=EPS, **{"evaluator": Overlay(), **options})


def hf_loss(inputs: dict[str, torch.Tensor], head: str) -> Loss:
    def loss(model: nn.Module) -> torch.Tensor:
        labels = inputs["labels"] if head == "classifier" else inputs["input_ids"]
        out = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels)
        return out.loss.float()

    return loss


X = numbers(5, 8)


def square(model: nn.Module) -> torch.Tensor:
    return model(X).square().mean()


class ChildRead(nn.Module):
    """Reads its child's weight in its own forward, before or after the child's."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.child, self.order = nn.Linear(8, 8), order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.order == "before":
            return self.child(linear(x, self.child.weight))
        if self.order == "after":
            return linear(self.child(x), self.child.weight)
        return linear(x, self.child.weight)
