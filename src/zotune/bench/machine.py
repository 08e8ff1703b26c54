"""The machine: what it is called, and how much memory is free."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

import zotune

_CGROUP = Path("/sys/fs/cgroup")


def describe(device: torch.device) -> dict[str, object]:
    """Processor or GPU, versions and threads, for the head of a file of results."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "zotune": zotune.__version__,
        "threads": torch.get_num_threads(),
    }


def processor() -> str:
    """Name of the processor, as far as the system tells it."""
    for key, value in _fields(Path("/proc/cpuinfo")):
        if key == "model name":
            return value
    return platform.processor() or platform.machine()


def free_memory(device: torch.device) -> int | None:
    """Bytes that a program can still take, of the GPU or of the main memory; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [int(value.split()[0]) * 1024 for key, value in _fields(Path("/proc/meminfo")) if key == "MemAvailable"]
    # In a container the limit of its group counts, if it has one ("max": none).
    limit, used = _number(_CGROUP / "memory.max"), _number(_CGROUP / "memory.current")
    if limit is not None and used is not None:
        free.append(max(limit - used, 0))
    return min(free, default=None)


def _fields(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
