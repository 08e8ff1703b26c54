"""Copies of an optimizer, and optimizers inside each other's closures."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zotune
from zotune import LOREN, METHODS, MeZO

X = torch.linspace(-1.0, 1.0, 8).view(2, 4)


def network() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    for place, p in enumerate(net.parameters()):
        p.data = torch.linspace(-0.5, 0.5 + place, p.numel()).view(p.shape)
    return net


def loss_of(net: nn.Module) -> Callable[[], Tensor]:
    return lambda: net(X).square().mean()


@pytest.mark.parametrize("name", METHODS)
def test_a_deep_copy_goes_on_with_the_same_bits(name: str) -> None:
    net = network()
    optimizer = METHODS[name].optimizer(net.named_parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.estimate(loss_of(net))
        optimizer.step()
    other, twin = copy.deepcopy((net, optimizer))
    for model, method in ((net, optimizer), (other, twin)):
        for _ in range(3):
            method.estimate(loss_of(model))
            method.step()
    assert optimizer.t == twin.t == 6
    assert zotune.digest(net.named_parameters()) == zotune.digest(other.named_parameters())
    assert zotune.digest(net.named_parameters()) != zotune.digest(network().named_parameters())


@pytest.mark.parametrize("outer", [MeZO, LOREN])
def test_an_optimizer_inside_anothers_closure_is_refused_and_no_weight_changes(outer: type[MeZO]) -> None:
    net = network()
    before = zotune.digest(net.named_parameters())
    inner = MeZO(net.named_parameters(), lr=0.0, seed=5)
    for _ in range(3):
        inner.step(loss_of(net))
    with pytest.raises(RuntimeError, match="one after the other"):
        outer(net.named_parameters(), lr=0.0).step(lambda: inner.step(loss_of(net)))
    assert zotune.digest(net.named_parameters()) == before
    inner.step(loss_of(net))  # and all is as it was
    assert zotune.digest(net.named_parameters()) == before


def test_optimizers_of_different_parameters_may_be_nested() -> None:
    student, teacher = network(), network()
    inner = MeZO(teacher.named_parameters(), lr=1e-2)
    outer = MeZO(student.named_parameters(), lr=1e-2)
    before = zotune.digest(teacher.named_parameters())
    outer.step(lambda: inner.step(loss_of(teacher)) or loss_of(student)())
    assert inner.t == 2
    assert zotune.digest(teacher.named_parameters()) != before


@pytest.mark.parametrize("loss", [np.float32(0.5), np.float64(0.5), np.array([0.5]), np.array(1), 1])
def test_numbers_of_numpy_are_losses(loss: object) -> None:
    assert MeZO([nn.Parameter(torch.ones(3))], lr=0.0).step(lambda: loss) in (0.5, 1.0)  # type: ignore[arg-type, return-value]


def test_a_number_beyond_all_floats_is_not_finite() -> None:
    with pytest.raises(zotune.NonFiniteLossError, match="inf"):
        MeZO([nn.Parameter(torch.ones(3))], lr=0.0).step(lambda: 10**400)


def test_parameters_without_values_are_refused() -> None:
    with pytest.raises(ValueError, match="meta device"):
        MeZO(nn.Linear(2, 2, device="meta").parameters(), lr=0.0)


def test_outside_reads_that_begin_late_are_found_named_and_the_step_is_exact(caplog: pytest.LogCaptureFixture) -> None:
    losses: dict[str, list[float]] = {}
    for name, evaluator in (("overlay", zotune.Overlay()), ("in place", zotune.InPlace())):
        net = network()
        optimizer = MeZO(net.named_parameters(), lr=0.0, evaluator=evaluator)

        def closure(net: nn.Module = net, optimizer: MeZO = optimizer) -> Tensor:
            loss = loss_of(net)()
            return loss if optimizer.t < 7 else loss + 10 * net[0].weight.square().sum()  # type: ignore[index]

        losses[name] = [optimizer.step(closure) or 0.0 for _ in range(12)]
    assert losses["overlay"][8:] == losses["in place"][8:]
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["0.weight"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"seed": 1.5}, "seed=1.5"),
        ({"clip": "x"}, "clip='x'"),
        ({"betas": 0.9}, "betas=0.9"),
        ({"adam_eps": "x"}, "adam_eps='x'"),
    ],
)
def test_values_of_a_wrong_kind_get_a_sentence(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        zotune.ZOAdam([nn.Parameter(torch.ones(2))], lr=0.1, **settings)  # type: ignore[arg-type]
