"""Estimators: exact on quadratics, and what each of them does not see."""

import math
import statistics

import numpy as np
import pytest
import torch

from zotune import MeZO
from zotune.estimators import Estimator, LeaveOneOut, OneSidedNormalised, Probe, ThreePoint, TwoPoint


def generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key[0] if key else 0))


SIZE = 6
HALF = generator(1).standard_normal((SIZE, SIZE))
HESSIAN = HALF @ HALF.T
LINEAR = generator(2).standard_normal(SIZE)
POINT = generator(3).standard_normal(SIZE)
GRADIENT = HESSIAN @ POINT + LINEAR
DIRECTIONS = generator(4).standard_normal((8, SIZE))


def quadratic(w: np.ndarray) -> float:
    return float(0.5 * w @ HESSIAN @ w + LINEAR @ w)


def losses(estimator: Estimator, eps: float, f=quadratic) -> list[float]:
    return [f(POINT + probe.sign * eps * DIRECTIONS[probe.query]) for probe in estimator.plan]


@pytest.mark.parametrize("eps", [1e-3, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("queries", [2, 4, 10])
def test_two_point_weights_on_a_quadratic_are_the_directional_derivatives_for_any_eps(queries, eps):
    estimator = TwoPoint(queries)
    expected = DIRECTIONS[: queries // 2] @ GRADIENT / (queries // 2)
    assert estimator.weigh(losses(estimator, eps), eps) == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("eps", [1e-2, 0.5])
@pytest.mark.parametrize("queries", [3, 7])
def test_three_point_curvature_on_a_quadratic_is_half_the_second_derivative_along_the_direction(queries, eps):
    """HiZOO: |f+ + f- - 2 f0| / (2 eps^2) = |d^T H d| / 2."""
    estimator = ThreePoint(queries)
    values = losses(estimator, eps)
    d = DIRECTIONS[: estimator.directions]
    assert estimator.curvatures(values, eps) == pytest.approx((np.einsum("ki,ij,kj->k", d, HESSIAN, d) / 2).tolist())
    assert estimator.weigh(values, eps) == TwoPoint(queries - 1).weigh(values[1:], eps)


def test_three_point_curvature_is_never_negative():
    estimator = ThreePoint(5)
    values = losses(estimator, 0.1, lambda w: -quadratic(w))
    assert estimator.curvatures(values, 0.1) == pytest.approx(estimator.curvatures(losses(estimator, 0.1), 0.1))
    assert min(estimator.curvatures(values, 0.1)) > 0


@pytest.mark.parametrize("queries", [2, 3, 8])
def test_leave_one_out_ignores_an_added_constant_and_sums_to_zero(queries):
    estimator = LeaveOneOut(queries)
    values = losses(estimator, 0.1)
    weights = estimator.weigh(values, 0.1)
    mean = sum(values) / queries
    assert weights == pytest.approx([(f - mean) / (0.1 * (queries - 1)) for f in values])
    assert math.fsum(weights) == pytest.approx(0.0, abs=1e-12 * max(map(abs, weights)) + 1e-14)
    exact = [0.25 * k for k in range(queries)]
    assert estimator.weigh([f + 2.0**40 for f in exact], 0.5) == estimator.weigh(exact, 0.5)


def test_leave_one_out_is_the_mean_of_differences_from_the_others():
    """Kool et al. 2019: (1/K) sum_k (f_k - mean of the other losses) x_k."""
    estimator = LeaveOneOut(5)
    values = losses(estimator, 0.1)
    others = [(sum(values) - f) / 4 for f in values]
    expected = [(f - o) / (5 * 0.1) for f, o in zip(values, others, strict=True)]
    assert estimator.weigh(values, 0.1) == pytest.approx(expected)


@pytest.mark.parametrize("factor", [0.5, 1024.0, 1e-3])
def test_one_sided_normalised_ignores_a_positive_factor_and_an_added_constant(factor):
    estimator = OneSidedNormalised(8)
    values = losses(estimator, 0.1)
    weights = estimator.weigh(values, 0.1)
    assert estimator.weigh([factor * f for f in values], 0.1) == pytest.approx(weights, rel=1e-12)
    assert estimator.weigh([f + 3.0 for f in values], 0.1) == pytest.approx(weights, rel=1e-9)
    sigma = statistics.stdev(values[1:])
    assert weights == pytest.approx([(f - values[0]) / (0.1 * 7 * sigma) for f in values[1:]])


def test_equal_losses_give_no_direction():
    for estimator in (TwoPoint(4), ThreePoint(5), LeaveOneOut(4), OneSidedNormalised(5)):
        assert estimator.weigh([0.7] * estimator.queries, 1e-3) == [0.0] * estimator.directions


@pytest.mark.parametrize(
    ("estimator", "signs"),
    [
        (TwoPoint(4), [(0, 1), (0, -1), (1, 1), (1, -1)]),
        (ThreePoint(5), [(0, 0), (0, 1), (0, -1), (1, 1), (1, -1)]),
        (LeaveOneOut(3), [(0, 1), (1, 1), (2, 1)]),
        (OneSidedNormalised(4), [(0, 0), (0, 1), (1, 1), (2, 1)]),
    ],
)
def test_plans(estimator, signs):
    assert estimator.plan == tuple(Probe(query, sign) for query, sign in signs)
    assert estimator.queries == len(estimator.plan)
    assert estimator.directions == len({query for query, sign in signs if sign})


@pytest.mark.parametrize("queries", [0, 1, 3, -2, 2.0, True, "2", None])
def test_two_point_needs_an_even_number(queries):
    with pytest.raises(ValueError, match=r"^queries=.*: two-point estimates need an even number of queries, 2 or mor"):
        TwoPoint(queries)


@pytest.mark.parametrize("queries", [1, 2, 4, -3, 3.0, True])
def test_three_point_needs_an_odd_number(queries):
    with pytest.raises(ValueError, match=r"^queries=.*: choose an odd number, f\(W\) and two queries for each"):
        ThreePoint(queries)


@pytest.mark.parametrize("queries", [1, 0, -1, 2.5, True])
def test_leave_one_out_needs_two(queries):
    with pytest.raises(ValueError, match=r"^queries=.*: leave-one-out compares queries with each other"):
        LeaveOneOut(queries)


@pytest.mark.parametrize("queries", [2, 1, 0, 8.0])
def test_one_sided_needs_three(queries):
    with pytest.raises(ValueError, match=r"^queries=.*: f\(W\) and at least two directions are needed"):
        OneSidedNormalised(queries)


def test_a_wrong_number_of_losses_is_not_swallowed():
    with pytest.raises(ValueError, match="shorter"):
        TwoPoint(4).weigh([1.0, 2.0, 3.0], 1e-3)


@pytest.mark.parametrize("queries", [2, 8])
def test_k_times_the_squared_weights_estimate_the_squared_gradient_norm_which_clip_bounds(queries: int) -> None:
    noise, estimator, eps = generator(7), TwoPoint(queries), 1e-3
    estimates = []
    for _ in range(4000):
        slopes = noise.standard_normal((estimator.directions, SIZE)) @ LINEAR
        weights = estimator.weigh([sign * eps * slope for slope in slopes for sign in (1, -1)], eps)
        estimates.append(len(weights) * sum(w * w for w in weights))
    assert statistics.mean(estimates) == pytest.approx(float(LINEAR @ LINEAR), rel=0.1)


def test_the_clipped_weights_have_that_norm() -> None:
    weight = torch.nn.Parameter(torch.zeros(8))
    MeZO([weight], lr=1.0, eps=0.5, queries=4, clip=0.5, noise="rademacher").tell([100.0, 0.0, 0.0, 0.0])
    assert weight.abs().max().item() == pytest.approx(0.5 / math.sqrt(2.0))
