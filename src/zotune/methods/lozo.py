"""LOZO and LOZO-M: low-rank directions (Chen et al. 2025, ICLR, arXiv 2410.07698).

    U_k ~ N(0, 1)^{m x r} fresh every step,   V ~ N(0, 1)^{n x r} redrawn every nu steps
    c_k = (f(W + eps U_k V^T) - f(W - eps U_k V^T)) / (2 eps)

    LOZO:     W <- (1 - eta wd) W - eta 1/K sum_k c_k U_k V^T / r
    LOZO-M:   N <- beta N + (1 - beta) 1/K sum_k c_k U_k,   W <- (1 - eta wd) W - eta N V^T / r
              when V changes, before the update:  N <- N V_old^T V_new / n

| symbol | argument   | shape                           |
|--------|------------|---------------------------------|
| eta    | `lr`       |                                 |
| eps    | `eps`      |                                 |
| r      | `rank`     |                                 |
| nu     | `period`   |                                 |
| beta   | `momentum` | 0 is LOZO, above 0 is LOZO-M    |
| V      |            | (n, r), recomputed from its key |
| N      |            | (m, r)                          |
| 2 K    | `queries`  |                                 |

Vectors (biases, norm gains) use dense noise, without the factor 1/r.  Queries never write the directions out: they are
added to the layers' outputs, several queries in one forward, see `zotune.evaluators.stacked`.

Differences from the released code: there, V and U share one random stream, so that on every nu-th step the update
follows another U than the one that was evaluated; and the factor 1/r is left out, so a learning rate for that code
corresponds to r times as much here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zotune import kernels
from zotune.checks import check_count, check_unit_interval
from zotune.estimators import TwoPoint
from zotune.evaluators import Evaluator, Stacked
from zotune.noise import Key, Noise, normal, rademacher
from zotune.optimizer import ParamsT, ZerothOrder
from zotune.perturbations import Part, Perturbation, Slot, Terms, address
from zotune.rules import SGD, Rule


class LowRank(Perturbation):
    """D(U) = U V^T with U of shape (m, r) fresh every step and V of shape (n, r) fresh every ``period`` steps."""

    matrix = True

    def __init__(self, rank: int, period: int, noise: Noise = "gaussian") -> None:
        super().__init__(noise)
        self.rank, self.period, self.gain = rank, period, 1.0 / rank

    def settings(self) -> dict[str, Any]:
        """See `Perturbation.settings`."""
        return {**super().settings(), "period": self.period}

    def basis(self, slot: Slot, block: int) -> Tensor:
        """V of the given block of steps, (n, r): a function of its key; kept for the block, never saved."""
        if slot.memo.get("block") != block:
            draw = normal if self.noise == "gaussian" else rademacher
            key = slot.key.at(step=block, tag="V")
            v = draw(key, (slot.shape[1], self.rank), device=slot.param.device, dtype=slot.dtype)
            slot.memo.update(block=block, V=v)
        basis: Tensor = slot.memo["V"]
        return basis

    def refresh(self, slot: Slot, step: int) -> None:
        """Carry the momentum N into the new basis when V changes."""
        block = step // self.period
        old = slot.state.get("block")
        if "coordinates" in slot.state and old is not None and old != block:
            v_old, v_new = self.basis(slot, old), self.basis(slot, block)
            overlap = kernels.tree_sum(v_old[:, :, None] * v_new[:, None, :], 0) / slot.shape[1]
            momentum = slot.state["coordinates"]
            slot.state["coordinates"] = sum(momentum[:, k : k + 1] * overlap[k] for k in range(self.rank))
        slot.state["block"] = block

    def coordinates_shape(self, slot: Slot) -> torch.Size:
        """(m, r)."""
        return torch.Size((slot.shape[0], self.rank))

    def combine(
        self,
        slot: Slot,
        out: Tensor,
        w: Tensor | None,
        terms: Terms,
        *,
        decay: float = 1.0,
        rounding: Key | None = None,
        part: Part | None = None,
    ) -> None:
        """See `Perturbation.combine`: the coordinates are added first, then one rank-r product."""
        u = torch.zeros(self.coordinates_shape(slot), dtype=slot.dtype, device=slot.param.device)
        self.combine_coordinates(slot, u, terms, decay=1.0)
        self._expand(slot, out, w, u if part is None else part.take(u), decay, rounding, part)

    def low_rank(self, slot: Slot, directions: Sequence[Terms]) -> tuple[Tensor, Tensor]:
        """See `Perturbation.low_rank`: one V serves all."""
        u = torch.zeros((len(directions), *self.coordinates_shape(slot)), dtype=slot.dtype, device=slot.param.device)
        for number, terms in enumerate(directions):
            before = directions[number - 1]
            if number and [(-c, key) for c, key in before] == terms:  # the other side of the same direction
                torch.neg(u[number - 1], out=u[number])
            elif terms:
                self.combine_coordinates(slot, u[number], terms, decay=1.0)
        return u, self.basis(slot, slot.state["block"]).unsqueeze(0)

    def add_coordinates(
        self, slot: Slot, w: Tensor, x: Tensor, *, scale: float, decay: float, rounding: Key | None
    ) -> None:
        """See `Perturbation.add_coordinates`."""
        self._expand(slot, w, w, x * scale, decay, rounding)

    def _expand(
        self,
        slot: Slot,
        out: Tensor,
        w: Tensor | None,
        u: Tensor,
        decay: float,
        rounding: Key | None,
        part: Part | None = None,
    ) -> None:
        kernels.combine_rows(
            out,
            w,
            decay=decay,
            low_rank=(u, self.basis(slot, slot.state["block"]).t()),
            rounding=rounding,
            backend=slot.backend,
            **address(slot, part),
        )


class CoordinateMomentum(Rule):
    """N <- beta N + (1 - beta) sum_k w_k x_k in the space of coordinates;  W <- (1 - lr wd) W - lr gain D(N)."""

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def settings(self) -> dict[str, Any]:
        """See `Rule.settings`."""
        return {"momentum": self.beta}

    def step(self, slot: Slot, terms: Terms, *, lr: float, rounding: Key) -> None:
        """See `Rule.step`."""
        perturbation = slot.perturbation
        momentum = slot.state.get("coordinates")
        if momentum is None:
            shape = perturbation.coordinates_shape(slot)
            momentum = slot.state["coordinates"] = torch.zeros(shape, dtype=slot.dtype, device=slot.param.device)
        own = [((1.0 - self.beta) * w, key) for w, key in terms]
        perturbation.combine_coordinates(slot, momentum, own, decay=self.beta)
        decay = 1.0 - lr * slot.group["weight_decay"]
        if lr != 0.0 or decay != 1.0:
            w, scale = slot.logical(slot.param.data), -lr * perturbation.gain
            perturbation.add_coordinates(slot, w, momentum, scale=scale, decay=decay, rounding=rounding)
            slot.keep(w)


class LOZO(ZerothOrder):
    """Low-rank zeroth-order descent; with ``momentum`` above 0 it is LOZO-M.  See `zotune.methods.lozo`.

    Cost: ``queries`` forward passes; no state, or r numbers per row of each matrix with momentum.

    Args:
        params: see `zotune.optimizer.ZerothOrder`.
        lr: learning rate eta.
        eps: perturbation scale.
        rank: r.
        period: nu, the number of steps with the same V.
        momentum: beta.
        queries: forward passes per step, even.
        weight_decay: decoupled.
        noise: distribution of the entries of U and V.
        seed: of all random numbers.
        backend: kernel backend; None chooses.
        evaluator: how losses are obtained; None is `zotune.Stacked`.
        clip: bound on the norm of the projected gradient.

    Raises:
        ValueError: if a value is out of range.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(6, 4))
        >>> optimizer = LOZO([weight], lr=0.02, period=5)
        >>> for _ in range(300):
        ...     loss = optimizer.step(lambda: weight.square().sum())
        >>> bool(weight.square().sum() < 1.0)
        True
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        eps: float = 1e-3,
        rank: int = 2,
        period: int = 50,
        momentum: float = 0.0,
        queries: int = 2,
        weight_decay: float = 0.0,
        noise: Noise = "gaussian",
        seed: int = 0,
        backend: str | None = None,
        evaluator: Evaluator | None = None,
        clip: float | None = None,
    ) -> None:
        check_count("rank", rank)
        check_count("period", period)
        check_unit_interval("momentum", momentum)
        defaults: dict[str, Any] = {"lr": lr, "eps": eps, "weight_decay": weight_decay}
        super().__init__(
            params,
            defaults,
            estimator=TwoPoint(queries),
            matrix=LowRank(rank, period, noise),
            rule=CoordinateMomentum(momentum) if momentum else SGD(),
            seed=seed,
            backend=backend,
            evaluator=evaluator or Stacked(),
            clip=clip,
        )
