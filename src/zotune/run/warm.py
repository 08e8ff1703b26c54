"""Compiling the kernels before the clock of a run starts."""

import threading
from collections.abc import Callable

import torch
from torch.nn import functional

from zotune import ZerothOrder, kernels
from zotune.hf.trainer import OptimizerFactory

PATIENCE = 3.0
"""Seconds after which the person is told what the wait is for."""


def warm_up(factory: OptimizerFactory, dtype: torch.dtype, device: torch.device, say: Callable[[str], None]) -> None:
    """Two steps of the run's own optimizer on a small matrix, large enough for state of few bits: whatever it needs is
    compiled, or read from the cache."""
    matrix, vector = (torch.nn.Parameter(torch.zeros(shape, dtype=dtype, device=device)) for shape in ((64, 64), (64,)))
    named, ones = [("matrix", matrix), ("vector", vector)], torch.ones(2, 64, dtype=dtype, device=device)
    notice = threading.Timer(PATIENCE, say, ["Preparing the kernels; they are compiled once on this machine ..."])
    notice.start()
    try:
        optimizer = factory([{"params": named, "weight_decay": 0.0}])
        assert isinstance(optimizer, ZerothOrder)
        for _ in range(2):
            optimizer.estimate(lambda: functional.linear(ones, matrix, vector).float().sum())
            optimizer.step()
        kernels.warm_up(dtype, device=device, backend=optimizer.backend)
    finally:
        notice.cancel()
