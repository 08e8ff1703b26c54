"""What a pass over the weights costs: nanoseconds of process CPU time per weight, one thread.

Sides, alternated in one process, medians: the in-place copy limit (read and write), the eager textbook way of writing
a perturbation (`normal`, then `p + sign * z * eps`), zotune's kernel for 1, 2 and 20 directions of both noises, and for
directions of rank two (their product, in torch's way and in zotune's).

    python benchmarks/passes.py [--weights N] [--rounds N]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from common import arguments, head, parse, save, verdict

from zotune import kernels
from zotune.bench.clock import take_turns
from zotune.noise import Key

TARGETS = {"gaussian 1": 2.5, "rademacher 1": 0.5}
"""ns per weight."""

_COLUMNS = 1024


def sides(weights: int) -> dict[str, tuple[Callable[[], object], int]]:
    """The things to time, each with the number of weights that it covers."""
    w, out = torch.randn(weights // _COLUMNS, _COLUMNS) * 0.02, torch.empty(weights // _COLUMNS, _COLUMNS)
    generator = torch.Generator().manual_seed(0)
    u, vt = torch.randn(w.shape[0], 2), torch.randn(2, _COLUMNS)

    def textbook() -> torch.Tensor:
        z = torch.normal(mean=0.0, std=1.0, size=tuple(w.shape), generator=generator)
        return w + 1 * z * 1e-3

    timed: dict[str, tuple[Callable[[], object], int]] = {
        "copy": (lambda: out.copy_(w), w.numel()),
        "textbook": (textbook, w.numel()),
        "textbook, rank 2": (lambda: w + 1 * (u @ vt) * 1e-3, w.numel()),
        "addmm, rank 2": (lambda: torch.addmm(w, u, vt, alpha=1e-3, out=out), w.numel()),
        "rank 2": (lambda: kernels.combine_rows(out, w, low_rank=(u, vt)), w.numel()),
    }
    for noise in kernels.NOISES:
        for directions in (1, 2, 20):
            # Twenty directions take long; fewer weights give the same figure.
            rows = max(w.shape[0] // 16, 1) if directions == 20 else w.shape[0]
            terms = [(1e-3, Key(1, query=k)) for k in range(directions)]
            timed[f"{noise} {directions}"] = (
                lambda rows=rows, terms=terms, noise=noise: kernels.combine(
                    out[:rows], w[:rows], terms=terms, noise=noise
                ),
                rows * _COLUMNS,
            )
    return timed


def main(words: list[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--weights", type=int, default=1 << 24)
    parser.add_argument("--rounds", type=int, default=9)
    options: argparse.Namespace = parse(parser, words)
    torch.set_num_threads(1)
    timed = sides(1 << 16 if options.quick else options.weights)
    runs = {name: run for name, (run, _) in timed.items()}
    take_turns(runs, clock=time.process_time, rounds=2)  # compile, touch the memory
    samples = take_turns(runs, clock=time.process_time, rounds=options.rounds)
    ns = {name: statistics.median(samples[name]) / size * 1e9 for name, (_, size) in timed.items()}
    rows = [
        {
            "side": name,
            "ns": round(value, 3),
            "copies": round(value / ns["copy"], 2),
            "target": TARGETS.get(name),
            "verdict": verdict(value, TARGETS.get(name)),
        }
        for name, value in ns.items()
    ]
    save("passes", head("ns of process CPU time per weight, one thread"), rows, ("side",), options.results)
    for row in rows:
        target = "" if row["target"] is None else f"   target {row['target']} {row['verdict']}"
        print(f"{row['side']:18} {row['ns']:8.3f} ns   {row['copies']:7.2f} copies{target}")


if __name__ == "__main__":
    main()
