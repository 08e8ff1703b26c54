"""Signals whose handlers raise exceptions, at every single moment at which Python would run them."""

from __future__ import annotations

import copy
import dis
import functools
import gc
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

import pytest
import torch
from overlay_checks import numbers, seeded
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from zotune import LOZO, InPlace, MeZO, digest
from zotune.evaluators import query
from zotune.interrupts import Delayed, delayed

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers on this system")

ASKED = {dis.opmap[name] for name in ("RESUME", "CALL", "CALL_FUNCTION_EX", "JUMP_BACKWARD") if name in dis.opmap}
"""Instructions after which the interpreter runs handlers of signals."""


class DeadlineError(Exception):
    """What the handler raises."""


@pytest.fixture(autouse=True)
def deadlines() -> Iterator[None]:
    def expire(*_: Any) -> None:
        raise DeadlineError

    handlers = {number: signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGINT)}
    signal.signal(signal.SIGALRM, expire)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may ignore it
    gc.disable()  # the exception would be lost in a callback that another library has at collections
    try:
        yield
    finally:
        gc.enable()
        for number, handler in handlers.items():
            signal.signal(number, handler)


@functools.cache
def moments(code: CodeType) -> set[int]:
    """Offsets of the instructions before which handlers may run."""
    found, last = set(), None
    for instruction in dis.get_instructions(code):
        if last in ASKED:
            found.add(instruction.offset)
        last = instruction.opcode
    return found


class At:
    """Sends a signal at one of the moments of a block, counted from 0, in code from the files given."""

    def __init__(self, moment: int, files: tuple[str, ...]) -> None:
        self.moment, self.files, self.seen = moment, files, 0
        self.where = ""

    def __enter__(self) -> At:
        self.before = sys.gettrace()
        sys.settrace(self.call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.before)

    def call(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        if not frame.f_code.co_filename.endswith(self.files):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self.step

    def step(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "opcode" and frame.f_lasti in moments(frame.f_code):
            self.seen += 1
            if self.seen > self.moment and not self.where:
                self.where = f"{frame.f_code.co_qualname}, line {frame.f_lineno} of {frame.f_code.co_filename}"
                sys.settrace(None)
                signal.raise_signal(signal.SIGALRM)
        return self.step


OURS = (
    "optimizer.py",
    "overlay.py",
    "query.py",
    "interrupts.py",
    "_python_dispatch.py",
    "signal.py",
    "hooks.py",
    "_contextlib.py",
    "grad_mode.py",
)
STACKED = (*OURS, "stacked.py", "vmap.py", "pyfunctorch.py", "contextlib.py")


@pytest.mark.parametrize(
    ("make", "files", "stride"),
    [
        (lambda model: MeZO(model.named_parameters(), lr=0.1), OURS, 2),
        (lambda model: MeZO(model.named_parameters(), lr=0.1, evaluator=InPlace()), OURS, 3),
        (lambda model: LOZO(model.named_parameters(), lr=0.1, rank=1), STACKED, 11),
    ],
    ids=["overlay", "in place", "stacked"],
)
def test_a_step_at_every_moment(make: Callable[[nn.Module], Any], files: tuple[str, ...], stride: int) -> None:
    """The step is made or not made, nothing of ours is left behind, and the next step is that of an equal twin."""
    base = seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)))
    x = numbers(4, 8)

    def step(optimizer: Any, model: nn.Module) -> float:
        return float(optimizer.step(lambda: model(x).square().mean()))

    def count() -> int:
        model = copy.deepcopy(base)
        with At(10**9, files) as all_of_it:
            step(make(model), model)
        return all_of_it.seen

    count()  # compiles
    handlers = [signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGINT)]
    total, made = count(), 0
    assert total > 200 * stride
    for moment in range(0, total, stride):
        model, twin = copy.deepcopy(base), copy.deepcopy(base)
        optimizer, other = make(model), make(twin)
        raised = False
        try:
            with At(moment, files) as told:
                step(optimizer, model)
        except DeadlineError:
            raised = True
        if not told.where:
            assert moment > 0.8 * total  # a step may take a few instructions less than the one that was counted
            break
        assert raised, told.where
        assert _get_current_dispatch_mode() is None, told.where
        assert torch._C._functorch.peek_interpreter_stack() is None, told.where
        assert not nn.modules.module._global_forward_pre_hooks, told.where
        assert not nn.modules.module._global_forward_hooks, told.where
        assert not query._under_way, told.where
        assert torch.is_grad_enabled(), told.where
        assert not torch.is_inference_mode_enabled(), told.where
        while other.t < optimizer.t:
            step(other, twin)
        made += optimizer.t
        optimizer._sums, optimizer._weight = [], 0.0
        assert digest(model.parameters()) == digest(twin.parameters()), told.where
        assert step(optimizer, model) == step(other, twin), told.where
        assert digest(model.parameters()) == digest(twin.parameters()), told.where
        assert [signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGINT)] == handlers, told.where
    assert 0 < made < total / stride


def test_signals_wait_for_the_end_of_the_block() -> None:
    done = []

    def work() -> None:
        with delayed():
            signal.raise_signal(signal.SIGALRM)
            done.append("all of it")
        done.append("not this")

    with pytest.raises(DeadlineError):
        work()
    assert done == ["all of it"]


def test_signals_are_let_through_while_a_function_of_the_user_runs() -> None:
    done = []

    def function() -> None:
        done.append("begun")
        signal.raise_signal(signal.SIGALRM)
        done.append("not this")

    with delayed() as signals:
        with pytest.raises(DeadlineError):
            signals.through(function)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):  # one that has waited comes before the function
            signals.through(function)
    assert done == ["begun"]


def test_every_handler_has_its_turn() -> None:
    def work() -> None:
        with delayed():
            signal.raise_signal(signal.SIGALRM)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises((DeadlineError, KeyboardInterrupt)) as told:
        work()
    assert {type(told.value), type(told.value.__context__)} == {DeadlineError, KeyboardInterrupt}


def test_any_number_of_signals_may_wait() -> None:
    """An interval timer during a long update."""
    seen = []
    signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
    with delayed():
        for _ in range(3000):
            signal.raise_signal(signal.SIGALRM)
        assert not seen
    assert len(seen) == 3000


def test_a_handler_that_the_user_sets_in_the_midst_stays() -> None:
    own = lambda *_: None  # noqa: E731
    with delayed() as signals:
        signals.through(lambda: signal.signal(signal.SIGALRM, own))
    assert signal.getsignal(signal.SIGALRM) is own


def test_a_block_in_a_block() -> None:
    done = []

    def function() -> None:
        with delayed():
            signal.raise_signal(signal.SIGALRM)
            done.append("all of it")
        done.append("not this")

    with delayed() as signals, pytest.raises(DeadlineError):
        signals.through(function)
    assert done == ["all of it"]


def test_a_function_that_is_let_through_in_a_block_of_a_block() -> None:
    """As the closure of a query of an estimate."""
    done = []

    def function() -> None:
        signal.raise_signal(signal.SIGALRM)
        done.append("not this")

    with delayed(), delayed() as signals:
        with pytest.raises(DeadlineError):
            signals.through(function)
        done.append("on")
    assert done == ["on"]


def test_a_block_whose_handlers_could_not_be_put_back() -> None:
    before, lost = signal.getsignal(signal.SIGALRM), Delayed()
    lost.__enter__()
    lost._over = lost._open = True
    with pytest.raises(DeadlineError):
        signal.raise_signal(signal.SIGALRM)  # it passes all on
    with delayed():
        pass
    assert signal.getsignal(signal.SIGALRM) is before


def test_other_threads_have_no_handlers() -> None:
    found = []
    before = signal.getsignal(signal.SIGALRM)

    def work() -> None:
        with delayed() as signals:
            found.append(signals.through(lambda: signal.getsignal(signal.SIGALRM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]
