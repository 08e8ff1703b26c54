"""LOZO and LOZO-M, arXiv:2410.07698.

V ~ N(0,1)^{n x r}, redrawn every `period` steps;   U ~ N(0,1)^{m x r}, fresh every step.
c = (f(W + eps U V^T) - f(W - eps U V^T)) / (2 eps);   W <- W - lr c U V^T / r.
LOZO-M:  N <- beta N + (1 - beta) c U;   W <- W - lr N V^T / r;
when V changes:  N <- N V_old^T V_new / n  before the update.
Several directions per step: c U is their mean, all evaluated at the same W.
With beta = 0, N is c U and LOZO-M is LOZO.
Parameters that are not matrices: z ~ N(0, I), N <- beta N + (1 - beta) c z, W <- W - lr N, no basis and no 1/r.
"""

import numpy as np

from reference.common import Draw, Loss, Weights, copied, descended, is_matrix, matrix_shape, moved, two_point


class LOZO:
    def __init__(
        self,
        weights: Weights,
        *,
        lr: float,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        rank: int = 2,
        period: int = 50,
        momentum: float = 0.0,
        queries: int = 2,
        draw: Draw,
    ) -> None:
        self.weights = copied(weights)
        self.lr, self.eps, self.weight_decay = lr, eps, weight_decay
        self.rank, self.period, self.momentum = rank, period, momentum
        self.directions, self.draw = queries // 2, draw
        self.V: Weights = {}
        self.N = {name: np.zeros(self._coordinate_shape(W)) for name, W in self.weights.items()}
        self.t = 0

    def step(self, loss: Loss) -> list[float]:
        if self.t % self.period == 0:
            self._refresh()
        losses: list[float] = []
        g = {name: np.zeros_like(N) for name, N in self.N.items()}
        for k in range(self.directions):
            U = {
                name: self.draw(name, self._coordinate_shape(W), step=self.t, query=k, tag="z")
                for name, W in self.weights.items()
            }
            c, pair = two_point(loss, self.weights, self._expanded(U), self.eps)
            losses += pair
            g = moved(g, U, c / self.directions)
        for name in self.N:
            self.N[name] = self.momentum * self.N[name] + (1 - self.momentum) * g[name]
        D = self._expanded(self.N)
        update = {name: D[name] / self.rank if is_matrix(W) else D[name] for name, W in self.weights.items()}
        self.weights = descended(self.weights, update, self.lr, self.weight_decay)
        self.t += 1
        return losses

    def _coordinate_shape(self, W: np.ndarray) -> tuple[int, ...]:
        return (matrix_shape(W)[0], self.rank) if is_matrix(W) else W.shape

    def _refresh(self) -> None:
        for name, W in self.weights.items():
            if not is_matrix(W):
                continue
            n = matrix_shape(W)[1]
            V_new = self.draw(name, (n, self.rank), step=self.t // self.period, query=0, tag="V")
            if name in self.V:
                self.N[name] = self.N[name] @ self.V[name].T @ V_new / n
            self.V[name] = V_new

    def _expanded(self, coordinates: Weights) -> Weights:
        """U V^T in the shape of the parameter; coordinates of a non-matrix are the direction itself."""
        return {
            name: (coordinates[name] @ self.V[name].T).reshape(W.shape) if is_matrix(W) else coordinates[name]
            for name, W in self.weights.items()
        }
