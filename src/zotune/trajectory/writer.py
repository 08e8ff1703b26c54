"""Writing a trajectory while an optimizer runs: each step before the weights are touched."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from zotune.interrupts import delayed
from zotune.trajectory.frames import FIRST, MAGIC, TrajectoryError, encode, packed, to_json
from zotune.trajectory.header import Header, arguments_of, header_of, method_of, parameters_of, settings_of
from zotune.trajectory.reader import Step, Trajectory, read

if TYPE_CHECKING:
    import torch

    from zotune.optimizer import ZerothOrder

_SYNC_SECONDS = 1.0


class Recorder:
    """Writes what `tell` is told to a file, from which `zotune.replay` rebuilds the weights.

    A step is in the file before it changes a weight: a program that is killed in the middle of an update has it.  Each
    record is handed to the system at once (it survives the program), and to the disk about once a second (it survives
    the machine).

    Args:
        path: of the file; a new one, or one that the same run has begun, which is continued: steps that it holds are
            compared with those that are made again and not written twice.
        optimizer: a zeroth-order optimizer; at its first step for a new file, and not behind the file's end otherwise.
        about: facts for the header of a new file.

    Raises:
        TrajectoryError: the file belongs to another run or cannot be written, or the optimizer is behind its end.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(6))
        >>> optimizer = zotune.MeZO([("weight", weight)], lr=0.1)
        >>> with Recorder(path, optimizer):
        ...     loss = optimizer.step(lambda: weight.square().sum())
    """

    def __init__(self, path: Path | str, optimizer: ZerothOrder, *, about: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        self._optimizer = optimizer
        self._undo: tuple[int, int, _Settings] | None = None  # the file's end before its last step, if written here
        self._past: Iterator[tuple[Step, _Settings]] | None = None
        try:
            used = self.path.exists() and (not self.path.is_file() or self.path.stat().st_size > 0)
            old = read(self.path) if used else None
            if old is None:
                self._begin(header_of(optimizer, about))
            else:
                self._continue(old)
        except OSError as error:
            raise TrajectoryError(f"{self.path} cannot be written ({error.strerror})") from error
        self._params = [(parameter.name, param) for parameter, param in parameters_of(optimizer)]
        self._handle = optimizer.register_tell_hook(self._on_tell, last=True)

    def _begin(self, header: Header) -> None:
        """A file that has its name when its header is on the disk."""
        frame, self._checksum = encode("H", to_json(header.to_dict(), "the header"), FIRST)
        path = self.path.resolve()
        new = path.with_name(path.name + ".new")
        self._file = open(new, "w+b", buffering=0)  # noqa: SIM115
        try:
            self._end = self._put(0, MAGIC + frame)
            self.sync()
            os.replace(new, path)
        except BaseException:
            self._file.close()
            new.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
        self._header, self.steps, self._last = header, 0, _Settings.first(header)

    def _continue(self, old: Trajectory) -> None:
        optimizer, header = self._optimizer, old.header
        _check_same_run(header, optimizer, self.path)
        if optimizer.t == header.start and _digest_of(optimizer) != header.digest:
            raise TrajectoryError(f"{self.path} began with other weights: go on with the same model, bit for bit")
        if optimizer.t > old.end:
            raise TrajectoryError(
                f"{self.path} ends with step {old.end}, the optimizer has made {optimizer.t}: go on from an earlier "
                "state, whose steps are in the file"
            )
        self._header, self._checksum, self._end, self.steps = header, old.checksum, old.size, old.end
        self._last = _Settings.first(header)
        for item in old.items():
            if isinstance(item, Step):
                self._last = self._last.at(item)
        self._file = open(self.path, "r+b", buffering=0)  # noqa: SIM115
        self._file.truncate(old.size)
        self.sync()

    # -------------------------------------------------------------------------------- records

    def _on_tell(self, optimizer: ZerothOrder, losses: Sequence[float]) -> None:
        now = _Settings.of(optimizer, self._params)
        if optimizer.t > self.steps:
            raise TrajectoryError(
                f"{self.path} ends with step {self.steps}, the optimizer has made {optimizer.t}: record to a new file"
            )
        if optimizer.t == self.steps - 1 and self._undo is not None:
            # The last step was recorded here and then not made; if it is made otherwise now, only that counts.
            before = self._undo
        elif optimizer.t < self.steps:
            self._compare(optimizer.t, losses, now)
            return
        else:
            before = self._end, self._checksum, self._last
        with delayed():
            self._append(before, now, losses)
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self.sync()

    def _append(self, before: tuple[int, int, _Settings], now: _Settings, losses: Sequence[float]) -> None:
        """Write a step with the settings that it changes, all of it or nothing."""
        end, checksum, last = before
        record = bytearray()
        for kind, payload in now.since(last, losses):
            frame, checksum = encode(kind, payload, checksum)
            record += frame
        self._end, self._checksum = self._put(end, bytes(record)), checksum
        self._undo, self._last, self.steps, self._past = before, now, self._optimizer.t + 1, None

    def _compare(self, number: int, losses: Sequence[float], now: _Settings) -> None:
        """A step that the file holds is made again: it must be the same."""
        found = self._held(number) or self._held(number)  # from the beginning: the optimizer may have been set back
        if found is not None and found[0].losses == tuple(losses) and found[1] == now:
            return
        raise TrajectoryError(
            f"step {number} differs from the one that {self.path} holds: data, model or settings have changed since; "
            "record to a new file"
        )

    def _held(self, number: int) -> tuple[Step, _Settings] | None:
        """A step of the file, looked for behind the one before; None if it is not there, and the search is over."""
        if self._past is None:
            self._past = _steps(read(self.path))
        found = next((pair for pair in self._past if pair[0].number >= number), None)
        if found is None or found[0].number > number:
            self._past = found = None
        return found

    def event(self, kind: str, **facts: Any) -> None:
        """Add an event behind the last step; while steps that the file holds are made again, it has their events too,
        and nothing is written.

        Args:
            kind: its name.
            facts: numbers, texts, lists and dictionaries.

        Raises:
            TrajectoryError: it cannot be written.
        """
        payload = to_json({"kind": kind, **facts}, f"the event {kind!r}")
        if self._optimizer.t < self.steps:
            return
        with delayed():
            frame, checksum = encode("E", payload, self._checksum)
            self._end, self._checksum, self._undo = self._put(self._end, frame), checksum, None

    def _put(self, at: int, record: bytes) -> int:
        """Write behind an offset, all or nothing, and return the file's end."""
        try:
            if os.fstat(self._file.fileno()).st_size != at:
                self._file.truncate(at)
            self._file.seek(at)
            rest = memoryview(record)
            while rest:
                written = self._file.write(rest)
                if not written:  # a full disk takes part of it
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                rest = rest[written:]
        except OSError as error:
            with contextlib.suppress(OSError):  # what is left does not count without its end
                self._file.truncate(at)
            raise TrajectoryError(
                f"{self.path} cannot be written ({error.strerror}): make room and go on; no step is lost"
            ) from error
        return at + len(record)

    def sync(self) -> None:
        """Hand everything to the disk."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """Stop recording."""
        self._handle.remove()
        if not self._file.closed:
            try:
                self.sync()
            finally:
                self._file.close()

    def __enter__(self) -> Recorder:
        """The recorder."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _digest_of(optimizer: ZerothOrder) -> int:
    from zotune.checks import digest

    return digest(param for group in optimizer.param_groups for param in group["params"])


@dataclass(frozen=True, slots=True)
class _Settings:
    """What a file has said so far, with which the next step is compared.

    Attributes:
        groups: hyperparameters of the groups.
        active: names of the parameters that take part.
    """

    groups: tuple[dict[str, Any], ...]
    active: frozenset[str]

    @classmethod
    def first(cls, header: Header) -> _Settings:
        """Before the first step."""
        return cls(header.groups, frozenset(p.name for p in header.parameters))

    @classmethod
    def of(cls, optimizer: ZerothOrder, params: Sequence[tuple[str, torch.nn.Parameter]]) -> _Settings:
        """Those of the optimizer's coming step."""
        if sum(len(group["params"]) for group in optimizer.param_groups) != len(params):
            raise TrajectoryError(
                "parameters have come to the optimizer since recording began: give it all from the beginning, and "
                "freeze those that are to join later"
            )
        groups = tuple(settings_of(optimizer, group) for group in optimizer.param_groups)
        return cls(groups, frozenset(name for name, param in params if param.requires_grad))

    def at(self, step: Step) -> _Settings:
        """Those of the next step."""
        rate = {} if step.rate is None else {"lr": step.rate}
        groups = tuple({**old, **step.settings.get(number, {}), **rate} for number, old in enumerate(self.groups))
        return _Settings(groups, self.active if step.active is None else step.active)

    def since(self, last: _Settings, losses: Sequence[float]) -> Iterator[tuple[str, bytes]]:
        """Kinds and payloads of a step with these settings after one with others."""
        if self.active != last.active:
            yield "A", to_json(sorted(self.active), "a parameter's name")
        changed = {
            number: {name: value for name, value in new.items() if name not in old or old[name] != value}
            for number, (new, old) in enumerate(zip(self.groups, last.groups, strict=True))
            if new != old
        }
        rates = {group["lr"] for group in self.groups}
        if not changed:
            yield "S", packed(*losses)
        elif len(rates) == 1 and all(values.keys() == {"lr"} for values in changed.values()):
            yield "R", packed(*rates, *losses)
        else:
            yield "G", to_json(changed, "a setting")
            yield "S", packed(*losses)


def _steps(trajectory: Trajectory) -> Iterator[tuple[Step, _Settings]]:
    """The steps of a file, each with its settings."""
    settings = _Settings.first(trajectory.header)
    for item in trajectory.items():
        if isinstance(item, Step):
            settings = settings.at(item)
            yield item, settings


def _sync_folder(folder: Path) -> None:
    """Hand a new file's name to the disk, where folders can be."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _check_same_run(header: Header, optimizer: ZerothOrder, path: Path) -> None:
    """Raise TrajectoryError if the file is one of another optimizer."""
    optimizer._active()  # gives the parameters their numbers
    mine = {
        "method": (method_of(optimizer), header.method),
        "arguments": tuple(
            # those that become settings of the groups are compared step by step
            {name: value for name, value in arguments.items() if name not in optimizer.defaults}
            for arguments in (arguments_of(optimizer), header.arguments)
        ),
        "parameters": (tuple(p for p, _ in parameters_of(optimizer)), header.parameters),
    }
    for field, (own, saved) in mine.items():
        if own != saved:
            raise TrajectoryError(
                f"{path} was recorded by an optimizer with other {field}: continue it with the same, or record to a "
                "new file"
            )
