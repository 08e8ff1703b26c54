"""Stored weights keep their bits, whatever ends a query."""

from __future__ import annotations

import copy
import gc
import signal
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from overlay_checks import EPS, ChildRead, X, agree, numbers, overlaid, seeded, square, told
from torch import nn
from torch.nn.functional import linear

from zotune import InPlace, MeZO, NonFiniteLossError, Overlay, digest


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


class DeadlineError(Exception):
    """What the handler of a timer raises."""


@pytest.mark.parametrize("error", [DeadlineError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("call", range(1, 7))
def test_any_exception_while_restoring_waits(
    monkeypatch: pytest.MonkeyPatch, call: int, error: type[BaseException]
) -> None:
    """Raised at any copy of a query in place, before or while the weights are put back; the optimizer goes on."""
    model = seeded(lambda: nn.ParameterList([nn.Parameter(numbers(4, 4)), nn.Parameter(numbers(4))]))
    before, optimizer = digest(model.parameters()), overlaid(model, evaluator=InPlace())
    real, calls = torch.Tensor.copy_, {"n": 0}

    def interrupted(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls["n"] += 1
        if calls["n"] == call:
            raise error
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "copy_", interrupted)
    with pytest.raises(error):
        optimizer.step(lambda: sum(p.sum() for p in model))
    monkeypatch.undo()
    assert digest(model.parameters()) == before
    assert not nn.modules.module._global_forward_pre_hooks
    optimizer.step(lambda: sum(p.sum() for p in model))
    assert optimizer.t == 1


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers on this system")
def test_deadlines_at_any_moment_leave_the_weights_whole() -> None:
    """A timer whose handler raises, at many moments of a step: the step is made or not made."""
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)))
    twin = copy.deepcopy(model)
    optimizer, other = MeZO(model.named_parameters(), lr=0.1), MeZO(twin.named_parameters(), lr=0.1)
    x = numbers(4, 8)

    def expire(*_: Any) -> None:
        raise DeadlineError

    before = signal.signal(signal.SIGALRM, expire)
    gc.disable()  # the exception would be lost in a callback that another library has at collections
    try:
        for moment in range(60):
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 2e-5 + moment * 5e-5)
                    optimizer.step(lambda: model(x).square().mean())
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except DeadlineError:  # also one that came between the step's end and the timer's
                pass
            while other.t < optimizer.t:
                other.step(lambda: twin(x).square().mean())
            optimizer._sums, optimizer._weight = [], 0.0
            assert digest(model.parameters()) == digest(twin.parameters())
            assert not nn.modules.module._global_forward_pre_hooks
    finally:
        gc.enable()
        signal.signal(signal.SIGALRM, before)
    optimizer.step(lambda: model(x).square().mean())


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
