"""Stacked queries: several low-rank probes in one forward give the losses of separate forwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import torch
from tiny_runs import make_trainer, weights
from torch import Tensor, nn
from torch.nn import functional

import zotune
from zotune.evaluators.grouped import UnsupportedError
from zotune.hf.groups import parameter_groups
from zotune.noise import Key, normal

Losses = Callable[[int], Tensor]


def draw(number: int, *shape: int) -> Tensor:
    return normal(Key(number), shape, dtype=torch.float64)


def optimizer_of(
    model: nn.Module, evaluator: zotune.Stacked | zotune.Overlay | None = None, **kwargs: object
) -> zotune.LOZO:
    named = parameter_groups(model, weight_decay=0.0)
    return zotune.LOZO(named, **{"lr": 0.0, "eps": 0.05, "queries": 4, "seed": 3, **kwargs}, evaluator=evaluator)  # type: ignore[arg-type]


def losses_of(optimizer: zotune.LOZO, closure: object) -> list[float]:
    optimizer.estimate(closure)  # type: ignore[arg-type]
    losses, optimizer._sums, optimizer._weight = optimizer._sums, [], 0.0
    return losses


def assert_same(model: nn.Module, losses: Losses, limit: int = 16, **kwargs: object) -> None:
    """Stacked, with 1 and with several probes in a forward, equals the overlay, and every group counts."""
    separate = losses_of(optimizer_of(model, zotune.Overlay(), **kwargs), zotune.Grouped(losses))
    assert max(separate) - min(separate) > 1e-4
    for evaluator in (zotune.Stacked(limit), zotune.Stacked(1)):
        together = losses_of(optimizer_of(model, evaluator, **kwargs), zotune.Grouped(losses))
        assert evaluator.reason is None
        assert together == pytest.approx(separate, rel=1e-9, abs=1e-12)


def batch_of(rows: int = 4, length: int = 9) -> dict[str, Tensor]:
    ids = torch.arange(rows * length).view(rows, length) % 90 + tiny_models.UNK + 1
    mask = torch.ones_like(ids)
    ids[1, 6:], mask[1, 6:] = tiny_models.PAD, 0
    return {"input_ids": ids, "attention_mask": mask}


def class_losses(model: nn.Module) -> Losses:
    batch, labels = batch_of(), torch.tensor([0, 1, 1, 0])

    def losses(groups: int) -> Tensor:
        logits = model(**zotune.repeat(batch, groups)).logits
        return functional.cross_entropy(logits, labels.repeat(groups), reduction="none").view(groups, -1).mean(1)

    return losses


def word_losses(model: nn.Module) -> Losses:
    batch = batch_of()

    def losses(groups: int) -> Tensor:
        inputs = zotune.repeat(batch, groups)
        logits = model(**inputs).logits
        targets = inputs["input_ids"].roll(-1, 1)
        return functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none").view(groups, -1).mean(1)

    return losses


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_classifiers(family: str) -> None:
    model = tiny_models.build(family, dtype=torch.float64)
    assert_same(model, class_losses(model))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_language_models_with_tied_and_untied_heads(family: str, tied: bool) -> None:
    model = tiny_models.build(family, head="lm", dtype=torch.float64, tie_word_embeddings=tied)
    assert_same(model, word_losses(model))


def test_a_limit_splits_the_plan_without_changing_the_losses() -> None:
    model = tiny_models.build("opt", dtype=torch.float64)
    assert_same(model, class_losses(model), limit=3, queries=8)


def test_conv1d_is_right_whichever_way_its_matrix_is_read() -> None:
    """GPT-2 stores (inputs, outputs): with and without the group option the factors belong to other sides."""
    model = tiny_models.build("gpt2", dtype=torch.float64)
    losses = class_losses(model)
    values = []
    for evaluator in (zotune.Stacked(), zotune.Overlay()):
        optimizer = zotune.LOZO(model.named_parameters(), lr=0.0, eps=0.05, queries=4, evaluator=evaluator)
        values.append(losses_of(optimizer, zotune.Grouped(losses)))
    assert values[0] == pytest.approx(values[1], rel=1e-9)


class Odd(nn.Module):
    """Parameters used in ways that no formula covers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(draw(1, 6, 5))
        self.conv = nn.Conv1d(5, 5, 3, padding=1).double()
        self.norm = nn.GroupNorm(1, 5).double()
        self.table = nn.Embedding(9, 5).double()
        self.gain = nn.Parameter(1.0 + 0.1 * draw(2, 5))
        self.last = nn.Linear(5, 2).double()
        with torch.no_grad():
            self.conv.weight.copy_(draw(3, 5, 5, 3))
            self.table.weight.copy_(draw(4, 9, 5))
            self.last.weight.copy_(draw(5, 2, 5))

    def forward(self, x: Tensor) -> Tensor:
        h = x @ (1.0 + self.first.sum()) @ self.first if x.dim() == 0 else x @ self.first  # (rows, length, 5)
        h = h + self.table(torch.arange(h.shape[1]))  # the same positions for all rows
        h = self.norm(self.conv(h.transpose(1, 2))).transpose(1, 2)
        h = h * (1.0 + self.gain.to(h.dtype)) + torch.cat([self.gain[:2], self.gain[2:]])
        h = functional.linear(h, self.last.weight.detach().clone(), self.last.bias * 2.0)
        h.add_(self.last.bias)
        h[:, 0] = h[:, 0] + self.gain[:2]
        return h.mean(1)


def test_other_uses_of_parameters_run_group_by_group() -> None:
    model, x = Odd(), draw(7, 4, 9, 6)

    def losses(groups: int) -> Tensor:
        return model(zotune.repeat(x, groups)).square().view(groups, -1).mean(1)

    assert_same(model, losses)


def test_weights_keep_their_bits_also_when_the_closure_raises() -> None:
    model = tiny_models.build("llama")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = class_losses(model)
    optimizer = optimizer_of(model)

    def broken(groups: int) -> Tensor:
        losses(groups)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        optimizer.estimate(zotune.Grouped(broken))
    losses_of(optimizer, zotune.Grouped(losses))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def run(
    model: nn.Module, closure: object, evaluator: zotune.Stacked | zotune.Overlay, **kwargs: object
) -> list[Tensor]:
    optimizer = optimizer_of(model, evaluator, lr=0.01, period=3, **kwargs)
    for _ in range(8):
        optimizer.step(closure)  # type: ignore[arg-type]
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_training_ends_at_the_same_weights(momentum: float) -> None:
    ends = []
    for evaluator in (zotune.Stacked(), zotune.Overlay()):
        model = tiny_models.build("opt", dtype=torch.float64)
        ends.append(run(model, zotune.Grouped(class_losses(model)), evaluator, momentum=momentum))
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(dtype: torch.dtype) -> None:
    model = tiny_models.build("llama", dtype=dtype)
    exact = tiny_models.build("llama", dtype=torch.float64)
    exact.load_state_dict(model.state_dict())

    def wide(groups: int) -> Tensor:
        batch, labels = batch_of(), torch.tensor([0, 1, 1, 0])
        logits = model(**zotune.repeat(batch, groups)).logits.float()
        return functional.cross_entropy(logits, labels.repeat(groups), reduction="none").view(groups, -1).mean(1)

    evaluator = zotune.Stacked()
    together = losses_of(optimizer_of(model, evaluator), zotune.Grouped(wide))
    expected = losses_of(optimizer_of(exact, zotune.Overlay()), zotune.Grouped(class_losses(exact)))
    assert evaluator.reason is None
    assert together == pytest.approx(expected, abs=0.02)


def test_ordinary_closures_take_one_forward_a_probe() -> None:
    model = tiny_models.build("opt", dtype=torch.float64)
    losses, calls = class_losses(model), []

    def closure() -> Tensor:
        calls.append(1)
        return losses(1)

    evaluator = zotune.Stacked()
    optimizer = optimizer_of(model, evaluator)
    together = losses_of(optimizer, closure)
    separate = losses_of(optimizer_of(model, zotune.Overlay()), closure)
    assert evaluator.reason is None
    assert together == pytest.approx(separate, rel=1e-9)
    calls.clear()
    losses_of(optimizer, closure)
    assert len(calls) == 4


def groups_used(tokens: int | None, queries: int = 4, limit: int = 16) -> set[int]:
    model = nn.Linear(3, 1).double()
    used: list[int] = []

    def losses(groups: int) -> Tensor:
        used.append(groups)
        return model(zotune.repeat(torch.ones(2, 3, dtype=torch.float64), groups)).square().view(groups, -1).mean(1)

    optimizer = optimizer_of(model, zotune.Stacked(limit), queries=queries)
    for _ in range(3):
        losses_of(optimizer, zotune.Grouped(losses, tokens))
    return set(used[-1:])


def test_large_batches_are_not_stacked_on_a_cpu() -> None:
    assert groups_used(None) == {4}
    assert groups_used(100) == {4}
    assert groups_used(200) == {2}
    assert groups_used(5000) == {1}
    assert groups_used(None, queries=6, limit=3) == {3}


# ------------------------------------------------------------------------------------- stepping aside


def aside(model: nn.Module, closure: object, caplog: pytest.LogCaptureFixture) -> str:
    """The reason, after checking that the losses are those of separate forwards."""
    evaluator = zotune.Stacked()
    optimizer = optimizer_of(model, evaluator)
    losses = losses_of(optimizer, closure)
    assert losses == losses_of(optimizer_of(model, zotune.Overlay()), closure)
    assert evaluator.reason is not None
    assert evaluator.reason in caplog.text
    return evaluator.reason


def test_rows_in_another_dimension_are_right() -> None:
    model, x = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).double(), draw(1, 4, 16, 6)

    def losses(groups: int) -> Tensor:
        rows = zotune.repeat(x, groups).transpose(0, 1).contiguous()  # (length, rows, features)
        return model(rows).transpose(0, 1).square().mean((1, 2)).view(groups, -1).mean(1)

    assert_same(model, losses)


def test_torchs_attention_moves_rows_and_is_right() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double().eval()
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            parameter.copy_(draw(number, *parameter.shape) * 0.3)
    x = draw(50, 4, 5, 8)

    def losses(groups: int) -> Tensor:
        return layer(zotune.repeat(x, groups)).pow(3).view(groups, -1).mean(1)

    assert_same(layer, losses)


def test_what_python_makes_of_the_number_of_rows_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    model, x = nn.Linear(6, 1).double(), draw(1, 4, 6)

    def losses(groups: int) -> Tensor:
        rows = zotune.repeat(x, groups)
        return (model(rows) / rows.shape[0]).square().view(groups, -1).mean(1)

    assert "differ" in aside(model, zotune.Grouped(losses), caplog)


def test_a_batch_that_was_repeated_by_hand_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    model, x = nn.Linear(6, 1).double(), draw(1, 4, 6)

    def losses(groups: int) -> Tensor:
        return model(x.repeat(groups, 1)).square().view(groups, -1).mean(1)

    assert "zotune.repeat" in aside(model, zotune.Grouped(losses), caplog)


def test_a_value_that_differs_between_groups_cannot_steer_the_model(caplog: pytest.LogCaptureFixture) -> None:
    model, x = nn.Linear(6, 1).double(), draw(1, 4, 6)

    def losses(groups: int) -> Tensor:
        scale = float(model.weight.sum())
        return scale * model(zotune.repeat(x, groups)).square().view(groups, -1).mean(1)

    assert "for one group" in aside(model, zotune.Grouped(losses), caplog)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch would rather have its compiler used
def test_scripted_code_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    model, x = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 1)).double(), draw(1, 4, 6)
    model[0] = torch.jit.trace(model[0], x)

    def losses(groups: int) -> Tensor:
        return model(zotune.repeat(x, groups)).square().view(groups, -1).mean(1)

    reason = aside(model, zotune.Grouped(losses), caplog)  # whichever is seen first: the read, or rows without a mark
    assert "0.weight" in reason or "zotune.repeat" in reason


class Turned(nn.Module):
    """The second layer sees what Python makes of the number of rows, if it is asked to; a frozen one does not care."""

    def __init__(self, dtype: torch.dtype, *, turn: bool) -> None:
        super().__init__()
        self.first, self.second, self.turn = nn.Linear(6, 5).to(dtype), nn.Linear(5, 1).to(dtype), turn
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(draw(number, *parameter.shape))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))  # (rows, 16, 5)
        rows = len(h) if self.turn and self.second.weight.requires_grad else 4
        return self.second(h * (rows / 4))


def turned_losses(model: Turned, x: Tensor) -> Losses:
    def losses(groups: int) -> Tensor:
        return model(zotune.repeat(x, groups)).float().reshape(groups, -1).square().mean(1)

    return losses


@pytest.mark.parametrize("eps", [1e-3, 1e-4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_wrong_losses_are_noticed_in_half_precision_at_the_usual_eps(dtype: torch.dtype, eps: float) -> None:
    for turn in (True, False):
        model, evaluator = Turned(dtype, turn=turn), zotune.Stacked()
        optimizer = optimizer_of(model, evaluator, eps=eps)
        losses_of(optimizer, zotune.Grouped(turned_losses(model, draw(9, 4, 16, 6).to(dtype))))
        assert (evaluator.reason is not None) == turn


def test_it_checks_again_when_a_parameter_joins_and_when_steps_reach_a_power_of_two() -> None:
    model, x = Turned(torch.float64, turn=True), draw(9, 4, 16, 6)
    model.second.requires_grad_(False)
    evaluator = zotune.Stacked()
    optimizer = zotune.LOZO(model.named_parameters(), lr=0.0, eps=0.05, queries=4, seed=3, evaluator=evaluator)
    closure = zotune.Grouped(turned_losses(model, x))
    optimizer.step(closure)
    optimizer.step(closure)
    optimizer.step(closure)
    assert evaluator.reason is None
    model.second.requires_grad_(True)
    optimizer.step(closure)
    assert evaluator.reason is not None

    model, evaluator = Turned(torch.float64, turn=False), zotune.Stacked()
    optimizer, closure = optimizer_of(model, evaluator), zotune.Grouped(turned_losses(model, x))
    for _ in range(6):
        optimizer.step(closure)
    model.turn = True
    optimizer.step(closure)
    optimizer.step(closure)
    assert evaluator.reason is None
    optimizer.step(closure)  # step 8
    assert evaluator.reason is not None


def test_losses_without_directions_settle_nothing() -> None:
    model, evaluator = nn.Linear(3, 1).double(), zotune.Stacked()
    optimizer = optimizer_of(model, evaluator)
    for step in range(3):
        assert evaluator.reason is None, step
        losses_of(optimizer, lambda: 1.0)
    assert "do not depend" in str(evaluator.reason)


# ------------------------------------------------------------------------------------- LOREN with low-rank directions


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"momentum": 0.9, "momentum_bits": 8}, {"lr_cov": 0.0}])
def test_loren_with_low_rank_directions_ends_at_the_same_weights(settings: dict[str, float]) -> None:
    ends = []
    for evaluator in (None, zotune.Overlay()):
        model = tiny_models.build("opt", dtype=torch.float64)
        named = parameter_groups(model, weight_decay=0.0)
        options = {"lr": 1e-3, "eps": 0.01, "queries": 3, "rank": 2, "seed": 4, "lr_cov": 1e-2, **settings}
        optimizer = zotune.LOREN(named, **options, evaluator=evaluator)  # type: ignore[arg-type]
        closure = zotune.Grouped(class_losses(model))
        losses = [optimizer.step(closure) for _ in range(6)]
        assert getattr(optimizer.evaluator, "reason", None) is None
        assert losses[-1] != losses[0]
        ends.append([p.detach() for p in model.parameters()])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_dense_directions_use_the_overlay() -> None:
    model = tiny_models.build("opt", dtype=torch.float64)
    losses, evaluator = class_losses(model), zotune.Stacked()
    optimizer = zotune.MeZO(model.named_parameters(), lr=0.0, eps=0.05, evaluator=evaluator)
    optimizer.estimate(zotune.Grouped(losses))
    other = zotune.MeZO(model.named_parameters(), lr=0.0, eps=0.05)
    other.estimate(losses_alone := (lambda: losses(1)))
    assert optimizer._sums == other._sums
    assert evaluator.reason is None
    assert losses_alone().numel() == 1


def test_a_wrong_number_of_losses_is_named() -> None:
    model = nn.Linear(6, 1).double()
    closure = zotune.Grouped(lambda groups: model(torch.ones(2, 6).double()).square().reshape(2))
    with pytest.raises(TypeError, match="one"):
        optimizer_of(model).estimate(closure)


def test_a_group_cannot_be_cut_out_of_odd_rows() -> None:
    from zotune.evaluators.grouped import rows_of

    assert rows_of(torch.arange(6), 1, 3).tolist() == [2, 3]
    assert rows_of(torch.arange(12), 1, 3).tolist() == [4, 5, 6, 7]
    for size in (7, 2):
        with pytest.raises(UnsupportedError, match="equal parts of 3 groups"):
            rows_of(torch.arange(size), 0, 3)


def test_rows_that_are_split_later_on_are_right() -> None:
    """Micro-batches inside the model: their size is that of a group's rows, or of a part of them."""
    model, rows = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 1)).double(), 8

    def losses(groups: int) -> Tensor:
        h = torch.tanh(model[0](zotune.repeat(draw(1, rows, 6), groups)))
        return torch.cat([model[1](part) for part in h.split(6)]).square().view(groups, -1).mean(1)

    assert_same(model, losses)
    evaluator = zotune.Stacked()
    optimizer = optimizer_of(model, evaluator)
    for step in range(4):
        rows = 8 if step < 3 else 16
        together = losses_of(optimizer, zotune.Grouped(losses))
        assert evaluator.reason is None
        assert together == pytest.approx(
            losses_of(optimizer_of(model, zotune.Overlay()), zotune.Grouped(losses)), rel=1e-9
        )


def test_split_gives_each_group_its_own() -> None:
    rows = zotune.repeat({"x": torch.tensor([[1], [2]]), "more": (torch.tensor([3, 4]),), "name": "y"}, 2)
    parts = zotune.split({**rows, "shared": torch.tensor([5, 6])}, 2)
    for part in parts:
        assert part["x"].tolist() == [[1], [2]]
        assert part["more"][0].tolist() == [3, 4]
        assert part["shared"].tolist() == [5, 6]
        assert part["name"] == "y"
    with pytest.raises(UnsupportedError, match="repeat"):
        zotune.split(torch.ones(4), 2)


def test_repeat_keeps_structure_and_numbers() -> None:
    batch = {
        "ids": torch.tensor([[1, 2], [3, 4]]),
        "scale": torch.tensor(2.0),
        "name": "x",
        "more": (torch.tensor([5]),),
    }
    made = zotune.repeat(batch, 2)
    assert made["ids"].tolist() == [[1, 2], [3, 4], [1, 2], [3, 4]]
    assert made["scale"] is batch["scale"]
    assert made["name"] == "x"
    assert made["more"][0].tolist() == [5, 5]
    assert zotune.repeat(batch["ids"], 1) is not batch["ids"]


# ------------------------------------------------------------------------------------- in the training loop


class RowsOfForwards:
    """Number of rows of every forward of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.rows: list[int] = []
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, _module: nn.Module, _args: object, kwargs: dict[str, Tensor]) -> None:
        self.rows.append(kwargs["input_ids"].shape[0])


def test_the_trainer_takes_one_forward_a_step_and_ends_at_the_same_weights(tmp_path: Path) -> None:
    ends = []
    for evaluator in (zotune.Stacked(), zotune.Overlay()):
        trainer = make_trainer(
            tmp_path,
            method=lambda groups, evaluator=evaluator: zotune.LOZO(
                groups, lr=1e-2, eps=1e-2, seed=3, evaluator=evaluator
            ),
            model=tiny_models.build("llama", dtype=torch.float64),
            max_steps=8,
        )
        forwards = RowsOfForwards(trainer.model)
        trainer.train()
        ends.append(weights(trainer))
        assert trainer.queries == 16
        if isinstance(evaluator, zotune.Stacked):
            assert evaluator.reason is None
            assert forwards.rows[-6:-3] == [16, 16, 12]  # before the last evaluation, of 4, 4 and 2 rows
        else:
            assert forwards.rows[:-3] == [8, 8] * 3 + [6, 6] + [8, 8] * 3 + [6, 6]
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-8, atol=1e-10)
