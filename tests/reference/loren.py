"""LOREN, arXiv:2511.07971.

Per matrix a vector a in R^n, a_0 ~ N(0, I); damping rho; s = |a|^2, t = sqrt(rho + s), b = 1 / (t (t + sqrt(rho))).
Directions D(U) = U - b (U a) a^T: rows ~ N(0, rho (rho I + a a^T)^{-1}), the same a for all rows.
f_k = f(W + eps D(U_k)), k < K, all with the same a and W;   A_k = f_k - mean_j f_j.
g_W = 1/(eps (K-1)) sum_k A_k D(U_k);
g_a = 1/(K-1) sum_k A_k grad_a log p(D_k),   grad_a log p(D) = m a / (rho + s) - D^T (D a) / rho;
M <- beta M + g_W;   W <- W - lr M;   a <- a - lr_cov g_a, each once per step.  Momentum has no dampening.
Parameters that are not matrices have no a: D(U) = U.  Weight decay acts on the weights alone.
"""

import math

import numpy as np

from reference.common import Draw, Loss, Weights, copied, descended, is_matrix, matrix_shape, moved, zeros


def shaped(U: np.ndarray, a: np.ndarray, rho: float) -> np.ndarray:
    """D(U) = U - b (U a) a^T for U of shape (m, n)."""
    t = math.sqrt(rho + float(a @ a))
    return U - np.outer(U @ a, a) / (t * (t + math.sqrt(rho)))


def score(D: np.ndarray, a: np.ndarray, rho: float) -> np.ndarray:
    """grad_a log p(D), shape (n,)."""
    return D.shape[0] * a / (rho + float(a @ a)) - D.T @ (D @ a) / rho


class LOREN:
    def __init__(
        self,
        weights: Weights,
        *,
        lr: float,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        queries: int = 6,
        damping: float = 0.1,
        lr_cov: float = 1e-3,
        momentum: float = 0.9,
        draw: Draw,
    ) -> None:
        self.weights = copied(weights)
        self.lr, self.eps, self.weight_decay = lr, eps, weight_decay
        self.queries, self.damping, self.lr_cov, self.momentum, self.draw = queries, damping, lr_cov, momentum, draw
        self.a = {
            name: np.array(draw(name, (matrix_shape(W)[1],), step=0, query=0, tag="a"))
            for name, W in self.weights.items()
            if is_matrix(W)
        }
        self.M = zeros(self.weights)
        self.t = 0

    def step(self, loss: Loss) -> list[float]:
        D = [self._direction(k) for k in range(self.queries)]
        losses = [float(loss(moved(self.weights, D_k, self.eps))) for D_k in D]
        mean = sum(losses) / len(losses)
        A = [(f - mean) / (self.queries - 1) for f in losses]
        g = zeros(self.weights)
        for A_k, D_k in zip(A, D, strict=True):
            g = moved(g, D_k, A_k / self.eps)
        self.M = moved(g, self.M, self.momentum)
        self.weights = descended(self.weights, self.M, self.lr, self.weight_decay)
        for name, a in self.a.items():
            scores = [score(D_k[name].reshape(matrix_shape(D_k[name])), a, self.damping) for D_k in D]
            self.a[name] = a - self.lr_cov * sum(A_k * s_k for A_k, s_k in zip(A, scores, strict=True))
        self.t += 1
        return losses

    def _direction(self, k: int) -> Weights:
        direction = {}
        for name, W in self.weights.items():
            U = self.draw(name, W.shape, step=self.t, query=k, tag="z")
            if is_matrix(W):
                U = shaped(U.reshape(matrix_shape(W)), self.a[name], self.damping).reshape(W.shape)
            direction[name] = U
        return direction
