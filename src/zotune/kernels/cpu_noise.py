"""Noise on the CPU: Philox, Box-Muller and signs in the layout of `zotune.noise`, compiled by numba."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from zotune.kernels.cpu_half import signed

f32, u32, u64, i32 = np.float32, np.uint32, np.uint64, np.int32

INLINE: dict[str, Any] = {
    "inline": "always",
    "cache": True,
}  # numba's own inlining: only then does LLVM vectorise the loops
KERNEL: dict[str, Any] = {"cache": True, "nogil": True, "boundscheck": False, "error_model": "numpy"}

SIGN_TILE = 4096
WORDS = 1024  # what ``word`` must hold


@njit(**INLINE)
def _philox(c0, c1, c2, c3, k0, k1):
    """The words are the low halves of the four numbers: in 64-bit lanes a product needs no shuffle, and the high halves
    do no harm."""
    x0, x1, x2, x3 = c0, c1, c2, c3
    for i in range(10):
        p0 = (x0 & u64(0xFFFFFFFF)) * u64(0xD2511F53)
        p1 = (x2 & u64(0xFFFFFFFF)) * u64(0xCD9E8D57)
        x0, x1, x2, x3 = (
            (p1 >> u64(32)) ^ (x1 ^ (k0 + u64(i) * u64(0x9E3779B9))),
            p1,
            (p0 >> u64(32)) ^ (x3 ^ (k1 + u64(i) * u64(0xBB67AE85))),
            p0,
        )
    return x0, x1, x2, x3


@njit(**KERNEL)
def _fill(word, block, lanes, stride, key):
    """Words of the blocks block..block+lanes-1: word j of block i at ``j * stride + i``."""
    low, c1 = u64(block) & u64(0xFFFFFFFF), (u64(block) >> u64(32)) | u64(key[2])
    k0, k1, c2, c3 = u64(key[0]), u64(key[1]), u64(key[3]), u64(key[4])
    w0, w1, w2, w3 = word[:stride], word[stride : 2 * stride], word[2 * stride : 3 * stride], word[3 * stride :]
    for lane in range(lanes):
        x0, x1, x2, x3 = _philox(low + u64(lane), c1, c2, c3, k0, k1)
        w0[lane], w1[lane], w2[lane], w3[lane] = u32(x0), u32(x1), u32(x2), u32(x3)


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
def _normals(buf, word, lanes, c, add):
    """buf[lane], buf[256 + lane] (+)= c z from the words at the same places."""
    a, b, left, right = word[:256], word[256:512], buf[:256], buf[256:512]
    if add:
        for lane in range(lanes):
            z0, z1 = _box_muller(a[lane], b[lane])
            left[lane] += z0 * c
            right[lane] += z1 * c
    else:
        for lane in range(lanes):
            z0, z1 = _box_muller(a[lane], b[lane])
            left[lane] = z0 * c
            right[lane] = z1 * c


@njit(**KERNEL)
def _normal_tile(buf, word, tile, first, last, keys, c):
    """buf[i] = sum_k c_k z_k for (at least) the elements first..last-1 of a Gaussian tile."""
    lanes = min(256, last)
    for k in range(c.size):
        _fill(word, tile * 256, lanes, 256, keys[k])
        if first < 512:
            _normals(buf, word, lanes, c[k], k > 0)
        if last > 512:
            _normals(buf[512:], word[512:], lanes, c[k], k > 0)


@njit(**KERNEL)
def _signs(buf, word, first, last, c, add):
    """buf[i] (+)= c z for elements of a tile; first and last are multiples of 256.

    Eight bits of 32 words at a time, in one slice: the addresses of eight slices would be compared each time.
    """
    for at in range(first, last, 256):
        part, bits, shift = buf[at : at + 256], word[at // 1024 * 32 : at // 1024 * 32 + 32], u32(at % 1024 // 32)
        if add:
            for lane in range(32):
                x = u32(bits[lane] << shift)
                for i in range(8):
                    part[i * 32 + lane] += signed(c, u32(x << u32(i)))
        else:
            for lane in range(32):
                x = u32(bits[lane] << shift)
                for i in range(8):
                    part[i * 32 + lane] = signed(c, u32(x << u32(i)))


@njit(**KERNEL)
def fill_signs(word, tile, key):
    """The 128 words of a Rademacher tile."""
    _fill(word, tile * 32, 32, 32, key)


@njit(**KERNEL)
def _sign_tile(buf, word, tile, first, last, keys, c):
    """buf[i] = sum_k c_k z_k for (at least) the elements first..last-1 of a Rademacher tile."""
    for k in range(c.size):
        fill_signs(word, tile, keys[k])
        _signs(buf, word, first // 256 * 256, (last + 255) // 256 * 256, c[k], k > 0)


@njit(**KERNEL)
def fill_words(buf, first, count, key):
    """Raw words of the ``count`` Gaussian tiles from tile ``first`` on."""
    for t in range(count):
        _fill(buf[t * 1024 : t * 1024 + 1024], (first + t) * 256, 256, 256, key)


@njit(**KERNEL)
def accumulate(buf, word, start, stop, keys, c, signs):
    """buf[i] = sum_k c_k z_k for elements start..stop-1 and the rest of their tiles, of one term or more.

    Returns:
        Where in buf element ``start`` lies: less than a tile from its beginning.
    """
    tile = 4096 if signs else 1024
    first = start // tile
    for t in range(first, (stop + tile - 1) // tile):
        part = buf[(t - first) * tile : (t - first + 1) * tile]
        low, high = max(start - t * tile, 0), min(stop - t * tile, tile)
        if signs:
            _sign_tile(part, word, t, low, high, keys, c)
        else:
            _normal_tile(part, word, t, low, high, keys, c)
    return start - first * tile
