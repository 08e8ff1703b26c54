"""The overlay: every probe's loss is that of an explicitly perturbed copy, and stored weights keep their bits."""

from __future__ import annotations

import concurrent.futures
import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import tiny_models
import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn.functional import linear

from zotune import FZOO, LOREN, LOZO, HiZOO, InPlace, MeZO, NonFiniteLossError, Overlay, digest
from zotune.evaluators.overlay import Mode
from zotune.optimizer import ZerothOrder

EPS = 0.1
Loss = Callable[[nn.Module], torch.Tensor]


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The module with its default initialisation; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval()


def numbers(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def explicit(model: nn.Module, loss: Loss, optimizer: ZerothOrder) -> list[float]:
    """Losses of the coming step from deep copies whose weights are perturbed through the kernels."""
    names = {id(p): n for n, p in model.named_parameters()}
    slots = optimizer._active()
    optimizer._refresh(slots)
    losses = []
    for probe in optimizer.plan():
        twin = copy.deepcopy(model)
        weights = dict(twin.named_parameters())
        for slot in slots:
            out = torch.empty(slot.shape, dtype=slot.param.dtype)
            optimizer._write_probe(slot, probe, out)
            with torch.no_grad():
                weights[names[id(slot.param)]].copy_(slot.stored(out))
        with torch.no_grad():
            losses.append(float(loss(twin)))
    return losses


def told(model: nn.Module, loss: Loss, optimizer: ZerothOrder) -> list[float]:
    """Losses of the coming step as the optimizer asks for them."""
    losses: list[float] = []

    def closure() -> torch.Tensor:
        value = loss(model)
        losses.append(float(value))
        return value

    optimizer.step(closure)
    return losses


def agree(model: nn.Module, loss: Loss, optimizer: ZerothOrder, steps: int = 3) -> None:
    """Each probe of each step has the loss of the explicitly perturbed copy, and lr=0 leaves the bits."""
    stored = {name: p.detach().clone() for name, p in model.named_parameters()}
    before = digest(model.parameters())
    for step in range(steps):
        wanted = explicit(model, loss, optimizer)
        assert told(model, loss, optimizer) == wanted, f"step {step}"
        assert all(torch.equal(p, stored[name]) for name, p in model.named_parameters())
    assert digest(model.parameters()) == before
    assert len(set(wanted)) > 1, "the loss does not depend on the perturbation: the test shows nothing"


def overlaid(model: nn.Module, cls: type[ZerothOrder] = MeZO, **options: Any) -> ZerothOrder:
    return cls(model.named_parameters(), lr=0.0, eps=EPS, **options)


# ------------------------------------------------------------------------------------------------ model families


def hf_loss(inputs: dict[str, torch.Tensor], head: str) -> Loss:
    def loss(model: nn.Module) -> torch.Tensor:
        labels = inputs["labels"] if head == "classifier" else inputs["input_ids"]
        out = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels)
        return out.loss.float()

    return loss


@pytest.mark.parametrize(("head", "tied"), [("classifier", True), ("lm", True), ("lm", False)])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_families(family: str, head: str, tied: bool) -> None:
    model = tiny_models.build(family, head=head, tie_word_embeddings=tied)
    agree(model, hf_loss(tiny_models.batch(), head), overlaid(model), steps=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["roberta", "gpt2", "llama"])
def test_families_half(family: str, dtype: torch.dtype) -> None:
    model = tiny_models.build(family, head="lm", dtype=dtype)
    agree(model, hf_loss(tiny_models.batch(rows=2), "lm"), overlaid(model), steps=1)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_parameter_that_matters_is_reached(family: str) -> None:
    """Perturbing one parameter alone changes the loss exactly for those whose gradient is not zero."""
    model = tiny_models.build(family)
    loss = hf_loss(tiny_models.batch(), "classifier")
    loss(model).backward()
    base = float(loss(model).detach())
    for name, p in model.named_parameters():
        if p.grad is None or float(p.grad.abs().max()) < 1e-6:
            continue
        optimizer = MeZO([(name, p)], lr=0.0, eps=EPS)
        assert any(value != base for value in told(model, loss, optimizer)), name


@pytest.mark.parametrize("cls", [LOREN, LOZO, HiZOO, FZOO])
def test_other_perturbations(cls: type[ZerothOrder]) -> None:
    model = tiny_models.build("gpt2")
    agree(model, hf_loss(tiny_models.batch(), "classifier"), overlaid(model, cls), steps=2)


def test_conv1d_with_input_dim() -> None:
    model = tiny_models.build("gpt2")
    conv = [(n, p) for n, p in model.named_parameters() if p.dim() == 2 and ".h." in n]
    rest = [(n, p) for n, p in model.named_parameters() if not (p.dim() == 2 and ".h." in n)]
    optimizer = LOREN([{"params": conv, "input_dim": 0}, {"params": rest}], lr=0.0, eps=EPS)
    agree(model, hf_loss(tiny_models.batch(), "classifier"), optimizer, steps=2)


# ------------------------------------------------------------------------------------------------ unusual modules

X = numbers(5, 8)


class ChildRead(nn.Module):
    """Reads its child's weight in its own forward, before or after the child's."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.child, self.order = nn.Linear(8, 8), order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.order == "before":
            return self.child(linear(x, self.child.weight))
        if self.order == "after":
            return linear(self.child(x), self.child.weight)
        return linear(x, self.child.weight)


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


def square(model: nn.Module) -> torch.Tensor:
    return model(X).square().mean()


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


# ------------------------------------------------------------------------------------------------ restoring


class Failing(nn.Module):
    """Raises in the midst of the forward when told to."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.a, self.b, self.bare = nn.Linear(8, 8), nn.Linear(8, 8), nn.Parameter(torch.ones(8))
        self.error: type[BaseException] | None = None
        self.to(dtype)
        self.b.register_forward_hook(self.fail)

    def fail(self, *_: Any) -> None:
        if self.error is not None:
            raise self.error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(linear(self.a(x), self.a.weight) * self.bare)


@pytest.mark.parametrize("evaluator", [Overlay, InPlace])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_survive_an_exception(dtype: torch.dtype, error: type[BaseException], evaluator: Any) -> None:
    model = seeded(lambda: Failing(dtype))
    view = model.b.weight.data.view(-1)  # written in place and restored
    before, pointers = digest(model.parameters()), [p.data_ptr() for p in model.parameters()]
    optimizer = overlaid(model, evaluator=evaluator())
    loss = lambda: model(X.to(dtype)).float().square().mean() + view.float().sum()  # noqa: E731
    for step in range(4):
        model.error = error
        with pytest.raises(error):
            optimizer.step(loss)
        assert digest(model.parameters()) == before
        assert [p.data_ptr() for p in model.parameters()] == pointers
        assert not nn.modules.module._global_forward_pre_hooks
        assert not nn.modules.module._global_forward_hooks
        model.error = None
        optimizer.step(loss)
        assert optimizer.t == step + 1
        assert digest(model.parameters()) == before


def test_exception_caught_inside_the_closure() -> None:
    """A forward that is given up in the midst leaves the next one right."""
    model = seeded(lambda: Failing(torch.float32))

    def loss(model: nn.Module) -> torch.Tensor:
        for error in (KeyboardInterrupt, RuntimeError):
            model.error = error
            with pytest.raises(error):
                model(X)
        model.error = None
        return square(model)

    model.b._forward_hooks.clear()
    model.b.register_forward_hook(lambda *_: model.fail())
    optimizer = overlaid(model)
    before = digest(model.parameters())
    losses = told(model, loss, optimizer)
    twin = MeZO(model.named_parameters(), lr=0.0, eps=EPS, evaluator=InPlace())
    assert losses == told(model, square, twin)
    assert digest(model.parameters()) == before


@pytest.mark.parametrize("place", ["clear_autocast_cache", "give_back", "remove"])
def test_interrupt_at_the_end_of_a_query(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    model = seeded(lambda: Failing(torch.float32))
    optimizer, before = overlaid(model), digest(model.parameters())
    optimizer.step(lambda: square(model))
    owner = {"clear_autocast_cache": torch, "give_back": type(optimizer.evaluator.scratch)}
    owner["remove"] = torch.utils.hooks.RemovableHandle
    real, armed = getattr(owner[place], place), {"now": False}

    def interrupted(*args: Any) -> Any:
        if armed["now"]:
            armed["now"] = False
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(owner[place], place, interrupted)

    def fails() -> torch.Tensor:
        model.error = RuntimeError
        armed["now"] = True
        return square(model)

    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        optimizer.step(fails)
    assert not armed["now"]
    assert digest(model.parameters()) == before
    assert not nn.modules.module._global_forward_pre_hooks
    model.error = None
    assert told(model, square, overlaid(model)) == told(model, square, overlaid(model, evaluator=InPlace()))
    monkeypatch.undo()
    optimizer.step(lambda: square(model))
    assert digest(model.parameters()) == before


def test_interrupt_while_restoring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C during the restoration is raised only when all weights are back."""
    model = seeded(lambda: nn.ParameterList([nn.Parameter(numbers(4, 4)), nn.Parameter(numbers(4))]))
    before = digest(model.parameters())
    optimizer = overlaid(model, evaluator=InPlace())
    real, calls = torch.Tensor.copy_, {"n": 0}

    def interrupted(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls["n"] += 1
        if calls["n"] == 4:  # two writes, then the first restoration, then this
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "copy_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(lambda: sum(p.sum() for p in model))
    assert digest(model.parameters()) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("evaluator", [Overlay, InPlace])
def test_weights_survive_a_loss_that_is_not_finite(value: float, evaluator: Any) -> None:
    model = seeded(lambda: ChildRead("after"))
    before = digest(model.parameters())
    optimizer = overlaid(model, evaluator=evaluator())
    with pytest.raises(NonFiniteLossError, match="at step 0: lower the learning rate") as info:
        optimizer.step(lambda: square(model) * value)
    assert info.value.step == 0
    assert repr(info.value.loss) == repr(value)
    assert digest(model.parameters()) == before
    agree(model, square, optimizer)


def test_negative_zeros_and_subnormals_keep_their_bits() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        tiny = torch.finfo(dtype).smallest_normal / 4
        weight = nn.Parameter(torch.tensor([-0.0, 0.0, tiny, -tiny, 1.0, -1.0], dtype=dtype))
        alias = weight.data.view(-1)
        before = weight.detach().clone().view(torch.int16 if dtype.itemsize == 2 else torch.int32)
        optimizer = MeZO([weight], lr=0.0, eps=EPS)
        for read_alias in (False, True):
            optimizer.step(lambda read=read_alias, w=weight, a=alias: (w.sum() + (a.sum() if read else 0)).float())
            assert torch.equal(weight.detach().view(before.dtype), before)


# ------------------------------------------------------------------------------------------------ counts and memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cls", [MeZO, LOREN, LOZO, HiZOO, FZOO])
def test_in_place_agrees_bit_for_bit(cls: type[ZerothOrder], dtype: torch.dtype) -> None:
    models = [tiny_models.build("gpt2", head="lm", dtype=dtype) for _ in range(2)]
    loss = hf_loss(tiny_models.batch(rows=2), "lm")
    evaluators = (Overlay(), InPlace())
    optimizers = [
        cls(m.named_parameters(), lr=1e-3, eps=1e-2, evaluator=e) for m, e in zip(models, evaluators, strict=True)
    ]
    for _ in range(3):
        assert told(models[0], loss, optimizers[0]) == told(models[1], loss, optimizers[1])
        assert digest(models[0].parameters()) == digest(models[1].parameters())
    assert digest(models[0].parameters()) != digest(tiny_models.build("gpt2", head="lm", dtype=dtype).parameters())


@pytest.mark.parametrize(("cls", "queries"), [(MeZO, 2), (MeZO, 6), (LOREN, 6), (HiZOO, 5), (FZOO, 8), (LOZO, 4)])
def test_number_of_closure_calls(cls: type[ZerothOrder], queries: int) -> None:
    model = seeded(lambda: ChildRead("after"))
    optimizer = overlaid(model, cls, queries=queries)
    for step in range(1, 6):
        assert len(told(model, square, optimizer)) == queries
        assert optimizer.queries == step * queries


def test_closure_runs_without_gradients() -> None:
    model = seeded(lambda: nn.Linear(8, 8))
    flags: list[bool] = []
    overlaid(model).step(lambda: flags.append(torch.is_grad_enabled()) or square(model))
    assert flags == [False, False]


def test_scratch_is_one_layer() -> None:
    """What the evaluator keeps, and the most it ever hands out, is the largest module, not the model."""
    model = seeded(lambda: nn.Sequential(*(nn.Linear(32, 32) for _ in range(12))))
    evaluator = Overlay()
    taken: list[int] = []
    take, give_back = evaluator.scratch.take, evaluator.scratch.give_back
    open_now = {"n": 0}

    def counted(size: int, *args: Any) -> torch.Tensor:
        buffer = take(size, *args)
        open_now["n"] += buffer.numel()
        taken.append(open_now["n"])
        return buffer

    def returned(buffer: torch.Tensor) -> None:
        open_now["n"] -= buffer.numel()
        give_back(buffer)

    evaluator.scratch.take, evaluator.scratch.give_back = counted, returned
    optimizer = overlaid(model, evaluator=evaluator)
    for _ in range(3):
        optimizer.step(lambda: model(numbers(2, 32)).square().mean())
    layer = 32 * 32 + 64
    assert max(taken) == layer
    assert evaluator.scratch.numel() == layer, "the buffer is used again, and one is enough"
    assert set(evaluator.modes(optimizer._active()).values()) == {Mode.OWNER}


def test_scratch_is_not_reused_while_a_view_lives() -> None:
    from zotune.evaluators.scratch import Scratch

    scratch, device = Scratch(), torch.device("cpu")
    buffer = scratch.take(64, device, torch.float32)
    address, view = buffer.data_ptr(), buffer[3:5]
    scratch.give_back(buffer)
    assert scratch.numel() == 0
    del view
    scratch.give_back(buffer)
    assert scratch.numel() == 64
    del buffer
    gc.collect()
    assert scratch.take(10, device, torch.float32).data_ptr() == address
    assert scratch.take(10, device, torch.bfloat16).dtype is torch.bfloat16


def test_one_evaluator_for_two_optimizers() -> None:
    """What was learnt about one model says nothing about another."""
    evaluator = Overlay()
    for seed in range(3):
        model = seeded(lambda: ChildRead("after"), seed)
        optimizer = overlaid(model, evaluator=evaluator)
        optimizer.t = 5
        agree(model, square, optimizer)
        del model, optimizer
        gc.collect()
