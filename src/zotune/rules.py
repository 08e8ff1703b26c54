"""Update rules: what is done with the gradient estimate g = sum_k w_k D(x_k).

Weight decay is decoupled: W <- (1 - lr * weight_decay) W - lr * (...), once per step.  Half-precision weights are
rounded stochastically. An update that would write the same numbers is not written at all: with ``lr=0`` the weights
keep their bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zotune import kernels
from zotune.low_bit import Storage, parts
from zotune.noise import Key
from zotune.perturbations import Part, Slot, Terms, address


class Rule:
    """Base class.

    Attributes:
        bits: in which the numbers of its state are kept.
    """

    bits: int = 32

    def settings(self) -> dict[str, Any]:
        """What a saved state and the optimizer that goes on from it must agree in, beside class and bits."""
        return {}

    def step(self, slot: Slot, terms: Terms, *, lr: float, rounding: Key) -> None:
        """Apply one update.

        Args:
            slot: the parameter.
            terms: pairs (w_k, key_k) of g.
            lr: learning rate.
            rounding: key for stochastic rounding of half-precision weights.
        """
        raise NotImplementedError


class SGD(Rule):
    """Plain descent: W <- (1 - lr wd) W - lr g, in one pass over the weights."""

    def step(self, slot: Slot, terms: Terms, *, lr: float, rounding: Key) -> None:
        """See `Rule.step`."""
        decay, scaled = _change(slot, terms, lr)
        if scaled or decay != 1.0:
            w = slot.logical(slot.param.data)
            slot.perturbation.update(slot, w, w, scaled, decay=decay, rounding=rounding)
            slot.keep(w)

    @staticmethod
    def steps(slot: Slot, steps: Sequence[tuple[Terms, float, Key]]) -> None:
        """`step` several times, in one pass over the weights of a parameter with dense noise.

        Args:
            slot: the parameter.
            steps: terms, learning rate and key for rounding of each.
        """
        changes = [(*_change(slot, terms, lr), rounding) for terms, lr, rounding in steps]
        changes = [change for change in changes if change[1] or change[0] != 1.0]
        if changes:
            w = slot.logical(slot.param.data)
            kernels.combine_sequence(w, changes, noise=slot.perturbation.noise, backend=slot.backend)
            slot.keep(w)


def _change(slot: Slot, terms: Terms, lr: float) -> tuple[float, list[tuple[float, Key]]]:
    """Decay and terms of a plain step."""
    scaled = [(c, key) for c, key in gained(slot, terms, -lr) if c != 0.0]
    return 1.0 - lr * slot.group["weight_decay"], scaled


def gained(slot: Slot, terms: Terms, factor: float = 1.0) -> list[tuple[float, Key]]:
    """The terms of factor * g, with the perturbation's gain."""
    factor *= slot.perturbation.gain
    return [(factor * w, key) for w, key in terms]


class _Stateful(Rule):
    """A rule with state as large as the weights: it turns g into a change, W <- (1 - lr wd) W - lr change.

    Args:
        storage: how the state is kept.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage, self.bits = storage, storage.bits

    def step(self, slot: Slot, terms: Terms, *, lr: float, rounding: Key) -> None:
        """See `Rule.step`."""
        decay = 1.0 - lr * slot.group["weight_decay"]
        w = slot.logical(slot.param.data)
        terms = gained(slot, terms)
        self.begin(slot)
        for part in self.parts(slot):
            change = self.change(slot, terms, part, rounding)
            if lr != 0.0 or decay != 1.0:
                rows = w if part is None else part.take(w)
                kernels.combine(
                    rows,
                    rows,
                    decay=decay,
                    dense=(-lr, change),
                    rounding=rounding,
                    backend=slot.backend,
                    **address(slot, part),
                )
        if lr != 0.0 or decay != 1.0:
            slot.keep(w)

    def parts(self, slot: Slot) -> Sequence[Part | None]:
        """What to work on at a time."""
        return parts(slot)

    def begin(self, slot: Slot) -> None:
        """Called once per step and parameter."""

    def change(self, slot: Slot, terms: Terms, part: Part | None, rounding: Key) -> Tensor:
        """Bring the state of a part up to date, and return the change of its weights, in the compute dtype."""
        raise NotImplementedError


class Momentum(_Stateful):
    """Heavy ball: M <- beta M + g;  W <- (1 - lr wd) W - lr M.  M has the shape of W.

    Args:
        beta: decay of M.
        storage: how M is kept; None is float32.
    """

    def __init__(self, beta: float, storage: Storage | None = None) -> None:
        super().__init__(storage or Storage())
        self.beta = beta

    def settings(self) -> dict[str, Any]:
        """See `Rule.settings`."""
        return {"momentum": self.beta}

    def parts(self, slot: Slot) -> Sequence[Part | None]:
        """All at once if M is float32, since nothing else is needed then."""
        return super().parts(slot) if self.bits < 32 else [None]

    def change(self, slot: Slot, terms: Terms, part: Part | None, rounding: Key) -> Tensor:
        """M as it is before it is rounded to its storage."""
        momentum = self.storage.load(slot, "momentum", part)
        slot.perturbation.update(slot, momentum, momentum, terms, decay=self.beta, part=part)
        self.storage.save(slot, "momentum", momentum, part, rounding)
        return momentum


class Adam(_Stateful):
    """Adam (Kingma & Ba 2015) on the gradient estimate, with bias correction and decoupled weight decay.

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  W <- (1 - lr wd) W - lr (m / (1 - b1^t)) / (sqrt(v / (1 -
    b2^t)) + adam_eps).

    Args:
        betas: (b1, b2).
        adam_eps: added to the root.
        storage: how m and v are kept; None is float32.
    """

    def __init__(self, betas: tuple[float, float], adam_eps: float, storage: Storage | None = None) -> None:
        super().__init__(storage or Storage())
        self.betas, self.adam_eps = betas, adam_eps

    def settings(self) -> dict[str, Any]:
        """See `Rule.settings`."""
        return {"betas": tuple(self.betas), "adam_eps": self.adam_eps}

    def begin(self, slot: Slot) -> None:
        """Count the steps of this parameter, t of the equations."""
        slot.state["adam_steps"] = slot.state.get("adam_steps", 0) + 1

    def change(self, slot: Slot, terms: Terms, part: Part | None, rounding: Key) -> Tensor:
        """See `_Stateful.change`; the moments are used as they are before they are rounded to their storage."""
        (b1, b2), t = self.betas, slot.state["adam_steps"]
        m, v = (self.storage.load(slot, name, part) for name in ("m", "v"))
        g = torch.empty_like(m)
        slot.perturbation.update(slot, g, None, terms, part=part)
        m.mul_(b1).add_(g, alpha=1.0 - b1)
        v.mul_(b2).addcmul_(g, g, value=1.0 - b2)
        self.storage.save(slot, "m", m, part, rounding)
        self.storage.save(slot, "v", v, part, rounding)
        root = torch.div(v, 1.0 - b2**t, out=g).sqrt_().add_(self.adam_eps)
        return torch.div(m, root, out=root).div_(1.0 - b1**t)
