"""Random numbers for code that draws from the global generators of torch: they are set for it, and given back."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def lent(*key: object, device: torch.device | None = None) -> Iterator[None]:
    """Let the global generators (CPU, and those of a CUDA device) begin with a key for the block.

    They are as before afterwards.  Generators of Python and NumPy are left alone.

    Args:
        key: numbers and texts; the same ones give the same draws.
        device: CUDA device whose generator is set too.
    """
    text = " ".join(map(str, key)).encode()
    seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
    cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for one in cuda:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        yield
