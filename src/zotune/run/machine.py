"""Where the run computes: the device, the processes that torchrun started, the share of the batch each one takes."""

import dataclasses
import os
from collections.abc import Callable, Collection
from pathlib import Path

import torch
import torch.distributed as dist

from zotune.config import ConfigError, TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """The device of this process and its place among the processes of the run."""

    device: torch.device
    rank: int
    processes: int

    @property
    def first(self) -> bool:
        """True for the one process that writes."""
        return self.rank == 0


def choose_machine(config: TrainConfig, note: Callable[[str], None]) -> Machine:
    """The machine that `config` asks for; `note` takes a line when it is not the one that was named.

    Raises `ConfigError` for a GPU that is not there, or for one where the batch cannot be shared.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    machine = Machine(device=_device(config, processes, note), rank=rank, processes=processes)
    if config.batchsize % processes:
        raise ConfigError(
            f"--batchsize {config.batchsize} cannot be shared equally by {processes} processes; give a multiple."
        )
    if config.fp16 and not config.zeroth_order and machine.device.type == "cpu":
        raise ConfigError(f"--fp16 with {config.algorithm} needs a GPU; give --bf16 or neither on the CPU.")
    if config.backend == "numba" and config.zeroth_order and machine.device.type != "cpu":
        raise ConfigError("--backend numba works on the CPU only; leave --backend out, or give --device cpu.")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if config.backend == "triton" and config.zeroth_order and machine.device.type == "cpu" and not interpreted:
        raise ConfigError("--backend triton works on NVIDIA GPUs only; leave --backend out.")
    return machine


def gpu_for(number: int, given: Collection[str]) -> dict[str, str]:
    """Flags of the run of that number among those side by side: one GPU after the other for each, where there are
    several and ``given``, the flags that it has, names none."""
    count = torch.cuda.device_count()
    return {"device": str(number % count)} if count > 1 and "device" not in given else {}


def _device(config: TrainConfig, processes: int, note: Callable[[str], None]) -> torch.device:
    if config.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if config.device is not None:
            note(f"There is no GPU here, so --device {config.device} runs on the CPU.")
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if processes > 1:
        index = int(os.environ.get("LOCAL_RANK", "0"))
        if config.device is not None:
            note("Every process takes the GPU of its local rank, so --device has no effect.")
    else:
        index = int((config.device or "0").removeprefix("cuda").removeprefix(":") or "0")
    if index >= count:
        raise ConfigError(f"There is no GPU {index}, only {count}; GPUs are numbered from 0.")
    return torch.device("cuda", index)


def connect(machine: Machine) -> None:
    """Join the processes of a torchrun into one group: nccl on GPUs, gloo on CPUs.  Alone: nothing."""
    if machine.processes > 1 and not dist.is_initialized():
        if machine.device.type == "cuda":
            torch.cuda.set_device(machine.device)
        dist.init_process_group("nccl" if machine.device.type == "cuda" else "gloo")


def disconnect() -> None:
    """Leave the group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def agree_on_path(machine: Machine, make: Callable[[], Path]) -> Path:
    """What `make` returns on rank 0, on every rank."""
    path = make() if machine.first else None
    if machine.processes == 1:
        assert path is not None
        return path
    text = os.fsencode(path) if path is not None else b""
    length = torch.tensor([len(text)], device=machine.device)
    dist.broadcast(length, src=0)
    content = torch.zeros(int(length), dtype=torch.uint8, device=machine.device)
    if machine.first:
        content.copy_(torch.tensor(list(text), dtype=torch.uint8))
    dist.broadcast(content, src=0)
    return Path(os.fsdecode(bytes(content.tolist())))


def micro_batch(batch: int, limit: int) -> int:
    """The largest micro-batch up to `limit` that divides `batch`, so that all micro-batches are of one size."""
    return next(size for size in range(min(batch, limit), 0, -1) if batch % size == 0)
