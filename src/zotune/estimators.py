"""Estimators: which losses to ask for, and how to turn them into the weights of the directions.

An estimator works on floats alone.  Its ``plan`` is a tuple of signed probes; ``weigh(losses, eps)`` returns w_0 ..
w_{K-1} such that the gradient estimate is g = sum_k w_k D(x_k), with D(x_k) the k-th direction.  All probes of a step
are taken at the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Probe:
    """One query: the loss at ``point + sign * eps * D(x_query)``.

    Args:
        query: number of the direction.
        sign: +1, -1, or 0 for the point itself; an evaluator that checks itself takes larger ones.
        point: 0 for the weights; other numbers are points of a method's own (MeZO-SVRG's anchor is 1).
    """

    query: int
    sign: float
    point: int = 0


class Estimator:
    """Base class.

    Attributes:
        queries: forward passes per step.
        directions: K, the number of directions.
        plan: the probes, in the order in which their losses are given to `weigh`.
    """

    queries: int
    directions: int
    plan: tuple[Probe, ...]

    def weigh(self, losses: Sequence[float], eps: float) -> list[float]:
        """Weights w_k of the K directions from the losses of the plan, in its order."""
        raise NotImplementedError


class TwoPoint(Estimator):
    """SPSA (Spall 1992), averaged over K directions: w_k = (f(W + eps D_k) - f(W - eps D_k)) / (2 eps K)."""

    def __init__(self, queries: int = 2) -> None:
        if not _is_int(queries) or queries < 2 or queries % 2:
            raise ValueError(f"queries={queries!r}: two-point estimates need an even number of queries, 2 or more")
        self.queries, self.directions = queries, queries // 2
        self.plan = tuple(Probe(k, sign) for k in range(self.directions) for sign in (1, -1))

    def weigh(self, losses: Sequence[float], eps: float) -> list[float]:
        """See `Estimator`."""
        pairs = zip(losses[0::2], losses[1::2], strict=True)
        return [(plus - minus) / (2.0 * eps * self.directions) for plus, minus in pairs]


class ThreePoint(Estimator):
    """Two-point weights, and from f(W) as a third point the curvature along each direction (HiZOO)."""

    def __init__(self, queries: int = 3) -> None:
        if not _is_int(queries) or queries < 3 or queries % 2 == 0:
            raise ValueError(
                f"queries={queries!r}: choose an odd number, f(W) and two queries for each direction: 3, 5, 7 ..."
            )
        self._pairs = TwoPoint(queries - 1)
        self.queries, self.directions = queries, self._pairs.directions
        self.plan = (Probe(0, 0), *self._pairs.plan)

    def weigh(self, losses: Sequence[float], eps: float) -> list[float]:
        """See `Estimator`."""
        return self._pairs.weigh(losses[1:], eps)

    def curvatures(self, losses: Sequence[float], eps: float) -> list[float]:
        """|f+ + f- - 2 f0| / (2 eps^2) for each direction."""
        pairs = zip(losses[1::2], losses[2::2], strict=True)
        return [abs(plus + minus - 2.0 * losses[0]) / (2.0 * eps * eps) for plus, minus in pairs]


class LeaveOneOut(Estimator):
    """REINFORCE leave-one-out (Kool et al. 2019): w_k = (f_k - mean_j f_j) / (eps (K - 1)), f_k = f(W + eps D_k)."""

    def __init__(self, queries: int) -> None:
        if not _is_int(queries) or queries < 2:
            raise ValueError(f"queries={queries!r}: leave-one-out compares queries with each other and needs 2 or more")
        self.queries = self.directions = queries
        self.plan = tuple(Probe(k, 1) for k in range(queries))

    def weigh(self, losses: Sequence[float], eps: float) -> list[float]:
        """See `Estimator`."""
        # Centring on one of the losses first keeps the differences exact when all are large.
        shifted = [f - losses[0] for f in losses]
        mean = math.fsum(shifted) / len(shifted)
        return [(f - mean) / (eps * (len(shifted) - 1)) for f in shifted]


class OneSidedNormalised(Estimator):
    """FZOO: w_k = (f_k - f_0) / (eps K sigma), with sigma the sample standard deviation of f_1 .. f_K and f_0 =
    f(W)."""

    def __init__(self, queries: int) -> None:
        if not _is_int(queries) or queries < 3:
            raise ValueError(f"queries={queries!r}: f(W) and at least two directions are needed: choose 3 or more")
        self.queries, self.directions = queries, queries - 1
        self.plan = (Probe(0, 0), *(Probe(k, 1) for k in range(self.directions)))

    def weigh(self, losses: Sequence[float], eps: float) -> list[float]:
        """See `Estimator`.  Equal losses carry no direction: all weights are zero."""
        differences = [f - losses[0] for f in losses[1:]]
        mean = math.fsum(differences) / len(differences)
        sigma = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (len(differences) - 1))
        if sigma == 0.0:
            return [0.0] * self.directions
        return [d / (eps * self.directions * sigma) for d in differences]


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
