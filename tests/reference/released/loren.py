"""LOREN as released code computes it; where it departs from the equations of arXiv:2511.07971.

- One rank-one term over the whole flattened layer: a (length n) is tiled m times into a vector of length m n, so the
  rows of a perturbation are correlated.  s = |tiled a|^2 = m |a|^2, t = sqrt(rho + s).
- D(u) = u - (sqrt(rho) + t) / (s t) (a.u) a: the square root whose eigenvalue along a is -sqrt(rho)/t; it divides by s.
- a, momentum and weight decay change INSIDE the query loop, and the direction of query k > 0 is recomputed with the
  changed a, so it is not the one that was evaluated; momentum decays beta^K and weights by (1 - lr wd)^K per step.
- The gradient of a carries a factor eps^2 times sqrt(rho); a is decayed like a weight, with rate lr_cov.
- Parameters that are not matrices also have an a; its gradient is summed to a scalar.  They have no momentum.
"""

import math

import numpy as np

from reference.common import Draw, Loss, Weights, copied, is_matrix, matrix_shape, moved


def released_coefficient(s: float, rho: float) -> float:
    t = math.sqrt(rho + s)
    return (math.sqrt(rho) + t) / (s * t)


def released_shaped(u: np.ndarray, tiled: np.ndarray, rho: float) -> np.ndarray:
    """D(u) for the flattened layer; both arguments of shape (m n,)."""
    return u - released_coefficient(float(tiled @ tiled), rho) * float(tiled @ u) * tiled


def released_score(u: np.ndarray, tiled: np.ndarray, rho: float, eps: float) -> np.ndarray:
    """What multiplies A_k / (K - 1) in the gradient of the tiled a, before the sum over rows; shape (m n,)."""
    s, au = float(tiled @ tiled), float(tiled @ u)
    correction = released_coefficient(s, rho) * (au**2 - s) * tiled
    return eps**2 * (au * u - tiled - correction) / math.sqrt(rho + s)


class ReleasedLOREN:
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
            name: np.array(draw(name, (matrix_shape(W)[1] if is_matrix(W) else W.size,), step=0, query=0, tag="a"))
            for name, W in self.weights.items()
        }
        self.M = {name: np.zeros_like(W) for name, W in self.weights.items() if is_matrix(W)}
        self.t = 0

    def step(self, loss: Loss) -> list[float]:
        losses = []
        for k in range(self.queries):
            direction = {name: self._direction(name, k) for name in self.weights}
            losses.append(float(loss(moved(self.weights, direction, self.eps))))
        mean = sum(losses) / len(losses)
        for k, f in enumerate(losses):
            for name in self.weights:
                self._update(name, k, (f - mean) / (self.queries - 1))
        self.t += 1
        return losses

    def _update(self, name: str, k: int, A: float) -> None:
        W, a = self.weights[name], self.a[name]
        g = A / self.eps * self._direction(name, k)
        if name in self.M:
            self.M[name] = self.momentum * self.M[name] + g
            g = self.M[name]
        g_a = A * released_score(self._flat_draw(name, k), self._tiled(name), self.damping, self.eps)
        rows = matrix_shape(W) if is_matrix(W) else W.shape
        self.weights[name] = (1 - self.lr * self.weight_decay) * W - self.lr * g
        self.a[name] = (1 - self.lr_cov * self.weight_decay) * a - self.lr_cov * g_a.reshape(rows).sum(axis=0)

    def _flat_draw(self, name: str, k: int) -> np.ndarray:
        return self.draw(name, self.weights[name].shape, step=self.t, query=k, tag="z").reshape(-1)

    def _tiled(self, name: str) -> np.ndarray:
        return np.tile(self.a[name], self.weights[name].size // self.a[name].size)

    def _direction(self, name: str, k: int) -> np.ndarray:
        D = released_shaped(self._flat_draw(name, k), self._tiled(name), self.damping)
        return D.reshape(self.weights[name].shape)
