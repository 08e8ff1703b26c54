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

Numbers are little-endian.  Nothing read from such a file is ever executed.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Final

MAGIC: Final = b"zotune\x00\x01"
KINDS: Final = b"HSRGAE"
LONGEST: Final = 1 << 26  # bytes of a payload; a header of 100,000 parameters has a sixth of that
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

    kind: int
    payload: bytes
    start: int
    end: int
    checksum: int


def encode(kind: str, payload: bytes, checksum: int) -> tuple[bytes, int]:
    """A frame's bytes, and the checksum with which the next one begins."""
    body = kind.encode("ascii") + _varint(len(payload)) + payload
    checksum = zlib.crc32(body, checksum)
    return body + struct.pack("<I", checksum), checksum


def decode(data: bytes | memoryview, at: int, checksum: int) -> Frame | None:
    """The frame that begins at offset ``at``; None if there is no whole and sound one."""
    head = bytes(data[at : at + 6])
    if not head or head[0] not in KINDS:
        return None
    length = _read_varint(head[1:])
    if length is None or length[0] > LONGEST:
        return None
    begin = at + 1 + length[1]
    end = begin + length[0]
    if end + 4 > len(data):
        return None
    found = zlib.crc32(data[at:end], checksum)
    if data[end : end + 4] != struct.pack("<I", found):
        return None
    return Frame(head[0], bytes(data[begin:end]), at, end + 4, found)


def numbers(payload: bytes) -> tuple[float, ...] | None:
    """The float64 numbers of a payload; None if it is not made of such."""
    return None if len(payload) % 8 else struct.unpack(f"<{len(payload) // 8}d", payload)


def packed(*values: float) -> bytes:
    """Numbers as float64."""
    return struct.pack(f"<{len(values)}d", *values)


def to_json(content: Any) -> bytes:
    """JSON in the fewest bytes; floats are written so that they read back with the same bits."""
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def from_json(payload: bytes) -> Any:
    """Content of a JSON payload; None if it is none."""
    try:
        return json.loads(payload.decode("utf-8"))
    except (ValueError, RecursionError):
        return None


def _varint(number: int) -> bytes:
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
