"""The optimizer shell: validation, groups, schedules, accumulation, replay, and what torch.optim promises."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR

import zotune
from zotune import FZOO, LOREN, LOZO, HiZOO, MeZO, MeZOSVRG, NonFiniteLossError, ZOAdam, digest
from zotune.noise import Key, rademacher
from zotune.optimizer import ZerothOrder

METHODS: dict[str, tuple[type[ZerothOrder], dict[str, Any]]] = {
    "MeZO": (MeZO, {}),
    "MeZO momentum": (MeZO, {"momentum": 0.9, "queries": 4}),
    "ZOAdam": (ZOAdam, {}),
    "SVRG": (MeZOSVRG, {"period": 3}),
    "LOZO": (LOZO, {"period": 3}),
    "LOZO-M": (LOZO, {"period": 3, "momentum": 0.9}),
    "HiZOO": (HiZOO, {"smoothing": "constant1e-2"}),
    "LOREN": (LOREN, {"momentum": 0.9}),
    "LOREN without momentum": (LOREN, {"momentum": 0.0}),
    "FZOO": (FZOO, {}),
}
HALF = (torch.bfloat16, torch.float16)


def model_of(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator).mul(0.5).to(dtype)
    return model


def loss_at(model: nn.Module, step: int = 0, rows: int = 4) -> Callable[[], torch.Tensor]:
    x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(step)).to(next(model.parameters()).dtype)
    return lambda: model(x).float().square().mean()


def build(method: str, model: nn.Module, **options: Any) -> ZerothOrder:
    cls, own = METHODS[method]
    return cls(model.named_parameters(), **({"lr": 1e-2, "seed": 5} | own | options))


def run(optimizer: ZerothOrder, model: nn.Module, steps: int, begin: int = 0) -> int:
    for step in range(begin, begin + steps):
        optimizer.step(loss_at(model, step))
    return digest(model.parameters())


# ------------------------------------------------------------------------------------------------ validation


WRONG: list[tuple[type[ZerothOrder], dict[str, Any], str]] = [
    (MeZO, {"queries": 3}, "even number of queries"),
    (MeZO, {"queries": 0}, "even number of queries"),
    (MeZO, {"queries": 2.0}, "even number of queries"),
    (LOREN, {"queries": 1}, "needs 2 or more"),
    (HiZOO, {"queries": 4}, "odd number"),
    (HiZOO, {"queries": 1}, "odd number"),
    (FZOO, {"queries": 2}, "3 or more"),
    (MeZO, {"momentum": 1.0}, "momentum=1.0"),
    (LOREN, {"momentum": -0.1}, "momentum=-0.1"),
    (LOREN, {"damping": 0.0}, "damping=0.0"),
    (LOREN, {"lr_cov": -1.0}, "lr_cov=-1.0"),
    (LOZO, {"rank": 0}, "rank=0"),
    (LOZO, {"rank": 1.5}, "rank=1.5"),
    (LOZO, {"period": 0}, "period=0"),
    (MeZOSVRG, {"period": -1}, "period=-1"),
    (MeZOSVRG, {"anchor": "coppy"}, "did you mean 'copy'"),
    (MeZOSVRG, {"anneal": 0.5}, "anneal=0.5"),
    (MeZOSVRG, {"anneal_window": 0}, "anneal_window=0"),
    (MeZOSVRG, {"lr_minibatch": math.nan}, "lr_minibatch=nan"),
    (ZOAdam, {"bits": 16}, "bits=16"),
    (LOREN, {"momentum_bits": 4}, "momentum_bits=4"),
    (ZOAdam, {"betas": (0.9, 1.0)}, "betas=1.0"),
    (ZOAdam, {"betas": (0.9,)}, "betas="),
    (ZOAdam, {"adam_eps": 0.0}, "adam_eps=0.0"),
    (HiZOO, {"smoothing": "constant1e8"}, "did you mean 'constant1e-8'"),
    *(
        (cls, wrong, message)
        for cls in (MeZO, LOREN, MeZOSVRG)
        for wrong, message in [
            ({"eps": 0.0}, "eps=0.0"),
            ({"eps": -1e-3}, "eps=-0.001"),
            ({"eps": math.nan}, "eps=nan"),
            ({"eps": "small"}, "eps='small'"),
            ({"lr": -1.0}, "lr=-1.0"),
            ({"lr": math.nan}, "lr=nan"),
            ({"lr": math.inf}, "lr=inf"),
            ({"lr": None}, "lr=None"),
            ({"weight_decay": -0.1}, "weight_decay=-0.1"),
            ({"seed": -1}, "seed=-1"),
            ({"seed": 2**64}, "seed="),
            ({"noise": "normal"}, "gaussian, rademacher"),
            ({"backend": "numbah"}, "did you mean 'numba'"),
            ({"clip": 0.0}, "clip=0.0"),
            ({"clip": math.nan}, "clip=nan"),
        ]
    ),
]


@pytest.mark.parametrize(("cls", "wrong", "message"), WRONG, ids=lambda v: getattr(v, "__name__", None))
def test_wrong_values(cls: type[ZerothOrder], wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        cls(model_of().parameters(), **({"lr": 0.1} | wrong))


@pytest.mark.parametrize("cls", [cls for cls, _ in METHODS.values()])
def test_misspelt_and_positional_arguments(cls: type[ZerothOrder]) -> None:
    with pytest.raises(TypeError, match="learning_rate"):
        cls(model_of().parameters(), learning_rate=0.1)
    with pytest.raises(TypeError, match="positional"):
        cls(model_of().parameters(), 0.1)
    with pytest.raises(TypeError, match="lr"):
        cls(model_of().parameters())


def test_unknown_key_in_a_group() -> None:
    group = {"params": list(model_of().parameters()), "weight_deacy": 0.1}
    with pytest.raises(ValueError, match=r"'weight_deacy'.*did you mean 'weight_decay'"):
        MeZO([group], lr=0.1)
    with pytest.raises(ValueError, match="'lr_cov'"):  # of another method
        MeZO([{"params": list(model_of().parameters()), "lr_cov": 0.1}], lr=0.1)
    with pytest.raises(ValueError, match="eps=-1"):
        MeZO([{"params": list(model_of().parameters()), "eps": -1}], lr=0.1)
    with pytest.raises(ValueError, match="input_dim=1"):
        MeZO([{"params": list(model_of().parameters()), "input_dim": 1}], lr=0.1)


def test_parameters_that_cannot_be_trained() -> None:
    with pytest.raises(ValueError, match="int32 cannot be perturbed"):
        MeZO([nn.Parameter(torch.ones(3, dtype=torch.int32), requires_grad=False)], lr=0.1)
    with pytest.raises(ValueError, match="empty parameter list"):
        MeZO([], lr=0.1)
    frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    with pytest.raises(ValueError, match="no parameter is trainable"):
        MeZO([frozen], lr=0.1).step(lambda: 0.0)
    with pytest.raises(ValueError, match="made by expand"):
        MeZO([nn.Parameter(torch.ones(1).expand(3))], lr=0.1)
    with pytest.raises(TypeError):
        MeZO([1.0], lr=0.1)


def test_parameters_that_share_memory() -> None:
    flat = torch.ones(10)
    a, b, c = nn.Parameter(flat[:6]), nn.Parameter(flat[5:]), nn.Parameter(flat[6:])
    with pytest.raises(ValueError, match="share memory"):
        MeZO([a, b], lr=0.1)
    with pytest.raises(ValueError, match="share memory"):
        MeZO([{"params": [a]}, {"params": [b]}], lr=0.1)
    optimizer = MeZO([a, c], lr=0.1)  # neighbours do not overlap
    with pytest.raises(ValueError, match="share memory"):
        optimizer.add_param_group({"params": [nn.Parameter(a.data)]})
    with pytest.warns(UserWarning, match="duplicate"), pytest.raises(ValueError, match="listed twice"):
        MeZO([a, a], lr=0.1)


# ------------------------------------------------------------------------------------------------ parameters and groups


def test_unnamed_named_and_grouped_parameters() -> None:
    digests = set()
    for make in (lambda m: m.named_parameters(), lambda m: [{"params": m.named_parameters()}]):
        model = model_of()
        digests.add(run(MeZO(make(model), lr=1e-2), model, 3))
    assert len(digests) == 1
    model = model_of()
    run(MeZO(model.parameters(), lr=1e-2), model, 3)
    assert digest(model.parameters()) != digest(model_of().parameters())


@pytest.mark.parametrize("method", METHODS)
def test_noise_depends_on_names_alone(method: str) -> None:
    """Not on the order, nor on the grouping."""

    def trained(arrange: Callable[[list[Any]], list[Any]]) -> int:
        model = model_of()
        cls, options = METHODS[method]
        return run(cls(arrange(list(model.named_parameters())), lr=1e-2, **options), model, 4)

    plain = trained(lambda named: named)
    assert trained(lambda named: named[::-1]) == plain
    assert trained(lambda named: [{"params": named[1::2]}, {"params": named[0::2]}]) == plain


def test_first_step_of_a_later_run_does_not_depend_on_the_evaluation_before() -> None:
    model, other = model_of(), model_of()
    first, second = build("MeZO", model), build("MeZO", other)
    second.evaluator.evaluate(second._active(), second.plan(), second._write_probe, loss_at(other), 0)
    assert run(first, model, 3) == run(second, other, 3)


@pytest.mark.parametrize("method", METHODS)
def test_frozen_parameters(method: str) -> None:
    """Neither perturbed nor updated; and freezing in mid-run leaves the noise of the others as it was."""
    model = model_of()
    model[0].weight.requires_grad_(False)
    optimizer = build(method, model)
    before, seen = model[0].weight.detach().clone(), []

    def closure() -> torch.Tensor:
        seen.append(torch.equal(model[0].weight, before))
        return loss_at(model)()

    for _ in range(3):  # MeZO-SVRG's next step is a snapshot again
        optimizer.step(closure)
    assert all(seen)
    assert torch.equal(model[0].weight, before)
    assert model[0].weight not in optimizer.state or not optimizer.state[model[0].weight]
    model[0].weight.requires_grad_(True)
    model[2].bias.requires_grad_(False)
    bias = model[2].bias.detach().clone()
    optimizer.step(loss_at(model, 9))
    assert not torch.equal(model[0].weight, before)
    assert torch.equal(model[2].bias, bias)


def test_freezing_does_not_shift_noise() -> None:
    losses = [1.0, 0.5]
    free, part = model_of(), model_of()
    first, second = build("MeZO", free), build("MeZO", part)
    part[0].bias.requires_grad_(False)
    first.tell(losses)
    second.tell(losses)
    for (name, p), q in zip(free.named_parameters(), part.parameters(), strict=True):
        assert torch.equal(p, q) is (name != "0.bias")


def test_group_hyperparameters_are_used() -> None:
    """Each group has its own lr, eps and weight decay."""
    model, eps = model_of(), {"0": 0.25, "2": 0.125}
    groups = [
        {"params": [(n, p) for n, p in model.named_parameters() if n[0] == "0"], "lr": 0.0, "eps": 0.25},
        {"params": [(n, p) for n, p in model.named_parameters() if n[0] == "2"], "lr": 0.1, "weight_decay": 0.5},
    ]
    optimizer = MeZO(groups, lr=9.0, eps=0.125, noise="rademacher")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    seen: list[dict[str, torch.Tensor]] = []

    def closure() -> float:
        for layer in (model[0], model[2]):
            layer(torch.zeros(1, layer.in_features))
        seen.append({n: p.detach().clone() for n, p in model.named_parameters()})  # read outside: held from then on
        return 2.0 if len(seen) == 1 else 1.0

    optimizer.step(closure)
    for name, p in model.named_parameters():
        distance = (seen[0][name] - before[name]).abs()
        assert torch.allclose(distance, torch.full_like(distance, eps[name[0]]), atol=1e-6)
        if name[0] == "0":
            assert torch.equal(p, before[name])
        else:
            change = p - before[name] * (1 - 0.1 * 0.5)
            assert torch.allclose(change.abs(), torch.full_like(p, 0.1 * 1.0 / (2 * 0.125)), atol=1e-5)


def test_tied_parameters_count_once() -> None:
    table = nn.Embedding(5, 4)
    out = nn.Linear(4, 5, bias=False)
    out.weight = table.weight
    model = nn.Sequential(table, out)
    optimizer = MeZO(model.named_parameters(), lr=0.1)
    assert len(optimizer._active()) == 1


def test_add_param_group_in_mid_run() -> None:
    model, late = model_of(), nn.Parameter(torch.ones(6))
    optimizer = build("MeZO momentum", model)
    reference = model_of()
    other = build("MeZO momentum", reference)
    run(optimizer, model, 2)
    run(other, reference, 2)
    optimizer.add_param_group({"params": [("0 sorts before the others", late)], "lr": 0.2})
    optimizer.tell([1.0, 0.5, 0.25, 0.0])
    other.tell([1.0, 0.5, 0.25, 0.0])
    assert digest(model.parameters()) == digest(reference.parameters())
    assert not torch.equal(late, torch.ones(6))


# ------------------------------------------------------------------------------------------------ numerics


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("method", METHODS)
def test_zero_rate_leaves_all_bits(method: str, dtype: torch.dtype) -> None:
    model = model_of(dtype)
    tiny = torch.finfo(dtype).smallest_normal / 8
    with torch.no_grad():
        for p in model.parameters():
            p.view(-1)[:3] = torch.tensor([-0.0, tiny, -tiny], dtype=dtype)
    optimizer = build(method, model, lr=0.0)
    whole = torch.int32 if dtype is torch.float32 else torch.int16
    before = [p.detach().clone().view(whole) for p in model.parameters()]
    checksum = digest(model.parameters())
    for step in range(100):
        optimizer.step(loss_at(model, step))
    assert all(torch.equal(b, p.detach().view(whole)) for b, p in zip(before, model.parameters(), strict=True))
    assert digest(model.parameters()) == checksum
    assert optimizer.t == 100


@pytest.mark.parametrize("dtype", HALF)
def test_tiny_updates_survive_in_half_precision(dtype: torch.dtype) -> None:
    """An update of 1e-6, a small fraction of the spacing of weights, survives on average."""
    size, steps = 1 << 19, 40
    weight = nn.Parameter(torch.full((size,), 0.05, dtype=dtype))
    optimizer = MeZO([weight], lr=1e-6, eps=0.5, noise="rademacher", seed=1)
    share = 0.0
    for step in range(steps):
        before = weight.detach().float()
        optimizer.tell([1.0, 0.0])
        direction = -rademacher(Key(1, step=step), (size,))
        share += float(((weight.detach().float() - before) * direction).double().mean()) / 1e-6
    assert 0.99 <= share / steps <= 1.01


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_moves(method: str, dtype: torch.dtype) -> None:
    model = model_of(dtype)
    assert run(build(method, model), model, 5) != digest(model_of(dtype).parameters())
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_tell_has_the_same_bits_on_one_and_two_threads(method: str) -> None:
    digests, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            generator = torch.Generator().manual_seed(1)
            weight = nn.Parameter(torch.randn(300, 257, generator=generator))
            cls, options = METHODS[method]
            optimizer = cls([weight], lr=1e-2, **options)
            for step in range(3):
                optimizer.tell([math.sin(step + 3 * k) for k in range(len(optimizer.plan()))])
            digests.append(digest([weight]))
    finally:
        torch.set_num_threads(threads)
    assert digests[0] == digests[1]


def test_clip_bounds_the_update() -> None:
    weight = nn.Parameter(torch.zeros(64))
    MeZO([weight], lr=1.0, eps=0.5, clip=0.25, noise="rademacher").tell([100.0, 0.0])
    assert torch.allclose(weight.detach().abs(), torch.full((64,), 0.25))
    other = nn.Parameter(torch.zeros(64))
    MeZO([other], lr=1.0, eps=0.5, clip=200.0, noise="rademacher").tell([100.0, 0.0])
    assert torch.allclose(other.detach().abs(), torch.full((64,), 100.0))


# ------------------------------------------------------------------------------------------------ schedules


@pytest.mark.parametrize("method", METHODS)
def test_schedulers(method: str) -> None:
    makers: list[Callable[[ZerothOrder], Any]] = [
        lambda o: LambdaLR(o, lambda step: 1.0 / (1 + step)),
        lambda o: CosineAnnealingLR(o, 10),
        lambda o: OneCycleLR(o, max_lr=1e-2, total_steps=12, cycle_momentum=False),
    ]
    for maker in makers:
        model = model_of()
        optimizer = build(method, model)
        scheduler = maker(optimizer)
        rates = []
        for step in range(6):
            optimizer.step(loss_at(model, step))
            scheduler.step()
            rates.append(optimizer.param_groups[0]["lr"])
        assert len(set(rates)) == 6
        assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_a_schedule_that_falls_to_zero_stops_the_weights(method: str) -> None:
    """For MeZO-SVRG both rates."""
    model = model_of()
    optimizer = build(method, model)
    scheduler = LambdaLR(optimizer, lambda step: float(step < 4))
    moved = []
    for step in range(8):
        before = digest(model.parameters())
        optimizer.step(loss_at(model, step))
        scheduler.step()
        moved.append(digest(model.parameters()) != before)
    assert moved == [True] * 4 + [False] * 4


def test_schedule_scales_both_rates_of_svrg() -> None:
    """Halving the schedule halves the change of a snapshot step and of a minibatch step alike."""
    for step in (0, 1):
        changes = []
        for factor in (1.0, 0.5):
            weight = nn.Parameter(torch.zeros(32, dtype=torch.float64))
            optimizer = MeZOSVRG([weight], lr=0.1, lr_minibatch=0.02, eps=0.5, period=2)
            LambdaLR(optimizer, lambda _, f=factor: f)
            if step:
                optimizer.tell([1.0, 1.0])  # snapshot without slope
            before = weight.detach().clone()
            optimizer.tell([3.0, 1.0, 1.0, 1.0] if step else [3.0, 1.0])
            changes.append(weight.detach() - before)
        assert torch.allclose(changes[0], 2 * changes[1])
        assert bool((changes[0] != 0).all())


# ------------------------------------------------------------------------------------------------ the two halves


@pytest.mark.parametrize("method", METHODS)
def test_accumulation_equals_the_merged_batch(method: str) -> None:
    """estimate() on the parts with their sizes as weights, then step(), is step() on the whole batch."""
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    merged, parts = model_of(torch.float64), model_of(torch.float64)
    first, second = build(method, merged), build(method, parts)
    for _ in range(5):
        first.step(lambda: merged(x).square().mean())
        for begin, end in ((0, 5), (5, 6), (6, 12)):
            second.estimate(lambda a=begin, b=end: parts(x[a:b]).square().mean(), weight=end - begin)
        second.step()
        assert second.last_loss == pytest.approx(first.last_loss, rel=1e-9)  # FZOO divides by a small spread
    assert first.queries == second.queries
    for p, q in zip(merged.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-8)
    assert digest(merged.parameters()) != digest(model_of(torch.float64).parameters())


def test_estimate_returns_the_mean_of_its_own_batch() -> None:
    model = model_of()
    optimizer = build("MeZO", model)
    values: list[float] = []
    closure = lambda: values.append(float(loss_at(model)())) or values[-1]  # noqa: E731
    assert optimizer.estimate(closure) == pytest.approx(sum(values) / 2)
    assert optimizer.t == 0
    assert optimizer.queries == 0
    assert optimizer.step() == pytest.approx(sum(values) / 2)
    assert (optimizer.t, optimizer.queries) == (1, 2)


@pytest.mark.parametrize("method", METHODS)
def test_tell_replays_a_run(method: str) -> None:
    """A log of losses replays the run without a model, bit for bit."""
    model, weights = model_of(torch.bfloat16), dict(model_of(torch.bfloat16).named_parameters())
    optimizer = build(method, model)
    cls, options = METHODS[method]
    replay = cls(weights.items(), **({"lr": 1e-2, "seed": 5} | options))
    for step in range(10):
        optimizer.step(loss_at(model, step))
        replay.tell(optimizer.last_losses)
        assert digest(model.parameters()) == digest(weights.values()), f"step {step}"
        assert replay.last_loss == optimizer.last_loss
    assert (replay.t, replay.queries) == (optimizer.t, optimizer.queries)


def test_tell_checks_its_losses() -> None:
    model = model_of()
    optimizer = build("MeZO", model)
    before = digest(model.parameters())
    for losses, message in (([1.0], "1 losses were given.*2 probes"), ([1.0, math.nan], "not finite")):
        with pytest.raises(ValueError, match=message):
            optimizer.tell(losses)
    assert optimizer.t == 0
    assert digest(model.parameters()) == before


def test_step_without_losses() -> None:
    optimizer = build("MeZO", model_of())
    with pytest.raises(RuntimeError, match=r"call estimate\(closure\) first"):
        optimizer.step()
    optimizer.step(lambda: 1.0)
    with pytest.raises(RuntimeError, match="no losses"):
        optimizer.step()


@pytest.mark.parametrize("change", ["freeze", "unfreeze", "add"])
def test_parameters_may_not_change_between_the_estimate_and_the_step(change: str) -> None:
    """They would move along noise that no loss has seen."""
    model, late = model_of(), torch.nn.Parameter(torch.ones(2))
    if change == "unfreeze":
        model[0].bias.requires_grad_(False)
    optimizer = build("MeZO", model)
    optimizer.estimate(loss_at(model))
    before = digest(model.parameters())
    if change == "add":
        optimizer.add_param_group({"params": [("late", late)]})
    else:
        model[0].bias.requires_grad_(change == "unfreeze")
    match = "late: frozen, unfrozen or added" if change == "add" else r"0\.bias: frozen, unfrozen or added"
    with pytest.raises(ValueError, match=match):
        optimizer.step()
    with pytest.raises(ValueError, match=match):
        optimizer.estimate(loss_at(model))
    assert (optimizer.t, digest(model.parameters())) == (0, before)
    late.requires_grad_(False)
    if change != "add":
        model[0].bias.requires_grad_(change == "freeze")
    optimizer.step()  # of the losses that were there
    late.requires_grad_(True)
    optimizer.step(loss_at(model))
    assert optimizer.t == 2


def test_a_state_saved_between_the_estimate_and_the_step_goes_on() -> None:
    model, twin = model_of(), model_of()
    optimizer, other = build("MeZO", model), build("MeZO", twin)
    optimizer.estimate(loss_at(model))
    other.load_state_dict(optimizer.state_dict())
    optimizer.step()
    other.step()
    assert digest(model.parameters()) == digest(twin.parameters())


@pytest.mark.parametrize("evaluator", ["overlay", zotune.Overlay, zotune.Stacked, 1])
def test_an_evaluator_that_is_none_is_named_at_once(evaluator: Any) -> None:
    with pytest.raises(TypeError, match=r"such as zotune\.Overlay\(\)"):
        zotune.MeZO(model_of().parameters(), lr=0.1, evaluator=evaluator)


@pytest.mark.parametrize("method", METHODS)
def test_a_pickled_optimizer_goes_on(method: str) -> None:
    model = model_of()
    optimizer = build(method, model)
    run(optimizer, model, 2)
    twin_model, twin = pickle.loads(pickle.dumps((model, optimizer)))
    assert run(twin, twin_model, 3, begin=2) == run(optimizer, model, 3, begin=2)


def test_weights_of_batches() -> None:
    model = model_of()
    optimizer = build("MeZO", model)
    for weight in (-1.0, math.nan, "many"):
        with pytest.raises(ValueError, match="weight="):
            optimizer.estimate(lambda: 1.0, weight=weight)
    optimizer.estimate(lambda: 1.0, weight=0)
    with pytest.raises(ValueError, match="weight 0"):
        optimizer.step()
    optimizer.estimate(lambda: 100.0, weight=0)
    optimizer.estimate(lambda: 2.0, weight=5)
    assert optimizer.step() == 2.0


@pytest.mark.parametrize(
    "value", [1.5, 3, torch.tensor(1.5), torch.tensor([1.5]), torch.tensor([[1.5]], dtype=torch.float64)]
)
def test_closure_may_return(value: Any) -> None:
    assert build("MeZO", model_of()).step(lambda: value) == pytest.approx(float(value))


@pytest.mark.parametrize("value", [None, "1.5", True, torch.ones(2), [1.5], torch.tensor([]), 1j])
def test_closure_may_not_return(value: Any) -> None:
    model = model_of()
    optimizer = build("MeZO", model)
    before = digest(model.parameters())
    with pytest.raises(TypeError, match="the closure returned"):
        optimizer.step(lambda: value)
    assert (optimizer.t, digest(model.parameters())) == (0, before)


@pytest.mark.parametrize("bad_query", [0, -1])
@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_not_finite_changes_nothing(method: str, bad_query: int) -> None:
    """Weights and state are as before, so the step can be done again and the run goes on as if nothing had been."""
    model, calm = model_of(), model_of()
    optimizer, other = build(method, model), build(method, calm)
    run(optimizer, model, 4)
    run(other, calm, 4)
    count, total = 0, len(optimizer.plan())

    def bad() -> torch.Tensor:
        nonlocal count
        count += 1
        return loss_at(model)() * (math.nan if count == (bad_query % total) + 1 else 1.0)

    optimizer.estimate(loss_at(model, 50), weight=2)
    other.estimate(loss_at(calm, 50), weight=2)
    with pytest.raises(NonFiniteLossError, match="at step 4") as info:
        optimizer.step(bad)
    assert info.value.step == 4
    assert math.isnan(info.value.loss)
    assert isinstance(info.value, ArithmeticError)
    assert (optimizer.t, optimizer.queries) == (other.t, other.queries)
    assert run(optimizer, model, 4, begin=4) == run(other, calm, 4, begin=4)


# ------------------------------------------------------------------------------------------------ torch.optim


@pytest.mark.parametrize("method", METHODS)
def test_behaves_as_a_torch_optimizer(method: str) -> None:
    model = model_of()
    optimizer = build(method, model)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert "lr=0.01" in repr(optimizer)
    assert type(optimizer).__name__ in repr(optimizer)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    optimizer.zero_grad()
    assert model[0].weight.grad is None
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.step(loss_at(model))
    assert calls == ["before", "after"]
    assert all(p.requires_grad and p.grad is None and p.is_leaf for p in model.parameters())


def test_deepcopy_of_the_model_after_queries() -> None:
    """Nothing of the overlay stays behind in the model."""
    model = model_of()
    run(build("LOREN", model), model, 3)
    twin = copy.deepcopy(model)
    assert digest(twin.parameters()) == digest(model.parameters())
    assert all(p.untyped_storage().nbytes() == p.numel() * 4 for p in model.parameters())
    loss_at(twin)().backward()
    assert twin[0].weight.grad is not None


@pytest.mark.parametrize("method", METHODS)
def test_inference_mode_around_some_steps(method: str) -> None:
    """State made in inference mode can be used outside it, and the bits are the same."""
    model, other = model_of(), model_of()
    first, second = build(method, model), build(method, other)
    for step in range(6):
        with torch.inference_mode(step in (0, 3)):
            first.step(loss_at(model, step))
        second.step(loss_at(other, step))
    assert digest(model.parameters()) == digest(other.parameters())


def test_first_order_training_afterwards() -> None:
    """Parameters are ordinary ones after zeroth-order steps: backward and another optimizer work."""
    model = model_of()
    run(build("MeZO", model), model, 3)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    before = float(loss_at(model)().detach())
    for _ in range(5):
        sgd.zero_grad()
        loss_at(model)().backward()
        sgd.step()
    assert float(loss_at(model)().detach()) < before


# ------------------------------------------------------------------------------------------------ digest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
def test_digest_sees_every_single_change(dtype: torch.dtype) -> None:
    weight = torch.randn(37, generator=torch.Generator().manual_seed(0)).to(dtype)
    base, seen = digest([weight]), set()
    for i in range(37):
        for change in (lambda w: -w, lambda w: torch.nextafter(w.float(), w.float() + 1).to(w.dtype) * 1.01):
            other = weight.clone()
            other[i] = change(other[i])
            seen.add(digest([other]))
    assert base not in seen
    assert len(seen) == 74
    assert 0 <= base < 1 << 64
    swapped = weight.clone()
    swapped[[3, 8]] *= -1  # two changes of the highest bit
    assert digest([swapped]) != base
    assert digest([("name", weight)]) == base
    assert digest([weight.flip(0)]) != base
    assert digest([torch.tensor([0.0], dtype=dtype)]) != digest([torch.tensor([-0.0], dtype=dtype)])
    assert digest([weight.view(37, 1).expand(37, 2).t()]) == digest([torch.cat([weight, weight]).view(2, 37)])
