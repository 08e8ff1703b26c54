"""Rows that depend on each other: stacked forwards are right without any comparison, or the evaluator steps aside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import test_stacked as helpers
import tiny_models
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import zotune
from zotune.evaluators import stacked
from zotune.evaluators.grouped import BATCHED, mark
from zotune.evaluators.stack import Stack

Body = Callable[[Tensor], Any]


class Unchecked(zotune.Stacked):
    """Never compares."""

    def _right(self, *args: Any) -> bool:
        return True


class Rows(nn.Module):
    """Some function of rows between two layers."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.first, self.last, self.body = nn.Linear(6, 5).double(), nn.Linear(5, 2).double(), body
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(helpers.draw(number, *parameter.shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(torch.tanh(self.first(x))))


def outcome(body: Body, *, x: Tensor | None = None, queries: int = 4) -> str | None:
    """Why the evaluator stepped aside, if it did, after checking the losses either way."""
    model, x = Rows(body), helpers.draw(7, 4, 3, 6) if x is None else x

    def losses(groups: int) -> Tensor:
        return model(zotune.repeat(x, groups)).pow(3).flatten(1).sum(1).view(groups, -1).mean(1)

    evaluator = Unchecked()
    settings = {"queries": queries, "eps": 0.2}
    together = helpers.losses_of(helpers.optimizer_of(model, evaluator, **settings), zotune.Grouped(losses))
    separate = helpers.losses_of(helpers.optimizer_of(model, zotune.Overlay(), **settings), zotune.Grouped(losses))
    assert together == pytest.approx(separate, rel=1e-9, abs=1e-12)
    return evaluator.reason


def sorted_rows(h: Tensor) -> Tensor:
    order = h.square().sum((1, 2)).argsort(descending=True)
    h = h[order]
    h = h * torch.linspace(0.5, 2.0, 3, dtype=h.dtype)[:, None] + h.cumsum(0)
    return h[order.argsort()]


def experts(h: Tensor) -> Tensor:
    flat = h.reshape(-1, h.shape[-1])
    chosen = (flat[:, 0] > 0).long()
    out = torch.zeros_like(flat)
    for number in range(2):
        mask = chosen == number
        out[mask] = flat[mask] * (number + 2.0)
    return out.view(h.shape)


def experts_by_index(h: Tensor) -> Tensor:
    flat = h.reshape(-1, h.shape[-1])
    out = torch.zeros_like(flat)
    for number, scale in enumerate((2.0, -1.0)):
        (where,) = torch.where((flat[:, 0] > 0).long() == number)
        out.index_add_(0, where, flat[where] * scale)
    return out.reshape(h.shape)


def rows_one_by_one(h: Tensor) -> Tensor:
    out, before = [], torch.zeros(())
    for row in h:
        before = row.mean() + 0.5 * before
        out.append(row * before)
    return torch.stack(out)


def changed_through_a_view(h: Tensor) -> Tensor:
    h = h.clone()
    h.transpose(0, 1)[1].mul_(2.0)
    h[0].add_(h[1])
    h[h > 0.5] = 0.25
    return h


def topk_rows(h: Tensor) -> Tensor:
    values, index = h.topk(2, dim=0)
    out = torch.zeros_like(h).scatter(0, index, values)
    return out + h.gather(0, index).sum(0, keepdim=True)


def by_length(h: Tensor) -> Tensor:
    lengths = h.square().sum((1, 2))
    longest = h[lengths.argmax()]
    shortest = h.index_select(0, lengths.argmin().reshape(1))
    return h - longest + shortest * h[-1]


def inverted_order(h: Tensor) -> Tensor:
    order = h.square().sum((1, 2)).argsort()
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.shape[0])
    return (h[order].cumsum(0) * 0.5)[inverse]


RIGHT: dict[str, Body] = {
    "scale of all rows": lambda h: h / h.abs().max(),
    "mean": lambda h: h - h.mean(),
    "mean over rows": lambda h: h - h.mean(0),
    "mean over rows, kept": lambda h: h - h.mean(0, keepdim=True),
    "batch norm": lambda h: functional.batch_norm(h, None, None, training=True),
    "batch norm with statistics": lambda h: functional.batch_norm(
        h, torch.ones(3, dtype=h.dtype), 2.0 * torch.ones(3, dtype=h.dtype), training=False
    ),
    "sorted rows": sorted_rows,
    "sorted rows put back by their numbers": inverted_order,
    "rows by their numbers": lambda h: h[torch.arange(h.shape[0])].flip(0),
    "experts by mask": experts,
    "experts by index": experts_by_index,
    "rows one by one": rows_one_by_one,
    "changed through a view": changed_through_a_view,
    "top rows": topk_rows,
    "by length": by_length,
    "cumulative": lambda h: h.cumsum(0) * 0.3,
    "masked mean": lambda h: h * h.flatten()[h.flatten() > 0.3].mean(),
    "softmax over rows": lambda h: h.softmax(0),
    "einsum within rows": lambda h: torch.einsum("bij,bkj->bik", h, h) @ h,
    "einsum of all rows": lambda h: torch.einsum("bij,cij->bc", h, h)[:, :1, None] * h,
    "rows flipped": lambda h: h + h.flip(0),
    "rows rolled": lambda h: h * h.roll(1, 0),
    "unbound": lambda h: torch.stack(h.unbind(0)[::-1]),
    "chunks": lambda h: torch.cat(h.chunk(2)[::-1]),
    "split": lambda h: torch.cat([part * part.mean() for part in h.split(3)]),
    "length first": lambda h: (h.transpose(0, 1) * h.transpose(0, 1).mean(0)).transpose(0, 1),
    "attention over rows": lambda h: functional.scaled_dot_product_attention(*[h.transpose(0, 1)] * 3).transpose(0, 1),
    "a decision on which groups agree": lambda h: h * 2.0 if (h.abs() < 1.0).all() else h,
    "number of elements": lambda h: h * (h.sum() / h.numel()),
    "own entries": lambda h: h * h[torch.arange(h.shape[0]), h.square().sum(2).argmax(1)][:, None],
    "a mask by hand": lambda h: h * torch.ones(h.shape[0], 1, 1, dtype=h.dtype).cumsum(1),
    "lengths from Python": lambda h: h[torch.tensor(sorted((h[:, 0, 0] > 9.0).long().tolist()))],
    "entries of all rows": lambda h: h * h.reshape(-1)[(h.reshape(-1) < 0).nonzero()[:, 0]].sum(),
    "a slice that a tensor ends": lambda h: h[:, : (h > 2.0).any().long() + 2].mean(1, keepdim=True) + h,
    "written into a constant": lambda h: torch.zeros(h.shape, dtype=h.dtype).add_(h),
    "squeezed": lambda h: h[:, :1].squeeze().unsqueeze(1) + h,
}


@pytest.mark.parametrize("name", RIGHT)
def test_rows_that_depend_on_each_other_are_right(name: str) -> None:
    assert outcome(RIGHT[name]) is None


ASIDE: dict[str, Body] = {
    "a decision on which groups differ": lambda h: h * 2.0 if (h.sum() * 1e3).long() % 2 else h,
    "a number": lambda h: h * h.sum().item(),
    "numbers of rows": lambda h: h + torch.linspace(0.0, 1.0, h.shape[0], dtype=h.dtype)[:, None, None],
    "a list as long as the rows": lambda h: h[torch.tensor(list(range(h.shape[0]))[::-1])],
    "another view of a constant": lambda h: (lambda zero: (zero.view(zero.shape).add(0), zero.add_(h), zero)[2])(
        torch.zeros(h.shape, dtype=h.dtype)
    ),
    "weights of the batch's size": lambda h: (torch.eye(h.shape[0], dtype=h.dtype) @ h.flatten(1)).view(h.shape),
}


@pytest.mark.parametrize("name", ASIDE)
def test_what_cannot_be_told_for_each_group_is_evaluated_apart(name: str) -> None:
    reason = outcome(ASIDE[name])
    assert (reason is None) == (name == "another view of a constant")


def test_a_view_of_a_tensor_that_rows_are_written_to_is_refused() -> None:
    def body(h: Tensor) -> Tensor:
        out = torch.zeros(h.shape, dtype=h.dtype)
        view = out.view(-1, h.shape[-1])
        out.add_(h)
        return view.view(h.shape) + h

    assert "another view" in str(outcome(body))


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("name", RIGHT)
def test_any_number_of_rows_is_right_or_evaluated_apart(name: str, rows: int) -> None:
    if rows > 1 or name not in {"changed through a view", "top rows", "squeezed"}:  # these need several
        outcome(RIGHT[name], x=helpers.draw(8, rows, 3, 6), queries=2)


# ------------------------------------------------------------------------------------- random programs

_dims = st.integers(-3, 2)


def _unary(function: Callable[..., Tensor]) -> st.SearchStrategy[Body]:
    return st.just(function)


def _along(function: Callable[[Tensor, int], Tensor]) -> st.SearchStrategy[Body]:
    return st.builds(lambda dim: lambda h: function(h, dim), _dims)


def _pair(function: Callable[[Tensor, int, int], Tensor]) -> st.SearchStrategy[Body]:
    return st.builds(lambda a, b: lambda h: function(h, a, b), _dims, _dims)


UNARY: list[Body] = [
    torch.sin,
    torch.relu,
    lambda h: h.clone().mul_(0.5),
    lambda h: h / (1.0 + h.abs().max()),
    lambda h: h - h.mean(),
    lambda h: h.mean(0) + h,
    lambda h: h.mT,
    lambda h: h.flatten(),
    lambda h: h.flatten(0, 1),
    lambda h: h.reshape(-1, h.shape[-1]),
    lambda h: h[None],
    lambda h: h[:, None],
    lambda h: h[-1],
    lambda h: h[:1],
    lambda h: h[::2],
    lambda h: h[h > 0.1],
    lambda h: h[h[..., 0] > 0],
    lambda h: h[..., -1],
    lambda h: h[:, [0, 1]],
    lambda h: h.squeeze(),
    lambda h: h * 2.0 if (h > 0).any() else h,
    lambda h: torch.stack([row.sum() * row for row in h]),
    lambda h: torch.einsum("b...->...b", h),
    lambda h: h @ h.mT,
    lambda h: torch.where(h > 0, h, h.mean(0)),
    lambda h: h.masked_fill(h < 0, 0.1),
    lambda h: h.expand_as(h),
    lambda h: h.contiguous(),
    lambda h: h[torch.arange(h.shape[0])],
    lambda h: functional.layer_norm(h, h.shape[-1:]),
    lambda h: functional.pad(h, (0, 1)),
]
ALONG: list[Callable[[Tensor, int], Tensor]] = [
    torch.cumsum,
    torch.softmax,
    torch.unsqueeze,
    torch.squeeze,
    lambda h, d: h.flip(d),
    lambda h, d: h.sum(d),
    lambda h, d: h - h.amax(d, keepdim=True),
    lambda h, d: h.sort(d)[0],
    lambda h, d: h.gather(d, h.argsort(d)),
    lambda h, d: torch.cat([h, h.cos()], d),
    lambda h, d: torch.stack([h, h.exp()], d),
    lambda h, d: h.chunk(2, d)[-1],
    lambda h, d: h.unbind(d)[0],
    lambda h, d: h.roll(1, d),
    lambda h, d: h.index_select(d, torch.tensor([0, 0])),
    lambda h, d: h.select(d, -1),
    lambda h, d: h.narrow(d, 0, 1),
    lambda h, d: h.topk(1, d)[0],
    lambda h, d: h.repeat_interleave(2, d),
    lambda h, d: functional.normalize(h, dim=d),
    lambda h, d: h.scatter_add(d, h.argsort(d), h),
    lambda h, d: torch.var(h, dim=d, correction=0),
]
PAIR: list[Callable[[Tensor, int, int], Tensor]] = [torch.transpose, torch.movedim, lambda h, a, b: h.sum((a, b))]

_functions = st.one_of(
    st.sampled_from(UNARY).flatmap(_unary),
    st.sampled_from(ALONG).flatmap(_along),
    st.sampled_from(PAIR).flatmap(_pair),
)
_programs = st.lists(_functions, min_size=1, max_size=5)


@given(_programs, st.sampled_from([1, 2, 3, 4]), st.sampled_from([2, 3, 4]))
@settings(max_examples=400, deadline=None, derandomize=True)
def test_random_programs_are_right_or_refused(program: list[Body], rows: int, groups: int) -> None:
    """Every value that a group sees on the way is the one of its separate forward."""
    base = helpers.draw(11, rows * groups, 3, 4)
    expected = []
    for group in range(groups):
        h = base[group * rows : (group + 1) * rows]
        try:
            for function in program:
                h = function(h)
        except Exception:
            return  # no model
        expected.append(h)
    with Stack([], [None] * groups, None):  # type: ignore[arg-type, list-item]
        rows_of_all = mark(base.clone(), BATCHED)
        try:
            for function in program:
                rows_of_all = function(rows_of_all)
            parts = zotune.split(rows_of_all, groups)
        except Exception:
            return
    for part, value in zip(parts, expected, strict=True):
        assert part.shape == value.shape
        torch.testing.assert_close(part, value, rtol=1e-9, atol=1e-12, equal_nan=True)


# ------------------------------------------------------------------------------------- real models

_MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("family", ["Mixtral", "Qwen2Moe", "Qwen3Moe"])
def test_mixtures_of_experts_are_right(family: str, implementation: str) -> None:
    common = {"vocab_size": tiny_models.VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "pad_token_id": 0}
    sizes = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 16, "decoder_sparse_step": 1}
    config = getattr(transformers, f"{family}Config")(
        **common, **sizes, **_MOE, shared_expert_intermediate_size=16, experts_implementation=implementation
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dtype = torch.float32 if implementation == "grouped_mm" else torch.float64  # it has no other
        model = transformers.AutoModelForSequenceClassification.from_config(config).to(dtype).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert model.config._experts_implementation == implementation
    losses = helpers.class_losses(model)
    evaluator = Unchecked()
    together = helpers.losses_of(helpers.optimizer_of(model, evaluator), zotune.Grouped(losses))
    separate = helpers.losses_of(helpers.optimizer_of(model, zotune.Overlay()), zotune.Grouped(losses))
    # The eager way loops over the experts that were chosen: if their number differs, groups cannot go on together.
    assert evaluator.reason is None or (implementation == "eager" and "unbind" in evaluator.reason)
    assert together == pytest.approx(separate, rel=1e-9 if dtype is torch.float64 else 1e-5)


_DECISIONS = {"all", "sum", "__eq__", "__bool__"}  # whether the mask hides anything
_OF_PARAMETERS = {"bert": {"embedding", "add"}, "distilbert": {"embedding", "add"}, "gpt2": {"embedding", "to", "add"}}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("head", ["classifier", "lm"])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_functions_of_rows_alone_run_once(
    family: str, head: Any, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs group by group is a handful of calls a forward, for positions that are parameters and for decisions."""
    stacks: list[Stack] = []

    class Seen(Stack):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            stacks.append(self)

    monkeypatch.setattr(stacked, "Stack", Seen)
    model = tiny_models.build(family, head=head, dtype=torch.float64, attn_implementation=attention)
    losses = helpers.class_losses(model) if head == "classifier" else helpers.word_losses(model)
    evaluator = Unchecked()
    helpers.losses_of(helpers.optimizer_of(model, evaluator), zotune.Grouped(losses))
    assert evaluator.reason is None
    slow = {function.__name__: count for function, count in stacks[-1].slow.items()}
    assert slow.keys() <= _DECISIONS | _OF_PARAMETERS.get(family, set())
    assert sum(slow.values()) <= 9


# ------------------------------------------------------------------------------------- another path


def test_a_path_that_was_not_taken_before_is_compared() -> None:
    model, x, scale = helpers.Turned(torch.float64, turn=False), helpers.draw(9, 4, 16, 6), [False]
    evaluator = zotune.Stacked()

    def losses(groups: int) -> Tensor:
        h = model(zotune.repeat(x, groups))
        if scale[0]:
            h = h.sinh() * (h.shape[0] / 4)  # what Python computes from the number of rows
        return h.reshape(groups, -1).square().mean(1)

    optimizer = helpers.optimizer_of(model, evaluator)
    for _ in range(6):
        optimizer.step(zotune.Grouped(losses))
    assert evaluator.reason is None
    scale[0] = True
    optimizer.step(zotune.Grouped(losses))
    assert "differ" in str(evaluator.reason)


def test_a_loss_over_all_rows_is_taken_group_by_group() -> None:
    model, labels = tiny_models.build("llama", dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    batch = helpers.batch_of()

    def losses(groups: int) -> Tensor:
        return functional.cross_entropy(model(**zotune.repeat(batch, groups)).logits, labels)

    helpers.assert_same(model, losses)
