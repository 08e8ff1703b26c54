"""HiZOO, arXiv:2402.15173.

H diagonal, starts at 1.   d = H^{-1/2} u, u ~ N(0, I).
f0 = f(W), f+ = f(W + eps d), f- = f(W - eps d).
H <- (1 - alpha) H + alpha |f+ + f- - 2 f0| / (2 eps^2) * H (u*u);
W <- W - lr (f+ - f-) / (2 eps) H^{-1/2} u, with the new H.
queries = 1 + 2n: f0 is shared, both the H target and the gradient are means over the n directions, and every direction
uses the H of the start of the step.  `alpha` is a float or a function of the step (0, 1, ...).
"""

from collections.abc import Callable

import numpy as np

from reference.common import Draw, Loss, Weights, copied, dense_direction, descended, two_point, zeros


class HiZOO:
    def __init__(
        self,
        weights: Weights,
        *,
        lr: float,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        queries: int = 3,
        alpha: float | Callable[[int], float] = 1e-8,
        draw: Draw,
    ) -> None:
        self.weights = copied(weights)
        self.lr, self.eps, self.weight_decay, self.alpha = lr, eps, weight_decay, alpha
        self.directions, self.draw = (queries - 1) // 2, draw
        self.H = {name: np.ones_like(W) for name, W in self.weights.items()}
        self.t = 0

    def step(self, loss: Loss) -> list[float]:
        """Losses in the order [f0, f0+, f0-, f1+, f1-, ...]."""
        alpha = self.alpha(self.t) if callable(self.alpha) else self.alpha
        f0 = float(loss(self.weights))
        losses = [f0]
        u = [dense_direction(self.weights, self.draw, self.t, k) for k in range(self.directions)]
        slope_u, target = zeros(self.weights), zeros(self.weights)
        for u_k in u:
            d = {name: u_k[name] / np.sqrt(self.H[name]) for name in u_k}
            c, (plus, minus) = two_point(loss, self.weights, d, self.eps)
            losses += [plus, minus]
            curvature = abs(plus + minus - 2 * f0) / (2 * self.eps**2)
            for name in u_k:
                slope_u[name] += c * u_k[name] / self.directions
                target[name] += curvature * self.H[name] * u_k[name] ** 2 / self.directions
        self.H = {name: (1 - alpha) * H + alpha * target[name] for name, H in self.H.items()}
        g = {name: slope_u[name] / np.sqrt(self.H[name]) for name in slope_u}
        self.weights = descended(self.weights, g, self.lr, self.weight_decay)
        self.t += 1
        return losses
