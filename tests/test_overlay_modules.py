"""The overlay in modules that use their weights in unusual ways."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from overlay_checks import EPS, ChildRead, Loss, X, agree, explicit, numbers, overlaid, seeded, square, told
from torch import nn
from torch.nn.functional import linear

from zotune import LOREN, HiZOO, InPlace, MeZO, digest
from zotune.evaluators.overlay import Mode
from zotune.optimizer import ZerothOrder


class TiedOutput(nn.Module):
    """A table used as embedding, through F.linear, and as the weight of a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(8, 8), nn.Linear(8, 8, bias=False)
        self.out.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(linear(self.table(x.argsort(-1)), self.table.weight))


class TwoOwners(nn.Module):
    """One parameter in a module and in the module inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.shared = self.inner.weight
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x @ self.shared) @ self.shared * self.gain


class Recursive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(numbers(8, 8))

    def forward(self, x: torch.Tensor, depth: int = 0) -> torch.Tensor:
        return x @ self.weight if depth == 2 else self(x, depth + 1) @ self.weight


class Slice(nn.Module):
    """Returns a view of its parameter, as learnt position tables do."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.weight, self.how = nn.Parameter(numbers(16, 8)), how
        self.kept: Any = None

    def forward(self, n: int) -> Any:
        self.kept = self.weight[:n].t()
        views = {"itself": self.weight, "slice": self.weight[:n], "expand": self.weight[None].expand(2, 16, 8)}
        return {"answer": views[self.how]}


class ReturnsView(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.table, self.linear, self.how = Slice(how), nn.Linear(8, 8), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = self.table(5)["answer"]
        y = self.linear(x)  # a second owner, whose scratch must not be the memory of the view
        y = y + table.reshape(-1, 8)[:5]
        return y + self.table.kept.t()


class Lazy(nn.Module):
    """Its forward is a generator, so the weights are read after it has returned."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> Any:
        for layer in self.layers:
            x = layer(x) * self.scale
            yield x


class Hooked(nn.Module):
    """A user's hooks read weights and change outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
        self.linear.register_forward_hook(self.scale)
        self.linear.register_forward_pre_hook(lambda module, args: (args[0] + module.bias,))
        self.linear.register_forward_hook(lambda module, args, out: out + module.weight.mean())

    def scale(self, module: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
        return out * self.other.weight.sum()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class Listed(nn.Module):
    """Parameters in containers that are never called, and a child's forward called directly."""

    def __init__(self) -> None:
        super().__init__()
        self.list = nn.ParameterList([nn.Parameter(numbers(8, 8)), nn.Parameter(numbers(8))])
        self.dict = nn.ParameterDict({"a": nn.Parameter(numbers(8, 8, seed=3))})
        self.child = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.child.forward(x @ self.list[0] + self.list[1]) @ torch.cat([self.dict["a"], self.child.weight], 1)


class Flat(nn.Module):
    """Two parameters that are parts of one flat tensor."""

    def __init__(self) -> None:
        super().__init__()
        flat = numbers(128)
        self.a, self.b = nn.Parameter(flat[:64].view(8, 8)), nn.Parameter(flat[64:].view(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.a @ self.b


class TransposedStorage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(numbers(6, 8).t())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def weight_norm() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 8))


def spectral_norm() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 8))


def orthogonal() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(8, 8)), nn.Linear(8, 8))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x[None], x[None], x[None], need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cell = cell(8, 8, 2, bidirectional=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cell(x[:, None])[0]


def twice() -> nn.Module:
    layer = nn.Linear(8, 8)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Sequential(layer))


UNUSUAL: dict[str, Callable[[], nn.Module]] = {
    "child read before": lambda: ChildRead("before"),
    "child read after": lambda: ChildRead("after"),
    "child never called": lambda: ChildRead("only"),
    "tied output": TiedOutput,
    "two owners": TwoOwners,
    "recursive": Recursive,
    "called several times": twice,
    "returns its parameter": lambda: ReturnsView("itself"),
    "returns a slice": lambda: ReturnsView("slice"),
    "returns an expanded view": lambda: ReturnsView("expand"),
    "user hooks": Hooked,
    "containers": Listed,
    "parts of a flat tensor": Flat,
    "weight norm": weight_norm,
    "spectral norm": spectral_norm,
    "orthogonal": orthogonal,
    "attention": Attention,
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)
    ),
}


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("cls", [MeZO, LOREN])
@pytest.mark.parametrize("case", UNUSUAL)
def test_unusual_modules(case: str, cls: type[ZerothOrder], start: int) -> None:
    """Right from the first query on, also when the run is resumed at a step that is not watched as such."""
    model = seeded(UNUSUAL[case])
    optimizer = overlaid(model, cls)
    optimizer.t = start
    agree(model, square, optimizer, steps=4)


@pytest.mark.parametrize("cls", [MeZO, LOREN])
def test_transposed_storage(cls: type[ZerothOrder]) -> None:
    """Weights whose memory is not in row-major order; matrix products then add in another order."""
    model = TransposedStorage()
    optimizer, before = overlaid(model, cls), model.weight.detach().clone()
    wanted = explicit(model, square, optimizer)
    assert told(model, square, optimizer) == pytest.approx(wanted, rel=1e-6)
    assert torch.equal(model.weight, before)
    assert model.weight.stride() == (1, 8)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("padded", [False, True])
def test_transformer_encoder_layer(padded: bool) -> None:
    model = seeded(lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2))
    mask = torch.tensor([[False] * 3, [False, False, True]]) if padded else None

    def loss(model: nn.Module) -> torch.Tensor:
        return model(numbers(2, 3, 8), src_key_padding_mask=mask).square().mean()

    agree(model, loss, overlaid(model))


def test_generator() -> None:
    model = seeded(Lazy)
    agree(model, lambda m: sum(y.square().mean() for y in m(X)), overlaid(model))


def test_regulariser_reads_all_parameters() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)))

    def loss(model: nn.Module) -> torch.Tensor:
        return square(model) + sum(p.square().sum() for p in model.parameters())

    agree(model, loss, overlaid(model))


def test_bare_parameters() -> None:
    """Closures without modules; the query must not see stored weights even once."""
    model = seeded(lambda: nn.ParameterList([nn.Parameter(numbers(8, 8)), nn.Parameter(numbers(8))]))
    agree(model, lambda m: (X @ m[0] + m[1]).square().mean(), overlaid(model))


def views(weight: nn.Parameter) -> dict[str, torch.Tensor]:
    return {
        "flat": weight.data.view(-1),
        "detached": weight.detach(),
        "part": weight.data[2:4, 1::2],
        "transposed": weight.data.t(),
        "bits": weight.data.view(torch.int32),
    }


@pytest.mark.parametrize("how", ["flat", "detached", "part", "transposed", "bits"])
def test_alias_made_before(how: str) -> None:
    """A tensor that shares memory with a parameter is perturbed as well, in the first query and later."""
    weight = nn.Parameter(numbers(8, 8))
    view, twin = views(weight)[how], nn.Parameter(weight.detach().clone())
    optimizer = MeZO([("w", weight)], lr=0.0, eps=EPS)
    other = MeZO([("w", twin)], lr=0.0, eps=EPS, evaluator=InPlace())
    twin_view = views(twin)[how]
    before = digest([weight])
    for _ in range(3):
        got, wanted = [], []
        optimizer.step(lambda got=got: got.append(float(view.double().mean() + weight.sum())) or got[-1])
        other.step(lambda wanted=wanted: wanted.append(float(twin_view.double().mean() + twin.sum())) or wanted[-1])
        assert got == wanted
        assert got[0] != got[1]
        assert digest([weight]) == before
    assert optimizer.evaluator.modes(optimizer._active()) == {"w": Mode.WRITTEN}


def test_alias_of_several_parameters() -> None:
    flat = numbers(24)
    a, b = nn.Parameter(flat[:8]), nn.Parameter(flat[8:20])
    before = flat.clone()
    optimizer = MeZO([("a", a), ("b", b)], lr=0.0, eps=EPS)
    seen: list[tuple[float, float]] = []
    for _ in range(2):
        optimizer.step(lambda: seen.append((float(flat[4:16].sum()), float(a[4:].sum() + b[:8].sum()))) or seen[-1][0])
    assert all(whole == pytest.approx(parts, rel=1e-5) for whole, parts in seen)
    assert len({whole for whole, _ in seen}) == 4
    assert torch.equal(flat, before)


class Routed(nn.Module):
    """Experts of which each query uses one; the last is also read outside its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.experts = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])
        self.route = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.experts[self.route](self.first(x))
        return linear(x, self.experts[3].weight) if self.route == 3 else x


@pytest.mark.parametrize("late", [0, 1, 2, 3])
def test_routing(late: int) -> None:
    """Experts that are reached for the first time at any later step are perturbed in that very query."""
    model = seeded(Routed)
    optimizer = overlaid(model)
    for step in range(12):
        model.route = (3 if step % 2 else step % 3) if step >= late else 0
        wanted = explicit(model, square, optimizer)
        assert told(model, square, optimizer) == wanted, f"step {step}"


def test_expert_read_directly_after_its_forward_was_left_out() -> None:
    """The query after one in which a known owner did not run is watched."""
    model = seeded(lambda: ChildRead("before"))
    model.order = "called"
    calls = {"n": 0}

    def loss(model: nn.Module) -> torch.Tensor:
        calls["n"] += 1
        x = X
        if optimizer.t < 5:
            return model.child(x).square().mean()
        return x.square().mean() if optimizer.t == 5 else linear(x, model.child.weight).square().mean()

    optimizer = overlaid(model)
    for step in range(9):
        wanted = explicit(model, loss, optimizer)
        got = told(model, loss, optimizer)
        assert got == wanted, f"step {step}"


def test_unfrozen_later() -> None:
    """A parameter that joins in mid-run is watched from its first query on."""
    model = seeded(lambda: ChildRead("only"))
    model.child.weight.requires_grad_(False)
    model.extra = nn.Parameter(torch.ones(8))
    loss = lambda m: (m(X) * m.extra).square().mean()  # noqa: E731
    optimizer = overlaid(model)
    for step in range(8):
        model.child.weight.requires_grad_(step >= 5)
        wanted = explicit(model, loss, optimizer)
        assert told(model, loss, optimizer) == wanted, f"step {step}"


def test_autocast_around_the_step() -> None:
    """autocast's cache of cast weights outlives a query; each query must see its own."""
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)))
    optimizer = overlaid(model, HiZOO)

    def loss(model: nn.Module) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(X).float().square().mean()

    for _ in range(3):
        wanted = explicit(model, loss, optimizer)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(X)  # fills the cache with the stored weights
            assert told(model, loss, optimizer) == wanted


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_inference_mode(backend: str) -> None:
    """Inside the closure, around the step, and changing between them."""
    model = seeded(lambda: nn.Sequential(ChildRead("after"), nn.Linear(8, 8)))
    optimizer = overlaid(model, backend=backend)

    def inner(model: nn.Module) -> torch.Tensor:
        with torch.inference_mode():
            return square(model)

    for step, loss in enumerate([inner, square, inner, square, square, inner]):
        wanted = explicit(model, loss, optimizer)
        with torch.inference_mode(step == 4):
            assert told(model, loss, optimizer) == wanted


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted() -> None:
    scripted = torch.jit.script(seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))))
    optimizer = overlaid(scripted)
    agree(scripted, square, optimizer)


def functional(model: nn.Module) -> torch.Tensor:
    return torch.func.functional_call(model, dict(model.named_parameters()), (X,)).square().mean()


def mapped(model: nn.Module) -> torch.Tensor:
    return torch.func.vmap(lambda x: model(x) + x @ model[0].weight)(X).square().mean()


def slope(model: nn.Module) -> torch.Tensor:
    return torch.func.grad(lambda x: (model(x) @ model[0].weight).square().sum())(X).square().mean()


def backward(model: nn.Module) -> torch.Tensor:
    with torch.enable_grad():
        x = X.clone().requires_grad_()
        y = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False) + model(x)
        (gradient,) = torch.autograd.grad(y.square().mean(), x)
    return gradient.square().mean()


@pytest.mark.parametrize("loss", [functional, mapped, slope, backward])
def test_transformed_functions(loss: Loss) -> None:
    """Calls through torch.func, and gradients with respect to inputs inside the closure."""
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)))
    agree(model, loss, overlaid(model))


def test_modules_in_other_threads() -> None:
    """Refused rather than evaluated at the wrong weights; the evaluator in place can do it."""
    model = seeded(lambda: nn.Linear(8, 8))

    def loss(model: nn.Module) -> torch.Tensor:
        with concurrent.futures.ThreadPoolExecutor(1) as pool, torch.no_grad():
            return pool.submit(square, model).result()

    before = digest(model.parameters())
    with pytest.raises(RuntimeError, match="evaluator=InPlace"):
        overlaid(model).step(lambda: loss(model))
    assert digest(model.parameters()) == before
    agree(model, loss, overlaid(model, evaluator=InPlace()))
