"""Reading a trajectory: every frame checked, from the first byte to the last sound one."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, TypeAlias

from zotune.trajectory.frames import FIRST, MAGIC, Frame, TrajectoryError, decode, from_json, numbers
from zotune.trajectory.header import Header


@dataclass(frozen=True, slots=True)
class Step:
    """One step.

    Attributes:
        number: of the step, as the optimizer counts.
        losses: of its plan, all that `ZerothOrder.tell` needs.
        rate: the learning rate of all groups, if it differs from the step before.
        settings: hyperparameters that changed with it, by number of the group.
        active: names of the parameters that take part from it on, if they are others than before.
    """

    number: int
    losses: tuple[float, ...]
    rate: float | None = None
    settings: dict[int, dict[str, Any]] = field(default_factory=dict)
    active: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened after a number of steps.

    Attributes:
        step: steps made before it.
        kind: such as "evaluation" or "checkpoint".
        facts: what belongs to it.
    """

    step: int
    kind: str
    facts: dict[str, Any]


Item: TypeAlias = Step | Event


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """A file that has been read and checked; made by `read`.

    Attributes:
        path: of the file.
        header: see `Header`.
        steps: whole steps.
        queries: losses in them.
        size: bytes that are whole.
        checksum: with which the next frame begins.
        cut: bytes after those: a frame that was being written when the program died, or damage.
        torn: whether those are such a frame, the last of the file.
    """

    path: Path
    header: Header
    steps: int
    queries: int
    size: int
    checksum: int
    cut: int
    torn: bool

    @property
    def end(self) -> int:
        """Steps the optimizer has made after the last one."""
        return self.header.start + self.steps

    @property
    def problem(self) -> str | None:
        """A sentence about what is wrong with the file's end, or None."""
        if not self.cut:
            return None
        if self.torn:
            return f"The last {self.cut} bytes of {self.path} are of a step that was being written; they do not count."
        return (
            f"{self.path} is damaged at byte {self.size}, after step {self.end}; the {self.cut} bytes from there on "
            "do not count."
        )

    def items(self) -> Iterator[Item]:
        """Steps and events in their order."""
        with self.path.open("rb") as file:
            data = file.read(self.size)
        yield from _items(data, self.header)


def read(path: Path | str) -> Trajectory:
    """Read and check a trajectory.

    Raises:
        TrajectoryError: the file cannot be read, or is none of this version's; what is behind the last sound frame is
            no error, see `Trajectory.problem`.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size == 0:
                raise TrajectoryError(f"{path} is empty: no step was recorded")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
                return _read(path, view)
    except OSError as error:
        raise TrajectoryError(f"{path} cannot be read ({error.strerror or type(error).__name__})") from error


def _read(path: Path, data: memoryview) -> Trajectory:
    if bytes(data[: len(MAGIC)]) != MAGIC:
        raise TrajectoryError(f"{path} is not a trajectory of zotune: give the .zo file of a run")
    frames = _frames(data)
    first = next(frames, None)
    if first is None:
        raise TrajectoryError(f"the header of {path} is not whole: the run died before its first step, start it again")
    try:
        if first.kind != ord("H"):
            raise TrajectoryError("it does not begin with a header")
        header = Header.from_dict(from_json(first.payload))
        steps = queries = 0
        last = first
        for frame in frames:
            item = _item(frame)
            if frame.kind in b"SR":
                steps, queries = steps + 1, queries + len(item[1])
            last = frame
    except TrajectoryError as error:
        raise TrajectoryError(f"{path} cannot be used: {error}") from None
    cut = len(data) - last.end
    return Trajectory(
        path=path,
        header=header,
        steps=steps,
        queries=queries,
        size=last.end,
        checksum=last.checksum,
        cut=cut,
        torn=cut > 0 and _torn(data, last),
    )


def _frames(data: bytes | memoryview) -> Iterator[Frame]:
    at, checksum = len(MAGIC), FIRST
    while (frame := decode(data, at, checksum)) is not None:
        yield frame
        at, checksum = frame.end, frame.checksum


def _torn(data: memoryview, last: Frame) -> bool:
    """Whether what follows the last sound frame is the beginning of one more: no longer than a step or an event may
    be, and without a whole frame of its own length."""
    rest = bytes(data[last.end : last.end + 6])
    if rest[0] not in b"SRGAE":
        return False
    from zotune.trajectory.frames import _read_varint

    length = _read_varint(rest[1:])
    return length is None or last.end + 1 + length[1] + length[0] + 4 > len(data)


def _item(frame: Frame) -> tuple[str, Any, Any]:
    """Kind, content and rate of a frame behind the header."""
    kind = chr(frame.kind)
    if kind in "SR":
        values = numbers(frame.payload)
        rate = None
        if values is not None and kind == "R":
            rate, values = (values[0] if values else None), values[1:]
        if not values or not all(map(isfinite, values)) or (kind == "R" and (rate is None or not isfinite(rate))):
            raise TrajectoryError(f"the step at byte {frame.start} has no losses that could be told")
        return kind, values, rate
    content = from_json(frame.payload)
    sound = {
        "G": lambda: (
            isinstance(content, dict) and all(k.isdecimal() and isinstance(v, dict) for k, v in content.items())
        ),
        "A": lambda: isinstance(content, list) and all(isinstance(name, str) for name in content),
        "E": lambda: isinstance(content, dict) and isinstance(content.get("kind"), str),
    }
    if kind not in sound or not sound[kind]():
        raise TrajectoryError(f"the frame at byte {frame.start} is none that this version writes")
    return kind, content, None


def _items(data: bytes, header: Header) -> Iterator[Item]:
    step = header.start
    settings: dict[int, dict[str, Any]] = {}
    active: frozenset[str] | None = None
    frames = _frames(data)
    next(frames)
    for frame in frames:
        kind, content, rate = _item(frame)
        if kind in "SR":
            yield Step(step, content, rate, settings, active)
            step, settings, active = step + 1, {}, None
        elif kind == "G":
            settings = {int(number): values for number, values in content.items()}
        elif kind == "A":
            active = frozenset(content)
        else:
            yield Event(step, content["kind"], {name: value for name, value in content.items() if name != "kind"})
