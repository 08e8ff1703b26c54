"""Noise on the CPU: Philox, Box-Muller and signs in the layout of `zotune.noise`, compiled by numba."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

f32, u32, u64, i32 = np.float32, np.uint32, np.uint64, np.int32

INLINE: dict[str, Any] = {
    "inline": "always",
    "cache": True,
}  # numba's own inlining: only then does LLVM vectorise the loops
KERNEL: dict[str, Any] = {"cache": True, "nogil": True, "boundscheck": False, "error_model": "numpy"}


@njit(**INLINE)
def _philox(c0, c1, c2, c3, k0, k1):
    x0, x1, x2, x3 = u32(c0), u32(c1), u32(c2), u32(c3)
    for _ in range(10):
        p0 = u64(x0) * u64(0xD2511F53)
        p1 = u64(x2) * u64(0xCD9E8D57)
        x0, x1, x2, x3 = (
            u32(u32(p1 >> u64(32)) ^ x1 ^ k0),
            u32(p1 & u64(0xFFFFFFFF)),
            u32(u32(p0 >> u64(32)) ^ x3 ^ k1),
            u32(p0 & u64(0xFFFFFFFF)),
        )
        k0 = u32(k0 + u32(0x9E3779B9))
        k1 = u32(k1 + u32(0xBB67AE85))
    return x0, x1, x2, x3


@njit(**INLINE)
def _log(u):
    b = f32(u).view(i32)
    e = i32(i32(b - i32(0x3F3504F3)) >> i32(23))
    x = i32(b - i32(e << i32(23))).view(f32) - f32(1)
    p = x * f32(7.0376836292e-2) + f32(-1.1514610310e-1)
    p = p * x + f32(1.1676998740e-1)
    p = p * x + f32(-1.2420140846e-1)
    p = p * x + f32(1.4249322787e-1)
    p = p * x + f32(-1.6668057665e-1)
    p = p * x + f32(2.0000714765e-1)
    p = p * x + f32(-2.4999993993e-1)
    p = p * x + f32(3.3333331174e-1)
    xx = x * x
    p = p * x * xx
    p = p - xx * f32(0.5)
    return x + p + f32(e) * f32(0.69314718056)


@njit(**INLINE)
def _box_muller(a, b):
    u = (f32(i32(u32(a >> u32(8)))) + f32(0.5)) * f32(2.0**-24)
    r = f32(math.sqrt(_log(u) * f32(-2.0)))
    f = f32(i32(i32(u32(b << u32(2))) >> i32(8))) * f32(2.0**-24)
    f2 = f * f
    s = f2 * f32(-0.004681754135318687) + f32(0.07969262624616703)
    s = s * f2 + f32(-0.6459640975062462)
    s = s * f2 + f32(1.5707963267948966)
    s = s * f
    c = f2 * f32(0.0009192602748394265) + f32(-0.020863480763352960)
    c = c * f2 + f32(0.25366950790104797)
    c = c * f2 + f32(-1.2337005501361697)
    c = c * f2 + f32(1.0)
    quadrant = u32(b >> u32(30))
    odd = (quadrant & u32(1)) != 0
    sin = c if odd else s
    cos = s if odd else c
    sin = -sin if (quadrant & u32(2)) != 0 else sin
    cos = -cos if (u32(quadrant + u32(1)) & u32(2)) != 0 else cos
    return r * cos, r * sin


@njit(**KERNEL)
def _add_gaussian(buf, at, tile, lanes, key, c):
    """buf[at + i] += c * z for the first elements of one Gaussian tile; ``lanes`` < 256 when fewer elements are
    wanted."""
    block = tile * 256
    low = u32(block & 0xFFFFFFFF)
    c1 = u32(u32(block >> 32) | key[2])
    k0, k1, c2, c3 = key[0], key[1], key[3], key[4]
    b0, b1, b2, b3 = buf[at : at + 256], buf[at + 256 : at + 512], buf[at + 512 : at + 768], buf[at + 768 : at + 1024]
    for lane in range(lanes):
        x0, x1, x2, x3 = _philox(u32(low + u32(lane)), c1, c2, c3, k0, k1)
        z0, z1 = _box_muller(x0, x1)
        z2, z3 = _box_muller(x2, x3)
        b0[lane] += z0 * c
        b1[lane] += z1 * c
        b2[lane] += z2 * c
        b3[lane] += z3 * c


@njit(**KERNEL)
def _add_rademacher(buf, at, tile, key, c):
    """buf[at + i] += +-c for the 4,096 elements of one Rademacher tile."""
    block = tile * 32
    low = u32(block & 0xFFFFFFFF)
    c1 = u32(u32(block >> 32) | key[2])
    bits = np.empty(128, u32)
    for lane in range(32):
        x0, x1, x2, x3 = _philox(u32(low + u32(lane)), c1, key[3], key[4], key[0], key[1])
        bits[lane], bits[32 + lane], bits[64 + lane], bits[96 + lane] = x0, x1, x2, x3
    for word in range(4):
        for bit in range(32):
            row = buf[at + word * 1024 + bit * 32 : at + word * 1024 + bit * 32 + 32]
            for lane in range(32):
                flip = i32(u32(u32(bits[word * 32 + lane] << u32(bit)) >> u32(31)))
                row[lane] += c * f32(i32(1) - i32(2) * flip)


@njit(**KERNEL)
def fill_words(buf, first, count, key):
    """Raw words of the ``count`` Gaussian tiles from tile ``first`` on."""
    for t in range(count):
        block = (first + t) * 256
        low = u32(block & 0xFFFFFFFF)
        c1 = u32(u32(block >> 32) | key[2])
        tile = buf[t * 1024 : t * 1024 + 1024]
        k0, k1, c2, c3 = key[0], key[1], key[3], key[4]
        for lane in range(256):
            x0, x1, x2, x3 = _philox(u32(low + u32(lane)), c1, c2, c3, k0, k1)
            tile[lane], tile[256 + lane], tile[512 + lane], tile[768 + lane] = x0, x1, x2, x3


@njit(**KERNEL)
def accumulate(buf, start, stop, keys, c, signs):
    """buf[i] = sum_k c_k z_k for elements start..stop-1 and the rest of their tiles; start lies ``start - origin``
    into buf."""
    if signs:
        first, last = start // 4096, (stop + 4095) // 4096
        buf[: (last - first) * 4096] = 0
        for k in range(c.size):
            for t in range(first, last):
                _add_rademacher(buf, (t - first) * 4096, t, keys[k], c[k])
        return start - first * 4096
    first, last = start // 1024, (stop + 1023) // 1024
    buf[: (last - first) * 1024] = 0
    for k in range(c.size):
        for t in range(first, last):
            _add_gaussian(buf, (t - first) * 1024, t, min(256, stop - t * 1024), keys[k], c[k])
    return start - first * 1024
