"""Where released code departs from the equations, shown on its arithmetic."""

import math

import numpy as np
from reference.loren import score
from reference.problem import STEP_SIZES, constant, gaussian, keyed, quadratic, row_covariance, start
from reference.released.loren import ReleasedLOREN, released_score, released_shaped
from reference.released.lozo import ReleasedLOZO


def test_released_lozo_follows_another_direction_on_refresh_steps_and_leaves_out_the_rank():
    def stream(step):
        source = keyed("stream", step)
        return source.standard_normal

    twin = ReleasedLOZO({"matrix": start()["matrix"]}, **STEP_SIZES, rank=2, period=3, stream=stream)
    for t in range(6):
        W, seen = twin.weights["matrix"], []
        plus, minus = twin.step(lambda weights, seen=seen: seen.append(weights["matrix"]) or quadratic(weights))
        evaluated = (seen[0] - W) / 1e-3
        without_rank = W - 1e-2 * (plus - minus) / 2e-3 * evaluated
        assert np.allclose(twin.weights["matrix"], without_rank, atol=1e-9) == (t % 3 != 0)


def test_released_loren_is_one_rank_one_term_over_the_layer_with_the_gradient_of_a_scaled_by_eps_squared():
    rho, eps = 0.3, 1e-2
    tiled = np.tile(keyed("a").standard_normal(4), 2)
    root = np.stack([released_shaped(e, tiled, rho) for e in np.eye(8)])
    np.testing.assert_allclose(root @ root.T, row_covariance(tiled, rho), atol=1e-12)
    assert np.abs((root @ root.T)[:4, 4:]).max() > 0.01
    u = keyed("U").standard_normal(8)
    exact = score(released_shaped(u, tiled, rho)[None], tiled, rho)
    np.testing.assert_allclose(released_score(u, tiled, rho, eps), eps**2 * math.sqrt(rho) * exact, rtol=1e-10)


def test_released_loren_decays_weights_and_momentum_once_per_query():
    twin = ReleasedLOREN(start(), **STEP_SIZES, queries=3, momentum=0.9, weight_decay=0.5, draw=gaussian)
    twin.step(quadratic)
    before, W, a = twin.M["matrix"], twin.weights["bias"], twin.a["matrix"]
    twin.step(constant)
    np.testing.assert_allclose(twin.M["matrix"], 0.9**3 * before, rtol=1e-12)
    np.testing.assert_allclose(twin.weights["bias"], (1 - 1e-2 * 0.5) ** 3 * W, rtol=1e-12)
    np.testing.assert_allclose(twin.a["matrix"], (1 - 1e-3 * 0.5) ** 3 * a, rtol=1e-12)
