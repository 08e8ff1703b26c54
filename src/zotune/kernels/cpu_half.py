"""bfloat16 and float16 as uint16 in compiled code: reading, and rounding to nearest or stochastically."""

from __future__ import annotations

import numba as nb
import numpy as np
from numba.extending import overload

f32, u16, u32 = np.float32, np.uint16, np.uint32


def load(array, i, bf16):  # noqa: ARG001
    """array[i] as a float of the compute type."""
    raise AssertionError("compiled only")


def round_to(array, value, bf16, stochastic, word):  # noqa: ARG001
    """``value`` as the array stores it; ``word`` holds 32 random bits for stochastic rounding."""
    raise AssertionError("compiled only")


@overload(load)
def _overload_load(array, i, bf16):  # noqa: ARG001
    if array.dtype != nb.types.uint16:
        return lambda array, i, bf16: array[i]  # noqa: ARG005

    def half(array, i, bf16):
        h = u32(array[i])
        if bf16:
            return u32(h << u32(16)).view(f32)
        sign = u32(u32(h & u32(0x8000)) << u32(16))
        # The float16 fields, read as a float32, are 2**-112 times the number, subnormals included.
        scaled = u32(u32(h & u32(0x7FFF)) << u32(13)).view(f32)
        magnitude = f32(scaled * f32(2.0**112)).view(u32)
        if (h & u32(0x7C00)) == u32(0x7C00):
            magnitude = u32(magnitude | u32(0x7F800000))
        return u32(magnitude | sign).view(f32)

    return half


@overload(round_to)
def _overload_round(array, value, bf16, stochastic, word):  # noqa: ARG001
    if array.dtype != nb.types.uint16:
        return lambda array, value, bf16, stochastic, word: value  # noqa: ARG005

    def half(array, value, bf16, stochastic, word):  # noqa: ARG001
        bits = f32(value).view(u32)
        sign = u32(u32(bits & u32(0x80000000)) >> u32(16))
        magnitude = u32(bits & u32(0x7FFFFFFF))
        if magnitude > u32(0x7F800000):  # NaN
            return u16(u32(0x7FC0) | sign) if bf16 else u16(u32(0x7E00) | sign)
        if magnitude == u32(0x7F800000):
            return u16(u32(0x7F80) | sign) if bf16 else u16(u32(0x7C00) | sign)
        if bf16:
            add = word >> u32(16) if stochastic else u32(0x7FFF) + u32((magnitude >> u32(16)) & u32(1))
            return u16(u32(u32(magnitude + add) >> u32(16)) | sign)
        if magnitude < u32(113 << 23):  # subnormal in float16: adding a power of two lines the mantissas up
            if stochastic:
                lifted = f32(u32(magnitude).view(f32) + f32(2.0**-14)).view(u32)
                h = u32(u32(lifted + (word >> u32(19))) >> u32(13)) - u32(113 << 10)
            else:
                h = f32(u32(magnitude).view(f32) + f32(0.5)).view(u32) - u32(126 << 23)
            return u16(u32(h) | sign)
        add = word >> u32(19) if stochastic else u32(0xFFF) + u32((magnitude >> u32(13)) & u32(1))
        h = u32(u32(magnitude + add) >> u32(13)) - u32(112 << 10)
        return u16(min(u32(h), u32(0x7C00)) | sign)

    return half
