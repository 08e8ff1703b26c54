"""Where two methods must agree, that each of them descends, and the losses they are pinned to.

The golden losses are changed only by a commit that says why.  `python tests/test_golden.py` writes them anew,
with those of the embedded model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from zotune import FZOO, LOREN, LOZO, HiZOO, MeZO, MeZOSVRG, ZerothOrder, ZOAdam, digest
from zotune.estimators import LeaveOneOut
from zotune.noise import Key, normal
from zotune.perturbations import Dense
from zotune.rules import SGD, Momentum

GOLDEN = Path(__file__).parent / "golden" / "losses.json"
SHAPES = {"weight": (6, 5), "bias": (6,)}
INPUTS = normal(Key(501), (64, 5))
LABELS = (INPUTS @ normal(Key(502), (5, 6)) + 0.3 * normal(Key(503), (64, 6))).argmax(1)
CENTRE = {name: normal(Key(504, parameter=i), shape) for i, (name, shape) in enumerate(SHAPES.items())}
CONDITION = torch.logspace(-1, 1, 36)  # 1 : 100

Params = dict[str, torch.nn.Parameter]


def parameters(dtype: torch.dtype = torch.float32, scale: float = 0.5) -> Params:
    start = {name: scale * normal(Key(505, parameter=i), shape) for i, (name, shape) in enumerate(SHAPES.items())}
    return {name: torch.nn.Parameter(value.to(dtype)) for name, value in start.items()}


def flat(params: Params) -> torch.Tensor:
    return torch.cat([params[name].view(-1) for name in SHAPES])


def quadratic(params: Params) -> torch.Tensor:
    return sum((params[name].double() - CENTRE[name]).square().sum() for name in SHAPES)


def ill_conditioned(params: Params) -> torch.Tensor:
    return (CONDITION * (flat(params) - flat(CENTRE)).double().square()).sum()


def logistic(params: Params) -> torch.Tensor:
    logits = INPUTS.double() @ params["weight"].double().t() + params["bias"].double()
    return cross_entropy(logits, LABELS)


def rosenbrock(params: Params) -> torch.Tensor:
    x = flat(params).double()
    return (10 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


TARGETS = {f.__name__: f for f in (quadratic, ill_conditioned, logistic, rosenbrock)}


def trained(make: Callable[..., ZerothOrder], steps: int = 10, loss=logistic, **own: Any) -> Params:
    params = parameters()
    optimizer = make(params.items(), **own)
    for _ in range(steps):
        optimizer.estimate(partial(loss, params))
        optimizer.step()
    return params


def assert_same_bits(left: Params, right: Params) -> None:
    assert digest(left.values()) == digest(right.values())
    assert digest(left.values()) != digest(parameters().values())


# -------------------------------------------------------------------------------------------- equivalences


def test_lozo_with_momentum_near_zero_is_lozo():
    """LOZO-M: N <- beta N + (1 - beta) c U, which is c U at beta = 0; also across changes of V."""
    plain = trained(LOZO, lr=0.05, period=4)
    momentum = trained(LOZO, lr=0.05, period=4, momentum=1e-9)
    for name in SHAPES:
        torch.testing.assert_close(momentum[name].data, plain[name].data, rtol=1e-5, atol=1e-6)
    assert float((plain["weight"].data - trained(LOZO, lr=0.05, period=4, momentum=0.5)["weight"].data).norm()) > 1e-2


@pytest.mark.parametrize("queries", [2, 4])
def test_hizoo_without_smoothing_is_mezo(queries):
    """H stays 1, so d = u, and W moves along (f+ - f-) / (2 eps) u."""
    hizoo = trained(HiZOO, lr=0.05, smoothing="constant0", queries=queries + 1, weight_decay=0.1)
    assert_same_bits(hizoo, trained(MeZO, lr=0.05, queries=queries, weight_decay=0.1))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_loren_with_a_zero_and_lr_cov_zero_is_leave_one_out_descent(momentum):
    """methods.md: "with a = 0 and lr_cov = 0 LOREN is RLOO-MeZO exactly"."""
    params = parameters()
    loren = LOREN(params.items(), lr=0.01, lr_cov=0.0, momentum=momentum)
    loren._refresh(loren._active())
    loren.state[params["weight"]]["a"] = torch.zeros(5)
    for _ in range(10):
        loren.step(partial(logistic, params))

    def leave_one_out(own, **defaults):
        rule = Momentum(momentum) if momentum else SGD()
        return ZerothOrder(own, defaults, estimator=LeaveOneOut(6), matrix=Dense(), rule=rule)

    assert_same_bits(params, trained(leave_one_out, lr=0.01, eps=1e-3, weight_decay=0.0))


def test_loren_does_not_move_a_zero_vector_a():
    """a = 0 is a fixed point of the gradient of a: the score is proportional to a there."""
    params = parameters()
    loren = LOREN(params.items(), lr=0.01, lr_cov=1.0)
    loren._refresh(loren._active())
    loren.state[params["weight"]]["a"] = torch.zeros(5)
    loren.step(partial(logistic, params))
    assert loren.state[params["weight"]]["a"].tolist() == [0.0] * 5


@pytest.mark.parametrize("queries", [2, 4])
def test_svrg_of_period_one_is_full_batch_mezo(queries):
    svrg = trained(MeZOSVRG, lr=0.05, lr_minibatch=7.0, period=1, queries=queries, weight_decay=0.1)
    assert_same_bits(svrg, trained(MeZO, lr=0.05, queries=queries, weight_decay=0.1))


def test_svrg_right_after_a_snapshot_is_the_snapshots_gradient_when_nothing_moved():
    """With W = anchor the two minibatch estimates cancel exactly and g_full is left."""
    params = parameters()
    optimizer = MeZOSVRG(params.items(), lr=0.0, lr_minibatch=0.1, period=2)
    optimizer.estimate(partial(logistic, params))
    optimizer.step()
    optimizer.estimate(partial(quadratic, params))
    optimizer.step()
    assert_same_bits(params, trained(MeZO, lr=0.1, steps=1))


def test_several_directions_are_the_average_of_single_estimates_at_the_same_weights():
    """n-SPSA: g = 1/K sum_k c_k z_k."""
    K, eps, lr = 3, 1e-2, 0.05
    own = {"lr": lr, "eps": eps, "seed": 9}
    got = {name: p.data for name, p in trained(MeZO, steps=1, queries=2 * K, **own).items()}
    start = {name: p.data.double() for name, p in parameters().items()}
    numbers = {name: i for i, name in enumerate(sorted(SHAPES))}
    change = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    for k in range(K):
        z = {n: normal(Key(9, query=k, parameter=numbers[n]), SHAPES[n], dtype=torch.float64) for n in SHAPES}
        plus, minus = (logistic({n: start[n] + sign * eps * z[n] for n in SHAPES}) for sign in (1, -1))
        c = float(plus - minus) / (2 * eps)
        for n in SHAPES:
            change[n] += c * z[n] / K
    for n in SHAPES:
        torch.testing.assert_close(got[n].double(), start[n] - lr * change[n], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", [MeZO, ZOAdam, LOZO, HiZOO, LOREN, FZOO])
def test_accumulated_micro_batches_are_the_whole_batch(method):
    """Weighted by their number of examples, two parts of a batch give the losses of the batch."""

    def part(params: Params, rows: slice) -> torch.Tensor:
        logits = INPUTS[rows].double() @ params["weight"].double().t() + params["bias"].double()
        return cross_entropy(logits, LABELS[rows])

    whole, params = trained(method, lr=1e-3), parameters()
    optimizer = method(params.items(), lr=1e-3)
    for _ in range(10):
        for rows in (slice(0, 24), slice(24, 64)):
            optimizer.estimate(partial(part, params, rows), weight=rows.stop - rows.start)
        optimizer.step()
    for name in SHAPES:
        torch.testing.assert_close(params[name].data, whole[name].data, rtol=1e-5, atol=1e-5)


# -------------------------------------------------------------------------------------------- descent

RATES = {"quadratic": 0.008, "ill_conditioned": 1e-3, "logistic": 0.05, "rosenbrock": 1e-4}
METHODS: dict[str, tuple[Callable[..., ZerothOrder], Callable[[float], dict[str, Any]]]] = {
    "MeZO": (MeZO, lambda rate: {"lr": rate}),
    "MeZO momentum": (MeZO, lambda rate: {"lr": rate / 10, "momentum": 0.9, "queries": 4}),
    "ZOAdam": (ZOAdam, lambda rate: {"lr": 0.01}),
    "MeZOSVRG": (MeZOSVRG, lambda rate: {"lr": rate, "lr_minibatch": rate / 2}),
    "LOZO": (LOZO, lambda rate: {"lr": rate / 2, "period": 10}),
    "LOZO-M": (LOZO, lambda rate: {"lr": rate / 2, "period": 10, "momentum": 0.5}),
    "HiZOO": (HiZOO, lambda rate: {"lr": rate, "smoothing": "constant1e-6"}),
    "LOREN": (LOREN, lambda rate: {"lr": rate / 8, "momentum": 0.9}),
    "FZOO": (FZOO, lambda rate: {"lr": 2e-5}),
}


def ratio(name: str, target: str, steps: int = 250, **extra: Any) -> float:
    """Loss at the end over loss at the start."""
    make, settings = METHODS[name]
    loss = TARGETS[target]
    params = trained(make, steps, loss, **settings(RATES[target]), **extra)
    return float(loss(params).detach() / loss(parameters()).detach())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_descends(name, target):
    assert ratio(name, target) < 0.8


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_descends_with_either_noise(name, noise):
    assert ratio(name, "quadratic", steps=150, noise=noise, seed=3) < 0.8


# -------------------------------------------------------------------------------------------- golden losses

PINNED: dict[str, tuple[Callable[..., ZerothOrder], dict[str, Any]]] = {
    "MeZO": (MeZO, {"lr": 0.05}),
    "MeZO, rademacher": (MeZO, {"lr": 0.05, "noise": "rademacher"}),
    "MeZO, 4 queries, momentum": (MeZO, {"lr": 0.02, "queries": 4, "momentum": 0.9, "weight_decay": 0.01}),
    "ZOAdam": (ZOAdam, {"lr": 0.02}),
    "MeZOSVRG": (MeZOSVRG, {"lr": 0.05, "lr_minibatch": 0.02, "period": 3}),
    "LOZO": (LOZO, {"lr": 0.03, "period": 4}),
    "LOZO-M": (LOZO, {"lr": 0.03, "period": 4, "momentum": 0.9}),
    "HiZOO": (HiZOO, {"lr": 0.05, "smoothing": "constant1e-3"}),
    "LOREN": (LOREN, {"lr": 0.01, "momentum": 0.9}),
    "LOREN, no momentum": (LOREN, {"lr": 0.03, "momentum": 0.0, "lr_cov": 0.1}),
    "FZOO": (FZOO, {"lr": 1e-5}),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pinned(name: str, dtype: str) -> list[float]:
    """Mean losses of 12 steps.  The loss is summed in float64, so that no matrix library's rounding is pinned."""
    make, settings = PINNED[name]
    params = parameters(DTYPES[dtype])
    optimizer = make(params.items(), eps=1e-2, seed=2024, **settings)
    losses = []
    for _ in range(12):
        optimizer.estimate(partial(logistic, params))
        loss = optimizer.step()
        assert loss is not None
        losses.append(loss)
    return losses


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PINNED)
def test_golden_losses_are_changed_only_by_a_commit_that_says_why(name, dtype):
    golden = json.loads(GOLDEN.read_text())
    assert pinned(name, dtype) == pytest.approx(golden[dtype][name], rel=1e-6)


def test_golden_losses_are_complete_and_differ_between_methods():
    golden = json.loads(GOLDEN.read_text())
    assert {dtype: list(rows) for dtype, rows in golden.items()} == {dtype: list(PINNED) for dtype in DTYPES}
    assert len({tuple(losses) for rows in golden.values() for losses in rows.values()}) == len(PINNED) * len(DTYPES)


# -------------------------------------------------------------------------------------------- eight bits


def test_eight_bit_moments_stay_close_to_those_in_float32():
    pytest.importorskip("bitsandbytes")
    losses, states = {}, {}
    centre = normal(Key(1), (64, 80))
    for bits in (32, 8):
        weight = torch.nn.Parameter(torch.zeros(64, 80))
        bias = torch.nn.Parameter(torch.zeros(64))
        optimizer = ZOAdam([("weight", weight), ("bias", bias)], lr=5e-3, bits=bits, queries=8)
        own = [
            optimizer.step(lambda w=weight, b=bias: ((w + b[:, None] - centre).double().square()).mean())
            for _ in range(50)
        ]
        losses[bits], states[bits] = own, optimizer.state[weight]
        assert optimizer.state[bias]["m"].dtype is torch.float32  # small tensors are not quantised
    assert losses[32][-1] < 0.995 * losses[32][0]
    fall = [losses[bits][0] - losses[bits][-1] for bits in (32, 8)]
    assert fall[1] == pytest.approx(fall[0], rel=0.05)
    assert losses[8] != losses[32]
    tensors = {bits: [x for x in state.values() if isinstance(x, torch.Tensor)] for bits, state in states.items()}
    size = {bits: sum(x.numel() * x.element_size() for x in own) for bits, own in tensors.items()}
    assert size[8] < 0.27 * size[32]


def test_without_bitsandbytes_eight_bits_are_refused_with_advice(monkeypatch):
    loaded = {name for name in sys.modules if name.split(".")[0] == "bitsandbytes"}
    for name in loaded | {"bitsandbytes", "bitsandbytes.functional"}:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"bits=8 needs the package bitsandbytes: pip install .*, or use bits=32"):
        ZOAdam([torch.nn.Parameter(torch.ones(3))], lr=0.1, bits=8)


def write_down() -> None:
    rows = {dtype: {name: pinned(name, dtype) for name in PINNED} for dtype in DTYPES}
    GOLDEN.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    write_down()
