"""The last part of every kernel on the CPU: what has been summed meets the weights and is rounded."""

from __future__ import annotations

import numpy as np
from numba import njit

from zotune.kernels.cpu_half import load, nearest, stochastic
from zotune.kernels.cpu_noise import INLINE, KERNEL, fill_words

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
