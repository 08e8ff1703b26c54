"""ZO-Adam, arXiv:2305.17333 with Adam of arXiv:1412.6980.

g = c z (n-SPSA average), then Adam with bias correction on the whole gradient, one step per iteration, t = 1, 2, ...:
m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g*g;
W <- (1 - lr wd) W - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + adam_eps).
"""

import numpy as np

from reference.common import Draw, Loss, Weights, copied, dense_direction, descended, spsa, zeros


class ZOAdam:
    def __init__(
        self,
        weights: Weights,
        *,
        lr: float,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        queries: int = 2,
        betas: tuple[float, float] = (0.9, 0.999),
        adam_eps: float = 1e-8,
        draw: Draw,
    ) -> None:
        self.weights = copied(weights)
        self.lr, self.eps, self.weight_decay = lr, eps, weight_decay
        self.betas, self.adam_eps = betas, adam_eps
        self.directions, self.draw = queries // 2, draw
        self.m, self.v = zeros(self.weights), zeros(self.weights)
        self.t = 0

    def step(self, loss: Loss) -> list[float]:
        z = [dense_direction(self.weights, self.draw, self.t, k) for k in range(self.directions)]
        g, losses = spsa(loss, self.weights, z, self.eps)
        self.t += 1
        b1, b2 = self.betas
        update = {}
        for name in self.weights:
            self.m[name] = b1 * self.m[name] + (1 - b1) * g[name]
            self.v[name] = b2 * self.v[name] + (1 - b2) * g[name] ** 2
            m_hat = self.m[name] / (1 - b1**self.t)
            v_hat = self.v[name] / (1 - b2**self.t)
            update[name] = m_hat / (np.sqrt(v_hat) + self.adam_eps)
        self.weights = descended(self.weights, update, self.lr, self.weight_decay)
        return losses
