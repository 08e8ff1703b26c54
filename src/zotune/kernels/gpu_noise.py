"""Noise, reading and rounding on a GPU: the building blocks of the Triton kernels, in the layout of `zotune.noise`.

A program works on ``G`` Gaussian tiles of 1,024 elements, G = 1 or 4.  Its elements are four *quarters*, tensors of
shape (G, 8, 32): element ``1024 g + 256 j + 32 r + c`` of the tiles is number (g, r, c) of quarter j.  So word j of a
Gaussian block belongs to quarter j, both halves of a Box-Muller pair stay in one thread, and the 32 blocks of a
Rademacher tile are broadcast along r.

Nothing here may be fused, approximated or flushed to zero: division and square root are the IEEE ones, and the
kernels are launched with ``enable_fp_fusion=False``.
"""

from __future__ import annotations

import triton
import triton.language as tl

HEADER = tl.constexpr(4)
"""Words before the first term in the table of numbers: decay, and the key of the rounding (three)."""

TERM = tl.constexpr(5)
"""Words of a term: its key (three), its coefficient, its factor."""


@triton.jit
def scalar(bits, COMPUTE: tl.constexpr):
    """The float64 of these bits, rounded to the compute type."""
    return tl.cast(bits, tl.int64).to(tl.float64, bitcast=True).to(COMPUTE)


@triton.jit
def number(table, at, COMPUTE: tl.constexpr):
    """Number ``at`` of the table, in the compute type."""
    return scalar(tl.load(table + at), COMPUTE)


INTERPRETED = tl.constexpr(not isinstance(number, triton.JITFunction))


@triton.jit
def read_key(table, at, parameter):
    """(seed, counter words 1, 2 and 3) of the key at ``at``; its parameter is stored relative to ``parameter``."""
    seed, middle, last = tl.load(table + at), tl.load(table + at + 1), tl.load(table + at + 2)
    c1 = middle.to(tl.uint32) ^ (parameter << 8).to(tl.uint32)
    return seed.to(tl.uint64, bitcast=True), c1, (middle >> 32).to(tl.uint32), last.to(tl.uint32)


@triton.jit
def lanes(G: tl.constexpr):
    """(g, r, c) as uint32, broadcastable to (G, 8, 32)."""
    g = tl.arange(0, G).to(tl.uint32)[:, None, None]
    r = tl.arange(0, 8).to(tl.uint32)[None, :, None]
    return g, r, tl.arange(0, 32).to(tl.uint32)[None, None, :]


@triton.jit
def philox(seed, c0, c1, c2, c3):
    """Four words of each block; as `triton.language.philox`, with one widening product where that takes two."""
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        p0, p1 = c0.to(tl.uint64) * 0xD2511F53, c2.to(tl.uint64) * 0xCD9E8D57
        c0, c2 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0, (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = p1.to(tl.uint32), p0.to(tl.uint32)
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def words(tile, seed, c1, c2, c3, G: tl.constexpr):
    """The random words of the four quarters of tiles G * tile, ..., in the Gaussian layout."""
    g, r, column = lanes(G)
    block = tl.cast(tile, tl.int64) * (256 * G)
    return philox(seed, block.to(tl.uint32) + (g * 256 + r * 32 + column), (block >> 32).to(tl.uint32) | c1, c2, c3)


@triton.jit
def log(u):
    """Natural logarithm of float32 numbers in (0, 1]; see `zotune.kernels.reference`."""
    b = u.to(tl.int32, bitcast=True)
    e = (b - 0x3F3504F3) >> 23
    x = (b - (e << 23)).to(tl.float32, bitcast=True) - 1.0
    p = x * 7.0376836292e-2 - 1.1514610310e-1
    p = p * x + 1.1676998740e-1
    p = p * x - 1.2420140846e-1
    p = p * x + 1.4249322787e-1
    p = p * x - 1.6668057665e-1
    p = p * x + 2.0000714765e-1
    p = p * x - 2.4999993993e-1
    p = p * x + 3.3333331174e-1
    xx = x * x
    p = p * x * xx
    p = p - xx * 0.5
    return x + p + e.to(tl.float32) * 0.69314718056


@triton.jit
def flip(x, bits):
    """``x`` with its sign changed where the top bit is set."""
    return (x.to(tl.uint32, bitcast=True) ^ (bits & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def box_muller(a, b):
    """Two normals from two words."""
    u = ((a >> 8).to(tl.int32).to(tl.float32) + 0.5) * 5.9604644775390625e-8
    radius = tl.sqrt_rn(log(u) * -2.0)
    f = ((b << 2).to(tl.int32, bitcast=True) >> 8).to(tl.float32) * 5.9604644775390625e-8
    f2 = f * f
    s = f2 * -0.004681754135318687 + 0.07969262624616703
    s = s * f2 - 0.6459640975062462
    s = s * f2 + 1.5707963267948966
    s = s * f
    c = f2 * 0.0009192602748394265 - 0.020863480763352960
    c = c * f2 + 0.25366950790104797
    c = c * f2 - 1.2337005501361697
    c = c * f2 + 1.0
    odd = (b & 0x40000000) != 0
    sin, cos = tl.where(odd, c, s), tl.where(odd, s, c)
    return radius * flip(cos, b ^ (b << 1)), radius * flip(sin, b)


@triton.jit
def sign(x, r, j: tl.constexpr):
    """+1 or -1 by bit 31 - 8 j - r."""
    return (((x << (r + 8 * j)) & 0x80000000) | 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit
def draw(tile, seed, c1, c2, c3, G: tl.constexpr, SIGNS: tl.constexpr):
    """The four quarters of noise of tiles G * tile, ..., float32."""
    if SIGNS:
        g, r, column = lanes(G)
        first = tl.cast(tile, tl.int64) * G
        block = first // 4 * 32
        x0, x1, x2, x3 = philox(seed, block.to(tl.uint32) + column, (block >> 32).to(tl.uint32) | c1, c2, c3)
        word = (first % 4).to(tl.uint32) + g
        x = tl.where(word == 0, x0, tl.where(word == 1, x1, tl.where(word == 2, x2, x3)))
        return sign(x, r, 0), sign(x, r, 1), sign(x, r, 2), sign(x, r, 3)
    else:
        x0, x1, x2, x3 = words(tile, seed, c1, c2, c3, G)
        z0, z1 = box_muller(x0, x1)
        z2, z3 = box_muller(x2, x3)
        return z0, z1, z2, z3


@triton.jit
def minus_zero(G: tl.constexpr, COMPUTE: tl.constexpr):
    """-0, which added to anything leaves its bits: where sums begin."""
    if COMPUTE == tl.float64:  # noqa: SIM300
        return tl.full((G, 8, 32), 0x8000000000000000, tl.uint64).to(tl.float64, bitcast=True)
    else:
        return tl.full((G, 8, 32), 0x80000000, tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def divide_by_root(x, h):
    """x / sqrt(h), both rounded to nearest."""
    if x.dtype == tl.float64:
        return x / tl.sqrt(h)
    else:
        return tl.div_rn(x, tl.sqrt_rn(h))


# ------------------------------------------------------------------------------------------------ half precision


@triton.jit
def read(pointers, mask, COMPUTE: tl.constexpr, OTHER: tl.constexpr = 0):
    """Load in the compute type, OTHER outside the mask."""
    x = tl.load(pointers, mask=mask, other=OTHER)
    if x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(COMPUTE)


@triton.jit
def to_bfloat16(x):
    """Rounded to nearest, ties to even.  Triton's interpreter does not round ties to even; a GPU's instruction does."""
    if INTERPRETED:
        bits = x.to(tl.uint32, bitcast=True)
        half = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        half = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, (bits >> 16) | 0x40, half)
        return half.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(tl.bfloat16)


@triton.jit
def write(pointers, x, mask):
    """Store ``x`` rounded to nearest."""
    if pointers.dtype.element_ty == tl.bfloat16:
        tl.store(pointers, to_bfloat16(x), mask=mask)
    else:
        tl.store(pointers, x.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def write_stochastic(pointers, x, word, mask):
    """Store ``x`` rounded up or down to a half-precision number by the bits of ``word``; NaN and infinity stay."""
    bits = x.to(tl.uint32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    if pointers.dtype.element_ty == tl.bfloat16:
        half = (magnitude + (word >> 16)) >> 16
        special = to_bfloat16(x)
    else:
        # Below 2**-14 the spacing of float16 is constant: adding 2**-14 lines the mantissa up with it.
        small = magnitude < 0x38800000
        lifted = (magnitude.to(tl.float32, bitcast=True) + 6.103515625e-05).to(tl.uint32, bitcast=True)
        half = (tl.where(small, lifted, magnitude) + (word >> 19)) >> 13
        half = half - tl.where(small, 0x1C400, 0x1C000).to(tl.uint32)
        half = tl.where(half > 0x7C00, 0x7C00, half)
        special = x.to(tl.float16)
    rounded = (half | (bits >> 31 << 15)).to(tl.uint16).to(pointers.dtype.element_ty, bitcast=True)
    tl.store(pointers, tl.where(magnitude >= 0x7F800000, special, rounded), mask=mask)
