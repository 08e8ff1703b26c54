"""What the battery runs: a generator (zotune or a variant), a stream or a group of direct tests, and a suite."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import direct
import testu01
import variants
from streams import STREAMS
from testu01 import Result

FEW = ("words: elements", "words: element over steps", "words: element over queries")
CORE = (*FEW, "signs: element over steps", "normals: training", "normals: element over steps")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One call of the driver, or one group of direct tests.

    Args:
        generator: ``zotune`` or the name of a variant.
        stream: name of a stream or, for suite ``direct``, of a group of `direct`.
        suite: ``small``, ``rabbit``, ``crush``, ``big`` or ``direct``.
        tests: their numbers, all if empty.
        size: log2 of the bits for Rabbit; for direct tests, what the amount of data is divided by.
        repeat: 0, or the number of a repeat with another seed.
    """

    generator: str = "zotune"
    stream: str
    suite: str
    tests: tuple[int, ...] = ()
    size: int = 0
    repeat: int = 0

    @property
    def name(self) -> str:
        tests = f" {self.tests[0]}-{self.tests[-1]}" if self.tests else ""
        size = f" {self.size}" if self.size else ""
        repeat = f" (repeat {self.repeat})" if self.repeat else ""
        return f"{self.generator} | {self.stream} | {self.suite}{size}{tests}{repeat}"

    @property
    def seed(self) -> int:
        """Of the run, 64 bits; each job has its own, the same for every generator."""
        address = f"{self.stream}|{self.suite}|{self.tests[:1]}|{self.repeat}"
        return int.from_bytes(hashlib.sha256(address.encode()).digest()[:8], "little")

    def run(self) -> list[Result]:
        source = variants.source(self.generator)
        if self.suite == "direct":
            return direct.run(self.stream, source, self.seed, self.size)
        arguments = [self.suite, *([str(self.size)] if self.suite == "rabbit" else []), *map(str, self.tests)]
        return testu01.run(arguments, STREAMS[self.stream].chunks(source, self.seed))

    def again(self, test: str, repeat: int) -> Job:
        """The same test on another seed."""
        tests = () if self.suite == "direct" else (int(test.split()[0]),)
        return replace(self, tests=tests, repeat=repeat)


CRUSH_PIECES = ((85, 86, 87), (88, 89, 90), (91, 92, 93), (94, 95, 96), (65, 66, 67), (1, 2))
"""Numbers of tests of Crush that look at bits: Hamming weights, runs, autocorrelation, random walks, serial pairs."""


def _noise() -> Iterator[Job]:
    for group in direct.GROUPS:
        yield Job(stream=group, suite="direct", size=1)
    for stream in STREAMS:
        yield Job(stream=stream, suite="small")
    for stream in ("elements", "element over steps"):
        yield Job(stream=f"signs: {stream}", suite="rabbit", size=28)
    for tests in CRUSH_PIECES:
        yield Job(stream="signs: element over steps", suite="crush", tests=tests)


def _rounds() -> Iterator[Job]:
    for count in (7, 6, 5, 4):
        name = f"rounds {count}"
        for stream in CORE if count >= 6 else FEW:
            yield Job(generator=name, stream=stream, suite="small")
        yield Job(generator=name, stream="neighbours", suite="direct", size=8)
        yield Job(generator=name, stream="flips", suite="direct", size=1 if count == 7 else 16)
    for count in (7, 6):
        yield Job(generator=f"rounds {count}", stream="signs: element over steps", suite="rabbit", size=28)


def _faults() -> Iterator[Job]:
    where = {
        "stalled counter": ("words: elements", "words: element over steps", "lags"),
        "lost carry": ("words: elements", "words: high blocks"),
        "paired steps": ("words: elements", "words: element over steps", "signs: steps", "neighbours"),
        "coarse radius": ("normals: elements", "distribution"),
        "scaled": ("normals: elements", "distribution"),
        "repeated signs": ("signs: elements", "signs: element over steps", "signs"),
    }
    for fault, places in where.items():
        for place in places:
            if place in direct.GROUPS:
                yield Job(generator=fault, stream=place, suite="direct", size=1 if fault == "scaled" else 8)
            else:
                yield Job(generator=fault, stream=place, suite="small")


def full() -> list[Job]:
    """The published battery."""
    return [*_noise(), *_rounds(), *_faults()]


def quick() -> list[Job]:
    """A few minutes: SmallCrush on a few streams, small direct tests, and three faults that must be found."""
    jobs = [Job(stream=group, suite="direct", size=64) for group in direct.GROUPS]
    jobs += [Job(stream=stream, suite="small") for stream in CORE]
    jobs += [
        Job(generator=name, stream="words: element over steps", suite="small") for name in ("rounds 4", "paired steps")
    ]
    return [*jobs, Job(generator="scaled", stream="distribution", suite="direct", size=64)]
