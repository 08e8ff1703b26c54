"""What the twins share: moving a point along a direction, and the dense two-point estimate.

Weights and directions are dictionaries ``name -> float64 array``.
``draw(name, shape, *, step, query, tag)`` is given by the caller and must be a function of its arguments alone;
``query`` counts directions (0, 1, ...), not forward passes.  Tags: "z" a direction (LOZO: its coordinates U, m x r);
"V" LOZO's basis (n x r, step = number of the basis); "a" LOREN's a_0 (n).
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

Weights = dict[str, np.ndarray]
Loss = Callable[[Weights], float]


class Draw(Protocol):
    def __call__(self, name: str, shape: tuple[int, ...], *, step: int, query: int, tag: str) -> np.ndarray: ...


def copied(weights: Weights) -> Weights:
    return {name: np.array(W, dtype=np.float64) for name, W in weights.items()}


def zeros(weights: Weights) -> Weights:
    return {name: np.zeros_like(W) for name, W in weights.items()}


def moved(weights: Weights, direction: Weights, scale: float) -> Weights:
    """W + scale * direction, as new arrays: a query never writes the weights."""
    return {name: W + scale * direction[name] for name, W in weights.items()}


def dense_direction(weights: Weights, draw: Draw, step: int, query: int) -> Weights:
    return {name: draw(name, W.shape, step=step, query=query, tag="z") for name, W in weights.items()}


def is_matrix(W: np.ndarray) -> bool:
    return W.ndim >= 2


def matrix_shape(W: np.ndarray) -> tuple[int, int]:
    """(m, n): a parameter with more than two dimensions is the matrix of its first dimension by the rest."""
    return W.shape[0], W.size // W.shape[0]


def two_point(loss: Loss, weights: Weights, direction: Weights, eps: float) -> tuple[float, list[float]]:
    """c = (f(W + eps d) - f(W - eps d)) / (2 eps), and the two losses in the order [f+, f-]."""
    plus = float(loss(moved(weights, direction, eps)))
    minus = float(loss(moved(weights, direction, -eps)))
    return (plus - minus) / (2 * eps), [plus, minus]


def spsa(loss: Loss, weights: Weights, directions: list[Weights], eps: float) -> tuple[Weights, list[float]]:
    """n-SPSA: the mean of c_k d_k over the directions, all at the same weights; losses [f0+, f0-, f1+, f1-, ...]."""
    gradient, losses = zeros(weights), []
    for direction in directions:
        c, pair = two_point(loss, weights, direction, eps)
        losses += pair
        gradient = moved(gradient, direction, c / len(directions))
    return gradient, losses


def descended(weights: Weights, gradient: Weights, lr: float, weight_decay: float) -> Weights:
    """W <- (1 - lr wd) W - lr g: weight decay is decoupled and applied once per step."""
    return {name: (1 - lr * weight_decay) * W - lr * gradient[name] for name, W in weights.items()}
