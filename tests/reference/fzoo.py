"""FZOO, arXiv:2506.09034 (directions Rademacher: `draw` must return -1 and +1).

f_0 = f(W),  f_k = f(W + eps u_k), k = 1..K, queries = 1 + K;
g = 1/(eps K) sum_k (f_k - f_0) u_k;   W <- W - lr g / std(f_1..f_K).
`std` is the sample standard deviation (divisor K - 1), so K >= 2; equal losses leave it 0 and the step undefined
(ZeroDivisionError here).  Direction k of the equations is query index k - 1 of `draw`.
"""

import statistics

from reference.common import Draw, Loss, Weights, copied, dense_direction, descended, moved, zeros


class FZOO:
    def __init__(
        self,
        weights: Weights,
        *,
        lr: float,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        queries: int = 8,
        draw: Draw,
    ) -> None:
        self.weights = copied(weights)
        self.lr, self.eps, self.weight_decay = lr, eps, weight_decay
        self.directions, self.draw = queries - 1, draw
        self.t = 0

    def step(self, loss: Loss) -> list[float]:
        """Losses in the order [f_0, f_1, ..., f_K]."""
        u = [dense_direction(self.weights, self.draw, self.t, k) for k in range(self.directions)]
        f0 = float(loss(self.weights))
        f = [float(loss(moved(self.weights, u_k, self.eps))) for u_k in u]
        scale = 1.0 / (self.eps * self.directions * statistics.stdev(f))
        g = zeros(self.weights)
        for f_k, u_k in zip(f, u, strict=True):
            g = moved(g, u_k, (f_k - f0) * scale)
        self.weights = descended(self.weights, g, self.lr, self.weight_decay)
        self.t += 1
        return [f0, *f]
