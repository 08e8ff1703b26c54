"""MeZO (ZO-SGD with n-SPSA), arXiv:2305.17333.

z ~ N(0, I);   c = (f(W + eps z) - f(W - eps z)) / (2 eps);   W <- W - lr c z.
n-SPSA: g = mean of n such c z taken at the same W, then one update.
Heavy-ball momentum: M <- beta M + g;   W <- W - lr M.
Weight decay is decoupled: W <- (1 - lr wd) W - lr (...).
"""

from reference.common import Draw, Loss, Weights, copied, dense_direction, descended, moved, spsa, zeros


class MeZO:
    def __init__(
        self,
        weights: Weights,
        *,
        lr: float,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        queries: int = 2,
        momentum: float = 0.0,
        draw: Draw,
    ) -> None:
        self.weights = copied(weights)
        self.lr, self.eps, self.weight_decay, self.momentum = lr, eps, weight_decay, momentum
        self.directions, self.draw = queries // 2, draw
        self.M = zeros(self.weights)
        self.t = 0

    def step(self, loss: Loss) -> list[float]:
        z = [dense_direction(self.weights, self.draw, self.t, k) for k in range(self.directions)]
        g, losses = spsa(loss, self.weights, z, self.eps)
        self.M = moved(g, self.M, self.momentum)
        self.weights = descended(self.weights, self.M, self.lr, self.weight_decay)
        self.t += 1
        return losses
