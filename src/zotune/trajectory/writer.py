"""Writing a trajectory while an optimizer runs: each step before the weights are touched."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from zotune.trajectory.frames import FIRST, MAGIC, TrajectoryError, encode, packed, to_json
from zotune.trajectory.header import Header, header_of, settings_of
from zotune.trajectory.reader import Step, Trajectory, read

if TYPE_CHECKING:
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
        self._settings: list[dict[str, Any]] = []
        self._rate: float | None = None
        self._active: frozenset[str] | None = None
        self._past: list[Step] = []
        old = read(self.path) if self.path.exists() and self.path.stat().st_size else None
        try:
            self._file = open(self.path, "r+b" if old else "wb", buffering=0)  # noqa: SIM115
            if old is None:
                self._begin(header_of(optimizer, about))
            else:
                self._continue(old)
        except BaseException as error:
            if hasattr(self, "_file"):
                self._file.close()
            if isinstance(error, OSError):
                raise TrajectoryError(f"{self.path} cannot be written ({error.strerror})") from error
            raise
        self._handle = optimizer.register_tell_hook(self._on_tell)

    def _begin(self, header: Header) -> None:
        self._header, self._checksum, self._end = header, FIRST, len(MAGIC)
        self.steps = self._events = 0
        self._synced = 0.0
        self._file.write(MAGIC)
        self._write("H", to_json(header.to_dict()))
        self._names = {p.number: p.name for p in header.parameters}
        self._note(header)
        self.sync()

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
        self._synced = 0.0
        self._names = {p.number: p.name for p in header.parameters}
        self._note(header)
        for item in old.items():
            if isinstance(item, Step):
                self._follow(item)
                if item.number >= optimizer.t:
                    self._past.append(item)
        self._file.truncate(old.size)
        self._file.seek(old.size)

    def _note(self, header: Header) -> None:
        """What the next step is compared with: the settings that the file has so far."""
        self._settings = [dict(group) for group in header.groups]
        self._active = None

    def _follow(self, step: Step) -> None:
        for number, values in step.settings.items():
            self._settings[number] = dict(values)
        if step.rate is not None:
            for group in self._settings:
                group["lr"] = step.rate
        if step.active is not None:
            self._active = step.active

    # -------------------------------------------------------------------------------- records

    def _on_tell(self, optimizer: ZerothOrder, losses: Sequence[float]) -> None:
        if optimizer.t < self.steps:
            self._compare(optimizer.t, losses)
            return
        self._write_active(optimizer)
        now = [settings_of(group) for group in optimizer.param_groups]
        kind, payload = "S", packed(*losses)
        if now != self._settings:
            rates = {group["lr"] for group in now}
            others = [{**group, "lr": 0} for group in now] != [{**group, "lr": 0} for group in self._settings]
            if others or len(rates) > 1:
                changed = {n: new for n, (new, old) in enumerate(zip(now, self._settings, strict=True)) if new != old}
                self._write("G", to_json(changed))
            else:
                kind, payload = "R", packed(*rates) + payload
            self._settings = now
        self._write(kind, payload)
        self.steps = optimizer.t + 1
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self.sync()

    def _write_active(self, optimizer: ZerothOrder) -> None:
        active = frozenset(self._names[slot.key.parameter] for slot in optimizer._active())
        if self._active is None and len(active) == len(self._names):
            return
        if active != self._active:
            self._write("A", to_json(sorted(active)))
            self._active = active

    def _compare(self, number: int, losses: Sequence[float]) -> None:
        """A step that the file holds is made again: it must be the same."""
        while self._past and self._past[0].number < number:
            self._past.pop(0)
        if not self._past or self._past[0].number != number or self._past[0].losses != tuple(losses):
            raise TrajectoryError(
                f"step {number} differs from the one that {self.path} holds: data, model or settings have changed "
                "since; record to a new file"
            )

    def event(self, kind: str, **facts: Any) -> None:
        """Add an event behind the last step.

        Args:
            kind: its name.
            facts: numbers, texts, lists and dictionaries.

        Raises:
            TrajectoryError: it cannot be written.
        """
        self._write("E", to_json({"kind": kind, **facts}))

    def _write(self, kind: str, payload: bytes) -> None:
        frame, checksum = encode(kind, payload, self._checksum)
        try:
            written = self._file.write(frame)
            if written != len(frame):  # a full disk takes part of it
                written += self._file.write(frame[written:]) or 0
            if written != len(frame):
                raise OSError(28, "No space left on device")
        except OSError as error:
            self._file.truncate(self._end)
            self._file.seek(self._end)
            raise TrajectoryError(
                f"{self.path} cannot be written ({error.strerror}): make room and go on; no step is lost"
            ) from error
        self._checksum, self._end = checksum, self._end + len(frame)

    def sync(self) -> None:
        """Hand everything to the disk."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """Stop recording."""
        self._handle.remove()
        if not self._file.closed:
            self.sync()
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


def _check_same_run(header: Header, optimizer: ZerothOrder, path: Path) -> None:
    """Raise TrajectoryError if the file is one of another optimizer."""
    from zotune.trajectory.header import arguments_of

    mine = {
        "method": type(optimizer).__name__,
        "arguments": arguments_of(optimizer),
        "parameters": [
            (name or f"parameter {number}", tuple(p.shape), str(p.dtype).removeprefix("torch."))
            for number, group in enumerate(optimizer.param_groups)
            for name, p in optimizer._named(group)
        ],
    }
    saved = {
        "method": header.method,
        "arguments": header.arguments,
        "parameters": [(p.name, p.shape, p.dtype) for p in header.parameters],
    }
    for field, value in mine.items():
        if value != saved[field]:
            raise TrajectoryError(
                f"{path} was recorded by an optimizer with other {field}: continue it with the same, or record to a "
                "new file"
            )
