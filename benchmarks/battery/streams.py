"""Streams of 32-bit words for the battery, read from the compiled kernels the way training reads its noise.

Three kinds of noise become uniform words:

- ``words``: the raw words of the Gaussian layout (stochastic rounding reads these).
- ``signs``: the Rademacher stream; 32 signs, in the order of the elements, are one word, first sign in the high bit.
- ``normals``: the Gaussian stream; z -> floor(2**16 Phi(z)), two in a row make one word.  Only 16 bits of Phi(z) are
  used: z is float32 and its radius has 2**24 values, so that lower bits show a lattice that no weight could.

and are read in several orders: one long tensor; small tensors of consecutive steps (queries, parameters, tags, seeds),
64 words of each; *the same element* over consecutive steps (queries, ...), then the next element; the nested loops of a
training run; and blocks whose number needs more than 32 bits.  Counters and layout are those of `zotune.noise`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numba import njit

from zotune.kernels import cpu_noise
from zotune.noise import Key

Words: TypeAlias = "np.ndarray[Any, np.dtype[np.uint32]]"
Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"

SEED = 0x5A4F54554E45  # of the published report; repeats take SEED + 2**32, SEED + 2**33, ...
SMALL = 64  # words read from each small tensor
RUN = 4096  # consecutive steps (queries, ...) over which one element is followed
WORD_TILE, SIGN_TILE = 1024, 4096
TENSORS = 4096  # small tensors in one chunk
FOUR_TAGS = ("z", "V", "a", "rounding")  # a fifth tag must not change the streams of a published report
SHAPES = ((768,), (64, 48), (48,), (1000,), (33, 65), (7,))  # parameters of the run that ``training`` imitates


@dataclass(frozen=True)
class Source:
    """The noise of a module of compiled kernels as arrays; other modules than zotune's own are the variants."""

    kernels: ModuleType = cpu_noise

    def words(self, key: Key, tile: int, tiles: int) -> Words:
        """Raw words of Gaussian tiles tile .. tile + tiles - 1, shape (1024 * tiles,)."""
        out = np.empty(WORD_TILE * tiles, np.uint32)
        self.kernels.fill_words(out, tile, tiles, _row(key))
        return out

    def floats(self, key: Key, start: int, stop: int, *, signs: bool) -> Floats:
        """Normals, or signs as +-1, of elements start .. stop - 1."""
        out, scratch = np.empty(stop - start + 2 * SIGN_TILE, np.float32), np.empty(self.kernels.WORDS, np.uint32)
        offset = self.kernels.accumulate(out, scratch, start, stop, _row(key)[None], np.ones(1, np.float32), signs)
        return out[offset : offset + stop - start]


def _row(key: Key) -> Words:
    return np.array(key.words(), np.uint32)


@njit(cache=True, error_model="numpy")
def sixteen_bits(z):
    """floor(2**16 Phi(z)) of each number, uint16."""
    out = np.empty(z.size, np.uint16)
    for i in range(z.size):
        out[i] = min(65536.0 * 0.5 * math.erfc(-z[i] * math.sqrt(0.5)), 65535.0)
    return out


@njit(cache=True)
def pack_signs(z):
    """32 signs in a row as one word each, the first in the high bit; a set bit is -1."""
    bits = z.view(np.uint32)
    out = np.empty(z.size // 32, np.uint32)
    for i in range(out.size):
        word = np.uint32(0)
        for j in range(32):
            word = np.uint32(word << np.uint32(1)) | np.uint32(bits[32 * i + j] >> np.uint32(31))
        out[i] = word
    return out


@njit(cache=True)
def add_signs(packed, z):
    """Shift one more sign of each element into its word."""
    bits = z.view(np.uint32)
    for i in range(packed.size):
        packed[i] = np.uint32(packed[i] << np.uint32(1)) | np.uint32(bits[i] >> np.uint32(31))


def _pairs(halves: np.ndarray[Any, np.dtype[np.uint16]]) -> Words:
    halves = halves.astype(np.uint32)
    return halves[0::2] << 16 | halves[1::2]


def tensor_words(source: Source, kind: str, key: Key, start: int, words: int) -> Words:
    """``words`` uniform words from the elements of one tensor, from element ``start`` on (a multiple of a tile)."""
    if kind == "words":
        tiles = -(-words // WORD_TILE)
        return source.words(key, start // WORD_TILE, tiles)[:words]
    if kind == "signs":
        return pack_signs(source.floats(key, start, start + 32 * words, signs=True))
    return _pairs(sixteen_bits(source.floats(key, start, start + 2 * words, signs=False)))


# --------------------------------------------------------------------------- addresses


def _count(i: int, bits: int) -> tuple[int, int]:
    return i >> bits, i & ((1 << bits) - 1)


def _by_query(i: int, seed: int) -> Key:
    step, query = _count(i, 24)
    return Key(seed, step=7 + step, query=query, parameter=3)


def _by_parameter(i: int, seed: int) -> Key:
    step, parameter = _count(i, 24)
    return Key(seed, step=7 + step, query=2, parameter=parameter)


AXES: dict[str, Callable[[int, int], Key]] = {
    "steps": lambda i, seed: Key(seed, step=i, parameter=3),
    "queries": _by_query,
    "parameters": _by_parameter,
    "tags": lambda i, seed: Key(seed, step=i // 4, parameter=3, tag=FOUR_TAGS[i % 4]),
    "seeds": lambda i, seed: Key((seed + i) % 2**64, step=7, parameter=3),
}
"""What consecutive small tensors differ in: number and seed -> key."""


# --------------------------------------------------------------------------- chunks of the streams


def _elements(source: Source, kind: str, seed: int, chunk: int) -> Words:
    words = 1 << 18
    per_word = {"words": 1, "signs": 32, "normals": 2}[kind]
    return tensor_words(source, kind, Key(seed, step=7, parameter=3), chunk * words * per_word, words)


def _small(axis: str, source: Source, kind: str, seed: int, chunk: int) -> Words:
    keys = (AXES[axis](i, seed) for i in range(chunk * TENSORS, (chunk + 1) * TENSORS))
    return np.concatenate([tensor_words(source, kind, key, 0, SMALL) for key in keys])


def _by_element(axis: str, source: Source, kind: str, seed: int, chunk: int) -> Words:
    keys = [AXES[axis](i, seed) for i in range(chunk * RUN, (chunk + 1) * RUN)]
    if kind == "signs":
        packed = np.zeros((RUN // 32, SIGN_TILE), np.uint32)
        for i, key in enumerate(keys):
            add_signs(packed[i // 32], source.floats(key, 0, SIGN_TILE, signs=True))
        return packed.T.ravel()
    if kind == "words":
        return np.stack([source.words(key, 0, 1) for key in keys]).T.ravel()
    z = np.stack([source.floats(key, 0, WORD_TILE, signs=False) for key in keys])
    return _pairs(sixteen_bits(z.T.ravel()))


def _training(source: Source, kind: str, seed: int, chunk: int) -> Words:
    """Steps of two queries over the parameters of `SHAPES`, every element once; a last odd piece of a word is left."""
    per_word = {"words": 1, "signs": 32, "normals": 2}[kind]
    sizes = [math.prod(shape) // per_word for shape in SHAPES]
    return np.concatenate(
        [
            tensor_words(source, kind, Key(seed, step=step, query=query, parameter=parameter), 0, size)
            for step in range(chunk * 64, chunk * 64 + 64)
            for query in range(2)
            for parameter, size in enumerate(sizes)
            if size
        ]
    )


def _across_the_carry(source: Source, kind: str, seed: int, chunk: int) -> Words:
    """One tensor from 2**16 tiles before block 2**32 on (reached within SmallCrush, whose length is 2**27.8 words)."""
    assert kind == "words"
    first = (1 << 24) - (1 << 16) + 256 * chunk
    return source.words(Key(seed, step=7, parameter=3), first, 256)


def _high_blocks(source: Source, kind: str, seed: int, chunk: int) -> Words:
    """The same low 32 bits of the block with all 256 high parts, word by word."""
    assert kind == "words"
    key = Key(seed, step=7, parameter=3)
    tiles = [source.words(key, (high << 24) + 4 * chunk, 4) for high in range(256)]
    return np.stack(tiles).T.ravel()


@dataclass(frozen=True, kw_only=True)
class Stream:
    """An endless sequence of 32-bit words.

    ``chunk(source, kind, seed, number)`` gives the words of piece ``number``.
    """

    name: str
    kind: str
    chunk: Callable[[Source, str, int, int], Words]

    def chunks(self, source: Source, seed: int = SEED) -> Iterator[Words]:
        number = 0
        while True:
            yield np.ascontiguousarray(self.chunk(source, self.kind, seed, number))
            number += 1

    def fingerprint(self, source: Source) -> str:
        """SHA-256 of the first chunk, which ties a report to the bits that were tested."""
        return hashlib.sha256(next(self.chunks(source)).astype("<u4").tobytes()).hexdigest()


def _all() -> Iterator[Stream]:
    for kind in ("words", "signs", "normals"):
        yield Stream(name=f"{kind}: elements", kind=kind, chunk=_elements)
        yield Stream(name=f"{kind}: training", kind=kind, chunk=_training)
        for axis in AXES:
            if axis == "tags" and kind != "words":
                continue  # the layout treats a tag like a query: one kind of noise is enough
            small = lambda *args, axis=axis: _small(axis, *args)  # noqa: E731
            followed = lambda *args, axis=axis: _by_element(axis, *args)  # noqa: E731
            yield Stream(name=f"{kind}: {axis}", kind=kind, chunk=small)
            yield Stream(name=f"{kind}: element over {axis}", kind=kind, chunk=followed)
    yield Stream(name="words: across block 2^32", kind="words", chunk=_across_the_carry)
    yield Stream(name="words: high blocks", kind="words", chunk=_high_blocks)


STREAMS = {stream.name: stream for stream in _all()}
