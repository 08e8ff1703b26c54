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
| beta   | `momentum` | 0, the default, keeps no M   |
| r      | `rank`     | None: dense directions       |
| a      |            | (n,), float32; a_0 ~ N(0, I) |
| M      |            | as W, see `momentum_bits`    |

With ``rank = r`` (beyond the paper) U_k is replaced by U_k V^T / sqrt(r), U_k of shape (m, r), and V of shape (n, r)
fresh every step and shared by its queries, which then share one forward; all else stays.

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
from zotune.checks import check_count, check_number, check_unit_interval
from zotune.estimators import LeaveOneOut
from zotune.evaluators import Evaluator, Stacked
from zotune.low_bit import STORAGES
from zotune.methods.lozo import LowRank
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

    def settings(self) -> dict[str, Any]:
        """See `Perturbation.settings`."""
        return {**super().settings(), "damping": self.damping}

    def refresh(self, slot: Slot, step: int) -> None:  # noqa: ARG002
        """Start with a_0 ~ N(0, I)."""
        if "a" not in slot.state:
            key = slot.key.at(step=0, tag="a")
            slot.state["a"] = normal(key, (slot.shape[1],), device=slot.param.device, dtype=slot.dtype)
        if slot.memo.get("a") is not slot.state["a"]:
            slot.memo.update(a=slot.state["a"], factors=self.factors(slot.state["a"]))

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

    def update(
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
        """`combine`; of the whole matrix, the sums for g_a come from the same noise."""
        if part is not None or "advantages" not in slot.memo:
            self.combine(slot, out, w, terms, decay=decay, rounding=rounding, part=part)
            return
        slot.memo["sums"] = kernels.combine_with_gram(
            out,
            w,
            decay=decay,
            terms=terms,
            gram=[slot.memo["advantages"][key.query] for _, key in terms],
            noise=self.noise,
            rank_one=(slot.memo["factors"][2], slot.state["a"]),
            rounding=rounding,
            backend=slot.backend,
        )

    @staticmethod
    def advantages(slot: Slot, weights: Sequence[float]) -> list[float]:
        """A_k / (K - 1)."""
        return [w * slot.group["eps"] for w in weights]

    def after_losses(self, slot: Slot, step: int, weights: Sequence[float], losses: Sequence[float]) -> None:  # noqa: ARG002
        """Note the advantages, if a is to be learnt."""
        slot.memo.pop("sums", None)
        slot.memo.pop("advantages", None)
        if slot.group["lr_cov"] != 0.0:
            slot.memo["advantages"] = self.advantages(slot, weights)

    def after_update(self, slot: Slot, step: int, weights: Sequence[float]) -> None:
        """a <- a - nu g_a."""
        a, lr_cov = slot.state["a"], slot.group["lr_cov"]
        if lr_cov == 0.0:
            return
        _, t, b = slot.memo["factors"]
        root = math.sqrt(self.damping)
        slot.memo.pop("advantages", None)
        advantages = self.advantages(slot, weights)
        if "sums" in slot.memo:
            q, p = slot.memo.pop("sums")
        else:
            terms = [(A, slot.key.at(step=step, query=k)) for k, A in enumerate(advantages)]
            q, p = kernels.row_gram(terms, a, slot.shape[0], noise=self.noise, backend=slot.backend)
        self.learn(slot, advantages, (q - a * (b * p)) * (root / t))

    def learn(self, slot: Slot, advantages: Sequence[float], products: Tensor) -> None:
        """a <- a - nu g_a, with products = sum_k A_k / (K - 1) D_k^T D_k a, shape (n,)."""
        a: Tensor = slot.state["a"]
        prior = math.fsum(advantages) * slot.shape[0] / (self.damping + slot.memo["factors"][0])
        slot.state["a"] = a - (a * prior - products / self.damping) * slot.group["lr_cov"]


class LowRankCovariance(LowRank):
    """D(U) = U B^T, B = (V - b a (a^T V)) / sqrt(r): directions of rank r with the covariance of `RankOneCovariance`.

    U has shape (m, r), and V, shape (n, r) and fresh every step, serves all queries of a step: they share one forward.
    """

    def __init__(self, damping: float, rank: int, noise: Noise = "gaussian") -> None:
        super().__init__(rank, 1, noise)
        self.gain = 1.0
        self.curvature = RankOneCovariance(damping, noise)

    def settings(self) -> dict[str, Any]:
        """See `Perturbation.settings`."""
        return {**super().settings(), "damping": self.curvature.damping}

    def refresh(self, slot: Slot, step: int) -> None:
        """See `Perturbation.refresh`."""
        self.curvature.refresh(slot, step)
        super().refresh(slot, step)

    def basis(self, slot: Slot, block: int) -> Tensor:
        """B, (n, r)."""
        a, v = slot.state["a"], super().basis(slot, block)
        if slot.memo.get("curved") is not v or slot.memo.get("curved_by") is not a:
            projection = kernels.tree_sum(v * a[:, None], 0) * slot.memo["factors"][2]
            slot.memo.update(curved=v, curved_by=a, B=(v - a[:, None] * projection) * (1.0 / math.sqrt(self.rank)))
        basis: Tensor = slot.memo["B"]
        return basis

    def after_update(self, slot: Slot, step: int, weights: Sequence[float]) -> None:
        """a <- a - nu g_a, with D^T D a = B U^T U B^T a."""
        if slot.group["lr_cov"] == 0.0:
            return
        advantages = self.curvature.advantages(slot, weights)
        directions = [[(1.0, slot.key.at(step=step, query=k))] for k in range(len(weights))]
        u, _ = self.low_rank(slot, directions)
        b = self.basis(slot, step)
        inner = kernels.tree_sum(b * slot.state["a"][:, None], 0)  # B^T a
        images = sum(u[:, :, j] * inner[j] for j in range(self.rank))  # U_k B^T a, (K, m)
        assert isinstance(images, Tensor)
        sums = kernels.tree_sum(u * images.unsqueeze(2), 1)  # (K, r)
        total = sum(sums[k] * A for k, A in enumerate(advantages))
        assert isinstance(total, Tensor)
        products = sum(b[:, j] * total[j] for j in range(self.rank))
        assert isinstance(products, Tensor)
        self.curvature.learn(slot, advantages, products)


class LOREN(ZerothOrder):
    """Zeroth-order descent with learnt rank-one curvature and leave-one-out losses, see `zotune.methods.loren`.

    Cost: ``queries`` forward passes; per matrix n numbers; with ``momentum`` 4, 2 or 1.02 bytes per weight.

    Args:
        params: see `zotune.optimizer.ZerothOrder`.
        lr: learning rate eta.
        eps: perturbation scale.
        queries: K, 2 or more.
        damping: rho.
        lr_cov: learning rate nu of a.
        momentum: beta; 0 switches the buffer off.
        momentum_bits: of a number of M: 32, 16 (bfloat16, rounded stochastically) or 8 (numbers in blocks that share a
            scale).
        rank: r of low-rank directions, whose queries share one forward; None is the paper's dense noise.
        weight_decay: decoupled.
        noise: distribution of the entries of U.
        seed: of all random numbers.
        backend: kernel backend; None chooses.
        evaluator: how losses are obtained; None is the overlay, and with ``rank`` `zotune.Stacked`.
        clip: bound on the norm of the projected gradient; it scales the gradient of a as well.

    Raises:
        ValueError: if a value is out of range.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(6, 4))
        >>> optimizer = LOREN([weight], lr=1e-2)
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
        momentum: float = 0.0,
        momentum_bits: int = 32,
        rank: int | None = None,
        weight_decay: float = 0.0,
        noise: Noise = "gaussian",
        seed: int = 0,
        backend: str | None = None,
        evaluator: Evaluator | None = None,
        clip: float | None = None,
    ) -> None:
        check_number("damping", damping, above=0.0)
        check_unit_interval("momentum", momentum)
        if rank is not None:
            check_count("rank", rank)
        if type(momentum_bits) is not int or momentum_bits not in STORAGES:
            raise ValueError(f"momentum_bits={momentum_bits!r}: choose 8, 16 or 32")
        defaults: dict[str, Any] = {"lr": lr, "eps": eps, "weight_decay": weight_decay, "lr_cov": lr_cov}
        super().__init__(
            params,
            defaults,
            estimator=LeaveOneOut(queries),
            matrix=RankOneCovariance(damping, noise) if rank is None else LowRankCovariance(damping, rank, noise),
            vector=Dense(noise),
            rule=Momentum(momentum, STORAGES[momentum_bits]()) if momentum else SGD(),
            seed=seed,
            backend=backend,
            evaluator=evaluator if evaluator is not None or rank is None else Stacked(),
            clip=clip,
        )

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        check_number("lr_cov", group["lr_cov"], at_least=0.0)
