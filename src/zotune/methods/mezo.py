"""MeZO and ZO-Adam: zeroth-order descent with the memory of inference (Malladi et al. 2023, arXiv 2305.17333).

For each of K directions, all at the same W:

    z_k ~ N(0, I),   c_k = (f(W + eps z_k) - f(W - eps z_k)) / (2 eps),   g = 1/K sum_k c_k z_k

    MeZO:              W <- (1 - eta wd) W - eta g
    with momentum:     M <- beta M + g,   W <- (1 - eta wd) W - eta M
    ZO-Adam:           Adam on g, with bias correction and decoupled weight decay

| symbol | argument       | shape                         |
|--------|----------------|-------------------------------|
| eta    | `lr`           |                               |
| eps    | `eps`          | the scale of the perturbation |
| 2 K    | `queries`      | forward passes per step       |
| beta   | `momentum`     |                               |
| M      |                | as W (only when beta > 0)     |
| wd     | `weight_decay` |                               |

Differences from the released code: all K directions are taken at the same weights and make one update; the weights
are never written by a query; Adam's moments see the whole gradient estimate once per step.
"""

from __future__ import annotations

from typing import Any

from zotune.checks import check_number, check_unit_interval
from zotune.estimators import TwoPoint
from zotune.evaluators import Evaluator
from zotune.noise import Noise
from zotune.optimizer import ParamsT, ZerothOrder
from zotune.perturbations import Dense
from zotune.rules import SGD, Adam, Momentum


class MeZO(ZerothOrder):
    """Two-point zeroth-order descent (ZO-SGD), see the equations of `zotune.methods.mezo`.

    Cost: ``queries`` forward passes; no state, or one float32 tensor per parameter with momentum.

    Args:
        params: see `zotune.optimizer.ZerothOrder`.
        lr: learning rate eta.
        eps: perturbation scale.
        queries: forward passes per step, even.
        momentum: heavy-ball factor beta; 0 keeps no buffer.
        weight_decay: decoupled.
        noise: "gaussian" or "rademacher".
        seed: of all random numbers.
        backend: kernel backend; None chooses.
        evaluator: how losses are obtained; None is the overlay.
        clip: bound on the norm of the projected gradient.

    Raises:
        ValueError: if a value is out of range.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(8))
        >>> optimizer = MeZO([weight], lr=0.05)
        >>> for _ in range(200):
        ...     loss = optimizer.step(lambda: weight.square().sum())
        >>> bool(weight.square().sum() < 0.1)
        True
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        eps: float = 1e-3,
        queries: int = 2,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        noise: Noise = "gaussian",
        seed: int = 0,
        backend: str | None = None,
        evaluator: Evaluator | None = None,
        clip: float | None = None,
    ) -> None:
        check_unit_interval("momentum", momentum)
        defaults: dict[str, Any] = {"lr": lr, "eps": eps, "weight_decay": weight_decay}
        super().__init__(
            params,
            defaults,
            estimator=TwoPoint(queries),
            matrix=Dense(noise),
            rule=Momentum(momentum) if momentum else SGD(),
            seed=seed,
            backend=backend,
            evaluator=evaluator,
            clip=clip,
        )


class ZOAdam(ZerothOrder):
    """Adam on the zeroth-order gradient estimate, see the equations of `zotune.methods.mezo`.

    Cost: ``queries`` forward passes; two float32 tensors per parameter, or about 2.03 bytes per weight with ``bits=8``.

    Args:
        params: see `zotune.optimizer.ZerothOrder`.
        lr: learning rate.
        eps: perturbation scale (Adam's own epsilon is ``adam_eps``).
        queries: forward passes per step, even.
        betas: decays of the two moments.
        adam_eps: added to the root of the second moment.
        bits: 32, or 8 for block-wise quantised moments (needs bitsandbytes).
        weight_decay: decoupled.
        noise: "gaussian" or "rademacher".
        seed: of all random numbers.
        backend: kernel backend; None chooses.
        evaluator: how losses are obtained; None is the overlay.
        clip: bound on the norm of the projected gradient.

    Raises:
        ValueError: if a value is out of range, or bitsandbytes is missing for ``bits=8``.
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        eps: float = 1e-3,
        queries: int = 2,
        betas: tuple[float, float] = (0.9, 0.999),
        adam_eps: float = 1e-8,
        bits: int = 32,
        weight_decay: float = 0.0,
        noise: Noise = "gaussian",
        seed: int = 0,
        backend: str | None = None,
        evaluator: Evaluator | None = None,
        clip: float | None = None,
    ) -> None:
        if bits not in (8, 32):
            raise ValueError(f"bits={bits!r}: the moments are kept in 32 or 8 bits")
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"betas={betas!r}: give the decays of the first and of the second moment")
        for beta in betas:
            check_unit_interval("betas", beta)
        check_number("adam_eps", adam_eps, above=0.0)
        storage = None
        if bits == 8:
            from zotune.low_bit import Dynamic8

            storage = Dynamic8()
        defaults: dict[str, Any] = {"lr": lr, "eps": eps, "weight_decay": weight_decay}
        super().__init__(
            params,
            defaults,
            estimator=TwoPoint(queries),
            matrix=Dense(noise),
            rule=Adam((float(betas[0]), float(betas[1])), adam_eps, storage),
            seed=seed,
            backend=backend,
            evaluator=evaluator,
            clip=clip,
        )
