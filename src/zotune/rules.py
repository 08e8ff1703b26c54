"""Update rules: what is done with the gradient estimate g = sum_k w_k D(x_k).

Weight decay is decoupled: W <- (1 - lr * weight_decay) W - lr * (...), once per step.  Half-precision weights are
rounded stochastically. An update that would write the same numbers is not written at all: with ``lr=0`` the weights
keep their bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zotune import kernels
from zotune.noise import Key
from zotune.perturbations import Slot, Terms

if TYPE_CHECKING:
    from zotune.low_bit import BlockwiseCodec


class Rule:
    """Base class."""

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
        decay = 1.0 - lr * slot.group["weight_decay"]
        scaled = [(c, key) for c, key in gained(slot, terms, -lr) if c != 0.0]
        if scaled or decay != 1.0:
            w = slot.logical(slot.param.data)
            slot.perturbation.combine(slot, w, w, scaled, decay=decay, rounding=rounding)
            slot.keep(w)


def gained(slot: Slot, terms: Terms, factor: float = 1.0) -> list[tuple[float, Key]]:
    """The terms of factor * g, with the perturbation's gain."""
    factor *= slot.perturbation.gain
    return [(factor * w, key) for w, key in terms]


def _write(slot: Slot, change: Tensor, *, lr: float, rounding: Key) -> None:
    """W <- (1 - lr wd) W - lr * change, with ``change`` shaped as the logical weights."""
    decay = 1.0 - lr * slot.group["weight_decay"]
    if lr != 0.0 or decay != 1.0:
        w = slot.logical(slot.param.data)
        kernels.combine(w, w, decay=decay, dense=(-lr, change), rounding=rounding, backend=slot.backend)
        slot.keep(w)


class Momentum(Rule):
    """Heavy ball: M <- beta M + g;  W <- (1 - lr wd) W - lr M.  M has the shape of W, in float32.

    Args:
        beta: decay of M.
    """

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def step(self, slot: Slot, terms: Terms, *, lr: float, rounding: Key) -> None:
        """See `Rule.step`."""
        momentum = slot.state.get("momentum")
        if momentum is None:
            momentum = slot.state["momentum"] = torch.zeros(slot.shape, dtype=slot.dtype, device=slot.param.device)
        slot.perturbation.combine(slot, momentum, momentum, gained(slot, terms), decay=self.beta)
        _write(slot, momentum, lr=lr, rounding=rounding)


class Adam(Rule):
    """Adam (Kingma & Ba 2015) on the gradient estimate, with bias correction and decoupled weight decay.

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  W <- (1 - lr wd) W - lr (m / (1 - b1^t)) / (sqrt(v / (1 -
    b2^t)) + adam_eps).

    Args:
        betas: (b1, b2).
        adam_eps: added to the root.
        codec: None keeps m and v in float32; otherwise they are stored as the codec's 8-bit blocks.
    """

    def __init__(self, betas: tuple[float, float], adam_eps: float, codec: BlockwiseCodec | None = None) -> None:
        self.betas, self.adam_eps, self.codec = betas, adam_eps, codec

    def step(self, slot: Slot, terms: Terms, *, lr: float, rounding: Key) -> None:
        """See `Rule.step`."""
        state, (b1, b2) = slot.state, self.betas
        t = state["adam_steps"] = state.get("adam_steps", 0) + 1
        m, v = self._load(slot, "m"), self._load(slot, "v")
        g = torch.empty(slot.shape, dtype=slot.dtype, device=slot.param.device)
        slot.perturbation.combine(slot, g, None, gained(slot, terms))
        m.mul_(b1).add_(g, alpha=1.0 - b1)
        v.mul_(b2).addcmul_(g, g, value=1.0 - b2)
        self._save(slot, "m", m)
        self._save(slot, "v", v)
        root = (v / (1.0 - b2**t)).sqrt_().add_(self.adam_eps)
        change = torch.div(m, root, out=g).div_(1.0 - b1**t)
        _write(slot, change, lr=lr, rounding=rounding)

    def _load(self, slot: Slot, name: str) -> Tensor:
        if self.codec is not None and self.codec.covers(slot):
            return self.codec.load(slot, name)
        if name not in slot.state:
            slot.state[name] = torch.zeros(slot.shape, dtype=slot.dtype, device=slot.param.device)
        tensor: Tensor = slot.state[name]
        return tensor

    def _save(self, slot: Slot, name: str, value: Tensor) -> None:
        if self.codec is not None and self.codec.covers(slot):
            self.codec.save(slot, name, value)
