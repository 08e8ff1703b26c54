"""Keyed choices: every number the generator uses is a pure function of a key, never of a global state."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

_BLOCK = 32


def philox_key(*parts: object) -> int:
    """Return a 128-bit Philox key that depends on the text of every part (SHA-256 of the parts, cut off)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:16], "little")


class Draws:
    """A stream of choices that depends on its key alone.

    The raw words of the Philox generator are used instead of numpy's `Generator` methods, because only the raw stream
    is promised to stay the same from one numpy release to the next.
    """

    def __init__(self, *parts: object) -> None:
        self._bits = np.random.Philox(key=philox_key(*parts))
        self._words: list[int] = []

    def below(self, bound: int) -> int:
        """Return an integer from 0 to bound - 1, uniform up to a bias of bound / 2**64."""
        assert bound > 0, "there must be something to choose from"
        if not self._words:
            self._words = [int(word) for word in self._bits.random_raw(_BLOCK)]
        return (self._words.pop() * bound) >> 64

    def chance(self, percent: int) -> bool:
        """Return True in `percent` of a hundred cases."""
        return self.below(100) < percent

    def pick(self, items: Sequence[T]) -> T:
        """Return one of the items."""
        return items[self.below(len(items))]

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """Return `count` different positions' items in random order."""
        pool = list(items)
        assert count <= len(pool), "more items asked for than there are"
        return [pool.pop(self.below(len(pool))) for _ in range(count)]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Return the items in random order."""
        return self.sample(items, len(items))
