"""state_dict: a run that is saved and continued has the bits of one that was not interrupted."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from zotune import FZOO, LOREN, LOZO, HiZOO, MeZO, MeZOSVRG, ZOAdam, digest
from zotune.optimizer import ZerothOrder

CASES: dict[str, tuple[type[ZerothOrder], dict[str, Any]]] = {
    "MeZO": (MeZO, {}),
    "MeZO momentum": (MeZO, {"momentum": 0.9, "queries": 4, "weight_decay": 0.1}),
    "MeZO rademacher clip": (MeZO, {"noise": "rademacher", "clip": 0.5}),
    "ZOAdam": (ZOAdam, {}),
    "ZOAdam 8 bits": (ZOAdam, {"bits": 8}),
    "SVRG": (MeZOSVRG, {"period": 3, "anneal": 2.0, "anneal_window": 2, "lr_minibatch": 2e-3}),
    "LOZO": (LOZO, {"period": 3}),
    "LOZO-M": (LOZO, {"period": 3, "momentum": 0.8}),
    "HiZOO": (HiZOO, {"smoothing": "constant1e-2"}),
    "SVRG copy": (MeZOSVRG, {"period": 3, "anchor": "copy"}),
    "LOREN": (LOREN, {"lr_cov": 1e-2, "momentum": 0.9}),
    "LOREN without momentum": (LOREN, {"momentum": 0.0}),
    "FZOO": (FZOO, {}),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def model_of(dtype: torch.dtype, wide: int = 8) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(8, wide), nn.Tanh(), nn.Linear(wide, 3))
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator).mul(0.5).to(dtype)
    return model


def loss_at(model: nn.Module, step: int) -> Callable[[], torch.Tensor]:
    dtype = next(model.parameters()).dtype
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(step)).to(dtype)
    return lambda: model(x).float().square().mean()


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def build(case: str, model: nn.Module) -> ZerothOrder:
    cls, options = CASES[case]
    if options.get("bits") == 8 and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed.")
    return cls(model.named_parameters(), lr=1e-2, seed=7, **options)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("saved_at", [0, 1, 4, 5])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_continued_run_has_the_same_bits(case: str, dtype: torch.dtype, saved_at: int) -> None:
    """Also between two snapshots (SVRG), across a change of V (LOZO-M), and in mid-accumulation."""
    wide = 600 if "8 bits" in case else 8  # small tensors are not quantised
    straight, interrupted = model_of(dtype, wide), model_of(dtype, wide)
    first, second = build(case, straight), build(case, interrupted)
    for step in range(9):
        if step == saved_at:
            second.estimate(loss_at(interrupted, 100 + step), weight=3)
            state = through_a_file(second.state_dict())
            weights = through_a_file(interrupted.state_dict())
            interrupted = model_of(dtype, wide)
            interrupted.load_state_dict(weights)
            second = build(case, interrupted)
            second.load_state_dict(state)
            assert second.t == step
            second.estimate(loss_at(interrupted, step))
            assert second.step() == pytest.approx(second.last_loss)
            first.estimate(loss_at(straight, 100 + step), weight=3)
            first.step(loss_at(straight, step))
        else:
            first.step(loss_at(straight, step))
            second.step(loss_at(interrupted, step))
        assert first.last_loss == second.last_loss
        assert digest(straight.parameters()) == digest(interrupted.parameters()), f"step {step}"
    assert first.queries == second.queries
    for p, q in zip(straight.parameters(), interrupted.parameters(), strict=True):
        for key, value in first.state[p].items():
            other = second.state[q][key]
            if isinstance(value, torch.Tensor):
                assert value.dtype is other.dtype
                assert torch.equal(value, other), key
            else:
                assert value == other, key
    assert digest(straight.parameters()) != digest(model_of(dtype, wide).parameters())


def test_loading_copies_the_state() -> None:
    model, other = model_of(torch.float32), model_of(torch.float32)
    first, second = build("MeZO momentum", model), build("MeZO momentum", other)
    first.step(loss_at(model, 0))
    second.load_state_dict(first.state_dict())
    kept = [second.state[p]["momentum"].clone() for p in other.parameters()]
    first.step(loss_at(model, 1))
    assert all(torch.equal(k, second.state[p]["momentum"]) for k, p in zip(kept, other.parameters(), strict=True))


def test_groups_and_their_rates_are_restored() -> None:
    def grouped(model: nn.Module) -> MeZO:
        named = list(model.named_parameters())
        return MeZO([{"params": named[:2], "lr": 0.5, "eps": 0.1}, {"params": named[2:]}], lr=0.1, seed=3)

    model = model_of(torch.float32)
    first, second = grouped(model), grouped(model_of(torch.float32))
    first.param_groups[1]["lr"] = 0.025
    first.step(loss_at(model, 0))
    second.load_state_dict(through_a_file(first.state_dict()))
    assert [(g["lr"], g["eps"]) for g in second.param_groups] == [(0.5, 0.1), (0.025, 1e-3)]


def test_an_added_group_keeps_its_noise() -> None:
    """Numbers of parameters are saved, so a layer that joined later draws the same numbers after loading."""

    def run(save: bool) -> int:
        model = model_of(torch.float32)
        late = [("a late one", nn.Parameter(torch.ones(8)))]
        optimizer = MeZO(model.named_parameters(), lr=1e-2)
        loss = lambda: model(late[0][1]).square().mean()  # noqa: E731
        optimizer.step(loss)
        optimizer.add_param_group({"params": late})
        optimizer.step(loss)
        if save:
            state = through_a_file(optimizer.state_dict())
            groups = [{"params": list(model.named_parameters())}, {"params": late}]
            optimizer = MeZO(groups, lr=1e-2)
            optimizer.load_state_dict(state)
        for _ in range(3):
            optimizer.step(loss)
        return digest([*model.parameters(), late[0][1]])

    assert run(True) == run(False)


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (LOREN, {}, "method='MeZO', this optimizer 'LOREN'"),
        (MeZO, {"seed": 8}, "seed=0, this optimizer 8"),
        (MeZO, {"noise": "rademacher"}, "noise='gaussian', this optimizer 'rademacher'"),
    ],
)
def test_refuses_the_state_of_another_run(cls: type[ZerothOrder], options: dict[str, Any], message: str) -> None:
    model = model_of(torch.float32)
    saved = MeZO(model.parameters(), lr=0.1)
    saved.step(loss_at(model, 0))
    other = cls(model.parameters(), lr=0.1, **options)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(saved.state_dict())
    assert other.t == 0


def test_refuses_other_formats_and_other_parameters() -> None:
    model = model_of(torch.float32)
    optimizer = MeZO(model.parameters(), lr=0.1)
    foreign = torch.optim.SGD(model.parameters(), lr=0.1).state_dict()
    with pytest.raises(ValueError, match="not saved by an optimizer of this version"):
        optimizer.load_state_dict(foreign)
    fewer = MeZO(list(model.parameters())[:2], lr=0.1)
    with pytest.raises(ValueError, match="parameter group"):
        optimizer.load_state_dict(fewer.state_dict())


def test_state_is_small_where_it_is_promised() -> None:
    """LOZO-M keeps (m, r), LOREN n, MeZO and SVRG nothing."""
    model = model_of(torch.float32)
    sizes = {}
    for case in ("MeZO", "LOZO-M", "SVRG", "LOREN without momentum"):
        optimizer = build(case, model)
        optimizer.step(loss_at(model, 0))
        state = optimizer.state[model[0].weight]
        sizes[case] = sum(v.numel() for v in state.values() if isinstance(v, torch.Tensor))
    assert sizes == {"MeZO": 0, "LOZO-M": 8 * 2, "SVRG": 0, "LOREN without momentum": 8}


@pytest.mark.parametrize(
    ("cls", "saved", "other", "message"),
    [
        (LOZO, {"rank": 2}, {"rank": 3}, "rank=2, this optimizer 3"),
        (LOREN, {"rank": 2}, {}, "rank=2, this optimizer 0"),
        (LOREN, {"momentum": 0.9}, {}, "rule='Momentum', this optimizer 'SGD'"),
        (LOZO, {}, {"momentum": 0.5}, "rule='SGD', this optimizer 'CoordinateMomentum'"),
    ],
)
def test_state_of_other_directions_or_rules_is_refused(cls, saved, other, message) -> None:
    model = model_of(torch.float32)
    first = cls(model.named_parameters(), lr=1e-3, **saved)
    first.step(loss_at(model, 0))
    with pytest.raises(ValueError, match=message):
        cls(model.named_parameters(), lr=1e-3, **other).load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    ("cls", "saved", "other", "message"),
    [
        (MeZOSVRG, {"period": 3}, {"period": 4}, "period=3, this optimizer 4"),
        (MeZOSVRG, {"queries": 4}, {}, "queries_per_step=4, this optimizer 2"),
        (MeZOSVRG, {"anneal_window": 9}, {"anneal": 2.0}, "anneal_window=9, this optimizer 100"),
        (LOZO, {"period": 5}, {}, "period=5, this optimizer 50"),
        (LOZO, {"momentum": 0.5}, {"momentum": 0.9}, r"momentum=0\.5, this optimizer 0\.9"),
        (LOREN, {"queries": 4}, {}, "queries_per_step=4, this optimizer 6"),
        (LOREN, {"damping": 0.5}, {}, r"damping=0\.5, this optimizer 0\.1"),
        (LOREN, {"damping": 0.5, "rank": 1}, {"rank": 1}, r"damping=0\.5, this optimizer 0\.1"),
        (MeZO, {"queries": 4}, {}, "queries_per_step=4, this optimizer 2"),
        (MeZO, {"momentum": 0.5}, {"momentum": 0.9}, r"momentum=0\.5, this optimizer 0\.9"),
        (ZOAdam, {"betas": (0.5, 0.9)}, {}, r"betas=\(0\.5, 0\.9\), this optimizer \(0\.9, 0\.999\)"),
        (ZOAdam, {"adam_eps": 1e-3}, {}, r"adam_eps=0\.001, this optimizer 1e-08"),
        (HiZOO, {"smoothing": "constant1e-2"}, {}, "smoothing='constant1e-2', this optimizer 'constant1e-8'"),
        (FZOO, {"queries": 4}, {}, "queries_per_step=4, this optimizer 8"),
    ],
)
@pytest.mark.parametrize("half", [False, True], ids=["between steps", "within a step"])
def test_state_of_other_settings_is_refused_and_changes_nothing(cls, saved, other, message, half) -> None:
    model = model_of(torch.float32)
    first = cls(model.named_parameters(), lr=1e-3, **saved)
    first.step(loss_at(model, 0))
    if half:
        first.estimate(loss_at(model, 1))
    second = cls(model.named_parameters(), lr=1e-3, **other)
    with pytest.raises(ValueError, match=f"the saved state has {message}: build it the same way"):
        second.load_state_dict(through_a_file(first.state_dict()))
    assert (second.t, second._sums, second.state_dict()["state"]) == (0, [], {})
    again = cls(model.named_parameters(), lr=1e-3, **saved)
    again.load_state_dict(through_a_file(first.state_dict()))
    assert again.t == 1


@pytest.mark.parametrize(
    ("cls", "saved", "other"),
    [
        (MeZO, {}, {"eps": 1e-2, "weight_decay": 0.1, "clip": 1.0, "backend": "reference"}),
        (LOREN, {}, {"lr_cov": 0.0, "clip": 1.0}),
        (MeZOSVRG, {"anchor": "copy"}, {"lr_minibatch": 1e-5, "anchor": "recompute", "clip": 1.0}),
        (MeZOSVRG, {"anneal": 2.0, "anneal_window": 3}, {"anneal": 3.0, "anneal_window": 3}),
        (MeZOSVRG, {"anneal": 2.0, "anneal_window": 3}, {"anneal_window": 4}),  # nothing looks at the window
    ],
)
def test_rates_and_bounds_may_change(cls, saved, other) -> None:
    """Those of the groups are restored, as in torch, and may be set afterwards."""
    model = model_of(torch.float32)
    first = cls(model.named_parameters(), lr=1e-3, **saved)
    first.step(loss_at(model, 0))
    second = cls(model.named_parameters(), lr=1e-4, **other)
    second.load_state_dict(through_a_file(first.state_dict()))
    assert [g["lr"] for g in second.param_groups] == [1e-3]
    second.param_groups[0]["lr"] = 1e-5
    second.step(loss_at(model, 1))
    assert second.t == 2


def test_a_state_saved_before_a_setting_was_noted_is_taken() -> None:
    model = model_of(torch.float32)
    first = LOZO(model.named_parameters(), lr=1e-3)
    first.step(loss_at(model, 0))
    state = first.state_dict()
    del state["zotune"]["period"], state["zotune"]["queries_per_step"]
    second = LOZO(model.named_parameters(), lr=1e-3)
    second.load_state_dict(state)
    assert second.t == 1
