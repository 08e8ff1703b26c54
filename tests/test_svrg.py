"""What only MeZO-SVRG has: snapshots, an anchor and two rates."""

import pytest
import torch

import zotune
from zotune.estimators import TwoPoint
from zotune.noise import Key, normal
from zotune.optimizer import ZerothOrder
from zotune.perturbations import Dense
from zotune.rules import SGD


def test_a_parameter_unfrozen_between_snapshots_moves_as_in_mezo_until_the_next() -> None:
    first, late = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3), requires_grad=False)
    optimizer = zotune.MeZOSVRG([first, late], lr=0.01, period=3)
    losses: list[float] = []

    def closure() -> torch.Tensor:
        losses.append(float(first.square().sum() + late.square().sum()))
        return torch.tensor(losses[-1], dtype=torch.float64)

    optimizer.step(closure)
    late.requires_grad_(True)
    optimizer.step(closure)
    plus, minus = losses[2:4]
    z = normal(Key(0, step=1, parameter=1), (3,))
    assert torch.allclose(late.data, 1 - 0.01 * (plus - minus) / (2 * 1e-3) * z, atol=1e-6)
    for _ in range(2):
        optimizer.step(closure)
    assert "anchor" in optimizer.state[late]


def test_the_second_rate_of_svrg_follows_a_one_cycle_schedule() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = zotune.MeZOSVRG([parameter], lr=1e-2, lr_minibatch=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=20, cycle_momentum=False)
    rates = []
    for _ in range(20):
        optimizer.step(lambda: parameter.square().sum())
        rates.append(optimizer._rates(optimizer.param_groups[0]))
        schedule.step() if len(rates) < 20 else None
    full, minibatch = zip(*rates, strict=True)
    assert max(full) == pytest.approx(1e-2)
    assert max(minibatch) == pytest.approx(1e-3)


def test_step_hooks_run_once_also_where_the_base_class_is_used_by_itself() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    base = ZerothOrder(
        [parameter], {"lr": 0.1, "eps": 1e-3, "weight_decay": 0.0}, estimator=TwoPoint(), matrix=Dense(), rule=SGD()
    )
    base.step(lambda: parameter.square().sum())  # torch wraps the step of every class that is used
    optimizer = zotune.MeZOSVRG([parameter], lr=0.1)
    calls: list[str] = []
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.step(lambda: parameter.square().sum())
    assert calls == ["after"]
