"""Reading, rounding and signing numbers in compiled code.

Half precision travels as integers: bfloat16 as int16, float16 as uint16, so that the array's type alone says what the
bits mean.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numba.extending import overload

f32, f64, u16, i16, u32, u64 = np.float32, np.float64, np.uint16, np.int16, np.uint32, np.uint64


def load(array, i):  # noqa: ARG001
    """array[i] as a float of the compute type."""
    raise AssertionError("compiled only")


def nearest(array, value):  # noqa: ARG001
    """``value`` as the array stores it, rounded to nearest."""
    raise AssertionError("compiled only")


def stochastic(array, value, word):  # noqa: ARG001
    """The same, rounded up or down by the 32 random bits of ``word``."""
    raise AssertionError("compiled only")


def signed(c, word):  # noqa: ARG001
    """``-c`` where the leftmost bit of a 32-bit word is set, otherwise ``c``."""
    raise AssertionError("compiled only")


@overload(signed, inline="always")
def _overload_signed(c, word):  # noqa: ARG001
    # The sign bit is exchanged; a choice between c and -c would be made in lanes of 64 bits, at twice the time.
    if c == nb.types.float32:
        return lambda c, word: u32(u32(word & u32(0x80000000)) ^ f32(c).view(u32)).view(f32)
    return lambda c, word: u64(u64(u64(word & u32(0x80000000)) << u64(32)) ^ f64(c).view(u64)).view(f64)


@overload(load)
def _overload_load(array, i):  # noqa: ARG001
    if array.dtype == nb.types.int16:
        return lambda array, i: u32(u32(u16(array[i])) << u32(16)).view(f32)
    if array.dtype != nb.types.uint16:
        return lambda array, i: array[i]

    def half(array, i):
        h = u32(array[i])
        sign = u32(u32(h & u32(0x8000)) << u32(16))
        # The float16 fields, read as a float32, are 2**-112 times the number, subnormals included.
        scaled = u32(u32(h & u32(0x7FFF)) << u32(13)).view(f32)
        magnitude = f32(scaled * f32(2.0**112)).view(u32)
        special = u32(0x7F800000) if (h & u32(0x7C00)) == u32(0x7C00) else u32(0)
        return u32(u32(magnitude | special) | sign).view(f32)

    return half


@overload(nearest)
def _overload_nearest(array, value):  # noqa: ARG001
    if array.dtype == nb.types.int16:

        def bfloat(array, value):  # noqa: ARG001
            bits = f32(value).view(u32)
            up = u32(0x7FFF) + u32((bits >> u32(16)) & u32(1))
            h = u32(u32(bits + up) >> u32(16))  # infinity stays
            nan = u32(bits & u32(0x7FFFFFFF)) > u32(0x7F800000)
            return i16(u16(u32(0x7FC0) if nan else h))

        return bfloat
    if array.dtype != nb.types.uint16:
        return lambda array, value: value  # noqa: ARG005

    def half(array, value):  # noqa: ARG001
        bits = f32(value).view(u32)
        magnitude = u32(bits & u32(0x7FFFFFFF))
        # subnormal in float16: adding a power of two lines the mantissas up
        small = u32(f32(magnitude.view(f32) + f32(0.5)).view(u32) - u32(126 << 23))
        up = u32(0xFFF) + u32((magnitude >> u32(13)) & u32(1))
        large = u32(u32(u32(magnitude + up) >> u32(13)) - u32(112 << 10))
        large = large if large < u32(0x7C00) else u32(0x7C00)
        h = small if magnitude < u32(113 << 23) else large
        h = h if magnitude <= u32(0x7F800000) else u32(0x7E00)
        return u16(h | u32(u32(bits >> u32(16)) & u32(0x8000)))

    return half


@overload(stochastic)
def _overload_stochastic(array, value, word):  # noqa: ARG001
    if array.dtype == nb.types.int16:

        def bfloat(array, value, word):  # noqa: ARG001
            bits = f32(value).view(u32)
            h = u32(u32(bits + u32(word >> u32(16))) >> u32(16))  # infinity stays
            nan = u32(bits & u32(0x7FFFFFFF)) > u32(0x7F800000)
            return i16(u16(u32(0x7FC0) if nan else h))

        return bfloat
    if array.dtype != nb.types.uint16:
        return lambda array, value, word: value  # noqa: ARG005

    def half(array, value, word):  # noqa: ARG001
        bits = f32(value).view(u32)
        magnitude = u32(bits & u32(0x7FFFFFFF))
        lifted = f32(magnitude.view(f32) + f32(2.0**-14)).view(u32)
        small = u32(u32(u32(lifted + u32(word >> u32(19))) >> u32(13)) - u32(113 << 10))
        large = u32(u32(u32(magnitude + u32(word >> u32(19))) >> u32(13)) - u32(112 << 10))
        large = large if large < u32(0x7C00) else u32(0x7C00)
        h = small if magnitude < u32(113 << 23) else large
        h = h if magnitude < u32(0x7F800000) else u32(0x7C00)
        h = h if magnitude <= u32(0x7F800000) else u32(0x7E00)
        return u16(h | u32(u32(bits >> u32(16)) & u32(0x8000)))

    return half
