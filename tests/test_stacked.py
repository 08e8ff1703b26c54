"""Stacked queries: several low-rank probes in one forward give the losses of separate forwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from tiny_runs import make_trainer, weights
from torch import Tensor, nn
from torch._C import _functorch
from torch.nn import functional
from torch.overrides import _get_current_function_mode_stack

import zotune
from zotune.hf.groups import parameter_groups
from zotune.noise import Key, normal

Loss = Callable[[], Tensor]


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


def assert_same(model: nn.Module, losses: Loss, limit: int = 16, **kwargs: object) -> None:
    """Stacked, with 1 and with several probes in a forward, equals the overlay, and every group counts."""
    separate = losses_of(optimizer_of(model, zotune.Overlay(), **kwargs), losses)
    assert max(separate) - min(separate) > 1e-4
    for evaluator in (zotune.Stacked(limit), zotune.Stacked(1)):
        together = losses_of(optimizer_of(model, evaluator, **kwargs), losses)
        assert evaluator.reason is None
        assert evaluator.alone is None
        assert together == pytest.approx(separate, rel=1e-9, abs=1e-12)


def batch_of(rows: int = 4, length: int = 9) -> dict[str, Tensor]:
    ids = torch.arange(rows * length).view(rows, length) % 90 + tiny_models.UNK + 1
    mask = torch.ones_like(ids)
    ids[1, 6:], mask[1, 6:] = tiny_models.PAD, 0
    return {"input_ids": ids, "attention_mask": mask}


def class_losses(model: nn.Module) -> Loss:
    batch, labels = batch_of(), torch.tensor([0, 1, 1, 0])

    return lambda: functional.cross_entropy(model(**batch).logits, labels)


def word_losses(model: nn.Module) -> Loss:
    batch = batch_of()
    targets = batch["input_ids"].roll(-1, 1)
    return lambda: functional.cross_entropy(model(**batch).logits.transpose(1, 2), targets)


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
        values.append(losses_of(optimizer, losses))
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

    assert_same(model, lambda: model(x).square().mean())


def test_weights_keep_their_bits_also_when_the_closure_raises() -> None:
    model = tiny_models.build("llama")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = class_losses(model)
    optimizer = optimizer_of(model)

    def broken() -> Tensor:
        losses()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        optimizer.estimate(broken)
    losses_of(optimizer, losses)
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
        ends.append(run(model, class_losses(model), evaluator, momentum=momentum))
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(dtype: torch.dtype) -> None:
    model = tiny_models.build("llama", dtype=dtype)
    exact = tiny_models.build("llama", dtype=torch.float64)
    exact.load_state_dict(model.state_dict())

    def wide() -> Tensor:
        return functional.cross_entropy(model(**batch_of()).logits.float(), torch.tensor([0, 1, 1, 0]))

    evaluator = zotune.Stacked()
    together = losses_of(optimizer_of(model, evaluator), wide)
    expected = losses_of(optimizer_of(exact, zotune.Overlay()), class_losses(exact))
    assert evaluator.reason is None
    assert together == pytest.approx(expected, abs=0.02)


def queries_together(rows: int, queries: int = 4, **options: Any) -> int:
    """Queries in the largest forward of a step that is not compared."""
    model, x = nn.Linear(3, 1).double(), draw(1, rows, 3)
    most = [0]

    def loss() -> Tensor:
        y = model(x)
        most[0] = max(most[0], _groups_of(y))
        return y.square().mean()

    optimizer = optimizer_of(model, zotune.Stacked(**options), queries=queries)
    losses_of(optimizer, loss)
    most[0] = 0
    losses_of(optimizer, loss)
    return most[0]


def _groups_of(y: Tensor) -> int:
    return len(_functorch.get_unwrapped(y)) if _functorch.is_batchedtensor(y) else 1


def test_large_batches_are_not_stacked_on_a_cpu() -> None:
    assert queries_together(2) == 4
    assert queries_together(100) == 4
    assert queries_together(200) == 2
    assert queries_together(257) == 1
    assert queries_together(5000) == 1
    assert queries_together(5000, tokens=20_000) == 4
    assert queries_together(200, tokens=400) == 2
    assert queries_together(2, queries=6, limit=3) == 3
    assert queries_together(2, limit=1) == 1


@pytest.mark.parametrize("options", [{"limit": 0}, {"tokens": 0}, {"limit": 1.5}, {"tokens": True}])
def test_limits_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="whole number, 1 or more"):
        zotune.Stacked(**options)


def test_fewer_queries_share_a_forward_when_a_later_layer_has_more_rows() -> None:
    model, x = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 1)).double(), draw(1, 4, 6)
    assert_same(model, lambda: model[1](model[0](x).repeat(50, 1).cos()).square().mean())  # 200 rows: two at a time


def test_a_loss_in_stages_may_use_plain_numbers() -> None:
    model, labels = tiny_models.build("llama", dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    batch, calls = batch_of(), []

    def run() -> Any:
        calls.append(1)
        return model(**batch)

    def loss(outputs: Any) -> float:
        assert type(outputs) is type(model(**batch))
        scores = outputs.logits.numpy()
        return float(-scores[range(4), labels.numpy()].sum())

    closure = zotune.Staged(run, loss)
    assert_same(model, closure)
    optimizer = optimizer_of(model)
    losses_of(optimizer, closure)
    calls.clear()
    losses_of(optimizer, closure)
    assert calls == [1]


def test_a_loss_in_stages_may_depend_on_parameters() -> None:
    model, x = nn.Linear(6, 2).double(), draw(1, 4, 6)
    penalty = lambda: model.weight.square().sum() + model.bias.abs().sum()  # noqa: E731
    assert_same(model, zotune.Staged(lambda: (model(x), {"also": x}), lambda out: out[0].square().sum() + penalty()))
    assert_same(model, zotune.Staged(lambda: model(x), lambda out: penalty()))


class Answer:
    """A container that torch does not know."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


def test_a_container_that_torch_does_not_know_is_right_too() -> None:
    model, x = nn.Linear(6, 2).double(), draw(1, 4, 6)
    assert_same(model, zotune.Staged(lambda: Answer(model(x)), lambda answer: answer.logits.square().sum()))


def test_tensors_that_outlive_the_forward_are_plain() -> None:
    model, x, kept = nn.Linear(6, 2).double(), draw(1, 4, 6), torch.zeros(4, 2, dtype=torch.float64)

    def loss() -> Tensor:
        kept.copy_(model(x))
        return kept.square().sum()

    assert_same(model, loss)
    assert torch.isfinite(kept + 1.0).all()
    assert not hasattr(kept, "_zotune_groups")


# ------------------------------------------------------------------------------------- stepping aside


def aside(model: nn.Module, closure: object, caplog: pytest.LogCaptureFixture) -> str:
    """The reason, after checking that the losses are those of separate forwards."""
    evaluator = zotune.Stacked()
    optimizer = optimizer_of(model, evaluator)
    for _ in range(2):  # first from a shared forward, then from stored weights
        losses = losses_of(optimizer, closure)
        assert losses == pytest.approx(losses_of(optimizer_of(model, zotune.Overlay()), closure), rel=1e-9)
    assert evaluator.alone is not None
    assert evaluator.alone in caplog.text
    if evaluator.reason is not None:
        assert evaluator.reason in caplog.text
    return evaluator.reason or evaluator.alone


def test_rows_in_another_dimension_are_right() -> None:
    model, x = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).double(), draw(1, 4, 16, 6)
    assert_same(model, lambda: model(x.transpose(0, 1).contiguous()).transpose(0, 1).square().mean())


def test_torchs_attention_moves_rows_and_is_right() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double().eval()
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            parameter.copy_(draw(number, *parameter.shape) * 0.3)
    x = draw(50, 4, 5, 8)
    assert_same(layer, lambda: layer(x).pow(3).mean())


def test_parameters_that_a_model_repeats_for_each_row_are_right() -> None:
    """Class tokens and queries of vision models."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.layer = nn.Parameter(draw(1, 1, 1, 6)), nn.Linear(6, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1).cumsum(1))

    model, x = Model(), draw(2, 4, 3, 6)
    assert_same(model, lambda: model(x).square().mean())


def test_what_python_makes_of_the_number_of_rows_is_right() -> None:
    model, x = nn.Linear(6, 1).double(), draw(1, 4, 6)
    assert_same(model, lambda: (model(x) / model(x).shape[0]).square().sum() / len(x))


def test_labels_that_are_ignored_now_and_then_are_right() -> None:
    """The number of labels that count differs between batches; also when it is the number of rows."""
    model, x = nn.Linear(6, 3).double(), draw(1, 4, 6)
    for labels in (torch.tensor([0, 1, 2, 0]), torch.tensor([0, -100, 2, -100])):
        loss = lambda: functional.cross_entropy(model(x), labels, reduction="sum") / len(labels[labels != -100])  # noqa: B023, E731
        assert_same(model, loss)


def test_a_value_that_differs_between_queries_cannot_steer_the_model(caplog: pytest.LogCaptureFixture) -> None:
    model, x = nn.Linear(6, 1).double(), draw(1, 4, 6)
    loss = lambda: float(model.weight.sum()) * model(x).square().mean()  # noqa: E731
    assert "for one query" in aside(model, loss, caplog)
    assert "for one query" in aside(model, lambda: model(x).square().mean().item(), caplog)


def test_random_draws_are_not_shared(caplog: pytest.LogCaptureFixture) -> None:
    model, x = nn.Sequential(nn.Linear(6, 4), nn.Dropout(), nn.Linear(4, 1)).double(), draw(1, 4, 6)
    evaluator = zotune.Stacked()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        losses_of(optimizer_of(model, evaluator), lambda: model(x).square().mean())
    assert "dropout draws random numbers" in str(evaluator.alone)
    assert str(evaluator.alone) in caplog.text


def test_a_closure_may_draw_from_a_generator_of_its_own() -> None:
    model = nn.Linear(6, 1).double()

    def loss() -> Tensor:
        numbers = torch.Generator().manual_seed(1)
        noise = torch.empty(3, 1, dtype=torch.float64).normal_(generator=numbers)
        return (model(torch.randn(3, 6, generator=numbers, dtype=torch.float64)) + noise).square().mean()

    assert_same(model, loss)


def test_gradients_inside_the_closure_are_those_of_each_query(caplog: pytest.LogCaptureFixture) -> None:
    model, x = nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 1)).double(), draw(1, 4, 6)

    def of_the_batch() -> Tensor:
        with torch.enable_grad():
            inputs = x.clone().requires_grad_(True)
            loss = model(inputs).square().mean()
            (gradient,) = torch.autograd.grad(loss, inputs, create_graph=True)
            return (loss + gradient.square().sum()).detach()

    def of_a_weight() -> Tensor:
        with torch.enable_grad():
            loss = model(x).square().mean()
            (gradient,) = torch.autograd.grad(loss, model[0].weight)
            return (loss + gradient.square().sum()).detach()

    def backward() -> Tensor:
        with torch.enable_grad():
            loss = model(x).square().mean()
            loss.backward()
            gradient = model[0].weight.grad.square().sum()
            model.zero_grad()
            return (loss + gradient).detach()

    def transformed() -> Tensor:
        return torch.func.grad(lambda inputs: model(inputs).square().mean())(x).square().sum() + model(x).mean()

    for loss in (of_the_batch, of_a_weight, backward, transformed):
        assert aside(model, loss, caplog)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch would rather have its compiler used
def test_scripted_code_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    model, x = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 1)).double(), draw(1, 4, 6)
    model[0] = torch.jit.trace(model[0], x)
    reason = aside(model, lambda: model(x).square().mean(), caplog)  # of the watch, or what TorchScript makes of it
    assert "0.weight" in reason or "TorchScript" in reason


def test_an_error_of_the_closure_alone_is_raised_and_changes_nothing() -> None:
    """A deadline in a shared forward is the caller's: it is neither swallowed nor taken for what cannot be stacked."""
    model, x, late = nn.Linear(6, 1).double(), draw(1, 4, 6), [False]

    def loss() -> Tensor:
        if late[0]:
            late[0] = False
            raise TimeoutError("out of time")
        return model(x).square().mean()

    evaluator = zotune.Stacked()
    optimizer = optimizer_of(model, evaluator)
    for _ in range(3):
        optimizer.step(loss)
    late[0] = True
    with pytest.raises(TimeoutError, match="out of time"):
        optimizer.step(loss)
    optimizer.step(loss)
    assert evaluator.reason is None
    assert evaluator.alone is None


class Turned(nn.Module):
    """A model that does something else in a stacked forward, if it is asked to and its second layer is trained."""

    def __init__(self, dtype: torch.dtype, *, turn: bool) -> None:
        super().__init__()
        self.first, self.second, self.turn = nn.Linear(6, 5).to(dtype), nn.Linear(5, 1).to(dtype), turn
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(draw(number, *parameter.shape))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))  # (rows, 16, 5)
        wrong = self.turn and self.second.weight.requires_grad and _get_current_function_mode_stack()
        return self.second(h * (2.0 if wrong else 1.0))


def turned_losses(model: Turned, x: Tensor) -> Loss:
    return lambda: model(x).float().square().mean()


@pytest.mark.parametrize("eps", [1e-3, 1e-4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_wrong_losses_are_noticed_in_half_precision_at_the_usual_eps(dtype: torch.dtype, eps: float) -> None:
    for turn in (True, False):
        model, evaluator = Turned(dtype, turn=turn), zotune.Stacked()
        optimizer = optimizer_of(model, evaluator, eps=eps)
        losses_of(optimizer, turned_losses(model, draw(9, 4, 16, 6).to(dtype)))
        assert (evaluator.alone is not None) == turn


def test_it_checks_again_when_a_parameter_joins_and_when_steps_reach_a_power_of_two() -> None:
    model, x = Turned(torch.float64, turn=True), draw(9, 4, 16, 6)
    model.second.requires_grad_(False)
    evaluator = zotune.Stacked()
    optimizer = zotune.LOZO(model.named_parameters(), lr=0.0, eps=0.05, queries=4, seed=3, evaluator=evaluator)
    closure = turned_losses(model, x)
    optimizer.step(closure)
    optimizer.step(closure)
    optimizer.step(closure)
    assert evaluator.reason is None
    model.second.requires_grad_(True)
    optimizer.step(closure)
    assert evaluator.alone is not None
    assert evaluator.reason is None
    optimizer.step(closure)
    assert evaluator.reason is not None

    model, evaluator = Turned(torch.float64, turn=False), zotune.Stacked()
    optimizer, closure = optimizer_of(model, evaluator), turned_losses(model, x)
    for _ in range(6):
        optimizer.step(closure)
    model.turn = True
    optimizer.step(closure)
    optimizer.step(closure)
    assert evaluator.alone is None
    optimizer.step(closure)  # step 8
    assert "differ" in str(evaluator.alone)


def test_a_path_that_was_not_taken_before_is_compared() -> None:
    model, x, more = Turned(torch.float64, turn=False), draw(9, 4, 16, 6), [False]
    evaluator = zotune.Stacked()
    optimizer = optimizer_of(model, evaluator)
    loss = lambda: (model(x).sinh() if more[0] else model(x)).square().mean()  # noqa: E731
    for _ in range(6):
        optimizer.step(loss)
    assert evaluator.alone is None
    model.turn = more[0] = True
    optimizer.step(loss)
    assert "differ" in str(evaluator.alone)


def test_losses_without_directions_settle_nothing() -> None:
    model, evaluator = nn.Linear(3, 1).double(), zotune.Stacked()
    optimizer = optimizer_of(model, evaluator)
    for step in range(6):
        assert evaluator.reason is None, step
        losses_of(optimizer, lambda: 1.0)
    assert "do not depend" in str(evaluator.alone)
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
        closure = class_losses(model)
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
    optimizer.estimate(losses)
    other = zotune.MeZO(model.named_parameters(), lr=0.0, eps=0.05)
    other.estimate(losses)
    assert optimizer._sums == other._sums
    assert evaluator.reason is None


@pytest.mark.parametrize("rows", [2, 4])
def test_a_loss_for_each_row_is_named(rows: int) -> None:
    model, x = nn.Linear(6, 1).double(), draw(1, rows, 6)
    with pytest.raises(TypeError, match="return one loss"):
        optimizer_of(model).estimate(lambda: model(x))


def test_rows_that_are_split_later_on_are_right() -> None:
    """Micro-batches inside the model."""
    model, rows = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 1)).double(), 8

    def loss() -> Tensor:
        h = torch.tanh(model[0](draw(1, rows, 6)))
        return torch.cat([model[1](part) for part in h.split(6)]).square().mean()

    assert_same(model, loss)
    evaluator = zotune.Stacked()
    optimizer = optimizer_of(model, evaluator)
    for step in range(4):
        rows = 8 if step < 3 else 16
        together = losses_of(optimizer, loss)
        assert evaluator.alone is None
        assert together == pytest.approx(losses_of(optimizer_of(model, zotune.Overlay()), loss), rel=1e-9)


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
            assert forwards.rows[-6:-3] == [8, 8, 6]  # before the last evaluation, of 4, 4 and 2 rows
        else:
            assert forwards.rows[:-3] == [8, 8] * 3 + [6, 6] + [8, 8] * 3 + [6, 6]
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-8, atol=1e-10)
