"""The float64 twins against what the equations imply, without the package under test."""

import math

import numpy as np
import pytest
import torch
from reference.common import Weights, dense_direction, moved, two_point
from reference.fzoo import FZOO
from reference.hizoo import HiZOO
from reference.loren import LOREN, score, shaped
from reference.lozo import LOZO
from reference.mezo import MeZO
from reference.mezo_svrg import MeZOSVRG, annealed
from reference.problem import STEP_SIZES, constant, gaussian, gradient, keyed, quadratic, row_covariance, signs, start
from reference.zo_adam import ZOAdam
from scipy import stats

DESCENT_RATES = {"zo_adam": 5e-2, "fzoo": 1e-4}  # both divide by the size of the gradient
TWINS = {
    "mezo": lambda weights, **keys: MeZO(weights, queries=4, momentum=0.5, **keys),
    "zo_adam": lambda weights, **keys: ZOAdam(weights, queries=4, **keys),
    "mezo_svrg": lambda weights, **keys: MeZOSVRG(weights, lr_minibatch=keys["lr"], period=3, **keys),
    "lozo": lambda weights, **keys: LOZO(weights, period=7, queries=4, **keys),
    "lozo_m": lambda weights, **keys: LOZO(weights, period=7, momentum=0.9, **keys),
    "hizoo": lambda weights, **keys: HiZOO(weights, queries=5, alpha=1e-3, **keys),
    "loren": lambda weights, **keys: LOREN(weights, **keys),
    "fzoo": lambda weights, **keys: FZOO(weights, **keys),
}


def make(name: str, weights: Weights | None = None, **keys):
    draw = signs if name == "fzoo" else gaussian
    return TWINS[name](start() if weights is None else weights, **(STEP_SIZES | {"draw": draw} | keys))


def advance(twin, loss) -> list[float]:
    return twin.step(loss, loss) if isinstance(twin, MeZOSVRG) else twin.step(loss)


def assert_close(left: Weights, right: Weights, tolerance: float = 1e-12) -> None:
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_allclose(left[name], right[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", TWINS)
def test_every_twin_descends_and_never_writes_the_weights_it_was_given(name):
    weights = start()
    twin = make(name, weights, lr=DESCENT_RATES.get(name, 1e-2))
    for _ in range(100):
        losses = advance(twin, quadratic)
        assert all(isinstance(loss, float) for loss in losses)
    assert quadratic(twin.weights) < 0.7 * quadratic(weights)
    assert_close(weights, start(), 0.0)


@pytest.mark.parametrize("name", TWINS)
def test_zero_learning_rate_leaves_the_weights_as_they_are(name):
    twin = make(name, lr=0.0, weight_decay=0.1)
    for _ in range(10):
        advance(twin, quadratic)
    assert_close(twin.weights, start(), 0.0)


@pytest.mark.parametrize("name", [name for name in TWINS if name != "fzoo"])
def test_weight_decay_is_decoupled_and_applied_once_per_step(name):
    twin = make(name, weight_decay=0.5)
    for _ in range(4):
        advance(twin, constant)
    assert_close(twin.weights, {key: W * (1 - 1e-2 * 0.5) ** 4 for key, W in start().items()})


@pytest.mark.parametrize("eps", [1e-3, 1.0])
def test_on_a_quadratic_the_two_point_weight_is_the_directional_derivative(eps):
    z = dense_direction(start(), gaussian, 0, 0)
    c, _ = two_point(quadratic, start(), z, eps)
    assert c == pytest.approx(sum(float(np.sum(z[name] * g)) for name, g in gradient(start()).items()), rel=1e-9)


@pytest.mark.parametrize("name", ["mezo", "zo_adam"])
def test_mezo_and_zo_adam_follow_torch_optimizers_fed_with_the_projected_gradient(name):
    twin = make(name, weight_decay=0.0 if name == "mezo" else 0.1)
    parameters = {key: torch.nn.Parameter(torch.from_numpy(W)) for key, W in start().items()}
    if name == "mezo":
        optimizer = torch.optim.SGD(parameters.values(), lr=1e-2, momentum=0.5)
    else:
        optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2, weight_decay=0.1)
    for t in range(12):
        exact = gradient({key: p.detach().numpy() for key, p in parameters.items()})
        directions = [dense_direction(exact, gaussian, t, k) for k in range(2)]
        slopes = [sum(float(np.sum(z[key] * g)) for key, g in exact.items()) for z in directions]
        for key, p in parameters.items():
            p.grad = torch.from_numpy(sum(c * z[key] for c, z in zip(slopes, directions, strict=True)) / 2)
        optimizer.step()
        assert len(twin.step(quadratic)) == 4
    assert_close(twin.weights, {key: p.detach().numpy() for key, p in parameters.items()}, 1e-6)


def tilted(slope: float):
    """A minibatch: the full loss and a linear term that the control variate must cancel."""
    return lambda weights: quadratic(weights) + slope * sum(float(np.sum(W)) for W in weights.values())


def test_svrg_estimate_at_the_anchor_is_the_full_gradient_estimate():
    twin = MeZOSVRG(start(), lr=0.0, lr_minibatch=1e-2, period=2, draw=gaussian, queries=4)
    twin.step(tilted(9.0), quadratic)
    estimate, _, _ = twin.minibatch_estimate(tilted(9.0))
    assert_close(estimate, twin.g_full)


def test_svrg_cancels_minibatch_noise_that_does_not_depend_on_the_weights():
    twins = [MeZOSVRG(start(), lr=1e-2, lr_minibatch=1e-2, period=5, draw=gaussian) for _ in range(2)]
    for twin, slope in zip(twins, (0.0, 7.0), strict=True):
        for _ in range(5):
            twin.step(tilted(slope), quadratic)
    assert_close(twins[0].weights, twins[1].weights, 1e-8)
    assert quadratic(twins[0].anchor) == quadratic(start())


def test_svrg_with_period_one_is_full_batch_mezo():
    svrg = MeZOSVRG(start(), lr=1e-2, lr_minibatch=1.0, period=1, draw=gaussian)
    mezo = MeZO(start(), lr=1e-2, draw=gaussian)
    for _ in range(6):
        assert svrg.step(constant, quadratic) == mezo.step(quadratic)
    assert_close(svrg.weights, mezo.weights, 0.0)


def test_svrg_losses_are_those_around_the_weights_then_those_around_the_anchor():
    twin = MeZOSVRG(start(), lr=1e-2, lr_minibatch=1e-2, period=2, draw=gaussian)
    assert len(twin.step(quadratic, quadratic)) == 2
    losses = twin.step(quadratic, quadratic)
    assert len(losses) == 4
    assert twin.history[-1] == sum(losses[:2]) / 2
    assert np.mean(losses[2:]) == pytest.approx(quadratic(start()), rel=1e-4)


def test_svrg_anneals_when_the_last_window_is_worse_by_more_than_five_per_cent():
    level = iter([1.0] * 6 + [1.04] * 3 + [2.0] * 3)
    rates, current = [], [0.0]
    twin = MeZOSVRG(start(), lr=1e-4, lr_minibatch=5e-7, period=1, anneal=5.0, anneal_window=3, draw=gaussian)
    for _ in range(12):
        current[0] = next(level)
        twin.step(constant, lambda weights: current[0])
        rates.append(twin.lr)
    assert rates == [1e-4] * 11 + [1e-4 / 5.0]
    assert twin.lr_minibatch == 5e-7
    assert annealed(3e-5, 5.0, 1e-5) == 1e-5


def test_lozo_without_momentum_follows_the_low_rank_update():
    rank, W, twin = (
        3,
        start()["matrix"],
        LOZO({"matrix": start()["matrix"]}, **STEP_SIZES, rank=3, period=2, draw=gaussian),
    )
    for t in range(5):
        V = gaussian("matrix", (5, rank), step=t // 2, query=0, tag="V")
        U = gaussian("matrix", (3, rank), step=t, query=0, tag="z")
        c = float(np.sum((U @ V.T) * gradient({"matrix": W})["matrix"]))
        W = W - 1e-2 * c * U @ V.T / rank
        twin.step(quadratic)
        np.testing.assert_allclose(twin.weights["matrix"], W, rtol=1e-8)


def test_lozo_momentum_survives_a_refresh_that_redraws_the_same_orthogonal_basis():
    """V^T V = n I makes the change of basis N V_old^T V_new / n the identity."""

    def draw(name, shape, *, step, query, tag):
        if tag == "V":
            return np.sqrt(shape[0]) * np.eye(*shape)
        return gaussian(name, shape, step=step, query=query, tag=tag)

    often, never = (LOZO(start(), **STEP_SIZES, period=period, momentum=0.9, draw=draw) for period in (1, 1000))
    for _ in range(6):
        often.step(quadratic)
        never.step(quadratic)
    assert_close(often.weights, never.weights, 1e-10)
    assert {name: N.shape for name, N in often.N.items()} == {"matrix": (3, 2), "bias": (4,), "kernel": (2, 2)}


def test_lozo_momentum_is_moved_to_the_new_basis_before_the_update():
    twin = LOZO({"matrix": start()["matrix"]}, **STEP_SIZES, period=1, momentum=0.9, draw=gaussian)
    twin.step(quadratic)
    before, V_old = twin.N["matrix"], twin.V["matrix"]
    twin.step(constant)
    np.testing.assert_allclose(twin.N["matrix"], 0.9 * before @ V_old.T @ twin.V["matrix"] / 5, rtol=1e-12)


def test_hizoo_with_zero_smoothing_is_mezo():
    hizoo = HiZOO(start(), **STEP_SIZES, queries=5, alpha=0.0, draw=gaussian)
    mezo = MeZO(start(), **STEP_SIZES, queries=4, draw=gaussian)
    for _ in range(6):
        losses = hizoo.step(quadratic)
        assert losses[1:] == mezo.step(quadratic)
    assert_close(hizoo.weights, mezo.weights)


def test_hizoo_curvature_on_one_coordinate():
    """f = h/2 w^2: f+ + f- - 2 f0 = h eps^2 u^2 / H, so H's target is h u^4 / 2; the step then uses the new H."""
    h, eps, lr, w = 6.0, 1e-2, 0.1, 2.0
    twin = HiZOO({"w": np.array([w])}, lr=lr, eps=eps, alpha=lambda t: 0.25 / (t + 1), draw=gaussian)
    H = 1.0
    for t in range(3):
        u = float(gaussian("w", (1,), step=t, query=0, tag="z")[0])
        slope, alpha = h * w * u / math.sqrt(H), 0.25 / (t + 1)
        H = (1 - alpha) * H + alpha * h * u**4 / 2
        w -= lr * slope * u / math.sqrt(H)
        twin.step(lambda weights: h / 2 * float(weights["w"][0] ** 2))
    assert twin.H["w"][0] == pytest.approx(H, rel=1e-7)
    assert twin.weights["w"][0] == pytest.approx(w, rel=1e-7)


def test_loren_with_zero_a_and_zero_lr_cov_is_rloo_mezo():
    def draw(name, shape, *, step, query, tag):
        return np.zeros(shape) if tag == "a" else gaussian(name, shape, step=step, query=query, tag=tag)

    twin = LOREN(start(), **STEP_SIZES, queries=4, lr_cov=0.0, momentum=0.0, draw=draw)
    W = start()
    for t in range(5):
        z = [dense_direction(W, gaussian, t, k) for k in range(4)]
        f = [quadratic(moved(W, z_k, 1e-3)) for z_k in z]
        assert twin.step(quadratic) == pytest.approx(f, rel=1e-12)
        for f_k, z_k in zip(f, z, strict=True):
            W = moved(W, z_k, -1e-2 * (f_k - np.mean(f)) / (1e-3 * 3))
        assert_close(twin.weights, W, 1e-9)


@pytest.mark.parametrize("size", [1e-9, 1.0, 30.0])
def test_loren_directions_have_the_declared_covariance(size):
    a, rho = size * keyed("a").standard_normal(5), 0.1
    root = shaped(np.eye(5), a, rho)
    np.testing.assert_allclose(root @ root.T, row_covariance(a, rho), atol=1e-9)


def finite_difference_score(D: np.ndarray, a: np.ndarray, rho: float, h: float = 1e-5) -> np.ndarray:
    def log_density(b):
        rows = stats.multivariate_normal(np.zeros(b.size), row_covariance(b, rho))
        return float(np.sum(rows.logpdf(D)))

    return np.array([(log_density(a + h * e) - log_density(a - h * e)) / (2 * h) for e in np.eye(a.size)])


def test_loren_score_is_the_derivative_of_the_gaussian_log_density():
    a, rho = keyed("a").standard_normal(5), 0.3
    D = shaped(keyed("U").standard_normal((3, 5)), a, rho)
    np.testing.assert_allclose(score(D, a, rho), finite_difference_score(D, a, rho), rtol=1e-6, atol=1e-6)


def test_loren_moves_a_once_per_step_along_the_scores_of_the_evaluated_directions():
    twin = LOREN({"matrix": start()["matrix"]}, **STEP_SIZES, queries=3, lr_cov=0.7, draw=gaussian)
    a = twin.a["matrix"]
    D = [shaped(gaussian("matrix", (3, 5), step=0, query=k, tag="z"), a, 0.1) for k in range(3)]
    f = twin.step(quadratic)
    g = sum((f_k - np.mean(f)) * finite_difference_score(D_k, a, 0.1) for f_k, D_k in zip(f, D, strict=True)) / 2
    np.testing.assert_allclose(twin.a["matrix"], a - 0.7 * g, rtol=1e-6)
    assert LOREN(start(), **STEP_SIZES, draw=gaussian).a.keys() == {"matrix", "kernel"}


def test_loren_momentum_is_a_heavy_ball_without_dampening():
    twin = LOREN(start(), **STEP_SIZES, momentum=0.9, draw=gaussian)
    twin.step(quadratic)
    M, W = twin.M, twin.weights
    twin.step(constant)
    assert_close(twin.M, {name: 0.9 * buffer for name, buffer in M.items()})
    assert_close(twin.weights, moved(W, M, -1e-2 * 0.9))


def test_fzoo_ignores_a_positive_factor_and_a_constant():
    runs = []
    for factor, shift in ((1.0, 0.0), (50.0, 3.0)):
        twin = FZOO(start(), **STEP_SIZES, draw=signs)
        for _ in range(5):
            assert len(twin.step(lambda weights, a=factor, b=shift: a * quadratic(weights) + b)) == 8
        runs.append(twin.weights)
    assert_close(runs[0], runs[1], 1e-8)


def test_fzoo_step_with_two_directions():
    u = [dense_direction(start(), signs, 0, k) for k in range(2)]
    f0, (f1, f2) = quadratic(start()), [quadratic(moved(start(), u_k, 1e-3)) for u_k in u]
    sample_deviation = abs(f1 - f2) / math.sqrt(2)
    twin = FZOO(start(), **STEP_SIZES, queries=3, draw=signs)
    assert twin.step(quadratic) == [f0, f1, f2]
    expected = moved(start(), u[0], -1e-2 * (f1 - f0) / (2e-3 * sample_deviation))
    assert_close(twin.weights, moved(expected, u[1], -1e-2 * (f2 - f0) / (2e-3 * sample_deviation)), 1e-10)
    with pytest.raises(ZeroDivisionError):
        twin.step(constant)
