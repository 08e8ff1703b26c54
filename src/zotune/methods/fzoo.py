"""FZOO: one-sided sign directions, the step divided by the spread of the losses (Dang et al. 2025, arXiv 2506.09034).

    u_k in {-1, +1}^d,   f_0 = f(W),   f_k = f(W + eps u_k),   k = 1 .. K
    g = 1/(eps K) sum_k (f_k - f_0) u_k,   W <- (1 - eta wd) W - eta g / std(f_1 .. f_K)

| symbol | argument  | shape |
|--------|-----------|-------|
| eta    | `lr`      |       |
| eps    | `eps`     |       |
| 1 + K  | `queries` |       |

The standard deviation is the sample's (division by K - 1).  When all losses are equal there is no direction and
nothing is written.
"""

from __future__ import annotations

from typing import Any

from zotune.estimators import OneSidedNormalised
from zotune.evaluators import Evaluator
from zotune.noise import Noise
from zotune.optimizer import ParamsT, ZerothOrder
from zotune.perturbations import Dense
from zotune.rules import SGD


class FZOO(ZerothOrder):
    """Normalised one-sided zeroth-order descent, see `zotune.methods.fzoo`.

    Cost: ``queries`` forward passes; no state.

    Args:
        params: see `zotune.optimizer.ZerothOrder`.
        lr: learning rate eta; the estimate is already divided by the losses' spread.
        eps: perturbation scale.
        queries: f(W) and at least two directions, 3 or more.
        weight_decay: decoupled.
        noise: "rademacher" as published, or "gaussian".
        seed: of all random numbers.
        backend: kernel backend; None chooses.
        evaluator: how losses are obtained; None is the overlay.
        clip: bound on sqrt(K) times the norm of the normalised weights, which is about 1 / eps whatever the gradient.

    Raises:
        ValueError: if a value is out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        eps: float = 1e-3,
        queries: int = 8,
        weight_decay: float = 0.0,
        noise: Noise = "rademacher",
        seed: int = 0,
        backend: str | None = None,
        evaluator: Evaluator | None = None,
        clip: float | None = None,
    ) -> None:
        defaults: dict[str, Any] = {"lr": lr, "eps": eps, "weight_decay": weight_decay}
        super().__init__(
            params,
            defaults,
            estimator=OneSidedNormalised(queries),
            matrix=Dense(noise),
            rule=SGD(),
            seed=seed,
            backend=backend,
            evaluator=evaluator,
            clip=clip,
        )
