"""What only MeZO-SVRG has: snapshots, an anchor and two rates."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import zotune
from zotune.estimators import Probe, TwoPoint
from zotune.noise import Key, normal
from zotune.optimizer import ZerothOrder
from zotune.perturbations import Dense, Part
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
    assert optimizer.state[late]["anchor_step"] == 3


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


# ------------------------------------------------------------------------------------------------ the anchor


def parameters(dtype: torch.dtype = torch.float64) -> dict[str, torch.nn.Parameter]:
    shapes = {"weight": (40, 50), "bias": (40,), "late": (30, 7)}
    return {
        name: torch.nn.Parameter(normal(Key(11, parameter=number), shape, dtype=torch.float32).to(dtype))
        for number, (name, shape) in enumerate(shapes.items())
    }


def told(optimizer: zotune.MeZOSVRG, steps: int) -> None:
    """Steps whose losses depend on nothing but their number."""
    for _ in range(steps):
        optimizer.tell([math.sin(3.0 * optimizer.t + k) * 1e-3 for k in range(len(optimizer.plan()))])


def anchor_of(optimizer: zotune.MeZOSVRG) -> dict[str, torch.Tensor]:
    """The weights of the anchor, parameter by parameter, as a query without perturbation would see them."""
    written = {}
    for slot in optimizer._active():
        out = torch.empty(slot.shape, dtype=slot.param.dtype)
        optimizer._write_probe(slot, Probe(0, 0, 1), out)
        written[slot.name] = slot.stored(out).clone()
    return written


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "decay": {"weight_decay": 0.3, "lr_minibatch": 0.05},
    "four queries": {"queries": 4},
    "signs, clipped": {"noise": "rademacher", "clip": 0.3},
    "anneal": {"anneal": 3.0, "anneal_window": 2},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-13), (torch.float32, 3e-6)])
def test_the_recomputed_anchor_is_the_weights_at_the_snapshot(dtype, limit, settings):
    params = parameters(dtype)
    optimizer = zotune.MeZOSVRG(params.items(), lr=0.1, period=6, **settings)
    for _ in range(3):
        snapshot = {name: p.detach().clone() for name, p in params.items()}
        for _ in range(5):
            told(optimizer, 1)
            for name, anchor in anchor_of(optimizer).items():
                torch.testing.assert_close(anchor, snapshot[name], rtol=0, atol=limit)
        assert float((params["weight"].detach() - snapshot["weight"]).abs().max()) > 1e-2
        told(optimizer, 1)


def trajectory(anchor: str, dtype: torch.dtype, **settings: Any) -> dict[str, torch.Tensor]:
    """13 steps with a frozen layer, a schedule, groups of their own and one that joins later."""
    params = parameters(dtype)
    late, target = params.pop("late"), torch.linspace(-1, 1, 40, dtype=dtype)
    groups = [{"params": [("bias", params["bias"])], "lr": 0.02}, {"params": [("weight", params["weight"])]}]
    optimizer = zotune.MeZOSVRG(groups, lr=5e-4, period=5, weight_decay=0.2, anchor=anchor, **settings)

    def loss(step: int) -> Callable[[], torch.Tensor]:
        x = torch.linspace(-1, 1 + 0.1 * step, 50, dtype=dtype)
        return lambda: (params["weight"] @ x + params["bias"] - target).square().mean() + late.square().mean()

    for step in range(13):
        params["bias"].requires_grad_(step not in (2, 3, 10))
        optimizer.param_groups[1]["lr"] = 5e-4 / (1 + step)
        if step == 7:
            optimizer.add_param_group({"params": [("late", late)], "lr": 0.01})
        optimizer.step(loss(step))
    return {name: p.detach() for name, p in {**params, "late": late}.items()}


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-11), (torch.float32, 1e-3)])
def test_recomputing_and_copying_the_anchor_give_the_same_run(dtype, limit):
    own, copied = (trajectory(anchor, dtype) for anchor in ("recompute", "copy"))
    for name, start in ((name, p.detach()) for name, p in parameters(dtype).items()):
        torch.testing.assert_close(own[name], copied[name], rtol=0, atol=limit)
        assert float((own[name] - start).abs().max()) > 3 * limit


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_roundings_since_the_snapshot_stay_in_the_recomputed_anchor(dtype):
    params = parameters(dtype)
    optimizer = zotune.MeZOSVRG(params.items(), lr=0.1, period=6)
    snapshot = params["weight"].detach().float()
    told(optimizer, 5)
    off = anchor_of(optimizer)["weight"].float() - snapshot
    spacing = torch.finfo(dtype).eps * snapshot.abs().clamp_min(0.1)
    assert 0.2 < float((off / spacing).square().mean().sqrt()) < 5**0.5
    assert abs(float((off / spacing).mean())) < 0.1


def test_rows_of_the_anchor_have_the_bits_of_the_whole():
    params = parameters(torch.float32)
    optimizer = zotune.MeZOSVRG(params.items(), lr=0.1, period=6, queries=4)
    told(optimizer, 4)
    slot = next(slot for slot in optimizer._active() if slot.name == "weight")
    probe, whole, listed = Probe(1, -1, 1), torch.empty(40, 50), torch.tensor([31, 0, 7])
    optimizer._write_probe(slot, probe, whole)
    block, rows = torch.empty(5, 50), torch.empty(3, 50)
    optimizer._write_probe(slot, probe, block, Part(3, 8))
    optimizer._write_probe(slot, probe, rows, Part(rows=listed))
    assert torch.equal(block, whole[3:8])
    assert torch.equal(rows, whole[listed])
    assert not torch.equal(whole, anchor_of(optimizer)["weight"])


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_the_state_is_numbers_and_a_copy_only_when_asked_for():
    for anchor, tensors in (("recompute", 0), ("copy", 1)):
        params = parameters()
        optimizer = zotune.MeZOSVRG(params.items(), lr=0.1, period=4, anchor=anchor)
        told(optimizer, 7)
        values = through_a_file(optimizer.state_dict())["state"][0].values()
        assert sum(isinstance(value, torch.Tensor) for value in values) == tensors


@pytest.mark.parametrize(("saved", "goes_on"), [("copy", "recompute"), ("recompute", "copy")])
def test_a_run_may_go_on_with_the_other_way_of_keeping_the_anchor(saved, goes_on):
    """Also that of a version that knew copies only; the next snapshot is kept in the new way."""
    params = parameters()
    optimizer = zotune.MeZOSVRG(params.items(), lr=0.1, period=4, anchor=saved)
    told(optimizer, 6)
    straight = {name: anchor.clone() for name, anchor in anchor_of(optimizer).items()}
    other = zotune.MeZOSVRG(params.items(), lr=0.1, period=4, anchor=goes_on)
    state = through_a_file(optimizer.state_dict())
    del state["zotune"]["bits"]
    other.load_state_dict(state)
    told(other, 1)
    for name, anchor in anchor_of(other).items():
        torch.testing.assert_close(anchor, straight[name], rtol=0, atol=1e-13)
    told(other, 2)
    assert ("anchor" in other.state[params["weight"]]) is (goes_on == "copy")
    assert ("anchor_moves" in other.state[params["weight"]]) is (goes_on == "recompute")


def test_a_decay_that_cannot_be_undone_is_refused_before_anything_changes():
    params = parameters()
    optimizer = zotune.MeZOSVRG(params.items(), lr=0.5, lr_minibatch=0.5, period=4, weight_decay=0.8)
    told(optimizer, 1)
    before = zotune.digest(params.values())
    with pytest.raises(ValueError, match="choose anchor='copy'"):
        told(optimizer, 1)
    assert zotune.digest(params.values()) == before
    copying = zotune.MeZOSVRG(params.items(), lr=0.5, lr_minibatch=0.5, period=4, weight_decay=0.8, anchor="copy")
    told(copying, 5)
    assert zotune.digest(params.values()) != before


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({"period": 33}, True),
        ({"period": 32}, False),
        ({"period": 17, "queries": 4}, True),
        ({"period": 33, "noise": "rademacher"}, False),
        ({"period": 33, "anchor": "copy"}, False),
    ],
)
def test_a_period_for_which_a_copy_is_faster_gets_a_sentence(settings, warned, caplog):
    with caplog.at_level(logging.WARNING):
        zotune.MeZOSVRG([torch.nn.Parameter(torch.ones(2))], lr=0.1, **settings)
    assert ["anchor='copy' is faster" in record.getMessage() for record in caplog.records] == [True] * warned


@pytest.mark.parametrize(("anchor", "hint"), [("recompte", "did you mean 'recompute'"), ("none", "recompute, copy")])
def test_an_unknown_anchor_is_refused(anchor, hint):
    with pytest.raises(ValueError, match=hint):
        zotune.MeZOSVRG([torch.nn.Parameter(torch.ones(2))], lr=0.1, anchor=anchor)
