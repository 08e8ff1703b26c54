"""What a shared forward cannot do as separate ones would is noticed in the forward itself, without any comparison."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import test_stacked as helpers
import torch
from test_stacked_rows import Unchecked
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import zotune

D = torch.float64


class Net(nn.Module):
    """Two layers, and what a test does between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5).double(), nn.Linear(5, 2).double()
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(helpers.draw(number, *parameter.shape))

    def forward(self, x: Tensor, body: Callable[[Tensor], Tensor] = lambda h: h) -> Tensor:
        return self.last(body(torch.tanh(self.first(x)))).pow(2).sum()


X = helpers.draw(7, 4, 3, 6)


def outcome(closure: Callable[[], Any], model: nn.Module) -> str | None:
    """Why queries do not share a forward, if they do not, after checking their losses."""
    evaluator = Unchecked()
    separate = helpers.losses_of(helpers.optimizer_of(model, zotune.InPlace(), eps=0.2), closure)
    together = helpers.losses_of(helpers.optimizer_of(model, evaluator, eps=0.2), closure)
    assert together == pytest.approx(separate, rel=1e-9)
    return evaluator.alone


def caught(h: Tensor) -> Tensor:
    try:
        scale = h.abs().sum().item()
    except RuntimeError:
        scale = 1.0
    return h / scale


def picked_row(h: Tensor) -> Tensor:
    t = h.clone()
    t[h.sum((1, 2)).argmax()].add_(1.0)
    return t


def views_of_one_tensor(h: Tensor) -> Tensor:
    t = torch.zeros(4, 5, dtype=D)
    t[: (h > -9).any().long() + 1].add_(1.0)
    return h + t[:, None]


def sorted_into(h: Tensor) -> Tensor:
    values, index = torch.empty(4, 3, 5, dtype=D), torch.empty(4, 3, 5, dtype=torch.long)
    torch.sort(h, 0, out=(values, index))
    return h * values


def for_each(h: Tensor) -> Tensor:
    t = torch.zeros(4, 3, 5, dtype=D)
    torch._foreach_add_([t], [h])
    return h + t


def by_operator(h: Tensor) -> Tensor:
    t = torch.zeros(4, 3, 5, dtype=D)
    torch.ops.aten.add_.Tensor(t, h)
    return h + t


def statistics(h: Tensor) -> Tensor:
    mean, var = torch.zeros(3, dtype=D), torch.ones(3, dtype=D)
    return F.batch_norm(h, mean, var, training=True) + mean[:, None]


def statistics_of_instances(h: Tensor) -> Tensor:
    mean, var = torch.zeros(3, dtype=D), torch.ones(3, dtype=D)
    return F.instance_norm(h, mean, var) + mean[:, None] + var[:, None]


def array(h: Tensor) -> Tensor:
    z = torch.zeros_like(h)
    z.numpy()[:] = 3.0
    return h + z


def exchanged(h: Tensor) -> Tensor:
    h.data = h.data * 2
    return h


def own_generator(h: Tensor) -> Tensor:
    return h * torch.bernoulli(h.sigmoid(), generator=torch.Generator().manual_seed(1))


def forked(h: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return F.dropout(h.transpose(0, 1), 0.5, True).transpose(0, 1)


BODIES: dict[str, tuple[Callable[[Tensor], Tensor], str | None]] = {
    "an error that the closure catches": (caught, "item gives"),
    "a write to a picked row": (picked_row, None),
    "views of one tensor": (views_of_one_tensor, "memory that queries share"),
    "sorted into tensors": (sorted_into, None),
    "for each": (for_each, None),
    "by operator": (by_operator, None),
    "running statistics": (statistics, None),
    "running statistics of instances": (statistics_of_instances, None),
    "memory of an array": (array, "shows the memory"),
    "exchanged data": (exchanged, "data of a tensor"),
    "a generator of its own": (own_generator, "draws from a generator"),
    "dropout with a seed": (forked, "dropout draws random numbers"),
    "rolled sums": (lambda h: h * torch.roll(h.sum(), 1), None),
    "filled sums": (lambda h: h * torch.zeros((), dtype=D).index_fill(0, torch.tensor([0]), h.sum()), None),
}


@pytest.mark.parametrize("name", BODIES)
def test_functions_of_rows(name: str) -> None:
    body, sentence = BODIES[name]
    model = Net()
    alone = outcome(lambda: model(X, body), model)
    assert alone is None if sentence is None else sentence in str(alone)


def rest(h: Tensor) -> Tensor:
    return h.pow(2).sum()


def test_aliases_of_stored_weights_are_noticed_by_their_memory() -> None:
    model = Net()
    weight, bias = model.first.weight.detach(), model.first.bias
    closures: list[Callable[[], Tensor]] = [
        lambda: rest(F.linear(X, weight, bias)),
        lambda: rest(F.linear(X, nn.Parameter(model.first.weight))),
        lambda: rest(F.linear(X, model.first.weight.as_subclass(Tensor))),
        lambda: torch.func.vmap(lambda row: row.sum().exp())(model.first.weight).sum(),
    ]
    for closure in closures:
        assert "first.weight is read through another tensor" in str(outcome(closure, model))


def test_writes_to_weights_are_noticed() -> None:
    for write in (
        lambda w: torch._foreach_mul_([w], 1.5),
        lambda w: torch.ops.aten.mul_.Scalar(w, 1.5),
        lambda w: w.view(-1).mul_(1.5),
    ):
        model = Net()
        evaluator = Unchecked()
        helpers.losses_of(
            helpers.optimizer_of(model, evaluator),
            lambda model=model, write=write: (write(model.first.weight), model(X))[1],
        )
        assert "weights" in str(evaluator.alone)


@pytest.mark.parametrize("shape", [(1,), (), (1, 5), (12, 5)])
def test_biases_that_broadcast_are_right(shape: tuple[int, ...]) -> None:
    model = nn.Module()
    model.w, model.b = (
        nn.Parameter(helpers.draw(1, 5, 6)),
        nn.Parameter(helpers.draw(2, *shape) if shape else torch.tensor(0.3, dtype=D)),
    )
    assert outcome(lambda: rest(F.linear(X.reshape(12, 6), model.w, model.b)), model) is None
    if shape == (1,):
        assert outcome(lambda: rest(torch.addmm(model.b, X[0], model.w.t().contiguous())), model) is None


def test_a_loss_that_changes_what_the_next_query_is_given_is_noticed() -> None:
    model, labels = Net(), torch.tensor([0, 1, 1, 0])
    zeros = zotune.Staged(lambda: (model(X), torch.zeros(())), lambda out: out[1].add_(out[0]))
    assert "the next one" in str(outcome(zeros, model))
    flipped = zotune.Staged(
        lambda: (model(X), labels.clone()), lambda out: out[1].neg_().add_(1).float().mean() * out[0]
    )
    assert "the next one" in str(outcome(flipped, model))
    arrays = zotune.Staged(
        lambda: (model(X), torch.zeros(1).numpy()), lambda out: (out[1].__iadd__(1), out[0] * float(out[1][0]))[1]
    )
    assert outcome(arrays, model) is None


def test_a_forward_in_another_thread_is_noticed_by_losses_that_are_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, on = Net(), [False]

    def run(out: list[Tensor]) -> None:
        with torch.no_grad():
            weights = dict(model.named_parameters())
            h = torch.tanh(F.linear(X, weights["first.weight"], weights["first.bias"]))
            out.append(rest(F.linear(h, weights["last.weight"], weights["last.bias"])))

    def loss() -> Tensor:
        out: list[Tensor] = []
        if on[0]:
            thread = threading.Thread(target=run, args=(out,))
            thread.start()
            thread.join()
        else:
            run(out)
        return out[0]

    evaluator = zotune.Stacked(inner=zotune.InPlace())
    optimizer = helpers.optimizer_of(model, evaluator, eps=0.2)
    for step in range(7):
        on[0] = step >= 5
        optimizer.step(loss)
    assert len(set(optimizer.last_losses)) > 1
    assert "differ" in str(evaluator.alone)
    assert str(evaluator.alone) in caplog.text


def test_losses_that_are_the_same_are_compared_once_in_a_row() -> None:
    model, calls = Net(), []

    def loss() -> Tensor:
        calls.append(1)
        return (model(X) > 0).double()  # as an accuracy that does not change

    evaluator = Unchecked()
    optimizer = helpers.optimizer_of(model, evaluator)
    evaluator._seen = {id(p): p for p in model.parameters()}
    evaluator._checked = 0
    counts = []
    for _ in range(3):
        calls.clear()
        helpers.losses_of(optimizer, loss)
        counts.append(len(calls))
    assert counts == [5, 1, 1]
    assert evaluator.alone is None


def test_what_a_closure_keeps_is_plain_and_of_the_last_query() -> None:
    kept: list[dict[str, Tensor]] = []
    for evaluator in (Unchecked(), zotune.InPlace()):
        model, box = Net(), {}

        def loss(model: Net = model, box: dict[str, Tensor] = box) -> Tensor:
            h = torch.tanh(model.first(X))
            box["view"], box["weight"], box["h"] = h[1], model.first.weight * 2, h
            box["picked"] = h[h.sum((1, 2)).argmax()]
            return rest(model.last(h))

        optimizer = helpers.optimizer_of(model, evaluator, eps=0.2)
        for _ in range(3):
            helpers.losses_of(optimizer, loss)
        kept.append(box)
    for name, tensor in kept[0].items():
        torch.testing.assert_close(tensor + 0.0, kept[1][name] + 0.0, rtol=1e-9, atol=1e-12)
        assert isinstance(tensor.mean().item(), float)
