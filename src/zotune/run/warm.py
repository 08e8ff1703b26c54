"""Compiling the kernels before the clock of a run starts."""

import itertools
import threading
from collections.abc import Callable

import torch

from zotune import ZerothOrder, kernels
from zotune.hf.trainer import OptimizerFactory

PATIENCE = 3.0
"""Seconds after which the person is told what the wait is for."""


def warm_up(factory: OptimizerFactory, dtype: torch.dtype, say: Callable[[str], None]) -> None:
    """Two steps of the run's own optimizer on six numbers: whatever it needs is compiled, or read from the cache."""
    matrix, vector = torch.zeros(2, 2, dtype=dtype), torch.zeros(2, dtype=dtype)
    named = [("matrix", torch.nn.Parameter(matrix)), ("vector", torch.nn.Parameter(vector))]
    notice = threading.Timer(PATIENCE, say, ["Preparing the kernels; they are compiled once on this machine ..."])
    notice.start()
    try:
        optimizer = factory([{"params": named, "weight_decay": 0.0}])
        assert isinstance(optimizer, ZerothOrder)
        losses = itertools.count()
        for _ in range(2):
            optimizer.estimate(lambda: float(next(losses)))
            optimizer.step()
        kernels.warm_up(dtype)
    finally:
        notice.cancel()
