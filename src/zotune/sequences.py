"""Several steps of an optimizer from their losses, made in one pass over the weights where the method allows it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch

from zotune.interrupts import held
from zotune.perturbations import Dense, Slot
from zotune.rules import SGD

if TYPE_CHECKING:
    from zotune.optimizer import ZerothOrder

Told: TypeAlias = tuple[float | None, Sequence[float]]
"""The learning rate of all groups, or None for that of the step before; and the losses."""

_OWN = ("plan", "tell", "_tell", "_apply", "_check_update", "_refresh", "_terms", "_update")


def tell_all(optimizer: ZerothOrder, steps: Sequence[Told]) -> None:
    """``tell`` for one step after another, with the same bits.

    An update that is a sum of dense noise alone needs nothing from the step before but the weights: then several steps
    are made of a few thousand weights at a time, which lie in the cache meanwhile.

    Raises:
        ValueError: see `ZerothOrder.tell`; the steps before are made.
    """
    sound = []
    if len(steps) > 1 and _plain(optimizer):
        for rate, losses in steps:
            if len(losses) != len(optimizer.plan()) or not all(map(math.isfinite, losses)):
                break
            sound.append((rate, tuple(map(float, losses))))
    if sound:
        _make(optimizer, sound)
    for rate, losses in steps[len(sound) :]:
        if rate is not None:
            set_rate(optimizer, rate)
        optimizer.tell(losses)


def set_rate(optimizer: ZerothOrder, rate: float) -> None:
    """Give all groups a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def _plain(optimizer: ZerothOrder) -> bool:
    """Whether an update is the sum of dense noise alone, and nobody wants to know of each."""
    from zotune.optimizer import ZerothOrder

    return (
        type(optimizer.rule) is SGD
        and not (optimizer._listeners or optimizer._recorders)
        and all(getattr(type(optimizer), name) is getattr(ZerothOrder, name) for name in _OWN)
        and all(type(slot.perturbation) is Dense for slot in optimizer._active())
    )


@held
@torch.inference_mode(False)
@torch.no_grad()
def _make(optimizer: ZerothOrder, steps: Sequence[tuple[float | None, tuple[float, ...]]]) -> None:
    slots = optimizer._active()
    weights = _weights(optimizer, slots, [losses for _, losses in steps])
    rates: list[list[float]] = []
    for rate, _ in steps:
        if rate is not None:
            set_rate(optimizer, rate)
        rates.append([float(slot.group["lr"]) for slot in slots])
    for number, slot in enumerate(slots):
        SGD.steps(
            slot,
            [
                (optimizer._terms(slot, own, step), rate[number], slot.key.at(step=step, tag="rounding"))
                for step, (own, rate) in enumerate(zip(weights[slot.group["eps"]], rates, strict=True), optimizer.t)
            ],
        )
    last = steps[-1][1]
    optimizer.last_loss, optimizer.last_losses = optimizer._mean(last), last
    optimizer.queries += len(steps) * len(last)
    optimizer.t += len(steps)
    optimizer._sums, optimizer._weight = [], 0.0


def _weights(
    optimizer: ZerothOrder, slots: Sequence[Slot], losses: Sequence[tuple[float, ...]]
) -> dict[float, list[list[float]]]:
    """Weights of the directions of each step, by eps."""
    return {
        eps: [optimizer._clipped(optimizer.estimator.weigh(own, eps)) for own in losses]
        for eps in {slot.group["eps"] for slot in slots}
    }
