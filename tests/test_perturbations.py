"""Perturbations: the declared covariance, linearity, shapes, and the learning of LOREN's a."""

import math

import numpy as np
import pytest
import torch

from zotune import FZOO, LOREN, LOZO, HiZOO, MeZO, MeZOSVRG, ZOAdam
from zotune.estimators import ThreePoint
from zotune.methods.hizoo import InverseRootHessian
from zotune.methods.loren import LowRankCovariance, RankOneCovariance
from zotune.methods.lozo import LowRank
from zotune.noise import Key, normal
from zotune.perturbations import Dense, Perturbation, Slot
from zotune.rules import SGD, Momentum

CLASSES = [MeZO, ZOAdam, MeZOSVRG, LOZO, HiZOO, LOREN, FZOO]
NAMES = ["dense", "rank_one", "low_rank", "low_rank_covariance", "hessian"]
TERMS = [(0.5, 0), (-1.25, 1), (2.0, 2)]


def make(name: str, noise: str = "gaussian") -> Perturbation:
    return {
        "dense": lambda: Dense(noise),
        "rank_one": lambda: RankOneCovariance(0.1, noise),
        "low_rank": lambda: LowRank(3, 5, noise),
        "low_rank_covariance": lambda: LowRankCovariance(0.1, 3, noise),
        "hessian": lambda: InverseRootHessian(ThreePoint(3), "constant1e-2", noise),
    }[name]()


def slot_of(perturbation: Perturbation, param: torch.Tensor, *, input_dim: int = -1, seed: int = 5) -> Slot:
    group = {"input_dim": input_dim, "weight_decay": 0.0, "eps": 1e-3, "lr_cov": 1e-3}
    slot = Slot(param=torch.nn.Parameter(param), name="w", group=group, key=Key(seed), state={})
    slot.perturbation = perturbation
    perturbation.refresh(slot, 0)
    if "hessian" in slot.state:
        slot.state["hessian"] = normal(Key(77), slot.shape, dtype=slot.dtype).square() + 0.5
    return slot


def direction(slot: Slot, terms: list[tuple[float, Key]]) -> torch.Tensor:
    out = torch.empty(slot.shape, dtype=slot.dtype)
    slot.perturbation.combine(slot, out, None, terms)
    return out


def sampled(slot: Slot, count: int) -> torch.Tensor:
    return torch.stack([direction(slot, [(1.0, slot.key.at(query=k))]) for k in range(count)])


def keyed(slot: Slot, terms=TERMS) -> list[tuple[float, Key]]:
    return [(c, slot.key.at(step=1, query=k)) for c, k in terms]


# -------------------------------------------------------------------------------------------- covariance


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
@pytest.mark.parametrize("size", [0.0, 0.02, 1.0, 5.0])
def test_rows_of_loren_have_the_declared_covariance(size, noise):
    """E[D^T D] / m = rho (rho I + a a^T)^{-1}, and different rows are independent."""
    m, n, count, rho = 16, 4, 4000, 0.1
    slot = slot_of(RankOneCovariance(rho, noise), torch.zeros(m, n, dtype=torch.float64))
    slot.state["a"] = size * normal(Key(3), (n,), dtype=torch.float64)
    slot.perturbation.refresh(slot, 0)
    a, D = slot.state["a"], sampled(slot, count)
    declared = rho * torch.linalg.inv(rho * torch.eye(n, dtype=torch.float64) + torch.outer(a, a))
    empirical = torch.einsum("kmi,kmj->ij", D, D) / (count * m)
    assert float((empirical - declared).abs().max()) < 5 / math.sqrt(count * m)
    between = torch.einsum("kmi,kmj->ij", D, D.roll(1, dims=1)) / (count * m)
    assert float(between.abs().max()) < 5 / math.sqrt(count * m)


def test_rows_of_hizoo_have_variance_one_over_h():
    slot = slot_of(make("hessian"), torch.zeros(5, 7, dtype=torch.float64))
    D = sampled(slot, 8000)
    ratio = (D**2).mean(0) * slot.state["hessian"]
    assert float((ratio - 1).abs().max()) < 5 * math.sqrt(2 / 8000)


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
def test_lozos_directions_have_covariance_v_v_transposed_between_columns_and_rank_r(noise):
    m, n, count = 16, 6, 4000
    slot = slot_of(make("low_rank", noise), torch.zeros(m, n, dtype=torch.float64))
    V = slot.perturbation.basis(slot, 0)
    D = sampled(slot, count)
    empirical = torch.einsum("kmi,kmj->ij", D, D) / (count * m)
    scale = float((V @ V.t()).diagonal().max())
    assert float((empirical - V @ V.t()).abs().max()) < 6 * scale / math.sqrt(count * m)
    assert int(torch.linalg.matrix_rank(D[0])) == 3


def test_dense_directions_are_white():
    slot = slot_of(make("dense"), torch.zeros(3, 4, dtype=torch.float64))
    D = sampled(slot, 8000).flatten(1)
    empirical = D.t() @ D / 8000
    assert float((empirical - torch.eye(12, dtype=torch.float64)).abs().max()) < 5 * math.sqrt(2 / 8000)


# -------------------------------------------------------------------------------------------- linearity


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (5, 123), (3, 4, 5), (2, 3, 2, 4)])
@pytest.mark.parametrize("name", NAMES)
def test_combine_is_linear_in_its_coefficients(name, shape, noise):
    slot = slot_of(make(name, noise), torch.zeros(shape, dtype=torch.float64))
    parts = [direction(slot, [(1.0, key)]) for _, key in keyed(slot)]
    expected = sum(c * D for (c, _), D in zip(TERMS, parts, strict=True))
    torch.testing.assert_close(direction(slot, keyed(slot)), expected, rtol=1e-12, atol=1e-12)
    w = normal(Key(8), slot.shape, dtype=torch.float64)
    out = torch.empty_like(w)
    slot.perturbation.combine(slot, out, w, keyed(slot), decay=0.75)
    torch.testing.assert_close(out, 0.75 * w + expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["low_rank", "low_rank_covariance"])
@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
def test_factors_are_those_of_the_directions(name, noise):
    """Also of two sides of one direction, of several terms, and of none (the weights themselves)."""
    slot = slot_of(make(name, noise), torch.zeros(5, 123, dtype=torch.float64))
    plus, other = keyed(slot, [(0.5, 0)]), keyed(slot)
    directions = [plus, [(-c, key) for c, key in plus], other, []]
    u, v = slot.perturbation.low_rank(slot, directions)
    for own, terms in zip(u, directions, strict=True):
        torch.testing.assert_close(own @ v[0].t(), direction(slot, terms), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
def test_low_rank_directions_of_loren_have_its_covariance_over_the_steps(noise):
    """E[D^T D] / m = rho (rho I + a a^T)^{-1}, as for dense noise; in one step their rank is r."""
    rho, m, n, r, steps = 0.1, 4, 6, 2, 12_000
    slot = slot_of(LowRankCovariance(rho, r, noise), torch.zeros(m, n, dtype=torch.float64))
    slot.state["a"] = normal(Key(9), (n,), dtype=torch.float64)
    total = torch.zeros(n, n, dtype=torch.float64)
    for step in range(steps):
        slot.perturbation.refresh(slot, step)
        D = direction(slot, [(1.0, slot.key.at(step=step))])
        total += D.t() @ D
    a = slot.state["a"]
    expected = rho * torch.linalg.inv(rho * torch.eye(n, dtype=torch.float64) + torch.outer(a, a))
    torch.testing.assert_close(total / (steps * m), expected, rtol=0, atol=0.05)
    assert torch.linalg.matrix_rank(D) == r


@pytest.mark.parametrize("name", ["dense", "low_rank"])
def test_coordinates_expand_to_the_same_directions(name):
    """combine == combine_coordinates, then add_coordinates (the two halves of momentum in coordinates)."""
    slot = slot_of(make(name), torch.zeros(5, 123, dtype=torch.float64))
    x = torch.zeros(slot.perturbation.coordinates_shape(slot), dtype=torch.float64)
    slot.perturbation.combine_coordinates(slot, x, keyed(slot), decay=1.0)
    w = torch.zeros(slot.shape, dtype=torch.float64)
    slot.perturbation.add_coordinates(slot, w, x, scale=0.5, decay=1.0, rounding=None)
    torch.testing.assert_close(w, 0.5 * direction(slot, keyed(slot)), rtol=1e-12, atol=1e-12)


# -------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("name", ["rank_one", "low_rank", "low_rank_covariance"])
@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 7)])
def test_input_dim_0_is_the_transposed_problem(name, shape):
    """GPT-2's Conv1D stores (n, m): the same directions, turned."""
    turned = slot_of(make(name), torch.zeros(shape, dtype=torch.float64), input_dim=0)
    m, n = shape[-1], math.prod(shape[:-1])
    plain = slot_of(make(name), torch.zeros(m, n, dtype=torch.float64))
    assert tuple(turned.shape) == (m, n)
    assert torch.equal(direction(turned, keyed(turned)), direction(plain, keyed(plain)))
    stored = turned.stored(direction(turned, keyed(turned)))
    assert stored.shape == shape
    assert torch.equal(stored.reshape(n, m).t(), direction(plain, keyed(plain)))


@pytest.mark.parametrize("cls", [LOZO, LOREN])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_training_with_input_dim_0_is_the_transposed_training(cls, momentum):
    start = normal(Key(6), (5, 7), dtype=torch.float64)
    scale = normal(Key(7), (5, 7), dtype=torch.float64).square()
    plain, turned = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.t().contiguous())
    loss = {
        "plain": lambda: (scale * plain.square()).sum(),
        "turned": lambda: (scale.t() * turned.square()).sum(),
    }
    one = cls([plain], lr=1e-3, momentum=momentum)
    other = cls([{"params": [turned], "input_dim": 0}], lr=1e-3, momentum=momentum)
    for _ in range(5):
        one.step(loss["plain"])
        other.step(loss["turned"])
    torch.testing.assert_close(turned.data.t(), plain.data, rtol=1e-11, atol=1e-11)
    assert float((plain.data - start).abs().max()) > 1e-4


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (2, 3, 4), (2, 3, 2, 2), ()])
def test_every_method_trains_every_shape(cls, shape):
    weight = torch.nn.Parameter(torch.ones(shape, dtype=torch.float64))
    empty = torch.nn.Parameter(torch.ones(0, 3, dtype=torch.float64))
    flat = torch.nn.Parameter(torch.ones(3, 0, dtype=torch.float64))
    none = torch.nn.Parameter(torch.ones(0, dtype=torch.float64))
    optimizer = cls([weight, empty, flat, none], lr=2e-3, eps=1e-2)
    for _ in range(3):
        optimizer.estimate(lambda: weight.square().sum() + empty.sum() + flat.sum() + none.sum())
        optimizer.step()
    assert optimizer.t == 3
    assert weight.shape == shape
    assert bool(torch.isfinite(weight).all())
    assert float((weight.data - 1).abs().max()) > 0


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("cls", CLASSES)
def test_channels_last_weights_are_updated_like_plain_ones(cls, backend):
    """Their (m, n) view does not exist in memory; the update must reach them all the same."""
    start = normal(Key(9), (4, 3, 2, 5))
    weights = [start.clone(), start.clone().to(memory_format=torch.channels_last)]
    assert not weights[1].is_contiguous()
    for i, data in enumerate(weights):
        weights[i] = torch.nn.Parameter(data)
        optimizer = cls([weights[i]], lr=1e-3, backend=backend)
        for _ in range(3):
            optimizer.estimate(lambda w=weights[i]: w.contiguous().square().sum())
            optimizer.step()
    assert weights[1].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(weights[0].data, weights[1].data.contiguous())
    assert not torch.equal(weights[0].data, start)


# -------------------------------------------------------------------------------------------- LOREN's a


def log_density(D: torch.Tensor, a: torch.Tensor, rho: float) -> torch.Tensor:
    """log p(D) with rows ~ N(0, rho Sigma), Sigma^{-1} = rho I + a a^T, up to a constant."""
    n = a.numel()
    precision = (rho * torch.eye(n, dtype=a.dtype) + torch.outer(a, a)) / rho
    return 0.5 * D.shape[0] * torch.logdet(precision) - 0.5 * torch.einsum("mi,ij,mj->", D, precision, D)


@pytest.mark.parametrize("name", ["rank_one", "low_rank_covariance"])
@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (5, 12)])
def test_lorens_gradient_of_a_is_autograd_of_the_log_density(shape, noise, name):
    rho, K, step, lr_cov = 0.1, 4, 3, 0.5
    slot = slot_of(make(name, noise), torch.zeros(shape, dtype=torch.float64))
    slot.perturbation.refresh(slot, step)
    slot.group["lr_cov"] = lr_cov
    weights = [0.7, -1.1, 0.3, 0.4]
    D = [direction(slot, [(1.0, slot.key.at(step=step, query=k))]) for k in range(K)]
    before = slot.state["a"].clone()
    slot.perturbation.after_update(slot, step, weights)
    leaf = before.clone().requires_grad_()
    total = sum(w * slot.group["eps"] * log_density(D_k, leaf, rho) for w, D_k in zip(weights, D, strict=True))
    (expected,) = torch.autograd.grad(total, leaf)
    got = (before - slot.state["a"]) / lr_cov
    if shape[1] > 1 or noise == "gaussian":  # a column of signs has a fixed norm: there is nothing to learn
        assert float(expected.abs().max()) > 1e-6
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("size", [0.0, 1e-20, 3e-5, 1.0, 1e3])
def test_the_factor_b_is_stable_near_zero(size):
    """(1 - sqrt(rho) / t) / s, whose limit at a = 0 is 1 / (2 rho); the textbook form gives 0 in float32."""
    rho = 0.1
    perturbation = RankOneCovariance(rho)
    s, t, b = perturbation.factors(torch.full((3,), size))
    exact_s = np.longdouble(s)
    root = np.sqrt(np.longdouble(rho))
    exact_t = np.sqrt(np.longdouble(rho) + exact_s)
    assert t == pytest.approx(float(exact_t))
    expected = float((exact_t - root) / exact_t / exact_s) if size > 1e-3 else 1 / (2 * rho)
    assert b == pytest.approx(expected, rel=1e-6)


def test_a_moves_once_a_step_and_only_for_matrices():
    matrix, bias = torch.nn.Parameter(torch.ones(3, 4)), torch.nn.Parameter(torch.ones(4))
    optimizer = LOREN([matrix, bias], lr=0.0, lr_cov=0.1)
    optimizer.estimate(lambda: (matrix + bias).square().sum())
    a = optimizer.state[matrix]["a"].clone()
    optimizer.estimate(lambda: (matrix + bias).square().sum())
    assert torch.equal(optimizer.state[matrix]["a"], a)
    optimizer.step()
    assert not torch.equal(optimizer.state[matrix]["a"], a)
    assert "a" not in optimizer.state[bias]
    assert a.dtype is torch.float32


# -------------------------------------------------------------------------------------------- LOZO's V


def test_v_changes_every_period_and_carries_the_momentum_over():
    """N <- N V_old^T V_new / n at the first step with the new V."""
    weight = torch.nn.Parameter(normal(Key(1), (5, 7), dtype=torch.float64))
    optimizer = LOZO([weight], lr=1e-3, rank=2, period=3, momentum=0.9)
    slot, perturbation = optimizer._active()[0], optimizer._matrix
    bases = [perturbation.basis(slot, block) for block in range(2)]
    assert not torch.equal(*bases)
    for step in range(4):
        before = optimizer.state[weight].get("coordinates", torch.zeros(5, 2)).clone()
        optimizer.estimate(lambda: weight.square().sum())
        now = optimizer.state[weight].get("coordinates", torch.zeros(5, 2))
        if step == 3:
            torch.testing.assert_close(now, before @ bases[0].t() @ bases[1] / 7, rtol=1e-12, atol=1e-12)
            assert not torch.equal(now, before)
        else:
            assert torch.equal(now, before)
        optimizer.step()
    assert optimizer.state[weight]["coordinates"].shape == (5, 2)


def test_state_of_half_precision_weights_is_float32():
    weight = torch.nn.Parameter(torch.ones(4, 3, dtype=torch.bfloat16))
    for optimizer in (MeZO([weight], lr=0.1, momentum=0.9), HiZOO([weight], lr=0.1), LOREN([weight], lr=0.1)):
        optimizer.step(lambda: weight.float().square().sum())
        tensors = [x for x in optimizer.state[weight].values() if isinstance(x, torch.Tensor)]
        assert tensors
        assert all(x.dtype is torch.float32 for x in tensors)


def test_update_rules_leave_the_bits_alone_when_there_is_nothing_to_do():
    slot = slot_of(Dense(), torch.tensor([1.0, -0.0, 3.0]).bfloat16())
    before = slot.param.data.view(torch.int16).clone()
    for rule in (SGD(), Momentum(0.9)):
        rule.step(slot, keyed(slot), lr=0.0, rounding=Key(1))
    SGD().step(slot, [(0.0, Key(1))], lr=1.0, rounding=Key(1))
    assert torch.equal(slot.param.data.view(torch.int16), before)
