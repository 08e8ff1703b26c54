"""Embeddings by row and large linear layers in blocks: the same weights, and right whatever the forward does."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import tiny_models
import torch
from overlay_checks import EPS, Loss, X, agree, explicit, hf_loss, numbers, overlaid, seeded, square, told
from torch import nn
from torch.nn import functional

from zotune import FZOO, LOREN, LOZO, HiZOO, InPlace, MeZO, Overlay, digest
from zotune.estimators import Probe
from zotune.evaluators import gather
from zotune.evaluators.intercept import METADATA, StandIn, originals, stand_in
from zotune.evaluators.layout import Mode
from zotune.optimizer import ZerothOrder
from zotune.perturbations import Part, Slot

IDS = torch.tensor([[3, 1, 3, 7], [0, 3, 1, 9]])
Record = list[tuple[Slot, Probe, Part | None, torch.Tensor]]


@pytest.fixture(autouse=True)
def _everything_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the smallest table is gathered, and linear layers of more than 64 elements go in blocks."""
    monkeypatch.setattr(gather, "SMALL_TABLE", 0)
    monkeypatch.setattr(gather, "SMALL_BLOCK", 64)
    monkeypatch.setattr(gather, "_SHARE", 0.0)


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Iterator[Record]:
    """All weights that optimizers write for their probes."""
    real, written = ZerothOrder._write_probe, []

    def recorded(self: Any, slot: Slot, probe: Probe, out: torch.Tensor, part: Part | None = None) -> None:
        real(self, slot, probe, out, part)
        written.append((slot, probe, part, out.clone()))

    monkeypatch.setattr(ZerothOrder, "_write_probe", recorded)
    return written


def nearly(model: nn.Module, loss: Loss, optimizer: ZerothOrder, steps: int = 3, tolerance: float = 1e-5) -> None:
    """As `agree`, where the order of a few additions may differ."""
    before = digest(model.parameters())
    for step in range(steps):
        wanted = explicit(model, loss, optimizer)
        assert told(model, loss, optimizer) == pytest.approx(wanted, rel=tolerance), f"step {step}"
        assert digest(model.parameters()) == before
    assert max(wanted) - min(wanted) > 10 * tolerance * max(map(abs, wanted)), "the test shows nothing"
    assert not any(isinstance(param, StandIn) for param in model.parameters())


def parts_of(record: Record, name: str) -> list[Part | None]:
    return [part for slot, _, part, _ in record if slot.name == name]


# ------------------------------------------------------------------------------------------------ models


@pytest.mark.parametrize(("head", "tied"), [("classifier", True), ("lm", True), ("lm", False)])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_families(family: str, head: str, tied: bool, record: Record) -> None:
    model = tiny_models.build(family, head=head, tie_word_embeddings=tied)
    optimizer = overlaid(model)
    nearly(model, hf_loss(tiny_models.batch(), head), optimizer, steps=2)
    modes = optimizer.evaluator.modes(optimizer._active())
    reached = {slot.name for slot, _, part, _ in record if part is not None}
    assert {name for name, mode in modes.items() if mode is not Mode.OWNER} <= {"classifier.weight", "score.weight"}
    assert any(part.rows is not None for _, _, part, _ in record if part is not None)
    assert len(reached) >= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cls", [MeZO, LOREN, LOZO, HiZOO, FZOO])
def test_parts_have_the_bits_of_the_whole(cls: type[ZerothOrder], dtype: torch.dtype, record: Record) -> None:
    model = seeded(lambda: nn.Sequential(nn.Embedding(50, 12), nn.Linear(12, 50))).to(dtype)
    optimizer = overlaid(model, cls)
    optimizer.estimate(lambda: model(IDS).float().square().mean())
    parts = [entry for entry in record if entry[2] is not None]
    assert {entry[2].rows is None for entry in parts} == {True, False}
    for slot, probe, part, out in parts:
        whole = torch.empty(slot.shape, dtype=dtype)
        optimizer._write_probe(slot, probe, whole)
        assert torch.equal(part.take(whole).view(torch.uint8), out.view(torch.uint8))


def test_blocks_cover_each_row_once(record: Record) -> None:
    model = seeded(lambda: nn.Linear(8, 50))
    overlaid(model).step(lambda: square(model))
    blocks = [(part.first, part.last) for part in parts_of(record, "weight")]
    assert blocks == [(i, min(i + 8, 50)) for i in range(0, 50, 8)] * 2
    assert parts_of(record, "bias") == [None, None]


def test_rows_are_those_of_the_batch(record: Record) -> None:
    model = seeded(lambda: nn.Embedding(11, 8))
    overlaid(model).step(lambda: model(IDS).square().mean())
    assert [part.rows.tolist() for part in parts_of(record, "weight")] == [[0, 1, 3, 7, 9]] * 2


def test_whole_table_when_all_rows_are_used(record: Record) -> None:
    model = seeded(lambda: nn.Embedding(4, 8))
    agree(model, lambda m: m(torch.arange(4)).square().mean(), overlaid(model))
    assert set(parts_of(record, "weight")) == {None}


def test_block_size_is_a_hundredth_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    small = [nn.Parameter(torch.zeros(1000, 768)), nn.Parameter(torch.zeros(5))]
    assert gather.block_size(MeZO(small, lr=0.0)._active()) == gather.SMALL_BLOCK
    large = nn.Parameter(torch.zeros(50000, 3000, dtype=torch.bfloat16))
    assert gather.block_size(MeZO([large, *small], lr=0.0)._active()) == (50000 * 3000 + 768005) // 100


def test_blocks_are_of_one_height_and_aligned(record: Record) -> None:
    model = seeded(lambda: nn.Linear(16, 400))
    gather.SMALL_BLOCK = 16 * 160  # the fixture restores it
    nearly(model, lambda m: m(X[:, :1].expand(-1, 16).contiguous()).square().mean(), overlaid(model))
    parts = [part for part in parts_of(record, "weight") if part is not None]  # without the explicit copies
    assert {(part.first, part.last) for part in parts} == {(0, 192), (192, 384), (384, 400)}


def test_scratch_holds_no_table() -> None:
    model = tiny_models.build("opt", head="lm")
    optimizer = overlaid(model)
    optimizer.step(lambda: hf_loss(tiny_models.batch(), "lm")(model))
    assert 0 < optimizer.evaluator.scratch.numel() < model.get_input_embeddings().weight.numel() / 2


# ------------------------------------------------------------------------------------------------ embeddings


class Scaled(nn.Embedding):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.weight, nn.Parameter)
        assert [*self.weight.shape] == [11, 8]
        assert len(self.weight) == self.weight.size(0) == 11
        return super().forward(ids + 1).to(self.weight.dtype) * self.weight.shape[1] ** 0.5


class OtherForward(nn.Embedding):
    """Looks its table up in other ways than its base class."""

    def __init__(self, how: str) -> None:
        super().__init__(11, 8)
        self.how = how

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        ways = {
            "index": lambda: self.weight[ids],
            "select": lambda: self.weight.index_select(0, ids.flatten()),
            "normalised": lambda: functional.embedding(ids, functional.normalize(self.weight)),
            "torch": lambda: torch.embedding(self.weight, ids),
            "keywords": lambda: functional.embedding(weight=self.weight, input=ids),
            "both": lambda: functional.embedding(ids, self.weight) @ self.weight.t(),
            "list": lambda: torch.cat([functional.embedding(ids, self.weight).flatten(0, 1), self.weight]),
            "twice": lambda: functional.embedding(ids, self.weight) + functional.embedding(ids + 1, self.weight),
            "with itself": lambda: functional.linear(self.weight, self.weight),
            "data": lambda: functional.embedding(ids, self.weight.data),
            "through the dictionary": lambda: functional.embedding(ids, self._parameters["weight"]),
            "other": lambda: functional.embedding(ids, self.alias[0]) + functional.embedding(ids, self.weight),
            "itself": lambda: self.weight,
        }
        return ways[self.how]()


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("how", ["index", "select", "normalised", "torch", "keywords", "both", "list", "twice"])
def test_other_forwards(how: str, start: int) -> None:
    model = seeded(lambda: OtherForward(how))
    optimizer = overlaid(model)
    optimizer.t = start
    agree(model, lambda m: m(IDS).exp().mean(), optimizer)
    assert optimizer.evaluator.modes(optimizer._active()) == {"weight": Mode.OWNER}


@pytest.mark.parametrize("how", ["with itself", "data", "through the dictionary", "other", "itself"])
def test_stranger_forwards(how: str) -> None:
    model = seeded(lambda: OtherForward(how))
    model.alias = [model.weight]

    def loss(model: OtherForward) -> torch.Tensor:
        model.alias = [model.weight]
        return model(IDS).square().mean()

    agree(model, loss, overlaid(model))


EMBEDDINGS: dict[str, Any] = {
    "plain": lambda: nn.Embedding(11, 8),
    "padding": lambda: nn.Embedding(11, 8, padding_idx=3),
    "negative padding": lambda: nn.Embedding(11, 8, padding_idx=-2),
    "maximal norm": lambda: nn.Embedding(11, 8, max_norm=0.5),
    "sparse": lambda: nn.Embedding(11, 8, sparse=True, scale_grad_by_freq=True),
    "scaled": lambda: Scaled(11, 8),
    "bag": lambda: nn.EmbeddingBag(11, 8),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("case", EMBEDDINGS)
def test_embeddings(case: str, dtype: torch.dtype) -> None:
    model = seeded(EMBEDDINGS[case]).to(dtype)
    agree(model, lambda m: m(IDS).float().exp().mean(), overlaid(model))


@pytest.mark.parametrize(
    "ids", [IDS.int(), IDS[0, 0], IDS[:, :0], IDS.t()[::2]], ids=["int32", "scalar", "empty", "view"]
)
def test_kinds_of_ids(ids: torch.Tensor) -> None:
    model = seeded(lambda: nn.Embedding(11, 8))
    agree(model, lambda m: m(ids).square().sum() + m(IDS).square().mean(), overlaid(model))


@pytest.mark.parametrize("ids", [IDS + 2, IDS - 1, IDS.float()], ids=["too large", "negative", "floats"])
def test_wrong_ids_raise_as_in_torch(ids: torch.Tensor) -> None:
    model = seeded(lambda: nn.Embedding(11, 8))
    weight, before = model.weight, digest(model.parameters())
    with pytest.raises((IndexError, RuntimeError)) as wanted:
        model(ids)
    with pytest.raises(type(wanted.value)) as got:
        overlaid(model).step(lambda: model(ids).square().mean())
    assert str(got.value) == str(wanted.value)
    assert model._parameters["weight"] is weight
    assert digest(model.parameters()) == before


def test_table_used_in_three_ways() -> None:
    """As embedding, as head, and outside any owner."""
    model = seeded(lambda: nn.ModuleDict({"table": nn.Embedding(50, 8), "head": nn.Linear(8, 50, bias=False)}))
    model["head"].weight = model["table"].weight

    def loss(model: nn.Module, outside: bool) -> torch.Tensor:
        y = model["head"](model["table"](IDS))
        return y.square().mean() + (model["table"].weight.square().sum() if outside else 0.0)

    for outside in (False, True):
        nearly(model, lambda m, o=outside: loss(m, o), overlaid(model))


def test_input_dim_0_is_read_whole(record: Record) -> None:
    """Rows of the logical matrix are columns of the parameter."""
    model = seeded(lambda: nn.Embedding(11, 8))
    optimizer = LOREN([{"params": [("weight", model.weight)], "input_dim": 0}], lr=0.0, eps=EPS)
    agree(model, lambda m: m(IDS).square().mean(), optimizer)
    assert set(parts_of(record, "weight")) == {None}


# ------------------------------------------------------------------------------------------------ linear layers


class Head(nn.Linear):
    def __init__(self, how: str) -> None:
        super().__init__(8, 50)
        self.how, self.kept = how, []

    def forward(self, x: torch.Tensor, depth: int = 0) -> torch.Tensor:
        if self.how == "normalised":
            return functional.linear(x, functional.normalize(self.weight))
        if self.how == "transposed":
            return x @ self.weight.t() + self.bias
        if self.how == "keywords":
            return functional.linear(bias=self.bias, weight=self.weight, input=x)
        if self.how == "recursive":
            return super().forward(x) + (self(x, 1) if depth == 0 else 0.0) + functional.linear(x, self.weight)
        if self.how == "kept":
            self.kept.append(self.weight)
            return super().forward(x) + functional.linear(x, self.kept[0])
        return super().forward(x) * self.weight.dtype.itemsize


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("how", ["normalised", "transposed", "keywords", "recursive", "metadata"])
def test_heads(how: str, start: int) -> None:
    model = seeded(lambda: Head(how))
    optimizer = overlaid(model)
    optimizer.t = start
    nearly(model, square, optimizer)


def test_a_stand_in_that_is_kept_becomes_the_parameter() -> None:
    model = seeded(lambda: Head("kept"))
    nearly(model, lambda m: square(m) + m.kept[0].sum(), overlaid(model, evaluator=Overlay()), tolerance=1e-4)
    assert isinstance(model.kept[0], StandIn)
    assert torch.equal(model.kept[0] + 0, model.weight)
    assert type(copy.deepcopy(model.kept[0])) is nn.Parameter


@pytest.mark.parametrize("x", [X, X[0], X[None, :, None], X[:0]], ids=["matrix", "vector", "four dimensions", "empty"])
@pytest.mark.parametrize("bias", [True, False])
def test_shapes_of_inputs(x: torch.Tensor, bias: bool) -> None:
    model = seeded(lambda: nn.Linear(8, 50, bias=bias))
    nearly(model, lambda m: m(x).square().sum() + m(X).square().mean(), overlaid(model))


@pytest.mark.parametrize("x", [X[:, :7], X.double(), torch.tensor(1.0)], ids=["width", "type", "scalar"])
def test_wrong_inputs_raise_as_in_torch(x: torch.Tensor) -> None:
    model = seeded(lambda: nn.Linear(8, 50))
    with pytest.raises(RuntimeError) as wanted, torch.no_grad():
        model(x)
    with pytest.raises(RuntimeError) as got:
        overlaid(model).step(lambda: model(x).square().mean())
    assert str(got.value) == str(wanted.value)
    assert type(model._parameters["weight"]) is nn.Parameter


def test_autocast() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 50), nn.ReLU(), nn.Linear(50, 8)))

    def loss(model: nn.Module) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = model(X)
            assert y.dtype is torch.bfloat16
            return y.float().square().mean()

    nearly(model, loss, overlaid(model), tolerance=1e-2)


def test_gradients_and_transforms_inside_the_closure() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 50), nn.Tanh(), nn.Linear(50, 8)))

    def slope(model: nn.Module) -> torch.Tensor:
        with torch.enable_grad():
            x = X.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(square_of(model(x)), x)
        return square_of(gradient)

    def square_of(y: torch.Tensor) -> torch.Tensor:
        return y.square().mean()

    agree(model, slope, overlaid(model))
    agree(model, lambda m: square_of(torch.func.vmap(m)(X)), overlaid(model))
    agree(model, lambda m: square_of(torch.func.grad(lambda x: square_of(m(x)))(X)), overlaid(model))


@pytest.mark.parametrize("around", [False, True])
def test_inference_mode(around: bool) -> None:
    model = tiny_models.build("opt", head="lm")
    inner = hf_loss(tiny_models.batch(rows=2), "lm")

    def loss(model: nn.Module) -> torch.Tensor:
        with torch.inference_mode():
            return inner(model)

    optimizer = overlaid(model)
    for _ in range(2):
        wanted = explicit(model, inner, optimizer)
        with torch.inference_mode(around):
            assert told(model, loss, optimizer) == pytest.approx(wanted, rel=1e-5)


def test_tensor_subclasses_are_left_to_the_whole_weights(record: Record) -> None:
    class Own(torch.Tensor):
        pass

    model = seeded(lambda: nn.Linear(8, 50))
    agree(model, lambda m: m(X.as_subclass(Own)).square().mean().as_subclass(torch.Tensor), overlaid(model))
    assert set(parts_of(record, "weight")) == {None}


# ------------------------------------------------------------------------------------------------ restoring


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [0, 1, 2, 5])
def test_an_error_in_the_midst(error: type[BaseException], at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, parameters and the next step are as if nothing had happened."""
    model = seeded(lambda: nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50)))
    loss = lambda m: m(IDS).square().mean()  # noqa: E731
    params, before = list(model.parameters()), digest(model.parameters())
    pointers = [param.data_ptr() for param in params]
    optimizer, real, calls = overlaid(model), ZerothOrder._write_probe, {"n": 0}

    def fails(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        if calls["n"] == at:
            raise error
        calls["n"] += 1

    monkeypatch.setattr(ZerothOrder, "_write_probe", fails)
    with pytest.raises(error):
        optimizer.step(lambda: loss(model))
    monkeypatch.setattr(ZerothOrder, "_write_probe", real)
    assert all(a is b for a, b in zip(params, model.parameters(), strict=True))
    assert [param.data_ptr() for param in params] == pointers
    assert digest(params) == before
    nearly(model, loss, optimizer)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_that_the_closure_catches(error: type[BaseException]) -> None:
    model = seeded(lambda: nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50)))
    state = {"fail": False}

    def fail(*_: Any) -> None:
        if state["fail"]:
            raise error

    model[0].register_forward_pre_hook(fail)  # runs when the stand-in is in its place

    def loss(model: nn.Module) -> torch.Tensor:
        state["fail"] = True
        with pytest.raises(error):
            model(IDS)
        state["fail"] = False
        return model(IDS).square().mean()

    twin = MeZO(model.named_parameters(), lr=0.0, eps=EPS, evaluator=InPlace())
    assert told(model, loss, overlaid(model)) == pytest.approx(told(model, loss, twin), rel=1e-5)
    assert type(model[0]._parameters["weight"]) is nn.Parameter


def test_training_gives_the_weights_of_training_in_place() -> None:
    models = [tiny_models.build("gpt2", head="lm") for _ in range(2)]
    loss = hf_loss(tiny_models.batch(rows=2), "lm")
    evaluators = (Overlay(), InPlace())
    optimizers = [MeZO(m.named_parameters(), lr=1e-3, evaluator=e) for m, e in zip(models, evaluators, strict=True)]
    for _ in range(5):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.step(lambda m=model: loss(m))
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------------------ interception


def test_functions_that_read_reach_the_handler_and_metadata_does_not() -> None:
    weight, seen = nn.Parameter(numbers(4, 4)), []

    def handler(func: Any, args: Any, kwargs: Any) -> Any:
        seen.append(func)
        args, kwargs = originals(args, kwargs)
        return func(*args, **kwargs)

    new = stand_in(weight, handler)
    seen.clear()
    assert (new.shape, new.dtype, new.requires_grad, new.dim()) == ((4, 4), torch.float32, True, 2)
    assert (new.is_leaf, new.device.type, new.numel(), len(new)) == (True, "cpu", 16, 4)
    assert seen == []
    both = torch.cat([new, new]), functional.linear(X[:, :4], new), new[1:]
    assert seen == [torch.cat, functional.linear, torch.Tensor.__getitem__]
    assert torch.equal(both[0], torch.cat([weight, weight]))
    assert torch.cat not in METADATA
