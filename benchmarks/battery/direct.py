"""Direct tests of the normals and signs, on the numbers themselves in double precision.

Each group is a function of (source, seed, scale) that returns its p-values; ``scale`` divides the amount of data.
Lags are those at which the layout or a weight matrix puts related elements: 256 is the partner in a Box-Muller pair,
512 and 768 other words of a block, 1024 and 4096 the tiles, 768 and 1600 row lengths.  Pairs never share an element,
so that chi-square has its textbook law.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numba import njit
from scipy import integrate, special, stats
from streams import AXES, Floats, Source, sixteen_bits
from testu01 import Result

from zotune.noise import Key

Array = np.ndarray[Any, Any]
CHUNK = 1 << 20
LAGS = (1, 2, 256, 512, 768, 1024, 1600, 4096)
THRESHOLDS = (1.0, 2.0, 3.0, 4.0, 4.5, 5.0, 5.5)
CELLS = 32  # equally probable cells of each normal of a pair
NORMAL_MOMENTS = (1, 0, 1, 0, 3, 0, 15, 0, 105, 0, 945, 0, 10395)


def _tensor(source: Source, seed: int, *, signs: bool, count: int) -> Iterator[Floats]:
    """``count`` chunks of 2**20 consecutive elements of one tensor."""
    key = Key(seed, step=11, parameter=5)
    for chunk in range(count):
        yield source.floats(key, chunk * CHUNK, (chunk + 1) * CHUNK, signs=signs)


def anderson_darling_tail(a2: float) -> float:
    """P(A^2 > a2) of a large sample (series of Anderson and Darling 1954)."""
    total = 0.0
    for j in range(8):
        c = (4 * j + 1) ** 2 * math.pi**2 / (8 * a2)
        if c > 700:
            break
        value = integrate.quad(lambda w, c=c: math.exp(a2 / (8 * (w * w + 1)) - c * w * w), 0, math.inf)[0]
        total += float(special.binom(-0.5, j)) * (4 * j + 1) * math.exp(-c) * value
    return min(1.0, max(0.0, 1 - math.sqrt(2 * math.pi) / a2 * total))


def _uniform(p_values: list[float]) -> float:
    return float(stats.kstest(p_values, "uniform").pvalue)


def _normal(z: float) -> float:
    return float(stats.norm.sf(z))


def lattice_tail(t: float) -> float:
    """P(|z| > t) of Box-Muller whose uniform radius word has 24 bits: what the layout promises, next to N(0, 1)."""
    count = min(1 << 24, math.ceil(math.exp(-t * t / 2) * 2**24) + 1)
    r = np.sqrt(-2 * np.log((np.arange(count) + 0.5) * 2.0**-24))
    return float(np.arccos(t / r[r > t]).sum() * 2 / math.pi * 2.0**-24)


def distribution(source: Source, seed: int, scale: int) -> list[tuple[str, float, int]]:
    """Goodness of fit, moments and tails of 2**30 / scale consecutive elements."""
    chunks = 1024 // scale
    n = chunks * CHUNK
    rank = np.arange(1, CHUNK + 1) / CHUNK
    sums, tails, histogram = np.zeros(7), np.zeros(len(THRESHOLDS), np.int64), np.zeros(1 << 16, np.int64)
    ks, ad = [], []
    for z32 in _tensor(source, seed, signs=False, count=chunks):
        z = np.sort(z32).astype(np.float64)
        lower, upper = special.ndtr(z), special.ndtr(-z)
        deviation = max((rank - lower).max(), (lower - rank).max() + 1 / CHUNK)
        ks.append(float(stats.kstwo.sf(deviation, CHUNK)))
        logs = np.log(lower) + np.log(upper[::-1])
        ad.append(anderson_darling_tail(float(-CHUNK - ((2 * rank - 1 / CHUNK) * logs).sum())))
        power = np.ones_like(z)
        for k in range(1, 7):
            power *= z
            sums[k] += power.sum()
        tails += [np.searchsorted(z, -t) + CHUNK - np.searchsorted(z, t, side="right") for t in THRESHOLDS]
        histogram += np.bincount(sixteen_bits(z32), minlength=1 << 16)
    results = [
        ("Kolmogorov-Smirnov of each 2^20, p-values uniform", _uniform(ks), n),
        ("Anderson-Darling of each 2^20, p-values uniform", _uniform(ad), n),
        ("chi-square, 2^16 cells", float(stats.chisquare(histogram).pvalue), n),
        ("Kolmogorov-Smirnov of all, on 2^16 points", _binned_ks(histogram), n),
    ]
    for k in range(1, 7):
        deviation = math.sqrt((NORMAL_MOMENTS[2 * k] - NORMAL_MOMENTS[k] ** 2) / n)
        results.append((f"mean of z^{k}", _normal((sums[k] / n - NORMAL_MOMENTS[k]) / deviation), n))
    for t, count in zip(THRESHOLDS, tails, strict=True):
        law = stats.binom(n, lattice_tail(t))
        results.append((f"count of |z| > {t}", float(law.sf(count) + law.pmf(count) / 2), n))
    return results


def _binned_ks(histogram: Array) -> float:
    n, cells = histogram.sum(), histogram.size
    deviation = np.abs(np.cumsum(histogram) / n - np.arange(1, cells + 1) / cells).max()
    return float(stats.kstwobign.sf(deviation * math.sqrt(n)))


@njit(cache=True)
def _count_pairs(a, b, table):
    for i in range(a.size):
        table[a[i] >> 11, b[i] >> 11] += 1


def _chi_square(table: Array) -> float:
    return float(stats.chisquare(table.ravel()).pvalue)


def lags(source: Source, seed: int, scale: int) -> list[tuple[str, float, int]]:
    """Chi-square of (z_i, z_(i + lag)) in 32 x 32 cells, and its correlation, on 2**30 / scale elements."""
    tables = {lag: np.zeros((CELLS, CELLS), np.int64) for lag in LAGS}
    products = dict.fromkeys(LAGS, 0.0)
    pairs = dict.fromkeys(LAGS, 0)
    for z in _tensor(source, seed, signs=False, count=1024 // scale):
        cells = sixteen_bits(z)
        for lag in LAGS:
            groups = z.size // (2 * lag)
            both = cells[: groups * 2 * lag].reshape(groups, 2, lag)
            _count_pairs(both[:, 0].ravel(), both[:, 1].ravel(), tables[lag])
            values = z[: groups * 2 * lag].reshape(groups, 2, lag).astype(np.float64)
            products[lag] += float((values[:, 0] * values[:, 1]).sum())
            pairs[lag] += groups * lag
    return [
        result
        for lag in LAGS
        for result in (
            (f"pairs at lag {lag}, chi-square", _chi_square(tables[lag]), pairs[lag]),
            (f"pairs at lag {lag}, correlation", _normal(products[lag] / math.sqrt(pairs[lag])), pairs[lag]),
        )
    ]


def _gaps() -> Iterator[tuple[str, int]]:
    for axis in AXES:
        yield axis, 1
    yield from (
        ("steps", 1 << 8),
        ("steps", 1 << 20),
        ("queries", 1 << 12),
        ("parameters", 1 << 12),
        ("seeds", 1 << 32),
    )


def neighbours(source: Source, seed: int, scale: int) -> list[tuple[str, float, int]]:
    """The same element under two keys: chi-square of the pair, correlation of values and of squares, agreement of
    signs; 2**28 / scale pairs of normals and four times as many pairs of signs."""
    results = []
    for axis, gap in _gaps():
        table, product, squares, agreement = np.zeros((CELLS, CELLS), np.int64), 0.0, 0.0, 0.0
        keys, size = 16384 // scale, 1 << 14
        for i in range(keys):
            # pairs (0, g), (1, g + 1), ... (g - 1, 2 g - 1), (2 g, 3 g), ...: no key twice
            first = i // gap * 2 * gap + i % gap
            pair = [AXES[axis](first, seed), AXES[axis](first + gap, seed)]
            a, b = (source.floats(key, 0, size, signs=False) for key in pair)
            _count_pairs(sixteen_bits(a), sixteen_bits(b), table)
            a, b = a.astype(np.float64), b.astype(np.float64)
            product += float((a * b).sum())
            squares += float(((a * a - 1) * (b * b - 1)).sum()) / 2
            a, b = (source.floats(key, 0, 4 * size, signs=True) for key in pair)
            agreement += float(np.dot(a, b))
        n = keys * size
        name = f"{axis} {gap} apart"
        results += [
            (f"{name}, chi-square", _chi_square(table), n),
            (f"{name}, correlation", _normal(product / math.sqrt(n)), n),
            (f"{name}, correlation of squares", _normal(squares / math.sqrt(n)), n),
            (f"{name}, agreement of signs", _normal(agreement / math.sqrt(4 * n)), 4 * n),
        ]
    return results


def sums(source: Source, seed: int, scale: int) -> list[tuple[str, float, int]]:
    """Laws of sums: rows of 768 elements, and the same element over 256 steps; 2**30 / scale numbers each."""
    rows, squares = [], []
    for z in _tensor(source, seed, signs=False, count=1024 // scale):
        matrix = z[: z.size // 768 * 768].reshape(-1, 768).astype(np.float64)
        rows.append(matrix.sum(1))
        squares.append((matrix * matrix).sum(1))
    by_step = []
    for block in range(256 // scale):
        total = np.zeros(1 << 14)
        for step in range(256):
            total += source.floats(Key(seed, step=256 * block + step, parameter=9), 0, 1 << 14, signs=False)
        by_step.append(total)
    total, n = np.concatenate(by_step), 1024 * CHUNK // scale
    return [
        ("sums of rows of 768", _ks(np.concatenate(rows) / math.sqrt(768), "norm"), n),
        ("sums of squares of rows of 768", _ks(np.concatenate(squares), stats.chi2(768).cdf), n),
        ("sums of an element over 256 steps", _ks(total / 16, "norm"), total.size * 256),
    ]


def _ks(sample: Array, law: Any) -> float:
    return float(stats.kstest(sample, law).pvalue)


def sign_lags(source: Source, seed: int, scale: int) -> list[tuple[str, float, int]]:
    """Balance of 2**33 / scale consecutive signs, and their agreement at lags."""
    lagged = (0, 1, 2, 31, 32, 33, 768, 1024, 4096)
    sums_, count = dict.fromkeys(lagged, 0.0), dict.fromkeys(lagged, 0)
    for s in _tensor(source, seed, signs=True, count=8192 // scale):
        for lag in lagged:
            sums_[lag] += float(np.dot(s[: s.size - lag], s[lag:])) if lag else float(s.sum(dtype=np.float64))
            count[lag] += s.size - lag
    names = {lag: f"signs at lag {lag}, agreement" if lag else "signs, balance" for lag in lagged}
    return [(names[lag], _normal(sums_[lag] / math.sqrt(count[lag])), count[lag]) for lag in lagged]


@njit(cache=True)
def _count_flips(a, b, counts):
    """counts[j, s] += 1 where bit s of word j of a block differs between two spans of Gaussian tiles."""
    for start in range(0, a.size, 256):
        j = start // 256 % 4
        part_a, part_b = a[start : start + 256], b[start : start + 256]
        for s in range(32):
            total = 0
            for i in range(256):
                total += np.int32((part_a[i] ^ part_b[i]) >> np.uint32(s) & np.uint32(1))
            counts[j, s] += total


def _flipped() -> dict[str, Callable[[Key], tuple[Key, int]]]:
    """What is flipped: key -> key with one other bit, and how many tiles further to read."""

    def field(name: str, bit: int) -> Callable[[Key], tuple[Key, int]]:
        return lambda key: (dataclasses.replace(key, **{name: getattr(key, name) ^ 1 << bit}), 0)

    places = [
        (name, bit) for name, top in (("seed", 63), ("step", 31), ("query", 23), ("parameter", 23)) for bit in (0, top)
    ]
    flips = {f"{name} bit {bit}": field(name, bit) for name, bit in [*places, ("seed", 32), ("query", 8)]}
    flips["tag bit 0"] = lambda key: (key.at(tag="V"), 0)
    flips["tag bit 1"] = lambda key: (key.at(tag="a"), 0)
    flips["block bit 32"] = lambda key: (key, 1 << 24)
    flips["block bit 39"] = lambda key: (key, 1 << 31)
    return flips


def flips(source: Source, seed: int, scale: int) -> list[tuple[str, float, int]]:
    """Avalanche: of 2**28 / scale blocks, how often each of the 128 bits changes when one bit of the address does."""
    keys, tiles = 16384 // scale, 64
    results = []
    for name, flip in _flipped().items():
        counts = np.zeros((4, 32), np.int64)
        for i in range(keys):
            key = Key(seed, step=i, query=3 * i % 4096, parameter=i % 64)
            other, further = flip(key)
            _count_flips(source.words(key, 0, tiles), source.words(other, further, tiles), counts)
        n = keys * tiles * 256
        statistic = float((((counts - n / 2) ** 2) / (n / 4)).sum())
        results.append((f"{name} flipped, changes of 128 bits", float(stats.chi2(128).sf(statistic)), n))
    return results


Group = Callable[[Source, int, int], list[tuple[str, float, int]]]
GROUPS: dict[str, Group] = {
    "distribution": distribution,
    "lags": lags,
    "neighbours": neighbours,
    "sums": sums,
    "signs": sign_lags,
    "flips": flips,
}


def run(group: str, source: Source, seed: int, scale: int) -> list[Result]:
    """The p-values of one group; ``words`` counts numbers (or pairs), ``seconds`` the CPU time of the whole group."""
    begin = time.process_time()
    found = GROUPS[group](source, seed, scale)
    seconds = round(time.process_time() - begin, 3)
    return [Result(test=test, p=p, words=n, seconds=seconds) for test, p, n in found]
