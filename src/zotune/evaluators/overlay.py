"""The overlay: queries that never write the stored weights.

Each module that owns parameters gets, for the length of its own forward, parameters whose ``data`` points to a
scratch buffer with the perturbed weights.  torch's module-wide hooks, active only during a query, find the owners as
they run; the optimizer needs no reference to the model.  The scratch is a stack: as large as the deepest chain of
owners, in most models one layer.

Parameters that are read outside the forward of their owner are found by watching, operator by operator, for reads of
stored weights: in every query of the first step, and in one query of each step whose number is a power of two.  Such
a read gets the perturbed weights on the spot, and from then on the parameter is perturbed for the whole length of
each query (``HELD``); if it is read through another tensor that shares its memory, the memory itself is written and
restored from a copy, bit for bit (``WRITTEN``).  Parameters that no owner's forward has reached so far are held as
well.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from zotune.estimators import Probe
from zotune.evaluators.base import Closure, Evaluator, Writer, as_loss
from zotune.perturbations import Slot


class Mode(enum.Enum):
    """How one parameter is perturbed."""

    OWNER = enum.auto()
    """During the forward of the module that owns it."""
    HELD = enum.auto()
    """During the whole query, by pointing the parameter at other memory."""
    WRITTEN = enum.auto()
    """During the whole query, by writing its memory and restoring it from a copy."""


class Scratch:
    """A stack of memory: regions are handed out and given back in reverse order."""

    def __init__(self) -> None:
        self._chunks: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._used: dict[tuple[torch.device, torch.dtype], int] = {}
        self._wanted: dict[tuple[torch.device, torch.dtype], int] = {}

    def take(self, shape: torch.Size, like: Tensor) -> Tensor:
        """An uninitialised contiguous tensor; valid until :meth:`release` of an earlier mark."""
        key = (like.device, like.dtype)
        size = -(-shape.numel() // 64) * 64  # keep regions aligned
        start = self._used.get(key, 0)
        self._used[key] = start + size
        self._wanted[key] = max(self._wanted.get(key, 0), start + size)
        chunk = self._chunks.get(key)
        if chunk is None or chunk.numel() < start + size:
            if start == 0:
                self._chunks.pop(key, None)  # free before growing: nothing is in use
                chunk = self._chunks[key] = torch.empty(self._wanted[key], dtype=like.dtype, device=like.device)
            else:  # deeper than ever before: a loose piece for now, room in the chunk from the next query on
                return torch.empty(shape, dtype=like.dtype, device=like.device)
        return chunk[start : start + shape.numel()].view(shape)

    def mark(self) -> dict[tuple[torch.device, torch.dtype], int]:
        """The present height of the stack."""
        return dict(self._used)

    def release(self, mark: dict[tuple[torch.device, torch.dtype], int]) -> None:
        """Give back everything taken since ``mark``."""
        self._used = mark

    def clear(self) -> None:
        """Empty the stack and make room for all that was asked for at once."""
        self._used = {}


class Overlay(Evaluator):
    """The default evaluator; see the module's docstring.

    Args:
        mode: how parameters are treated at first.
    """

    def __init__(self, mode: Mode = Mode.OWNER) -> None:
        self._initial = mode
        self._modes: dict[int, Mode] = {}
        self._reached: set[int] = set()
        self._leaked: set[int] = set()
        self._scratch = Scratch()

    def modes(self, slots: Sequence[Slot]) -> dict[str, Mode]:
        """How each parameter is perturbed at present, by name."""
        return {slot.name: self._modes.get(id(slot.param), self._initial) for slot in slots}

    def evaluate(
        self, slots: Sequence[Slot], plan: Sequence[Probe], write: Writer, closure: Closure, step: int
    ) -> list[float]:
        """See :meth:`Evaluator.evaluate`."""
        losses = []
        for number, probe in enumerate(plan):
            if probe.sign == 0 and probe.point == 0:
                losses.append(as_loss(closure(), step))
                continue
            watch = step == 0 or (number == len(plan) - 1 and step & (step - 1) == 0)
            query = _Query(self, slots, partial(_write_probe, write, probe))
            with query.active(watch):
                value = closure()
            losses.append(as_loss(value, step))
        return losses

    def mode(self, slot: Slot) -> Mode:
        """How a parameter is perturbed."""
        return self._modes.get(id(slot.param), self._initial)

    def learn(self, slots: Sequence[Slot], reached: set[int], leaks: dict[int, Mode]) -> None:
        """Take note of what one query has shown."""
        self._reached |= reached
        self._leaked |= leaks.keys()
        for slot in slots:
            number = id(slot.param)
            if self._initial is not Mode.OWNER or self._modes.get(number) is Mode.WRITTEN:
                continue
            if number in leaks:
                self._modes[number] = leaks[number]
            elif number not in self._reached:
                self._modes[number] = Mode.HELD
            elif number not in self._leaked:
                self._modes.pop(number, None)


def _write_probe(write: Writer, probe: Probe, slot: Slot, out: Tensor) -> None:
    write(slot, probe, out)


class _Query:
    """One forward pass at perturbed weights."""

    def __init__(self, overlay: Overlay, slots: Sequence[Slot], write: Callable[[Slot, Tensor], None]) -> None:
        self._overlay, self._slots, self._write = overlay, slots, write
        self._tracked = {id(slot.param): slot for slot in slots}
        self._stored: dict[int, Tensor] = {}  # parameters that point elsewhere now -> their stored weights
        self._frames: list[tuple[nn.Module, list[int], Any]] = []
        self._reached: set[int] = set()
        self._leaks: dict[int, Mode] = {}
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._scratch = overlay._scratch
        self.busy = False  # inside our own code: its reads of stored weights are meant

    @contextlib.contextmanager
    def active(self, watch: bool) -> Iterator[None]:
        """Perturb while the context lasts."""
        handles: list[Any] = []
        try:
            for slot in self._slots:
                mode = self._overlay.mode(slot)
                if mode is Mode.HELD:
                    self.hold(slot)
                elif mode is Mode.WRITTEN:
                    self._overwrite(slot)
            handles.append(register_module_forward_pre_hook(self._enter))
            handles.append(register_module_forward_hook(self._leave, always_call=True))
            with _Watch(self, self._slots) if watch else contextlib.nullcontext():
                yield
        finally:
            for handle in handles:
                handle.remove()
            self._restore()
        self._overlay.learn(self._slots, self._reached, self._leaks)

    def _restore(self) -> None:
        for number, data in self._stored.items():
            self._tracked[number].param.data = data
        for data, copy in self._copies:
            data.copy_(copy)
        self._stored, self._copies, self._frames = {}, [], []
        self._scratch.clear()

    def _perturbed(self, slot: Slot, buffer: Tensor) -> Tensor:
        """Write the perturbed weights to ``buffer`` (shaped as the logical weights); the same memory, shaped as the
        parameter."""
        self._write(slot, buffer)
        return slot.stored(buffer)

    def _enter(self, module: nn.Module, _args: Any) -> None:
        if any(id(param) in self._tracked for param in module._parameters.values()):
            self.busy = True
            try:
                self._swap_in(module)
            finally:
                self.busy = False

    def _swap_in(self, module: nn.Module) -> None:
        swapped: list[int] = []
        mark = None
        for param in module._parameters.values():
            slot = None if param is None else self._tracked.get(id(param))
            if slot is None:
                continue
            number = id(slot.param)
            self._reached.add(number)
            if number in self._stored or self._overlay.mode(slot) is Mode.WRITTEN:
                continue
            if mark is None:
                mark = self._scratch.mark()
                self._frames.append((module, swapped, mark))
            data = self._perturbed(slot, self._scratch.take(slot.shape, slot.param.data))
            self._stored[number] = slot.param.data
            swapped.append(number)
            slot.param.data = data

    def _leave(self, module: nn.Module, _args: Any, _output: Any) -> None:
        if self._frames and self._frames[-1][0] is module:
            self.busy = True
            _, swapped, mark = self._frames.pop()
            for number in swapped:
                self._tracked[number].param.data = self._stored.pop(number)
            self._scratch.release(mark)
            self.busy = False

    def hold(self, slot: Slot) -> Tensor:
        """Point the parameter at perturbed weights until the query ends; those weights."""
        data = self._perturbed(slot, torch.empty(slot.shape, dtype=slot.param.dtype, device=slot.param.device))
        self._stored[id(slot.param)] = slot.param.data
        slot.param.data = data
        return data

    def _overwrite(self, slot: Slot) -> None:
        data = slot.param.data
        perturbed = self._perturbed(slot, torch.empty(slot.shape, dtype=data.dtype, device=data.device))
        self._copies.append((data, data.clone()))
        data.copy_(perturbed)

    def leak(self, slot: Slot, read: Tensor) -> Tensor:
        """Answer a read of stored weights outside the owner's forward: the perturbed ones, seen as ``read`` sees the
        stored ones."""
        number = id(slot.param)
        stored = self._stored.get(number, slot.param.data)
        if number not in self._stored:
            self.hold(slot)
        if read is slot.param:
            self._leaks.setdefault(number, Mode.HELD)
            return read
        self._leaks[number] = Mode.WRITTEN
        copy = torch.empty_like(stored)
        copy.copy_(slot.param.data)
        return copy.as_strided(read.size(), read.stride(), read.storage_offset() - stored.storage_offset())


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator of a query and answers reads of stored weights."""

    def __init__(self, query: _Query, slots: Sequence[Slot]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._query = query
        self._owners = {slot.param.data.untyped_storage().data_ptr(): slot for slot in slots if slot.param.numel()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._query.busy:
            args, kwargs = tree_map_only(Tensor, self._answer, (args, kwargs))
        return func(*args, **kwargs)

    def _answer(self, tensor: Tensor) -> Tensor:
        try:
            slot = self._owners.get(tensor.untyped_storage().data_ptr())
        except (RuntimeError, NotImplementedError):  # tensors without storage
            return tensor
        if slot is None or self._query._overlay.mode(slot) is Mode.WRITTEN:
            return tensor
        self._query.busy = True
        try:
            return self._query.leak(slot, tensor)
        finally:
            self._query.busy = False
