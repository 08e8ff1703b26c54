"""What a pass over the weights costs: nanoseconds of process CPU time per weight, one thread.

Sides, alternated in one process, medians: the in-place copy limit (read and write), the eager textbook way of writing a
perturbation (`normal`, then `p + scale * z * eps`), and zotune's kernel for 1, 2 and 20 directions of both noises.

    python benchmarks/passes.py [--weights N] [--rounds N]
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from zotune import kernels
from zotune.noise import Key

RESULTS = Path(__file__).parent / "results" / "passes.json"


def sides(weights: int) -> dict[str, tuple[Callable[[], object], int]]:
    """The things to time, each with the factor by which it covers fewer weights than asked for."""
    w, out = torch.randn(weights) * 0.02, torch.empty(weights)
    few = max(weights // 20, 1)
    generator = torch.Generator().manual_seed(0)

    def textbook() -> torch.Tensor:
        z = torch.normal(mean=0.0, std=1.0, size=(weights,), generator=generator)
        return w + 1 * z * 1e-3

    timed: dict[str, tuple[Callable[[], object], int]] = {
        "copy": (lambda: out.copy_(w), weights),
        "textbook": (textbook, weights),
    }
    for noise in kernels.NOISES:
        for directions in (1, 2, 20):
            size = few if directions == 20 else weights
            terms = [(1e-3, Key(1, query=k)) for k in range(directions)]
            timed[f"{noise} {directions}"] = (
                lambda size=size, terms=terms, noise=noise: kernels.combine(
                    out[:size], w[:size], terms=terms, noise=noise
                ),
                size,
            )
    return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=int, default=1 << 24)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    timed = sides(options.weights)
    for run, _ in timed.values():
        run()  # compile, touch the memory
    samples: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(options.rounds):
        for name, (run, size) in timed.items():
            begin = time.process_time()
            run()
            samples[name].append((time.process_time() - begin) / size * 1e9)
    medians = {name: round(statistics.median(values), 3) for name, values in samples.items()}
    machine = {"processor": processor(), "python": platform.python_version(), "torch": torch.__version__, "threads": 1}
    RESULTS.parent.mkdir(exist_ok=True)
    report = {"unit": "ns of CPU time per weight", "weights": options.weights, "machine": machine, "median": medians}
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    for name, value in medians.items():
        print(f"{name:15} {value:8.3f} ns   {value / medians['textbook']:6.3f} of the textbook way")


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
