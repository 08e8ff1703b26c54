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
from torch._C import _functorch
from torch.nn import functional

import zotune
from zotune.evaluators import stacked
from zotune.evaluators.groups import UnsupportedError
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

    def loss() -> Tensor:
        return model(x).pow(3).flatten(1).sum(1).mean()

    evaluator = Unchecked()
    settings = {"queries": queries, "eps": 0.2}
    together = helpers.losses_of(helpers.optimizer_of(model, evaluator, **settings), loss)
    separate = helpers.losses_of(helpers.optimizer_of(model, zotune.Overlay(), **settings), loss)
    assert together == pytest.approx(separate, rel=1e-9, abs=1e-12)
    return evaluator.reason or evaluator.alone


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


def row_mask(h: Tensor) -> Tensor:
    mask = torch.ones(h.shape[0], h.shape[1], dtype=h.dtype)
    for row in range(h.shape[0]):
        mask[row, row % h.shape[1] :] = 0.0
    return mask


def slope(like: Tensor) -> Tensor:
    return torch.linspace(0.5, 2.0, like.shape[0], dtype=like.dtype)[:, None, None].expand(like.shape)


def edited(numbers: Tensor) -> Tensor:
    numbers[0] = numbers[-1]
    return numbers


def filled(out: Tensor, h: Tensor) -> Tensor:
    out[:, 1:] = h[:, 1:]
    out[0].add_(h[-1])
    return out + out[0]


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
    "numbers of rows": lambda h: h + torch.linspace(0.0, 1.0, h.shape[0], dtype=h.dtype)[:, None, None],
    "a list as long as the rows": lambda h: h[torch.tensor(list(range(h.shape[0]))[::-1])],
    "weights of the batch's size": lambda h: (torch.eye(h.shape[0], dtype=h.dtype) @ h.flatten(1)).view(h.shape),
    "divided by the number of rows": lambda h: h / h.shape[0],
    "a mean of as many features as rows": lambda h: (lambda mu: h - mu / len(mu))(h[..., :4].flatten(1)[:, :1].mean(0)),
    "rows that pass": lambda h: h / (h[:, 0, 0] > -9.0).nonzero().size(0),
    "a mask written row by row": lambda h: h * row_mask(h)[:, :, None],
    "an edited constant": lambda h: h * torch.ones(h.shape, dtype=h.dtype).mul_(slope(h)),
    "an edited range": lambda h: h[edited(torch.arange(h.shape[0]))],
    "rotated row numbers": lambda h: h[torch.arange(h.shape[0]).add_(1).remainder_(h.shape[0])],
    "reshaped by a literal": lambda h: (h.reshape(2, -1) - h.reshape(2, -1).mean(1, keepdim=True)).reshape(h.shape),
    "a constant with as many rows as queries": lambda h: h.mean(0, keepdim=True) + slope(torch.ones(4, 3, 5)).double(),
    "steered by the batch's size": lambda h: h * 2.0 if h.shape[0] == 4 else h,
    "a buffer that is written and read": lambda h: torch.zeros(6, 3, 5, dtype=h.dtype).index_copy_(
        0, torch.arange(h.shape[0]), h
    )[: h.shape[0]],
    "slices of a constant": lambda h: filled(torch.zeros(h.shape, dtype=h.dtype), h),
    "by an output argument": lambda h: torch.mul(h, 2.0, out=torch.empty(h.shape, dtype=h.dtype)),
    "counted": lambda h: h * torch.bincount((h.flatten() > 0).long(), minlength=2)[1],
    "unique values": lambda h: h * torch.unique((h * 3.0).round()).sum(),
    "vmap inside": lambda h: torch.func.vmap(lambda row: row - row.mean())(h),
}


@pytest.mark.parametrize("name", RIGHT)
def test_rows_that_depend_on_each_other_are_right(name: str) -> None:
    assert outcome(RIGHT[name]) is None


def test_a_view_of_a_tensor_that_rows_are_written_to_is_refused() -> None:
    def body(h: Tensor) -> Tensor:
        out = torch.zeros(h.shape, dtype=h.dtype)
        view = out.view(-1, h.shape[-1])
        out.add_(h)
        return view.view(h.shape) + h

    assert "another view" in str(outcome(body))


ASIDE: dict[str, Body] = {
    "a decision on which queries differ": lambda h: h * 2.0 if (h.sum() * 1e3).long() % 2 else h,
    "a number": lambda h: h * h.sum().item(),
    "an array": lambda h: h * float(h.detach().numpy().sum()),
    "dropout": lambda h: functional.dropout(h, 0.5, training=True),
    "random gains": lambda h: functional.rrelu(h, training=True),
    "noise": lambda h: h + torch.randn_like(h),
    "noise for all": lambda h: h + torch.rand(h.shape, dtype=h.dtype),
    "attention with dropout": lambda h: functional.scaled_dot_product_attention(h, h, h, dropout_p=0.5),
}


@pytest.mark.parametrize("name", ASIDE)
def test_what_cannot_be_told_for_each_query_is_evaluated_apart(name: str) -> None:
    random = name in {"dropout", "random gains", "noise", "noise for all", "attention with dropout"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert apart(ASIDE[name], same=not random) is not None


def apart(body: Body, *, same: bool) -> str | None:
    """Why queries do not share a forward; the losses are checked unless they are random."""
    if same:
        return outcome(body)
    model, x = Rows(body), helpers.draw(7, 4, 2, 3, 6)
    evaluator = Unchecked()
    helpers.losses_of(helpers.optimizer_of(model, evaluator), lambda: model(x).sum())
    return evaluator.alone


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("name", RIGHT)
def test_any_number_of_rows_is_right_or_evaluated_apart(name: str, rows: int) -> None:
    if name == "a constant with as many rows as queries" or (name == "reshaped by a literal" and rows % 2):
        return
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
    base = helpers.draw(11, groups, rows, 3, 4)
    expected = []
    for h in base:
        try:
            for function in program:
                h = function(h)
        except Exception:
            return  # no model
        expected.append(h)
    values: list[Tensor] = []

    def run(h: Tensor) -> Tensor:
        stack.groups.level = _functorch.maybe_get_level(h)
        with stack:
            for function in program:
                h = function(h)
            values.extend(stack.groups.parts(h, group) for group in range(groups))
        return torch.zeros(())

    stack = Stack([], [None] * groups, None, 512)  # type: ignore[arg-type, list-item]
    try:
        torch.func.vmap(run, randomness="same")(base.clone())
    except UnsupportedError:
        return
    for value, right in zip(values, expected, strict=True):
        assert value.shape == right.shape
        torch.testing.assert_close(value, right, rtol=1e-9, atol=1e-12, equal_nan=True)


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
    together = helpers.losses_of(helpers.optimizer_of(model, evaluator), losses)
    separate = helpers.losses_of(helpers.optimizer_of(model, zotune.Overlay()), losses)
    # The eager way loops over the experts that were chosen: if their number differs, queries cannot go on together.
    assert evaluator.reason is None
    assert evaluator.alone is None or (implementation == "eager" and "unbind" in evaluator.alone)
    assert together == pytest.approx(separate, rel=1e-9 if dtype is torch.float64 else 1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("head", ["classifier", "lm"])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_functions_of_rows_alone_run_once(
    family: str, head: Any, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing runs group by group in these models."""
    stacks: list[Stack] = []

    class Seen(Stack):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            stacks.append(self)

    monkeypatch.setattr(stacked, "Stack", Seen)
    model = tiny_models.build(family, head=head, dtype=torch.float64, attn_implementation=attention)
    losses = helpers.class_losses(model) if head == "classifier" else helpers.word_losses(model)
    evaluator = Unchecked()
    helpers.losses_of(helpers.optimizer_of(model, evaluator), losses)
    assert evaluator.reason is None
    assert evaluator.alone is None
    assert stacks[-1].groups.count == 4
    assert not stacks[-1].slow
