"""The bytes of a trajectory file: a magic word, then frames, each checked.

    file    = b"zotune\\x00\\x01", frame, frame, ...
    frame   = kind (1 byte), length (LEB128 varint), payload, checksum (4 bytes)

The checksum is a CRC-32 of the frame's other bytes that begins with the checksum before it (of the magic word for the
first frame): a frame cannot be lost, doubled, exchanged or brought in from another file unseen.

| kind | payload                                                                                 |
|------|-----------------------------------------------------------------------------------------|
| H    | JSON, the header; always the first frame and only there                                 |
| S    | a step: its losses, float64 each                                                        |
| R    | a step whose learning rate differs from the last: the rate, float64, then the losses    |
| G    | JSON: other settings of parameter groups that change with the next step                 |
| A    | JSON: names of the parameters that take part from the next step on                      |
| E    | JSON: an event (an evaluation, a checkpoint), which belongs to the step before it       |

A and G stand right before their step, and are written with it at once: a file counts up to its last step or event.
Numbers are little-endian.  Nothing read from such a file is ever executed.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

MAGIC: Final = b"zotune\x00\x01"
KINDS: Final = b"HSRGAE"
FIRST: Final = zlib.crc32(MAGIC)


class TrajectoryError(ValueError):
    """A trajectory cannot be read, written or replayed; the message is one sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a file.

    Attributes:
        kind: one of `KINDS`.
        payload: its bytes.
        start: offset of its first byte in the file.
        end: offset of the byte after its last.
        checksum: with which the next one begins.
    """

    kind: str
    payload: bytes
    start: int
    end: int
    checksum: int


def longest(kind: str) -> int:  # noqa: ARG001 (readers ask by kind)
    """Bytes of a payload at most; a header of 100,000 parameters has two thirds of that."""
    return 1 << 24


def encode(kind: str, payload: bytes, checksum: int) -> tuple[bytes, int]:
    """A frame's bytes, and the checksum with which the next one begins.

    Raises:
        TrajectoryError: the payload is longer than a reader accepts.
    """
    if len(payload) > longest(kind):
        raise TrajectoryError(
            f"a record of {len(payload):,} bytes is too long for a trajectory: give fewer facts, or fewer losses a step"
        )
    body = kind.encode("ascii") + varint(len(payload)) + payload
    checksum = zlib.crc32(body, checksum)
    return body + struct.pack("<I", checksum), checksum


class Frames:
    """The sound frames of a file, one after another; no more than one is held in memory.

    Args:
        file: open for reading.
        size: bytes of it that count.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def __iter__(self) -> Iterator[Frame]:
        """Frames until the first that is not whole and sound."""
        at, checksum = len(MAGIC), FIRST
        while (frame := self.decode(at, checksum)) is not None:
            yield frame
            at, checksum = frame.end, frame.checksum

    def decode(self, at: int, checksum: int) -> Frame | None:
        """The frame that begins at an offset; None if there is no whole and sound one."""
        beginning = self.beginning(at)
        if beginning is None:
            return None
        kind, begin, length = beginning
        if begin + length + 4 > self._size or length > longest(kind):
            return None
        self._file.seek(at)
        data = self._file.read(begin - at + length + 4)
        found = zlib.crc32(memoryview(data)[:-4], checksum)
        if data[-4:] != struct.pack("<I", found):
            return None
        return Frame(kind, data[begin - at : -4], at, begin + length + 4, found)

    def beginning(self, at: int) -> tuple[str, int, int] | None:
        """Kind, offset and length of the payload of a frame, as its first bytes say; None if they cannot be such."""
        head = self.bytes(at, 6)
        if not head or head[0] not in KINDS:
            return None
        length = _read_varint(head[1:])
        return None if length is None else (chr(head[0]), at + 1 + length[1], length[0])

    def bytes(self, at: int, count: int) -> bytes:
        """Bytes of the file from an offset on, fewer at its end."""
        self._file.seek(at)
        return self._file.read(max(min(count, self._size - at), 0))


def numbers(payload: bytes) -> tuple[float, ...] | None:
    """The float64 numbers of a payload; None if it is not made of such."""
    return None if len(payload) % 8 else struct.unpack(f"<{len(payload) // 8}d", payload)


def packed(*values: float) -> bytes:
    """Numbers as float64."""
    return struct.pack(f"<{len(values)}d", *values)


def to_json(content: Any, what: str) -> bytes:
    """JSON in the fewest bytes; floats are written so that they read back with the same bits.

    Numbers of numpy and torch become those of Python, paths become texts.

    Raises:
        TrajectoryError: something has no place in JSON; ``what`` names it.
    """
    try:
        return json.dumps(content, separators=(",", ":"), ensure_ascii=False, default=_plain).encode("utf-8")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TrajectoryError(
            f"{what} cannot be recorded ({error}): give numbers, texts, lists and dictionaries"
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "size", None) is not None:
        number = item()  # raises ValueError or RuntimeError for more numbers than one
        if isinstance(number, (bool, int, float, str)):
            return number
    raise TypeError(f"{type(value).__name__} is no plain value")


_PARTS = 1_000_000
"""Lists and objects: a forged payload of empty ones would take forty times its size in memory."""


def from_json(payload: bytes) -> Any:
    """Content of a JSON payload; None if it is none, or of more parts than any run writes."""
    if payload.count(b"[") + payload.count(b"{") > _PARTS:
        return None
    try:
        return json.loads(payload.decode("utf-8"))
    except (ValueError, RecursionError):  # numbers of thousands of digits, brackets thousands deep
        return None


def varint(number: int) -> bytes:
    """LEB128."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(data: bytes) -> tuple[int, int] | None:
    """A number and how many bytes it takes, five at most; None if it does not end."""
    number = 0
    for place, byte in enumerate(data[:5]):
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return number, place + 1
    return None
