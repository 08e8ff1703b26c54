"""One query of the overlay: a forward pass at perturbed weights."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from zotune.estimators import Probe
from zotune.evaluators.base import Closure, Writer
from zotune.evaluators.gather import Reader, in_parts
from zotune.evaluators.intercept import StandIn, stand_in
from zotune.evaluators.layout import Layout, Mode, Place
from zotune.evaluators.scratch import Scratch
from zotune.evaluators.watch import Regions, Watch, address_of, at
from zotune.interrupts import delayed
from zotune.perturbations import Part, Slot


@dataclass(slots=True, eq=False)
class _Frame:
    """A module's forward that is under way."""

    module: nn.Module
    owned: Container[int] = ()
    swapped: list[int] = field(default_factory=list)
    buffers: list[Tensor] = field(default_factory=list)
    stood_in: list[tuple[str, StandIn, Reader]] = field(default_factory=list)


_ATTEMPTS = 8

_under_way: set[int] = set()  # parameters of the queries that run at present


class Query:
    """One forward pass at perturbed weights.

    Args:
        layout: of the parameters.
        modes: by the id of the parameter; those that are missing are perturbed during their owner's forward.
        write: writes perturbed weights, or a part of them.
        probe: the weights to write.
        scratch: memory for them.
        hooked: whether modules are followed; otherwise no mode may be ``OWNER``.

    Attributes:
        reached: parameters whose owner's forward has run.
        leaks: parameters that were read elsewhere, and the mode that is right for them.
    """

    def __init__(
        self,
        layout: Layout,
        modes: Mapping[int, Mode],
        write: Writer,
        probe: Probe,
        scratch: Scratch,
        *,
        hooked: bool,
    ) -> None:
        self._places, self._block = layout.places, layout.block
        self._writer, self._probe, self._scratch, self._hooked = write, probe, scratch, hooked
        self._modes = {number: mode for number, mode in modes.items() if number in layout.places}
        self._written = {number for number, mode in self._modes.items() if mode is Mode.WRITTEN}
        self._stored: dict[int, Tensor] = {}  # parameters that point elsewhere now -> their stored weights
        self._held: dict[int, int] = {}  # address of a held parameter's perturbed weights -> parameter
        self._frames: list[_Frame] = []
        self.reached: set[int] = set()
        self.leaks: dict[int, Mode] = {}
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._regions = Regions({})
        self._thread = threading.get_ident()
        self._busy = False  # inside our own work: its reads of stored weights are meant

    def run(self, closure: Closure, *, watch: bool) -> float | Tensor:
        """The closure's result at perturbed weights."""
        if not _under_way.isdisjoint(self._places):
            raise RuntimeError(
                "an optimizer was asked for a query inside the closure of another one of the same parameters: "
                "step one after the other"
            )
        handles: list[Any] = []
        with delayed() as signals:  # but for the closure itself, a query begins and ends as a whole
            try:
                if self._hooked:
                    handles.append(register_module_forward_pre_hook(self._enter))
                    handles.append(register_module_forward_hook(self._leave, always_call=True))
                _under_way.update(self._places)
                for number, mode in self._modes.items():
                    if mode is Mode.HELD:
                        self._hold(self._places[number].slot)
                    elif mode is Mode.WRITTEN:
                        self._overwrite(self._places[number].slot)
                if not watch:
                    return signals.through(closure)
                self._regions = Regions(self._unwritten())
                with Watch(self._answer):
                    return signals.through(closure)
            finally:
                self._end(handles)

    def _end(self, handles: Sequence[Any]) -> None:
        """Put all weights back.  What interrupts it otherwise than by a signal waits until it is done."""
        interruption: BaseException | None = None
        for _ in range(_ATTEMPTS):
            try:
                self._restore(handles)
                _under_way.difference_update(self._places)
                break
            except BaseException as error:
                interruption = error
        if interruption is not None:
            raise interruption

    def _restore(self, handles: Sequence[Any]) -> None:
        """Put all weights back; may be called again after an interruption."""
        for handle in handles:
            handle.remove()
        for number, data in self._stored.items():
            self._places[number].slot.param.data = data
        for data, copy in self._copies:
            data.copy_(copy)
        torch.clear_autocast_cache()
        self._stored, self._copies = {}, []
        while self._frames:  # those that a raising forward has left open
            self._close(self._frames[-1])

    # -------------------------------------------------------------------------------- modules

    def _enter(self, module: nn.Module, _args: Any) -> None:
        params = module._parameters
        if not params:
            return
        places, stored, written = self._places, self._stored, self._written
        owned = {number: places[number] for param in params.values() if (number := id(param)) in places}
        if not owned:
            if any(frame.module is module for frame in self._frames):  # inside itself, with stand-ins only
                self._frames.append(_Frame(module))
            return
        if threading.get_ident() != self._thread:
            raise RuntimeError(
                "a module ran in another thread than its closure, where its weights cannot be perturbed on their own: "
                "give the optimizer evaluator=InPlace()"
            )
        frame = _Frame(module, owned)
        self._frames.append(frame)
        self.reached.update(owned)
        whole = []
        for number, place in owned.items():
            if number in stored or number in written:
                continue
            if place.divisible and in_parts(module, place.slot, self._block):
                self._quietly(self._stand_in, frame, place)
            else:
                whole.append(place)
        if whole:
            self._swap_in(frame, whole)

    def _quietly(self, work: Callable[..., None], *args: Any) -> None:
        """Do our own work inside the closure: its reads of stored weights are meant, and new tensors are plain ones
        also inside torch.func.grad."""
        self._busy = True
        try:
            if torch._C._functorch.peek_interpreter_stack() is None:
                work(*args)
            else:
                with torch._C._DisableFuncTorch():
                    work(*args)
        finally:
            self._busy = False

    def _stand_in(self, frame: _Frame, place: Place) -> None:
        """Put a stand-in in the place of a parameter that is to be read in parts."""
        param, params = place.slot.param, frame.module._parameters
        reader = Reader(
            place.slot,
            partial(self._quietly, self._write),
            self._scratch,
            self._block,
            whole=partial(self._swap_in, frame, [place]),
            pointed=partial(self._stored.__contains__, id(param)),
        )
        new = stand_in(param, reader)
        for name in [name for name, value in params.items() if value is param]:
            frame.stood_in.append((name, new, reader))
            params[name] = new

    def _swap_in(self, frame: _Frame, places: Sequence[Place]) -> None:
        """Point parameters at perturbed weights, those of one device and type side by side in one buffer."""
        kind = places[0].kind
        alike = [place for place in places if place.kind == kind]
        self._quietly(self._point, frame, alike)
        if len(alike) < len(places):
            self._swap_in(frame, [place for place in places if place.kind != kind])

    def _point(self, frame: _Frame, places: Sequence[Place]) -> None:
        buffer = self._scratch.take(sum([place.room for place in places]), *places[0].kind)
        frame.buffers.append(buffer)
        start = 0
        for place in places:
            slot, param = place.slot, place.slot.param
            data = buffer.as_strided(place.shape, place.strides, start)
            start += place.room
            self._writer(slot, self._probe, data)
            self._stored[id(param)] = param.data
            frame.swapped.append(id(param))
            param.data = slot.stored(data) if place.turned else data

    def _leave(self, module: nn.Module, _args: Any, _output: Any) -> None:
        frames, stored = self._frames, self._stored
        if not any([frame.module is module for frame in frames]):
            return
        while True:  # an interrupted forward inside this one has not left: it leaves now
            frame = frames[-1]
            for number in frame.swapped:
                self._places[number].slot.param.data = stored[number]
                del stored[number]
            self._close(frame)
            if frame.module is module:
                return

    def _close(self, frame: _Frame) -> None:
        """End the stand-ins of a frame and give its memory back, once nothing points to it."""
        params = frame.module._parameters
        for name, new, reader in frame.stood_in:
            reader.active = False
            if params.get(name) is new:
                params[name] = new.param
        while frame.buffers:
            self._scratch.give_back(frame.buffers.pop())
        self._frames.remove(frame)

    # -------------------------------------------------------------------------------- weights

    def _write(self, slot: Slot, out: Tensor, part: Part | None = None) -> None:
        self._writer(slot, self._probe, out, part)

    def _perturbed(self, slot: Slot, buffer: Tensor) -> Tensor:
        """Write the perturbed weights to ``buffer`` (shaped as the logical weights); the same memory, shaped as the
        parameter."""
        self._writer(slot, self._probe, buffer)
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

    # -------------------------------------------------------------------------------- reads elsewhere

    def _unwritten(self) -> dict[int, Tensor]:
        """The stored weights that this query does not write."""
        params = {number: place.slot.param for number, place in self._places.items() if number not in self._written}
        return {number: self._stored.get(number, param.data) for number, param in params.items()}

    def _answer(self, read: Tensor) -> Tensor:
        """What an operator is to read in place of ``read``: the same unless it would read stored weights."""
        if self._busy:
            return read
        address = address_of(read)
        if address is None:
            return read
        held = self._held.get(address)
        if held is not None:
            if not any(held in frame.owned for frame in self._frames):
                self.leaks.setdefault(held, Mode.HELD)
            return read
        numbers = self._regions.touched(address, read)
        return self._leak(read, numbers) if numbers else read

    def _leak(self, read: Tensor, numbers: Sequence[int]) -> Tensor:
        """Answer a read of stored weights by the perturbed ones, seen as ``read`` sees the stored ones."""
        for number in numbers:
            if number not in self._stored:
                self._hold(self._places[number].slot)
        if read is self._places[numbers[0]].slot.param:
            self.leaks.setdefault(numbers[0], Mode.HELD)
            return read
        memory = torch.empty(read.untyped_storage().nbytes(), dtype=torch.uint8, device=read.device).untyped_storage()
        memory.copy_(read.untyped_storage())
        for number in numbers:
            self.leaks[number] = Mode.WRITTEN
            at(memory, self._stored[number]).copy_(self._places[number].slot.param.data)
        return at(memory, read)
