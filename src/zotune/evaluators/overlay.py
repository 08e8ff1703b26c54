"""The overlay: queries that never write the stored weights.

Each module that owns parameters gets, for the length of its own forward, parameters whose ``data`` points to a
scratch buffer with the perturbed weights.  torch's module-wide hooks, active only during a query, find the owners as
they run; the optimizer needs no reference to the model.  The scratch is as large as the deepest chain of owners, in
most models one layer.

Parameters that are read outside the forward of their owner are found by watching, operator by operator, for reads of
stored weights.  Such a read gets the perturbed weights on the spot, and from then on the parameter is perturbed for
the whole length of each query (``HELD``); if it is read through another tensor that shares its memory, the memory
itself is written and restored from a copy, bit for bit (``WRITTEN``).  Parameters that no owner's forward has reached
so far are held as well.

Watched are all queries of the first step, and of the first in which a parameter takes part (a resumed run, an unfrozen
layer); one query of each step whose number is a power of two or a multiple of 50; and each query after one in which a
known owner did not run (experts that are routed to now and then).  Outside reads that begin in a later step are thus
found within 50 steps: the step is then evaluated again, and a warning names the parameter and the steps in doubt.
What torch cannot see cannot be found: weights read through a numpy array that shares their memory, by raw address, or
outside modules from another thread than the closure's.  `zotune.evaluators.InPlace` is right for all of these.
"""

from __future__ import annotations

import enum
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from zotune.estimators import Probe
from zotune.evaluators.base import Closure, Evaluator, Writer, as_loss
from zotune.evaluators.scratch import Scratch
from zotune.evaluators.watch import Regions, Watch, at
from zotune.perturbations import Slot

_log = logging.getLogger(__name__)


class Mode(enum.Enum):
    """How one parameter is perturbed."""

    OWNER = enum.auto()
    """During the forward of the module that owns it."""
    HELD = enum.auto()
    """During the whole query, by pointing the parameter at other memory."""
    WRITTEN = enum.auto()
    """During the whole query, by writing its memory and restoring it from a copy."""


class Overlay(Evaluator):
    """The default evaluator; see the module's docstring.

    Args:
        mode: how parameters are treated at first; with ``WRITTEN`` they stay so, and nothing is hooked or watched.
    """

    def __init__(self, mode: Mode = Mode.OWNER) -> None:
        self.hooked = mode is not Mode.WRITTEN
        self.scratch = Scratch()
        self._initial = mode
        self._modes: dict[int, Mode] = {}
        self._reached: set[int] = set()
        self._leaked: set[int] = set()
        self._seen: dict[int, nn.Parameter] = {}  # watched for a whole step; kept, so that no id is used again
        self._last_watched = 0  # step
        self._restless = False  # an owner known from earlier queries did not run in the last one

    def modes(self, slots: Sequence[Slot]) -> dict[str, Mode]:
        """How each parameter is perturbed at present, by name."""
        return {slot.name: self.mode(slot) for slot in slots}

    def evaluate(
        self, slots: Sequence[Slot], plan: Sequence[Probe], write: Writer, closure: Closure, step: int
    ) -> list[float]:
        """See `Evaluator.evaluate`."""
        first = step == 0 or any(id(slot.param) not in self._seen for slot in slots)
        exposed = {id(slot.param) for slot in slots if self.mode(slot) is Mode.OWNER} - self._leaked
        losses, blind = self._losses(slots, plan, write, closure, step, first)
        self._seen.update((id(slot.param), slot.param) for slot in slots)
        late = [slot.name for slot in slots if id(slot.param) in self._leaked & exposed]
        if late and blind:
            _log.warning(
                "%s: read outside the forward of the owning module, seen in step %d for the first time; step %d is "
                "evaluated again, steps after %d may have missed such reads (evaluator=zotune.InPlace() never does)",
                ", ".join(late),
                step,
                step,
                self._last_watched,
            )
            losses, _ = self._losses(slots, plan, write, closure, step, first)
        self._last_watched = step if first or late or self._due(step) else self._last_watched
        return losses

    @staticmethod
    def _due(step: int) -> bool:
        return step & (step - 1) == 0 or step % 50 == 0

    def _losses(
        self, slots: Sequence[Slot], plan: Sequence[Probe], write: Writer, closure: Closure, step: int, first: bool
    ) -> tuple[list[float], bool]:
        """The losses of the plan, and whether any of its queries was not watched."""
        losses, blind = [], False
        for number, probe in enumerate(plan):
            # autocast keeps casts of weights for as long as its context lasts: they belong to one query only
            torch.clear_autocast_cache()
            if probe.sign == 0 and probe.point == 0:
                losses.append(as_loss(closure(), step))
                continue
            due = number == len(plan) - 1 and self._due(step)
            query = _Query(self, slots, partial(_write_probe, write, probe))
            watch = self.hooked and (first or due or self._restless)
            blind = blind or not watch
            value = query.run(closure, watch=watch)
            losses.append(as_loss(value, step))
        return losses, blind

    def mode(self, slot: Slot) -> Mode:
        """How a parameter is perturbed."""
        return self._modes.get(id(slot.param), self._initial)

    def learn(self, slots: Sequence[Slot], reached: set[int], leaks: dict[int, Mode], *, watched: bool) -> None:
        """Take note of what one query has shown."""
        if not self.hooked:
            return
        self._reached |= reached
        self._leaked |= leaks.keys()
        self._restless = False
        for slot in slots:
            number = id(slot.param)
            if self._modes.get(number) is Mode.WRITTEN:
                continue
            if number in leaks:
                self._modes[number] = leaks[number]
            elif number not in self._reached:
                self._modes[number] = Mode.HELD
            elif watched and number in reached and number not in self._leaked:
                self._modes.pop(number, None)  # only a watched query can tell that there were no other reads
            if number not in reached and self.mode(slot) is Mode.OWNER:
                self._restless = True


def _write_probe(write: Writer, probe: Probe, slot: Slot, out: Tensor) -> None:
    write(slot, probe, out)


@dataclass(slots=True, eq=False)
class _Frame:
    """A module's forward that is under way."""

    module: nn.Module
    owned: list[int]
    swapped: list[int] = field(default_factory=list)
    buffers: list[Tensor] = field(default_factory=list)


_under_way: set[int] = set()  # parameters of the queries that run at present


class _Query:
    """One forward pass at perturbed weights."""

    def __init__(self, overlay: Overlay, slots: Sequence[Slot], write: Callable[[Slot, Tensor], None]) -> None:
        self._overlay, self._slots, self._write = overlay, slots, write
        self._tracked = {id(slot.param): slot for slot in slots}
        self._stored: dict[int, Tensor] = {}  # parameters that point elsewhere now -> their stored weights
        self._held: dict[int, int] = {}  # address of a held parameter's perturbed weights -> parameter
        self._frames: list[_Frame] = []
        self._reached: set[int] = set()
        self._leaks: dict[int, Mode] = {}
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._regions = Regions({})
        self._thread = threading.get_ident()
        self._busy = False  # inside our own hooks: their reads of stored weights are meant

    def run(self, closure: Closure, *, watch: bool) -> float | Tensor:
        """The closure's result at perturbed weights."""
        if not _under_way.isdisjoint(self._tracked):
            raise RuntimeError(
                "an optimizer was asked for a query inside the closure of another one of the same parameters: "
                "step one after the other"
            )
        handles: list[Any] = []
        try:
            _under_way.update(self._tracked)
            for slot in self._slots:
                mode = self._overlay.mode(slot)
                if mode is Mode.HELD:
                    self._hold(slot)
                elif mode is Mode.WRITTEN:
                    self._overwrite(slot)
            if self._overlay.hooked:
                handles.append(register_module_forward_pre_hook(self._enter))
                handles.append(register_module_forward_hook(self._leave, always_call=True))
            if watch:
                self._regions = Regions(self._unwritten())
                with Watch(self._answer):
                    value = closure()
            else:
                value = closure()
        finally:
            interrupt: KeyboardInterrupt | None = None
            while True:
                try:
                    self._restore(handles)
                    break
                except KeyboardInterrupt as error:  # Ctrl-C now must not leave perturbed weights behind: it waits
                    interrupt = error
            _under_way.difference_update(self._tracked)
            if interrupt is not None:
                raise interrupt
        self._overlay.learn(self._slots, self._reached, self._leaks, watched=watch)
        return value

    def _restore(self, handles: Sequence[Any]) -> None:
        """Put all weights back; may be called again after an interruption."""
        for handle in handles:
            handle.remove()
        for number, data in self._stored.items():
            self._tracked[number].param.data = data
        for data, copy in self._copies:
            data.copy_(copy)
        torch.clear_autocast_cache()
        self._stored, self._copies = {}, []
        while self._frames:  # those that a raising forward has left open
            self._close(self._frames[-1])

    def _close(self, frame: _Frame) -> None:
        """Give a frame's memory back, once nothing points to it."""
        while frame.buffers:
            self._overlay.scratch.give_back(frame.buffers.pop())
        self._frames.remove(frame)

    def _enter(self, module: nn.Module, _args: Any) -> None:
        owned = [id(param) for param in module._parameters.values() if id(param) in self._tracked]
        if not owned:
            return
        if threading.get_ident() != self._thread:
            raise RuntimeError(
                "a module ran in another thread than its closure, where its weights cannot be perturbed on their own: "
                "give the optimizer evaluator=InPlace()"
            )
        frame = _Frame(module, owned)
        self._frames.append(frame)
        self._reached.update(owned)
        slots = [self._tracked[number] for number in dict.fromkeys(owned)]
        slots = [s for s in slots if id(s.param) not in self._stored and self._overlay.mode(s) is not Mode.WRITTEN]
        self._busy = True
        try:
            with torch._C._DisableFuncTorch():  # inside torch.func.grad new tensors would belong to the transform
                for kind in dict.fromkeys((slot.param.device, slot.param.dtype) for slot in slots):
                    self._swap_in(frame, [s for s in slots if (s.param.device, s.param.dtype) == kind])
        finally:
            self._busy = False

    def _swap_in(self, frame: _Frame, slots: Sequence[Slot]) -> None:
        """Point parameters of one device and type at perturbed weights, side by side in one buffer."""
        like = slots[0].param
        room = [-(-slot.param.numel() // 64) * 64 for slot in slots]  # keeps them aligned
        buffer = self._overlay.scratch.take(sum(room), like.device, like.dtype)
        frame.buffers.append(buffer)
        start = 0
        for slot, size in zip(slots, room, strict=True):
            data = self._perturbed(slot, buffer[start : start + slot.param.numel()].view(slot.shape))
            start += size
            self._stored[id(slot.param)] = slot.param.data
            frame.swapped.append(id(slot.param))
            slot.param.data = data

    def _leave(self, module: nn.Module, _args: Any, _output: Any) -> None:
        if not any(frame.module is module for frame in self._frames):
            return
        while True:  # an interrupted forward inside this one has not left: it leaves now
            frame = self._frames[-1]
            for number in frame.swapped:
                self._tracked[number].param.data = self._stored[number]
                del self._stored[number]
            self._close(frame)
            if frame.module is module:
                return

    def _perturbed(self, slot: Slot, buffer: Tensor) -> Tensor:
        """Write the perturbed weights to ``buffer`` (shaped as the logical weights); the same memory, shaped as the
        parameter."""
        self._write(slot, buffer)
        return slot.stored(buffer)

    def _hold(self, slot: Slot) -> None:
        """Point the parameter at perturbed weights until the query ends."""
        data = self._perturbed(slot, torch.empty(slot.shape, dtype=slot.param.dtype, device=slot.param.device))
        self._stored[id(slot.param)] = slot.param.data
        slot.param.data = data
        self._held[data.untyped_storage().data_ptr()] = id(slot.param)

    def _overwrite(self, slot: Slot) -> None:
        data = slot.param.data
        perturbed = self._perturbed(slot, torch.empty(slot.shape, dtype=data.dtype, device=data.device))
        self._copies.append((data, data.clone()))
        data.copy_(perturbed)

    def _unwritten(self) -> dict[int, Tensor]:
        """The stored weights that this query does not write."""
        slots = [slot for slot in self._slots if self._overlay.mode(slot) is not Mode.WRITTEN]
        return {id(slot.param): self._stored.get(id(slot.param), slot.param.data) for slot in slots}

    def _answer(self, read: Tensor) -> Tensor:
        """What an operator is to read in place of ``read``: the same unless it would read stored weights."""
        if self._busy:
            return read
        try:
            address = read.untyped_storage().data_ptr()
        except (RuntimeError, NotImplementedError):  # tensors without storage
            return read
        held = self._held.get(address)
        if held is not None:
            if not any(held in frame.owned for frame in self._frames):
                self._leaks.setdefault(held, Mode.HELD)
            return read
        numbers = self._regions.touched(address, read)
        return self._leak(read, numbers) if numbers else read

    def _leak(self, read: Tensor, numbers: Sequence[int]) -> Tensor:
        """Answer a read of stored weights by the perturbed ones, seen as ``read`` sees the stored ones."""
        for number in numbers:
            if number not in self._stored:
                self._hold(self._tracked[number])
        if read is self._tracked[numbers[0]].param:
            self._leaks.setdefault(numbers[0], Mode.HELD)
            return read
        memory = torch.empty(read.untyped_storage().nbytes(), dtype=torch.uint8, device=read.device).untyped_storage()
        memory.copy_(read.untyped_storage())
        for number in numbers:
            self._leaks[number] = Mode.WRITTEN
            at(memory, self._stored[number]).copy_(self._tracked[number].param.data)
        return at(memory, read)
