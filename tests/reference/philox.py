"""Philox4x32-10 in plain integers and exact float64 numbers on it.

Source: Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".

One round on the words (c0, c1, c2, c3) with round key (k0, k1); `hi` and `lo` are the halves of a 64-bit product:
c0' = hi(M1 c2) ^ c1 ^ k0;   c1' = lo(M1 c2);   c2' = hi(M0 c0) ^ c3 ^ k1;   c3' = lo(M0 c0);
ten rounds, the key raised by (W0, W1) between rounds.

Gaussians: u = ((x0 >> 8) + 1/2) 2^-24, radius sqrt(-2 ln u), angle pi/2 (q + f) with q the top two bits of x1 and f its
other 30 bits as a signed fraction in [-1/2, 1/2) kept to 24 bits; (z0, z1) = radius (cos, sin) of the angle;
(z2, z3) likewise from (x2, x3).
"""

import math

import numpy as np

M0, M1 = 0xD2511F53, 0xCD9E8D57
W0, W1 = 0x9E3779B9, 0xBB67AE85
MASK = 0xFFFFFFFF
Words = tuple[int, int, int, int]


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = M0 * c0, M1 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK, (p0 >> 32) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + W0) & MASK, (k1 + W1) & MASK
    return c0, c1, c2, c3


def angle_fraction(x: int) -> float:
    """The low 30 bits of a word as a signed fraction of a quarter turn, in [-1/2, 1/2), truncated to 24 bits."""
    shifted = (x << 2) & MASK
    signed = shifted - (1 << 32) if shifted >> 31 else shifted
    return (signed >> 8) * 2.0**-24


def gaussian(i: int, words: Words) -> float:
    """Standard normal i (0..3) of the four words of one block."""
    x, y = words[2 * (i // 2)], words[2 * (i // 2) + 1]
    radius = math.sqrt(-2.0 * math.log(((x >> 8) + 0.5) * 2.0**-24))
    angle = math.pi / 2 * ((y >> 30) + angle_fraction(y))
    return radius * (math.cos(angle) if i % 2 == 0 else math.sin(angle))


def block_words(seed: int, block: int, *, parameter: int, step: int, tag: int, query: int) -> Words:
    """Words of one block of one tensor: the seed is the key, the address of the number is the counter.

    Counter words: block, low 32 bits; block, high 8 bits, under 24 bits of parameter; step; 8 bits of tag under 24 bits
    of query.
    """
    counter = (block & MASK, (block >> 32) | (parameter << 8), step, tag | (query << 8))
    return philox4x32(counter, (seed & MASK, seed >> 32))


def normal_at(i: int, seed: int, *, parameter: int, step: int, tag: int, query: int) -> float:
    """Element i (row-major) of a Gaussian tensor: tiles of 1024, word i % 1024 // 256 of block 256 tile + i % 256."""
    words = block_words(seed, 256 * (i // 1024) + i % 256, parameter=parameter, step=step, tag=tag, query=query)
    return gaussian(i % 1024 // 256, words)


def sign_at(i: int, seed: int, *, parameter: int, step: int, tag: int, query: int) -> float:
    """Element i (row-major) of a Rademacher tensor: tiles of 4096, 32 blocks each; a set bit is -1."""
    words = block_words(seed, 32 * (i // 4096) + i % 32, parameter=parameter, step=step, tag=tag, query=query)
    bit = 31 - i % 1024 // 32
    return -1.0 if words[i % 4096 // 1024] >> bit & 1 else 1.0


def normal(shape: tuple[int, ...], seed: int, *, parameter: int, step: int, tag: int, query: int) -> np.ndarray:
    """A whole Gaussian tensor in float64; slow, for small shapes."""
    values = [normal_at(i, seed, parameter=parameter, step=step, tag=tag, query=query) for i in range(math.prod(shape))]
    return np.array(values).reshape(shape)


def rademacher(shape: tuple[int, ...], seed: int, *, parameter: int, step: int, tag: int, query: int) -> np.ndarray:
    """A whole tensor of -1 and +1 in float64; slow, for small shapes."""
    values = [sign_at(i, seed, parameter=parameter, step=step, tag=tag, query=query) for i in range(math.prod(shape))]
    return np.array(values).reshape(shape)
