"""What only MeZO-SVRG has: snapshots, an anchor and two rates."""

import pytest
import torch

import zotune


def test_a_parameter_unfrozen_between_snapshots_has_no_part_in_the_snapshot() -> None:
    first, late = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3), requires_grad=False)
    optimizer = zotune.MeZOSVRG([first, late], lr=0.01, period=3)

    def closure() -> torch.Tensor:
        return first.square().sum() + late.square().sum()

    optimizer.step(closure)
    late.requires_grad_(True)
    for _ in range(2):
        optimizer.step(closure)
    # At its own weights the control variate cancels, so nothing may move the late parameter before the next snapshot.
    assert torch.equal(late.data, torch.ones(3))
    optimizer.step(closure)
    assert not torch.equal(late.data, torch.ones(3))


def test_the_second_rate_of_svrg_follows_a_one_cycle_schedule() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = zotune.MeZOSVRG([parameter], lr=1e-2, lr_minibatch=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=20)
    rates = []
    for _ in range(20):
        optimizer.step(lambda: parameter.square().sum())
        rates.append(optimizer._rates(optimizer.param_groups[0]))
        schedule.step() if len(rates) < 20 else None
    full, minibatch = zip(*rates, strict=True)
    assert max(full) == pytest.approx(1e-2)
    assert max(minibatch) == pytest.approx(1e-3)
