"""Peak memory of a piece of work.

On a GPU it is the largest sum of allocated tensors.  On the CPU it is the largest resident set of the process, which
Linux keeps (VmHWM) and sets back on request.  The C library keeps freed memory for later use, so the resident set at
the start can hold what earlier work has left behind; it is asked to return that first (malloc_trim), otherwise a
peak would depend on what ran before.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def peak_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """Largest memory in bytes while ``run`` works, what was there before included; None where it cannot be told."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device))
    _trim()
    try:
        _RESET.write_text("5")
    except OSError:
        return None
    run()
    return status_bytes("VmHWM")


def resident_bytes(device: torch.device) -> int | None:
    """Memory in use now: allocated tensors on a GPU, the resident set of the process on the CPU."""
    gc.collect()
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    _trim()
    return status_bytes("VmRSS")


def _trim() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc; other C libraries have none
    if trim is not None:
        trim(0)


def status_bytes(key: str) -> int | None:
    """An entry of Linux's account of this process; None elsewhere."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":")), None)
