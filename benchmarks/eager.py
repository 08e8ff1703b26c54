"""The textbook way of each method: noise by torch's generator, perturbed in place, drawn again from its seed.

This is how the algorithms are printed in their papers and how released code does them, written here from the equations
for comparison in time, memory and drift: `z = normal(...)`, `p = p + sign * z * eps`, a forward pass, the way back, and
the update, each in a pass of its own with temporaries of the size of a parameter.  It is no part of the package.

Each class takes (parameters, lr, eps) and has `step(loss)`, where `loss()` runs the model, and `queries`, the number of
forward passes of a step.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Loss = Callable[[], Tensor]


class Textbook:
    """Draws and the passes of dense noise."""

    queries = 2

    def __init__(self, params: list[torch.nn.Parameter], lr: float = 1e-9, eps: float = 1e-3) -> None:
        self.params, self.lr, self.eps = params, lr, eps
        self.generator = torch.Generator(params[0].device)
        self.t = 0

    def draws(self, seed: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(number, parameter, its direction), always the same for the same seed."""
        self.generator.manual_seed(seed)
        for i, p in enumerate(self.params):
            yield i, p, self.direction(i, p)

    def normal(self, p: Tensor, *shape: int) -> Tensor:
        return torch.normal(
            mean=0.0, std=1.0, size=shape or tuple(p.shape), device=p.device, dtype=p.dtype, generator=self.generator
        )

    def direction(self, i: int, p: Tensor) -> Tensor:  # noqa: ARG002
        return self.normal(p)

    def perturb(self, seed: int, sign: int) -> None:
        for _, p, z in self.draws(seed):
            p.data = p.data + sign * z * self.eps

    def two_points(self, loss: Loss, seed: int) -> float:
        """(f(W + eps z) - f(W - eps z)) / (2 eps); the weights are back afterwards, up to rounding."""
        self.perturb(seed, 1)
        plus = float(loss())
        self.perturb(seed, -2)
        minus = float(loss())
        self.perturb(seed, 1)
        return (plus - minus) / (2 * self.eps)

    def update(self, seed: int, c: float) -> None:
        for _, p, z in self.draws(seed):
            p.data = p.data - self.lr * (c * z)

    @torch.no_grad()
    def step(self, loss: Loss) -> None:
        self.update(self.t, self.two_points(loss, self.t))
        self.t += 1


class MeZO(Textbook):
    """Two points, then p <- p - lr c z."""


class ZOAdam(Textbook):
    """Adam on c z, with two moments."""

    def __init__(self, params: list[torch.nn.Parameter], lr: float = 1e-9, eps: float = 1e-3) -> None:
        super().__init__(params, lr, eps)
        self.m = [torch.zeros_like(p.data) for p in params]
        self.v = [torch.zeros_like(p.data) for p in params]

    def update(self, seed: int, c: float) -> None:
        first, second = 1 - 0.9 ** (self.t + 1), 1 - 0.999 ** (self.t + 1)
        for i, p, z in self.draws(seed):
            g = c * z
            self.m[i] = 0.9 * self.m[i] + 0.1 * g
            self.v[i] = 0.999 * self.v[i] + 0.001 * g**2
            p.data = p.data - self.lr * (self.m[i] / first) / (torch.sqrt(self.v[i] / second) + 1e-8)


class MeZOSVRG(Textbook):
    """The step between two snapshots: the same z at the weights and at a copy of the anchor."""

    queries = 4

    def __init__(self, params: list[torch.nn.Parameter], lr: float = 1e-9, eps: float = 1e-3) -> None:
        super().__init__(params, lr, eps)
        self.anchor = [p.data.clone() for p in params]
        self.full = 0.1  # the projected gradient of the full sample, along the directions of seed 2**40

    def swap(self) -> None:
        for i, p in enumerate(self.params):
            p.data, self.anchor[i] = self.anchor[i], p.data

    @torch.no_grad()
    def step(self, loss: Loss) -> None:
        here = self.two_points(loss, self.t)
        self.swap()
        there = self.two_points(loss, self.t)
        self.swap()
        self.update(self.t, here - there)
        self.update(2**40, self.full)
        self.t += 1


class LOZO(Textbook):
    """Directions U V^T of rank two, built for every pass; V is kept."""

    rank = 2

    def __init__(self, params: list[torch.nn.Parameter], lr: float = 1e-9, eps: float = 1e-3) -> None:
        super().__init__(params, lr, eps)
        self.generator.manual_seed(2**40)
        self.V = {i: self.normal(p, p.shape[1], self.rank) for i, p in enumerate(params) if p.dim() == 2}

    def direction(self, i: int, p: Tensor) -> Tensor:
        return self.normal(p, p.shape[0], self.rank) @ self.V[i].T if i in self.V else self.normal(p)

    def update(self, seed: int, c: float) -> None:
        super().update(seed, c / self.rank)


class LOZOM(LOZO):
    """The same with momentum N in the coordinates."""

    def __init__(self, params: list[torch.nn.Parameter], lr: float = 1e-9, eps: float = 1e-3) -> None:
        super().__init__(params, lr, eps)
        self.N = [torch.zeros_like(self.normal(p, *self.coordinates(i, p))) for i, p in enumerate(params)]

    def coordinates(self, i: int, p: Tensor) -> tuple[int, ...]:
        return (p.shape[0], self.rank) if i in self.V else tuple(p.shape)

    def update(self, seed: int, c: float) -> None:
        self.generator.manual_seed(seed)
        for i, p in enumerate(self.params):
            self.N[i] = 0.9 * self.N[i] + 0.1 * c * self.normal(p, *self.coordinates(i, p))
            p.data = p.data - self.lr * (self.N[i] @ self.V[i].T / self.rank if i in self.V else self.N[i])


class HiZOO(Textbook):
    """Directions z / sqrt(H), three points, H in the shape of the weights."""

    queries = 3
    smoothing = 1e-8

    def __init__(self, params: list[torch.nn.Parameter], lr: float = 1e-9, eps: float = 1e-3) -> None:
        super().__init__(params, lr, eps)
        self.H = [torch.ones_like(p.data) for p in params]

    def direction(self, i: int, p: Tensor) -> Tensor:
        return self.normal(p) / torch.sqrt(self.H[i])

    @torch.no_grad()
    def step(self, loss: Loss) -> None:
        middle = float(loss())
        self.perturb(self.t, 1)
        plus = float(loss())
        self.perturb(self.t, -2)
        minus = float(loss())
        self.perturb(self.t, 1)
        curvature = abs(plus + minus - 2 * middle) / (2 * self.eps**2)
        self.generator.manual_seed(self.t)
        for i, p in enumerate(self.params):
            z = self.normal(p)
            new = self.H[i] * (z * z)
            self.H[i] = (1 - self.smoothing) * self.H[i] + self.smoothing * curvature * new
            p.data = p.data - self.lr * ((plus - minus) / (2 * self.eps) * z / torch.sqrt(self.H[i]))
        self.t += 1


class LOREN(Textbook):
    """Six one-sided queries; each is perturbed, restored, and later drawn a third time for the update."""

    queries = 6
    damping, rate_of_a = 0.1, 1e-9

    def __init__(self, params: list[torch.nn.Parameter], lr: float = 1e-9, eps: float = 1e-3) -> None:
        super().__init__(params, lr, eps)
        self.generator.manual_seed(2**40)
        self.a = {i: self.normal(p, p.shape[1]).float() for i, p in enumerate(params) if p.dim() == 2}

    def direction(self, i: int, p: Tensor) -> Tensor:
        u = self.normal(p)
        if i not in self.a:
            return u
        a = self.a[i].to(p.dtype)
        t = math.sqrt(self.damping + float(a @ a))
        return u - torch.outer(u @ a, a) / (t * (t + math.sqrt(self.damping)))

    @torch.no_grad()
    def step(self, loss: Loss) -> None:
        seeds = [self.t * self.queries + k for k in range(self.queries)]
        losses = []
        for seed in seeds:
            self.perturb(seed, 1)
            losses.append(float(loss()))
            self.perturb(seed, -1)
        mean = sum(losses) / len(losses)
        slopes = {i: torch.zeros_like(a) for i, a in self.a.items()}
        for k, seed in enumerate(seeds):
            advantage = (losses[k] - mean) / (self.queries - 1)
            for i, p, d in self.draws(seed):
                self.descend(i, p, advantage / self.eps * d, k)
                if i in slopes:
                    slopes[i] += advantage * self.score(self.a[i], d.float())
        for i, slope in slopes.items():
            self.a[i] = self.a[i] - self.rate_of_a * slope
        self.t += 1

    def descend(self, i: int, p: Tensor, g: Tensor, k: int) -> None:  # noqa: ARG002
        p.data = p.data - self.lr * g

    def score(self, a: Tensor, d: Tensor) -> Tensor:
        """Gradient of the log-density of the rows of d with respect to a."""
        return d.shape[0] * a / (self.damping + float(a @ a)) - d.T @ (d @ a) / self.damping


class LORENMomentum(LOREN):
    """The same with a momentum buffer, which decays once a step."""

    momentum = 0.9

    def __init__(self, params: list[torch.nn.Parameter], lr: float = 1e-9, eps: float = 1e-3) -> None:
        super().__init__(params, lr, eps)
        self.M = [torch.zeros_like(p.data) for p in params]

    def descend(self, i: int, p: Tensor, g: Tensor, k: int) -> None:
        self.M[i] = (self.momentum if k == 0 else 1.0) * self.M[i] + g
        if k == self.queries - 1:
            p.data = p.data - self.lr * self.M[i]


TEXTBOOK: dict[str, type[Textbook]] = {
    "MeZO": MeZO,
    "ZO-Adam": ZOAdam,
    "MeZO-SVRG": MeZOSVRG,
    "LOZO": LOZO,
    "LOZO-M": LOZOM,
    "HiZOO": HiZOO,
    "LOREN": LOREN,
    "LOREN, momentum": LORENMomentum,
}
"""The textbook ways by the name that the tables use."""
