"""A run that was recorded is rebuilt from its losses, bit for bit; another base model is refused."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from trajectory_runs import DTYPES, METHODS, NOISES, STEPS, build, loss_at, model_of, record, same, train

from zotune import LOZO, HiZOO, MeZO, MeZOSVRG, digest
from zotune.optimizer import ZerothOrder
from zotune.trajectory import Recorder, Step, TrajectoryError, go_on, read, replay


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("case", METHODS)
def test_replay_rebuilds_weights_and_state(case: str, dtype: torch.dtype, noise: str, tmp_path: Path) -> None:
    """And training goes on from both with the same bits; also from a saved state in the middle."""
    wide = 600 if "8 bits" in case else 7  # small tensors are not quantised
    path = tmp_path / "run.zo"
    model, optimizer = record(path, case, dtype=dtype, noise=noise, wide=wide)
    assert digest(model.parameters()) != digest(model_of(dtype, wide).parameters())

    again = model_of(dtype, wide)
    rebuilt = replay(path, again.named_parameters())
    assert digest(again.parameters()) == digest(model.parameters())
    assert same(rebuilt.state_dict(), optimizer.state_dict())
    assert rebuilt.last_losses == optimizer.last_losses

    middle = model_of(dtype, wide)
    first = replay(path, middle.named_parameters(), until=11)
    assert first.t == 11
    assert [p.requires_grad for p in middle.parameters()] == [False, False, True, True]
    fresh = build(case, middle, noise=noise)
    fresh.load_state_dict(copy.deepcopy(first.state_dict()))
    go_on(read(path), fresh)
    assert digest(middle.parameters()) == digest(model.parameters())
    assert same(fresh.state_dict(), optimizer.state_dict())

    for own, its in ((optimizer, model), (rebuilt, again), (fresh, middle)):
        train(own, its, STEPS + 4)
    assert digest(model.parameters()) == digest(again.parameters()) == digest(middle.parameters())


def test_a_file_holds_the_changes_that_were_made(tmp_path: Path) -> None:
    """So that the test above cannot pass because nothing changed."""
    record(tmp_path / "run.zo")
    steps = [item for item in read(tmp_path / "run.zo").items() if isinstance(item, Step)]
    assert [s.number for s in steps] == list(range(STEPS))
    assert [s.number for s in steps if s.rate is not None] == [3, 6, 9, 12, 15, 17, 18]  # 17: one group is set back
    changed = [(s.number, s.settings) for s in steps if s.settings]
    assert changed == [(5, {1: {"eps": 2e-3}}), (16, {0: {"lr": 3e-4}})]
    assert [(s.number, sorted(s.active)) for s in steps if s.active is not None] == [
        (8, ["2.bias", "2.weight"]),
        (14, ["0.bias", "0.weight", "2.bias", "2.weight"]),
    ]


@pytest.mark.parametrize("backend", [None, "reference"])
def test_the_backend_changes_no_bit(backend: str | None, tmp_path: Path) -> None:
    model, _ = record(tmp_path / "run.zo", dtype=torch.bfloat16)
    again = model_of(torch.bfloat16)
    replay(tmp_path / "run.zo", again.named_parameters(), backend=backend)
    assert digest(again.parameters()) == digest(model.parameters())


class Tied(nn.Module):
    """A table that is input and output, and a matrix stored the other way round."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.table = nn.Parameter(torch.randn(11, 6, generator=generator))
        self.turned = nn.Parameter(torch.randn(6, 6, generator=generator))
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.table

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.table[x] @ self.turned))


@pytest.mark.parametrize("cls", [MeZO, LOZO, HiZOO])
def test_tied_weights_and_turned_groups(cls: type[ZerothOrder], tmp_path: Path) -> None:
    def loss() -> torch.Tensor:
        return model(torch.arange(5)).square().mean()

    model = Tied()
    groups = [{"params": [("table", model.table)]}, {"params": [("turned", model.turned)], "input_dim": 0}]
    optimizer = cls(groups, lr=1e-2, seed=3)
    with Recorder(tmp_path / "run.zo", optimizer):
        for _ in range(5):
            optimizer.step(loss)
    again = Tied()
    replay(tmp_path / "run.zo", again.named_parameters())
    assert digest(again.parameters()) == digest(model.parameters()) != digest(Tied().parameters())


def test_parameters_without_names(tmp_path: Path) -> None:
    model, again = model_of(), model_of()
    optimizer = MeZO(model.parameters(), lr=1e-2)
    with Recorder(tmp_path / "run.zo", optimizer):
        for step in range(4):
            optimizer.step(loss_at(model, step))
    replay(tmp_path / "run.zo", [(f"parameter {i}", p) for i, p in enumerate(again.parameters())])
    assert digest(again.parameters()) == digest(model.parameters())
    third = model_of()
    fresh = MeZO(third.parameters(), lr=1e-2)
    go_on(read(tmp_path / "run.zo"), fresh)
    assert digest(third.parameters()) == digest(model.parameters())


def test_a_schedule_of_torch_with_the_rate_in_a_tensor(tmp_path: Path) -> None:
    model, again = model_of(), model_of()
    optimizer = MeZOSVRG(model.named_parameters(), lr=torch.tensor(1e-2), period=3)
    with Recorder(tmp_path / "run.zo", optimizer):
        schedule = CosineAnnealingLR(optimizer, 9)
        for step in range(9):
            optimizer.step(loss_at(model, step), loss_at(model, step))
            schedule.step()
    replay(tmp_path / "run.zo", again.named_parameters())
    assert digest(again.parameters()) == digest(model.parameters())


# ------------------------------------------------------------------------------------------------ what is refused


def flip_a_bit(model: nn.Sequential) -> None:
    model[2].weight.data.view(torch.int32)[1, 2] ^= 1


def another_type(model: nn.Sequential) -> None:
    model[0].bias.data = model[0].bias.data.bfloat16()


def another_shape(model: nn.Sequential) -> None:
    model[0].weight = nn.Parameter(torch.zeros(8, 7))


def another_name(model: nn.Sequential) -> None:
    model._modules["head"] = model._modules.pop("2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip_a_bit, r"the weights are not those that the run began with \('a model', 87 weights\): give the base"),
        (another_type, r"'0.bias' is bfloat16 of shape \(7,\), in the trajectory 'float32' of \(7,\)"),
        (another_shape, r"'0.weight' is float32 of shape \(8, 7\), in the trajectory 'float32' of \(7, 8\)"),
        (another_name, "the model has no parameter '2.weight': give the model that the run began with"),
    ],
)
def test_another_base_model_is_refused_and_left_alone(change, message: str, tmp_path: Path) -> None:
    model = model_of()
    optimizer = build("MeZO", model)
    with Recorder(tmp_path / "run.zo", optimizer, about={"model_name": "a model"}):
        train(optimizer, model, 3)
    other = model_of()
    change(other)
    before = digest(other.parameters())
    with pytest.raises(TrajectoryError, match=message):
        replay(tmp_path / "run.zo", other.named_parameters())
    assert digest(other.parameters()) == before


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("at", [2, 4, 6])
def test_recorded_digests_are_compared_on_the_way(at: int, wrong: bool, tmp_path: Path) -> None:
    model, again = model_of(), model_of()
    optimizer = build("MeZO", model)
    with Recorder(tmp_path / "run.zo", optimizer) as recorder:
        for until in range(1, 7):
            train(optimizer, model, until)
            recorder.event("evaluation", accuracy=0.5)
            if until == at:
                recorder.event("weights", digest=digest(model.parameters()) ^ wrong)
    if not wrong:
        assert replay(tmp_path / "run.zo", again.named_parameters()).t == 6
        return
    with pytest.raises(TrajectoryError, match=f"the weights after step {at} are not those that were recorded"):
        replay(tmp_path / "run.zo", again.named_parameters())
    if at > 2:
        assert replay(tmp_path / "run.zo", model_of().named_parameters(), until=at - 1).t == at - 1


def test_until_must_lie_within_the_steps(tmp_path: Path) -> None:
    record(tmp_path / "run.zo", steps=3)
    for until in (-1, 4):
        with pytest.raises(TrajectoryError, match="is not within them"):
            replay(tmp_path / "run.zo", model_of().named_parameters(), until=until)
    assert replay(tmp_path / "run.zo", model_of().named_parameters(), until=0).t == 0


def test_go_on_wants_all_parameters(tmp_path: Path) -> None:
    record(tmp_path / "run.zo", steps=3)
    with pytest.raises(TrajectoryError, match=r"the optimizer has no parameter '2\.weight'"):
        go_on(read(tmp_path / "run.zo"), MeZO(model_of()[0].named_parameters(prefix="0"), lr=0.1))


# ------------------------------------------------------------------------------------------------ arguments


class Positional(MeZO):
    """As users write them."""

    def __init__(self, model: nn.Module, lr: float, noise: str = "gaussian", **options: Any) -> None:
        super().__init__(model.named_parameters(), lr=lr, noise=noise, **options)


def test_arguments_of_subclasses_and_copies() -> None:
    model = model_of()
    optimizer = Positional(model, 0.1, "rademacher", seed=3)
    assert optimizer.arguments == {"lr": 0.1, "noise": "rademacher", "seed": 3}
    assert MeZO(params=model.parameters(), lr=0.1).arguments == {"lr": 0.1}
    optimizer.register_tell_hook(lambda *_: pytest.fail("copies have no hooks"))
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert twin.arguments == optimizer.arguments
        twin.tell([1.0, 2.0])
        assert twin.t == 1
    with pytest.raises(TypeError):
        Positional(model, 0.1, "gaussian", 3)


def test_a_subclass_is_recorded_under_its_own_name(tmp_path: Path) -> None:
    model, again = model_of(), model_of()
    optimizer = Positional(model, 0.1)
    with Recorder(tmp_path / "run.zo", optimizer):
        optimizer.step(loss_at(model, 0))
    trajectory = read(tmp_path / "run.zo")
    assert trajectory.header.method == f"{__name__}.Positional"
    with pytest.raises(TrajectoryError, match="build it yourself"):
        replay(trajectory, again.named_parameters())
    go_on(trajectory, Positional(again, 0.1))
    assert digest(again.parameters()) == digest(model.parameters())


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        ({"eps": torch.tensor(1e-3)}, {}, "eps is a tensor: give a plain number"),
        ({"clip": torch.tensor(1.0)}, {}, "clip is a tensor"),
        ({}, {"weight_decay": torch.tensor(0.1)}, "weight_decay is a tensor"),
        ({}, {"lr": [1, 2]}, "lr of a parameter group is no plain number"),
        ({}, {"lr": object()}, "lr of a parameter group cannot be recorded"),
    ],
)
def test_values_that_a_file_cannot_hold(options, settings, message: str, tmp_path: Path) -> None:
    optimizer = MeZO(model_of().named_parameters(), **{"lr": 0.1, **options})
    optimizer.param_groups[0].update(settings)
    with pytest.raises(TrajectoryError, match=message):
        Recorder(tmp_path / "run.zo", optimizer)
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_numpy_and_paths_are_plain_in_the_file(tmp_path: Path) -> None:
    optimizer = MeZO(model_of().named_parameters(), lr=np.float64(0.1))
    facts = {"a": np.float32(0.5), "b": np.int64(3), "c": torch.tensor(2.0), "d": Path("x"), "e": np.bool_(True)}
    with Recorder(tmp_path / "run.zo", optimizer, about=facts) as recorder:
        recorder.event("evaluation", **facts)
        with pytest.raises(TrajectoryError, match="the event 'evaluation' cannot be recorded"):
            recorder.event("evaluation", model=optimizer)
    plain = {"a": 0.5, "b": 3, "c": 2.0, "d": "x", "e": True}
    trajectory = read(tmp_path / "run.zo")
    assert trajectory.header.about == plain
    assert [event.facts for event in trajectory.items()] == [plain]


def test_a_thousand_steps_are_small(tmp_path: Path) -> None:
    """Eight bytes a loss, and six for the frame of a step."""
    optimizer = MeZO(model_of().named_parameters(), lr=1e-3)
    path = tmp_path / "run.zo"
    with Recorder(path, optimizer):
        header = path.stat().st_size
        for step in range(1000):
            optimizer.tell([1.0 + step, 1.5 + step])
    assert read(path).queries == 2000
    assert path.stat().st_size - header <= 12 * 2000
