"""MeZO-SVRG, arXiv:2404.08080.

Snapshot, when t % period == 0:
    g_full = SPSA estimate on the full training sample at W;   anchor <- copy of W;   W <- W - lr g_full.
Other steps, the same z and the same minibatch B at both points:
    W <- W - lr_minibatch [ c_B(W) z - c_B(anchor) z + g_full ].
Annealing: after every `anneal_window` steps, once two windows exist, if the mean loss of the last window over that of
the window before exceeds 1.05, both rates are divided by `anneal`, never below 1e-5 (full) and 1e-6 (minibatch);
a rate already below its floor is left alone.  The loss of a step is the mean of the losses evaluated around W, not of
those around the anchor.  With several directions per estimate every c z is the average over them.
Weight decay uses the rate of the step.
"""

from reference.common import Draw, Loss, Weights, copied, dense_direction, descended, moved, spsa

FLOOR_FULL, FLOOR_MINIBATCH = 1e-5, 1e-6


def annealed(rate: float, divisor: float, floor: float) -> float:
    return rate if rate <= floor else max(rate / divisor, floor)


class MeZOSVRG:
    def __init__(
        self,
        weights: Weights,
        *,
        lr: float,
        lr_minibatch: float,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        period: int = 2,
        anneal: float = 1.0,
        anneal_window: int = 100,
        queries: int = 2,
        draw: Draw,
    ) -> None:
        self.weights = copied(weights)
        self.lr, self.lr_minibatch, self.eps, self.weight_decay = lr, lr_minibatch, eps, weight_decay
        self.period, self.anneal, self.anneal_window = period, anneal, anneal_window
        self.directions, self.draw = queries // 2, draw
        self.anchor: Weights = {}
        self.g_full: Weights = {}
        self.history: list[float] = []
        self.t = 0

    @property
    def needs_full(self) -> bool:
        return self.t % self.period == 0

    def minibatch_estimate(self, loss: Loss) -> tuple[Weights, list[float], list[float]]:
        """The control-variate estimate, the losses around W and the losses around the anchor."""
        z = [dense_direction(self.weights, self.draw, self.t, k) for k in range(self.directions)]
        at_weights, losses = spsa(loss, self.weights, z, self.eps)
        at_anchor, anchor_losses = spsa(loss, self.anchor, z, self.eps)
        return moved(moved(at_weights, at_anchor, -1.0), self.g_full, 1.0), losses, anchor_losses

    def step(self, loss: Loss, full_loss: Loss) -> list[float]:
        """Losses around W first, [f+, f-] per direction, then those around the anchor."""
        if self.needs_full:
            z = [dense_direction(self.weights, self.draw, self.t, k) for k in range(self.directions)]
            self.g_full, losses = spsa(full_loss, self.weights, z, self.eps)
            self.anchor, anchor_losses = copied(self.weights), []
            self.weights = descended(self.weights, self.g_full, self.lr, self.weight_decay)
        else:
            g, losses, anchor_losses = self.minibatch_estimate(loss)
            self.weights = descended(self.weights, g, self.lr_minibatch, self.weight_decay)
        self.t += 1
        self.history.append(sum(losses) / len(losses))
        self._anneal()
        return losses + anchor_losses

    def _anneal(self) -> None:
        window = self.anneal_window
        if self.t % window or self.t < 2 * window:
            return
        last, before = self.history[-window:], self.history[-2 * window : -window]
        if (sum(last) / window) / (sum(before) / window) > 1.05:
            self.lr = annealed(self.lr, self.anneal, FLOOR_FULL)
            self.lr_minibatch = annealed(self.lr_minibatch, self.anneal, FLOOR_MINIBATCH)
