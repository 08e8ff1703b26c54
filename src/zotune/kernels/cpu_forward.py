"""What a forward pass with low-rank directions adds to a layer's output, on the CPU.

Libraries of matrix products are several times slower than memory at products with two or three columns, so this sum
has a kernel of its own.  It computes activations, not weights: the order of its additions is free.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from torch import Tensor

from zotune.kernels.cpu_arrays import run

_FREE: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "boundscheck": False,
    "fastmath": {"contract", "nsz"},
}


@njit(**_FREE)
def _add_products(first, last, rows, y, t, u, bias):
    """Rows first..last-1 of y, ``rows`` of them a group: y[i] += sum_k t[i, k] u[group, k] + bias[group]."""
    terms, columns, biased = u.shape[1], y.shape[1], bias.shape[0] > 0
    for i in range(first, last):
        row, group = y[i], i // rows
        factors = u[group]
        k = 0
        if biased and terms >= 2:
            a, b = t[i, 0], t[i, 1]
            u0, u1, own = factors[0], factors[1], bias[group]
            for j in range(columns):
                row[j] += a * u0[j] + b * u1[j] + own[j]
            k = 2
        elif biased:
            own = bias[group]
            for j in range(columns):
                row[j] += own[j]
        while k + 2 <= terms:
            a, b = t[i, k], t[i, k + 1]
            u0, u1 = factors[k], factors[k + 1]
            for j in range(columns):
                row[j] += a * u0[j] + b * u1[j]
            k += 2
        if k < terms:
            a, u0 = t[i, k], factors[k]
            for j in range(columns):
                row[j] += a * u0[j]


def add_products(y: Tensor, t: Tensor, u: Tensor, bias: Tensor | None) -> None:
    """``y[g] += t[g] u[g] + bias[g]``, float32 or float64.

    Shapes: y (G, rows, m) and t (G, rows, K), both contiguous; u (G, K, m); bias (G, m).
    """
    groups, rows, columns = y.shape
    arrays: list[np.ndarray[Any, Any]] = [
        y.view(groups * rows, columns).numpy(),
        t.view(groups * rows, -1).numpy(),
        u.contiguous().numpy(),
    ]
    arrays.append(np.empty((0, columns), arrays[0].dtype) if bias is None else bias.contiguous().numpy())
    run(_add_products, groups * rows, y.numel(), rows, *arrays)
