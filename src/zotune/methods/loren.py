"""LOREN: directions from a learnt low-rank curvature, with leave-one-out losses.

Seung et al. 2026, AAAI, arXiv 2511.07971.  For each matrix (m, n) a vector a in R^n; rows of a direction have
precision proportional to rho I + a a^T.  With s = |a|^2 and t = sqrt(rho + s):

    U_k ~ N(0, 1)^{m x n}
    D(U) = U - b (U a) a^T,   b = 1 / (t (t + sqrt(rho)))          rows of D ~ N(0, rho (rho I + a a^T)^{-1})
    f_k = f(W + eps D(U_k)),   A_k = f_k - mean_j f_j              all K queries at the same W and a
    g_W = 1/(eps (K-1)) sum_k A_k D(U_k)
    g_a = 1/(K-1) sum_k A_k grad_a log p(D_k),   grad_a log p(D) = m a / (rho + s) - D^T (D a) / rho
    M <- beta M + g_W,   W <- (1 - eta wd) W - eta M,   a <- a - nu g_a          once per step

| symbol | argument   | shape                        |
|--------|------------|------------------------------|
| eta    | `lr`       |                              |
| eps    | `eps`      |                              |
| K      | `queries`  |                              |
| rho    | `damping`  |                              |
| nu     | `lr_cov`   |                              |
| beta   | `momentum` | 0 keeps no M                 |
| a      |            | (n,), float32; a_0 ~ N(0, I) |
| M      |            | as W, float32                |

Vectors (biases, norm gains) use isotropic noise.  Computed from the noise alone: D_k a = (sqrt(rho) / t) U_k a, so
D_k^T D_k a = (sqrt(rho) / t) (U_k^T U_k a - b |U_k a|^2 a), and no direction is ever stored.

The form of b above is that of (1 - sqrt(rho) / t) / s without the division by s, which in float32 gives 0 instead of
the limit 1 / (2 rho) near a = 0.

Differences from the released code: there, one vector serves the whole flattened layer; a, the momentum and the weight
decay change between the queries of a step; the gradient of a carries an extra factor of order eps^2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from zotune import kernels
from zotune.checks import check_number, check_unit_interval
from zotune.estimators import LeaveOneOut
from zotune.evaluators import Evaluator
from zotune.noise import Key, Noise, normal
from zotune.optimizer import ParamsT, ZerothOrder
from zotune.perturbations import Dense, Part, Perturbation, Slot, Terms, address
from zotune.rules import SGD, Momentum


class RankOneCovariance(Perturbation):
    """D(U) = U - b (U a) a^T, with a learnt from the losses."""

    matrix = True

    def __init__(self, damping: float, noise: Noise = "gaussian") -> None:
        super().__init__(noise)
        self.damping = damping

    def refresh(self, slot: Slot, step: int) -> None:  # noqa: ARG002
        """Start with a_0 ~ N(0, I)."""
        if "a" not in slot.state:
            key = slot.key.at(step=0, tag="a")
            slot.state["a"] = normal(key, (slot.shape[1],), device=slot.param.device, dtype=slot.dtype)
        if slot.memo.get("a") is not slot.state["a"]:
            slot.memo = {"a": slot.state["a"], "factors": self.factors(slot.state["a"])}

    def factors(self, a: Tensor) -> tuple[float, float, float]:
        """(s, t, b) of the equations."""
        s = float(kernels.tree_sum(a * a, 0))
        t = math.sqrt(self.damping + s)
        return s, t, 1.0 / (t * (t + math.sqrt(self.damping)))

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
        """See `Perturbation.combine`."""
        kernels.combine_rows(
            out,
            w,
            decay=decay,
            terms=terms,
            noise=self.noise,
            rank_one=(slot.memo["factors"][2], slot.state["a"]),
            rounding=rounding,
            backend=slot.backend,
            **address(slot, part),
        )

    def after_update(self, slot: Slot, step: int, weights: Sequence[float]) -> None:
        """a <- a - nu g_a."""
        a, lr_cov = slot.state["a"], slot.group["lr_cov"]
        if lr_cov == 0.0:
            return
        s, t, b = slot.memo["factors"]
        root = math.sqrt(self.damping)
        advantages = [w * slot.group["eps"] for w in weights]  # A_k / (K - 1)
        terms = [(A, slot.key.at(step=step, query=k)) for k, A in enumerate(advantages)]
        q, p = kernels.row_gram(terms, a, slot.shape[0], noise=self.noise, backend=slot.backend)
        prior = math.fsum(advantages) * slot.shape[0] / (self.damping + s)
        g_a = a * prior - (q - a * (b * p)) * (root / t / self.damping)
        slot.state["a"] = a - g_a * lr_cov


class LOREN(ZerothOrder):
    """Zeroth-order descent with learnt rank-one curvature and leave-one-out losses, see `zotune.methods.loren`.

    Cost: ``queries`` forward passes; per matrix n numbers, and one float32 tensor per parameter when ``momentum`` is
    on.

    Args:
        params: see `zotune.optimizer.ZerothOrder`.
        lr: learning rate eta.
        eps: perturbation scale.
        queries: K, 2 or more.
        damping: rho.
        lr_cov: learning rate nu of a.
        momentum: beta; 0 switches the buffer off.
        weight_decay: decoupled.
        noise: distribution of the entries of U.
        seed: of all random numbers.
        backend: kernel backend; None chooses.
        evaluator: how losses are obtained; None is the overlay.
        clip: bound on the norm of the projected gradient; it scales the gradient of a as well.

    Raises:
        ValueError: if a value is out of range.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(6, 4))
        >>> optimizer = LOREN([weight], lr=1e-3)
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
        queries: int = 6,
        damping: float = 0.1,
        lr_cov: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        noise: Noise = "gaussian",
        seed: int = 0,
        backend: str | None = None,
        evaluator: Evaluator | None = None,
        clip: float | None = None,
    ) -> None:
        check_number("damping", damping, above=0.0)
        check_unit_interval("momentum", momentum)
        defaults: dict[str, Any] = {"lr": lr, "eps": eps, "weight_decay": weight_decay, "lr_cov": lr_cov}
        super().__init__(
            params,
            defaults,
            estimator=LeaveOneOut(queries),
            matrix=RankOneCovariance(damping, noise),
            vector=Dense(noise),
            rule=Momentum(momentum) if momentum else SGD(),
            seed=seed,
            backend=backend,
            evaluator=evaluator,
            clip=clip,
        )

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        check_number("lr_cov", group["lr_cov"], at_least=0.0)
