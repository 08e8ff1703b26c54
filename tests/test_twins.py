"""Every optimizer, 20 steps against its float64 twin, on the same noise.

The problem is a two-layer network with biases and a (1, n) matrix: no quadratic, matrices and vectors together.
Parameters are given in an order that differs from that of their names: noise belongs to the name's place in the sorted
list.  ``deviations()`` gives the table of the largest absolute deviations over all steps and all weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from reference import fzoo, hizoo, loren, lozo, mezo, mezo_svrg, zo_adam

import zotune
from zotune.methods.hizoo import SMOOTHINGS
from zotune.noise import Key, normal, rademacher

SHAPES = {"out.weight": (1, 6), "hidden.weight": (6, 5), "out.bias": (1,), "hidden.bias": (6,)}
NUMBERS = {name: number for number, name in enumerate(sorted(SHAPES))}
STEPS, SEED, EXAMPLES = 20, 42, 24
INPUTS = normal(Key(1000), (EXAMPLES, 5), dtype=torch.float64).numpy()
TARGETS = np.sin(2 * INPUTS[:, 0]) + 0.5 * INPUTS[:, 1]


def start() -> dict[str, np.ndarray]:
    return {
        name: 0.5 * normal(Key(1001, parameter=number), SHAPES[name], dtype=torch.float64).numpy()
        for name, number in NUMBERS.items()
    }


def draw(name, shape, *, step, query, tag, noise="gaussian"):
    key = Key(SEED, step=step, query=query, parameter=NUMBERS[name], tag=tag)
    numbers = rademacher if noise == "rademacher" else normal
    return numbers(key, shape, dtype=torch.float64).numpy()


def twin_loss(weights, rows=slice(None)) -> float:
    x, y = INPUTS[rows], TARGETS[rows]
    h = np.tanh(x @ weights["hidden.weight"].T + weights["hidden.bias"])
    out = (h @ weights["out.weight"].T)[:, 0] + weights["out.bias"][0]
    return float(np.mean((out - y) ** 2))


def torch_loss(params, rows=slice(None)) -> torch.Tensor:
    """The same in float64 whatever the type of the weights: only the weights' own rounding is under test."""
    weights = {name: p.double() for name, p in params.items()}
    x, y = torch.from_numpy(INPUTS[rows]), torch.from_numpy(TARGETS[rows])
    h = torch.tanh(x @ weights["hidden.weight"].t() + weights["hidden.bias"])
    out = (h @ weights["out.weight"].t())[:, 0] + weights["out.bias"][0]
    return ((out - y) ** 2).mean()


def batch(step: int) -> slice:
    first = step * 5 % (EXAMPLES - 8)
    return slice(first, first + 8)


def case(optimizer: type, twin: type, keys: dict[str, Any] | None = None, **own: Any) -> tuple[Any, Any]:
    """A method's name for both: keyword arguments ``own`` for the optimizer, ``keys`` instead for the twin."""
    return partial(optimizer, **own), partial(twin, **(own if keys is None else keys))


WD = {"weight_decay": 0.1}
CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "MeZO": case(zotune.MeZO, mezo.MeZO, lr=0.01),
    "MeZO, 4 queries": case(zotune.MeZO, mezo.MeZO, lr=0.01, queries=4),
    "MeZO, momentum": case(zotune.MeZO, mezo.MeZO, lr=0.002, momentum=0.9),
    "MeZO, decay": case(zotune.MeZO, mezo.MeZO, lr=0.01, queries=4, momentum=0.5, **WD),
    "ZOAdam": case(zotune.ZOAdam, zo_adam.ZOAdam, lr=0.01),
    "ZOAdam, decay": case(zotune.ZOAdam, zo_adam.ZOAdam, lr=0.01, queries=4, betas=(0.8, 0.99), adam_eps=1e-3, **WD),
    "MeZOSVRG": case(zotune.MeZOSVRG, mezo_svrg.MeZOSVRG, lr=0.01, lr_minibatch=0.004, period=2),
    "MeZOSVRG, period 5": case(
        zotune.MeZOSVRG, mezo_svrg.MeZOSVRG, lr=0.01, lr_minibatch=0.004, period=5, queries=4, **WD
    ),
    "MeZOSVRG, anneal": case(
        zotune.MeZOSVRG, mezo_svrg.MeZOSVRG, lr=0.02, lr_minibatch=0.01, period=3, anneal=1.5, anneal_window=1
    ),
    "MeZOSVRG, floors": case(
        zotune.MeZOSVRG, mezo_svrg.MeZOSVRG, lr=0.02, lr_minibatch=0.01, period=3, anneal=1e9, anneal_window=2
    ),
    "LOZO": case(zotune.LOZO, lozo.LOZO, lr=0.005),
    "LOZO, period 4": case(zotune.LOZO, lozo.LOZO, lr=0.005, rank=3, period=4, queries=4, **WD),
    "LOZO-M": case(zotune.LOZO, lozo.LOZO, lr=0.005, period=6, momentum=0.9),
    "LOZO-M, period 1": case(zotune.LOZO, lozo.LOZO, lr=0.005, rank=1, period=1, momentum=0.5, queries=4, **WD),
    "HiZOO": case(zotune.HiZOO, hizoo.HiZOO, {"lr": 0.01, "alpha": 1e-8}, lr=0.01),
    "HiZOO, 5 queries": case(
        zotune.HiZOO,
        hizoo.HiZOO,
        {"lr": 0.01, "queries": 5, "alpha": 1e-2, **WD},
        lr=0.01,
        queries=5,
        smoothing="constant1e-2",
        **WD,
    ),
    "HiZOO, constant1e-3": case(
        zotune.HiZOO, hizoo.HiZOO, {"lr": 0.01, "alpha": 1e-3}, lr=0.01, smoothing="constant1e-3"
    ),
    "HiZOO, constant0": case(zotune.HiZOO, hizoo.HiZOO, {"lr": 0.01, "alpha": 0.0}, lr=0.01, smoothing="constant0"),
    "HiZOO, constant_decay1": case(
        zotune.HiZOO,
        hizoo.HiZOO,
        {"lr": 0.01, "alpha": SMOOTHINGS["constant_decay1"]},
        lr=0.01,
        smoothing="constant_decay1",
    ),
    "LOREN": case(zotune.LOREN, loren.LOREN, lr=0.002, momentum=0.9),
    "LOREN, no momentum": case(zotune.LOREN, loren.LOREN, lr=0.01, momentum=0.0, queries=2),
    "LOREN, fast a": case(
        zotune.LOREN, loren.LOREN, lr=0.002, momentum=0.9, lr_cov=2.0, damping=0.5, queries=4, eps=0.01, **WD
    ),
    "FZOO": case(zotune.FZOO, fzoo.FZOO, lr=5e-5),
    "FZOO, 5 queries": case(zotune.FZOO, fzoo.FZOO, lr=3e-5, queries=5, **WD),
}
FLOAT64_LIMIT = 1e-10
FLOAT32_LIMIT = 1e-5


def run(name: str, dtype: torch.dtype, backend: str | None = None) -> tuple[float, float]:
    """(largest absolute deviation from the twin over all steps and weights, distance gone by the twin)."""
    make, make_twin = CASES[name]
    noise = "rademacher" if name.startswith("FZOO") else "gaussian"
    params = {key: torch.nn.Parameter(torch.from_numpy(W).to(dtype)) for key, W in start().items()}
    origin = {key: p.detach().double().numpy().copy() for key, p in params.items()}
    optimizer = make([(key, params[key]) for key in SHAPES], seed=SEED, backend=backend)
    twin = make_twin(origin, draw=partial(draw, noise=noise))
    worst = 0.0
    for step in range(STEPS):
        rows = batch(step)
        if isinstance(twin, mezo_svrg.MeZOSVRG):
            losses = twin.step(partial(twin_loss, rows=rows), twin_loss)
            rows = slice(None) if optimizer.needs_full else rows
        else:
            losses = twin.step(partial(twin_loss, rows=rows))
        assert len(losses) == len(optimizer.plan())
        optimizer.estimate(partial(torch_loss, params, rows))
        optimizer.step()
        for key, W in twin.weights.items():
            worst = max(worst, float(np.abs(params[key].detach().double().numpy() - W).max()))
    moved = max(float(np.abs(W - origin[key]).max()) for key, W in twin.weights.items())
    return worst, moved


@cache
def deviations() -> dict[str, tuple[float, float]]:
    """{method: (largest deviation from the twin in float64, the same in float32)} after 20 steps."""
    return {name: (run(name, torch.float64)[0], run(name, torch.float32)[0]) for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_twenty_steps_are_those_of_the_twin(name):
    in_float64, in_float32 = deviations()[name]
    assert in_float64 < FLOAT64_LIMIT
    assert in_float32 < FLOAT32_LIMIT


@pytest.mark.parametrize("name", CASES)
def test_the_comparison_covers_a_real_distance(name):
    assert run(name, torch.float64)[1] > 1e-3


@pytest.mark.parametrize("name", ["MeZO, decay", "LOZO-M", "HiZOO, 5 queries", "LOREN, fast a", "FZOO"])
def test_the_reference_backend_is_as_close(name):
    assert run(name, torch.float64, "reference")[0] == deviations()[name][0]


@pytest.mark.parametrize(("name", "least"), [("MeZOSVRG, anneal", 3), ("MeZOSVRG, floors", 2)])
def test_the_rates_really_change_in_the_annealing_cases(name, least):
    twin = CASES[name][1](start(), draw=draw)
    rates = {(twin.lr, twin.lr_minibatch)}
    for step in range(STEPS):
        twin.step(partial(twin_loss, rows=batch(step)), twin_loss)
        rates.add((twin.lr, twin.lr_minibatch))
    assert len(rates) >= least
    assert name != "MeZOSVRG, floors" or (twin.lr, twin.lr_minibatch) == (1e-5, 1e-6)


def test_lorens_a_really_moves_in_the_fast_case():
    make_twin = CASES["LOREN, fast a"][1]
    twin = make_twin(start(), draw=draw)
    before = {name: a.copy() for name, a in twin.a.items()}
    for step in range(STEPS):
        twin.step(partial(twin_loss, rows=batch(step)))
    assert min(float(np.abs(twin.a[name] - a).max()) for name, a in before.items()) > 1e-2


def test_the_two_losses_of_the_problem_are_the_same_function():
    params = {name: torch.from_numpy(W) for name, W in start().items()}
    for rows in (slice(None), batch(3)):
        assert float(torch_loss(params, rows)) == pytest.approx(twin_loss(start(), rows), rel=1e-14)
