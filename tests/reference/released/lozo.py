"""LOZO as released code computes it; where it departs from the equations of arXiv:2410.07698.

Everything of a step comes from ONE stream that starts anew from the step's seed in every pass over the parameters:
evaluating, on a refresh step:  V = next (n, r), then U = next (m, r);      other steps:  U = next (m, r), V kept;
updating, on every step:        U = next (m, r), V kept.
So on a refresh step the update follows another U than the one evaluated.  The update has no 1/r: this lr times r is the
lr of the equations.  Momentum is left out here.
`stream(step)` returns a fresh ``next(shape)`` that repeats itself for the same step.
"""

from collections.abc import Callable

import numpy as np

from reference.common import Loss, Weights, copied, descended, is_matrix, matrix_shape, two_point

Next = Callable[[tuple[int, ...]], np.ndarray]


class ReleasedLOZO:
    def __init__(
        self,
        weights: Weights,
        *,
        lr: float,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        rank: int = 2,
        period: int = 50,
        stream: Callable[[int], Next],
    ) -> None:
        self.weights = copied(weights)
        self.lr, self.eps, self.weight_decay = lr, eps, weight_decay
        self.rank, self.period, self.stream = rank, period, stream
        self.V: Weights = {}
        self.t = 0

    def step(self, loss: Loss) -> list[float]:
        evaluated = self._pass(redraw=self.t % self.period == 0)
        c, losses = two_point(loss, self.weights, evaluated, self.eps)
        followed = self._pass(redraw=False)
        g = {name: c * D for name, D in followed.items()}
        self.weights = descended(self.weights, g, self.lr, self.weight_decay)
        self.t += 1
        return losses

    def _pass(self, *, redraw: bool) -> Weights:
        """The directions one pass over the parameters produces, from the start of the step's stream."""
        following, directions = self.stream(self.t), {}
        for name, W in self.weights.items():
            if not is_matrix(W):
                directions[name] = following(W.shape)
                continue
            m, n = matrix_shape(W)
            if redraw:
                self.V[name] = following((n, self.rank))
            directions[name] = (following((m, self.rank)) @ self.V[name].T).reshape(W.shape)
        return directions
