"""Reading a trajectory: every frame checked, from the first byte to the last sound one."""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from zotune.trajectory.frames import KINDS, MAGIC, Frame, Frames, TrajectoryError, from_json, longest, numbers, varint
from zotune.trajectory.header import Header, check_settings

_SEARCHED = 1 << 20  # bytes after the last sound frame in which a later one is looked for, ...
_WEIGHED = 1 << 26  # ... and bytes whose checksums are reckoned for it


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
        size: bytes that count: up to the end of the last whole step or event.
        checksum: with which the next frame begins.
        cut: bytes after those: a step that was being written when the program died, or damage.
        torn: whether they are such a step.
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
        """Steps and events in their order.

        Raises:
            TrajectoryError: the file cannot be read any more, or has become another.
        """
        with _opened(self.path) as (file, _):
            made = self.header.start
            for item in _items(Frames(file, self.size), self.header):
                made += isinstance(item, Step)
                yield item
        if made != self.end:
            raise TrajectoryError(f"{self.path} has changed while it was read: read it again")


def read(path: Path | str) -> Trajectory:
    """Read and check a trajectory.

    Raises:
        TrajectoryError: the file cannot be read, or is none of this version's; what is behind the last sound frame is
            no error, see `Trajectory.problem`.
    """
    path = Path(path)
    with _opened(path) as (file, size):
        if size == 0:
            raise TrajectoryError(f"{path} is empty: no step was recorded")
        return _read(path, file, size)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file and its size: nothing else has an end, or can be read twice."""
    try:
        # without O_NONBLOCK, a pipe that nobody writes to would be waited for
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            os.close(number)
            raise TrajectoryError(f"{path} is no file: give the .zo file of a run")
        with open(number, "rb") as file:
            yield file, status.st_size
    except (OSError, ValueError) as error:
        if isinstance(error, TrajectoryError):
            raise
        raise TrajectoryError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _read(path: Path, file: BinaryIO, size: int) -> Trajectory:
    frames = Frames(file, size)
    if frames.bytes(0, len(MAGIC)) != MAGIC:
        raise TrajectoryError(f"{path} is not a trajectory of zotune: give the .zo file of a run")
    sound = iter(frames)
    first = next(sound, None)
    if first is None:
        raise TrajectoryError(f"the header of {path} is not whole: no step of it can be used")
    try:
        header = _header(first)
        steps = queries = 0
        last = whole = first
        for frame in sound:
            item = _item(frame, header, whole is last)
            if frame.kind in "SR":
                steps, queries = steps + 1, queries + len(item[1])
            last = frame
            whole = whole if frame.kind in "AG" else frame
    except TrajectoryError as error:
        raise TrajectoryError(f"{path} cannot be used: {error}") from None
    return Trajectory(
        path=path,
        header=header,
        steps=steps,
        queries=queries,
        size=whole.end,
        checksum=whole.checksum,
        cut=size - whole.end,
        torn=size > whole.end and _torn(frames, last.end, last.checksum, size),
    )


def _torn(frames: Frames, end: int, checksum: int, size: int) -> bool:
    """Whether what follows the last sound frame is the beginning of one more, and not what damage has left of some."""
    rest = frames.bytes(end, longest("E") + 16)
    if not rest:
        return True
    if rest[0] not in KINDS[1:]:
        return False
    beginning = frames.beginning(end)
    if beginning is None and len(rest) > 5:
        return False
    if beginning is not None and (beginning[1] + beginning[2] + 4 <= size or beginning[2] > longest(beginning[0])):
        return False  # as long as it should be, and not sound; or longer than any
    # A length that was damaged reaches beyond the end of the file as well.  Then the frame is sound with the length
    # that it has, if it was the last, and otherwise a later one is, which begins with the four bytes before it.
    for width in range(1, 6):
        length = varint(max(size - end - 5 - width, 0))
        body = bytes([rest[0]]) + length + rest[1 + width : -4]
        if len(length) == width and rest[-4:] == struct.pack("<I", zlib.crc32(body, checksum)):
            return False
    budget = _WEIGHED
    for at in range(4, min(len(rest), _SEARCHED)):
        if rest[at] in KINDS[1:]:
            later = frames.beginning(end + at)
            if later is None or later[1] + later[2] + 4 > size or later[2] > budget:
                continue
            budget -= later[2]
            if frames.decode(end + at, int.from_bytes(rest[at - 4 : at], "little")) is not None:
                return False
    return True


def _header(frame: Frame) -> Header:
    if frame.kind != "H":
        raise TrajectoryError("it does not begin with a header")
    return Header.from_dict(from_json(frame.payload))


def _item(frame: Frame, header: Header, whole: bool) -> tuple[str, Any, float | None]:
    """Kind, content and rate of a frame behind the header.

    Args:
        frame: see `Frame`.
        header: of its file.
        whole: whether a step or an event ended right before it.
    """
    kind = frame.kind
    if kind in "SR":
        values, rate = numbers(frame.payload), None
        if values and kind == "R":
            rate, values = values[0], values[1:]
        if not values or not all(map(isfinite, values)) or (rate is not None and not 0.0 <= rate < inf):
            raise TrajectoryError(f"the step at byte {frame.start} has no losses that could be told")
        return kind, values, rate
    content = from_json(frame.payload)
    if kind == "G":
        groups = {str(number) for number in range(len(header.groups))}
        sound = isinstance(content, dict) and content.keys() <= groups and all(map(check_settings, content.values()))
    elif kind == "A":
        sound = isinstance(content, list) and all(isinstance(name, str) for name in content)
        sound = sound and set(content) <= {parameter.name for parameter in header.parameters}
    else:
        sound = kind == "E" and whole and isinstance(content, dict) and isinstance(content.get("kind"), str)
    if not sound:
        raise TrajectoryError(f"the record at byte {frame.start} is none that this version writes")
    return kind, content, None


def _items(frames: Frames, header: Header) -> Iterator[Item]:
    step = header.start
    settings: dict[int, dict[str, Any]] = {}
    active: frozenset[str] | None = None
    sound = iter(frames)
    next(sound, None)
    for frame in sound:
        kind, content, rate = _item(frame, header, not settings and active is None)
        if kind in "SR":
            yield Step(step, content, rate, settings, active)
            step, settings, active = step + 1, {}, None
        elif kind == "G":
            settings = {int(number): values for number, values in content.items()}
        elif kind == "A":
            active = frozenset(content)
        else:
            yield Event(step, content["kind"], {name: value for name, value in content.items() if name != "kind"})
