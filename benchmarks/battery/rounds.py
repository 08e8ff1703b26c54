"""The time that fewer rounds of Philox would save: nanoseconds of process CPU time per weight, one thread.

Two sides: the noise alone, added into a buffer that stays in the first cache, and the whole pass w -> w + c z over
float32 weights in memory, in place.  All variants alternate in one process; medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import variants

from zotune.kernels import cpu, cpu_noise
from zotune.noise import NOISES, Key

ROUNDS = (10, 7, 6, 5)
PASS, TILES = 1 << 22, 256


def _sides() -> dict[str, tuple[Callable[[], object], int]]:
    w = torch.full((PASS,), 0.02)
    buffer, one = np.zeros(2 * 4096, np.float32), np.ones(1, np.float32)
    scratch = np.empty(cpu_noise.WORDS, np.uint32)
    row = np.array([Key(1, step=2).words()], np.uint32)
    timed: dict[str, tuple[Callable[[], object], int]] = {}
    for count in ROUNDS:
        variant = variants.rounds(count)
        noise_module = cpu_noise if count == 10 else variants.noise_module(variant)
        pass_module = cpu if count == 10 else variants.pass_module(variant)
        for noise in NOISES:
            signs = noise == "rademacher"

            def alone(module=noise_module, signs=signs) -> None:
                for tile in range(TILES):
                    module.accumulate(buffer, scratch, tile * 4096, tile * 4096 + 4096, row, one, signs)

            def whole(module=pass_module, noise=noise) -> None:
                module.combine(
                    w,
                    w,
                    decay=1.0,
                    terms=[(1e-9, Key(1, step=2))],
                    noise=noise,
                    precision=None,
                    dense=None,
                    rounding=None,
                    start=0,
                    rows=None,
                )

            timed[f"{noise}, noise alone, {count} rounds"] = (alone, TILES * 4096)
            timed[f"{noise}, whole pass, {count} rounds"] = (whole, PASS)
    return timed


def measure(repeats: int = 15) -> dict[str, float]:
    """Median ns per weight of every side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    timed = _sides()
    for run, _ in timed.values():
        run()  # compile, touch the memory
    samples: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(repeats):
        for name, (run, size) in timed.items():
            begin = time.process_time()
            run()
            samples[name].append((time.process_time() - begin) / size * 1e9)
    torch.set_num_threads(threads)
    return {name: round(statistics.median(values), 4) for name, values in samples.items()}
