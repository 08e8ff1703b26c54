"""HiZOO: directions scaled by a running estimate of the diagonal Hessian (Zhao et al. 2025, ICLR, arXiv 2402.15173).

    H = 1 at first;   d_k = H^{-1/2} u_k,   u_k ~ N(0, I)
    f_0 = f(W),   f_k+- = f(W +- eps d_k)
    H <- (1 - alpha) H + alpha 1/K sum_k |f_k+ + f_k- - 2 f_0| / (2 eps^2) H (u_k * u_k)
    W <- (1 - eta wd) W - eta 1/K sum_k (f_k+ - f_k-) / (2 eps) H^{-1/2} u_k      with the new H

| symbol  | argument    | shape                           |
|---------|-------------|---------------------------------|
| eta     | `lr`        |                                 |
| eps     | `eps`       |                                 |
| 1 + 2 K | `queries`   | f_0 is shared by all directions |
| alpha   | `smoothing` | a name, see `SMOOTHINGS`        |
| H       |             | as W, float32                   |

H covers all parameters, vectors too.

Differences from the released code: several directions are averaged at the same weights (there, each has its own f_0
and updates H at once).  Its schedules of alpha are those that it can call: the constants and ``constant_decay1``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zotune import kernels
from zotune.estimators import ThreePoint
from zotune.evaluators import Evaluator
from zotune.noise import Key, Noise
from zotune.optimizer import ParamsT, ZerothOrder
from zotune.perturbations import Part, Perturbation, Slot, Terms, address
from zotune.rules import SGD


def _constant(value: float, step: int) -> float:  # noqa: ARG001
    return value


def _decay(step: int) -> float:
    return 1e-6 if step < 9800 else 1e-8


SMOOTHINGS: dict[str, Callable[[int], float]] = {
    "constant0": partial(_constant, 0.0),
    **{f"constant1e-{n}": partial(_constant, 10.0**-n) for n in range(2, 13)},
    "constant_decay1": _decay,
}
"""alpha as a function of the step, by name: the constants and the two-stage schedule of the released code."""


class InverseRootHessian(Perturbation):
    """D(u) = H^{-1/2} u; keeps H."""

    def __init__(self, estimator: ThreePoint, smoothing: str, noise: Noise = "gaussian") -> None:
        super().__init__(noise)
        self._estimator, self._alpha, self._smoothing = estimator, SMOOTHINGS[smoothing], smoothing

    def settings(self) -> dict[str, Any]:
        """See `Perturbation.settings`."""
        return {**super().settings(), "smoothing": self._smoothing}

    def refresh(self, slot: Slot, step: int) -> None:  # noqa: ARG002
        """Start with H = 1."""
        if "hessian" not in slot.state:
            slot.state["hessian"] = torch.ones(slot.shape, dtype=slot.dtype, device=slot.param.device)

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
        hessian: Tensor = slot.state["hessian"]
        kernels.combine(
            out,
            w,
            decay=decay,
            terms=terms,
            noise=self.noise,
            precision=hessian if part is None else part.take(hessian),
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
        """`combine` with the new H; of the whole parameter, both come from the same noise."""
        squares: Terms = slot.memo.get("squares", ())
        if part is not None or not squares or [key for _, key in squares] != [key for _, key in terms]:
            self._adapt(slot)
            self.combine(slot, out, w, terms, decay=decay, rounding=rounding, part=part)
            return
        kernels.combine_with_squares(
            out,
            w,
            slot.state["hessian"],
            decay=decay,
            terms=terms,
            squares=[c for c, _ in squares],
            keep=slot.memo["keep"],
            noise=self.noise,
            rounding=rounding,
            backend=slot.backend,
        )
        slot.memo.clear()

    def after_losses(self, slot: Slot, step: int, weights: Sequence[float], losses: Sequence[float]) -> None:  # noqa: ARG002
        """Note the factors of H <- H ((1 - alpha) + alpha 1/K sum_k curvature_k u_k^2)."""
        slot.memo.clear()
        alpha = self._alpha(step)
        if alpha == 0.0:
            return
        curvatures = self._estimator.curvatures(losses, slot.group["eps"])
        slot.memo["squares"] = [
            (alpha * c / len(curvatures), slot.key.at(step=step, query=k)) for k, c in enumerate(curvatures)
        ]
        slot.memo["keep"] = 1.0 - alpha

    def after_update(self, slot: Slot, step: int, weights: Sequence[float]) -> None:  # noqa: ARG002
        """Adapt H if the rule has written nothing."""
        self._adapt(slot)

    def _adapt(self, slot: Slot) -> None:
        """Bring H up to date, once per step."""
        if slot.memo:
            kernels.scale_by_squares(
                slot.state["hessian"],
                decay=slot.memo["keep"],
                terms=slot.memo["squares"],
                noise=self.noise,
                backend=slot.backend,
            )
            slot.memo.clear()


class HiZOO(ZerothOrder):
    """Zeroth-order descent along Hessian-scaled directions, see `zotune.methods.hizoo`.

    Cost: ``queries`` forward passes; one float32 tensor per parameter.

    Args:
        params: see `zotune.optimizer.ZerothOrder`.
        lr: learning rate eta.
        eps: perturbation scale.
        queries: forward passes per step, odd: f(W) and two for each direction.
        smoothing: name of alpha, see `SMOOTHINGS`.
        weight_decay: decoupled.
        noise: "gaussian" or "rademacher".
        seed: of all random numbers.
        backend: kernel backend; None chooses.
        evaluator: how losses are obtained; None is the overlay.
        clip: bound on the norm of the projected gradient.

    Raises:
        ValueError: if a value is out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        eps: float = 1e-3,
        queries: int = 3,
        smoothing: str = "constant1e-8",
        weight_decay: float = 0.0,
        noise: Noise = "gaussian",
        seed: int = 0,
        backend: str | None = None,
        evaluator: Evaluator | None = None,
        clip: float | None = None,
    ) -> None:
        if not isinstance(smoothing, str) or smoothing not in SMOOTHINGS:
            close = difflib.get_close_matches(str(smoothing), SMOOTHINGS, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(SMOOTHINGS)}"
            raise ValueError(f"unknown smoothing {smoothing!r}: {hint}")
        defaults: dict[str, Any] = {"lr": lr, "eps": eps, "weight_decay": weight_decay}
        estimator = ThreePoint(queries)
        perturbation = InverseRootHessian(estimator, smoothing, noise)
        super().__init__(
            params,
            defaults,
            estimator=estimator,
            matrix=perturbation,
            vector=perturbation,
            rule=SGD(),
            seed=seed,
            backend=backend,
            evaluator=evaluator,
            clip=clip,
        )
