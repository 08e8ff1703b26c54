"""The last part of every kernel on the CPU: what has been summed meets the weights and is rounded."""

from __future__ import annotations

import numpy as np
from numba import njit

from zotune.kernels.cpu_half import load, nearest, signed, stochastic
from zotune.kernels.cpu_noise import INLINE, KERNEL, SIGN_TILE, fill_signs, fill_words

u32 = np.uint32
TILE = 4096  # elements worked on at a time: four Gaussian tiles or one Rademacher tile
NOTHING, OWN, OTHER = 0, 1, 2  # what ``w`` is: nothing, ``out`` itself, or another array


@njit(**INLINE)
def _write_nearest(out, w, decay, buf):
    for i in range(out.size):
        out[i] = nearest(out, load(w, i) * decay + buf[i])


@njit(**INLINE)
def _write_stochastic(out, w, decay, buf, word):
    for i in range(out.size):
        out[i] = stochastic(out, load(w, i) * decay + buf[i], word[i])


@njit(**KERNEL)
def write(out, w, source, decay, buf, rounded, key, start):
    """out = round(w * decay + buf) for TILE elements at most; element 0 is element ``start`` of the whole tensor.

    Each source has a loop of its own: one that reads and writes the same array is vectorised only if it names it once.
    """
    if rounded:
        first = start // 1024
        count = (start + out.size + 1023) // 1024 - first
        words = np.empty(count * 1024, u32)
        fill_words(words, first, count, key)
        word = words[start - first * 1024 :]
        if source == OWN:
            _write_stochastic(out, out, decay, buf, word)
        elif source == OTHER:
            _write_stochastic(out, w, decay, buf, word)
        else:
            for i in range(out.size):
                out[i] = stochastic(out, buf[i], word[i])
    elif source == OWN:
        _write_nearest(out, out, decay, buf)
    elif source == OTHER:
        _write_nearest(out, w, decay, buf)
    else:
        for i in range(out.size):
            out[i] = nearest(out, buf[i])


@njit(**KERNEL)
def fill_neutral(buf, source):
    """What leaves the bits of w * decay when it is added: -0; without w, +0."""
    buf[:] = 0.0 if source == NOTHING else -0.0


@njit(**KERNEL)
def _write_signs(out, w, decay, word, c):
    """Eight bits of 32 words at a time, in one slice: the addresses of eight slices would be compared each time."""
    for at in range(0, SIGN_TILE, 256):
        bits, shift = word[at // 1024 * 32 : at // 1024 * 32 + 32], u32(at % 1024 // 32)
        part, w_part = out[at : at + 256], w[at : at + 256]
        for lane in range(32):
            x = u32(bits[lane] << shift)
            for i in range(8):
                j = i * 32 + lane
                part[j] = nearest(part, load(w_part, j) * decay + signed(c, u32(x << u32(i))))


@njit(**KERNEL)
def _write_own_signs(out, decay, word, c):
    for at in range(0, SIGN_TILE, 256):
        bits, shift, part = word[at // 1024 * 32 : at // 1024 * 32 + 32], u32(at % 1024 // 32), out[at : at + 256]
        for lane in range(32):
            x = u32(bits[lane] << shift)
            for i in range(8):
                j = i * 32 + lane
                part[j] = nearest(part, load(part, j) * decay + signed(c, u32(x << u32(i))))


@njit(**KERNEL)
def write_signs(out, w, source, decay, word, tile, key, c):
    """out = round(w * decay + c z) for whole Rademacher tiles, of signs that never lie in memory as numbers."""
    for at in range(0, out.size, SIGN_TILE):
        fill_signs(word, tile + at // SIGN_TILE, key)
        if source == OWN:
            _write_own_signs(out[at : at + SIGN_TILE], decay, word, c)
        else:
            _write_signs(out[at : at + SIGN_TILE], w[at : at + SIGN_TILE], decay, word, c)
