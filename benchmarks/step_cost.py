"""What a training step costs over its forward passes: step / (K x forward of the same batch).

One process, one thread, process CPU time.  For each method the sides take turns: a bare forward pass, zotune with
either noise, the textbook way (`eager.py`).  Each step is divided by K times the mean of the forward passes just
before and just after its round; given are the median and the quartiles over the rounds.  The first steps, in which
zotune watches what the model reads, are not counted; of later steps, it watches one query of a few.

MeZO-SVRG is measured between two snapshots (K = 4).  Beside the methods stands what bounds stacked queries from below:
two copies of the batch in one forward pass over two forward passes.

    python benchmarks/step_cost.py [--methods MeZO LOREN ...] [--sizes 8x64 ...] [--head vocabulary] [--rounds N]

Rows are added to `results/step_cost.json`; rows measured again are replaced.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from common import arguments, build, head, parse, save, verdict
from eager import TEXTBOOK

from zotune.bench.clock import ratio, take_turns
from zotune.bench.variants import Variant, variants
from zotune.bench.workload import Workload

TARGETS = {
    ("MeZO", "gaussian", "8x64"): 1.28,
    ("MeZO", "rademacher", "8x64"): 1.06,
    ("HiZOO", "gaussian", "8x64"): 1.30,
    ("LOREN", "gaussian", "8x64"): 1.40,
    ("LOREN", "rademacher", "8x64"): 1.10,
    ("LOZO", "gaussian", "1x64"): 0.92,
    ("LOZO", "gaussian", "4x64"): 1.0,
    ("LOZO", "gaussian", "16x64"): 1.05,
}
"""(method, noise, rows x length) -> largest step / (K x forward), with the classification head."""

DOUBLED = "two batches in one forward"

KEYS = ("head", "size", "method", "noise")
NOISES = ("gaussian", "rademacher")


Runs = dict[str, Callable[[], object]]


def sides_of(variant: Variant, work: Workload) -> tuple[Runs, Runs]:
    """The sides of one method, warmed up: the two noises by their names, and "textbook" where there is one; and what is
    to be done before a side, not timed."""
    short = work.shortened()
    sides: Runs = {"forward": work.forward}
    before: Runs = {}
    for noise in NOISES:
        optimizer = variant.optimizer(work.model, noise=noise)
        variant.prepare(optimizer, short, work)
        sides[noise] = lambda optimizer=optimizer: variant.run(optimizer, work)
        before[noise] = lambda optimizer=optimizer: variant.settle(optimizer, short)
    if variant.title in TEXTBOOK:
        eager = TEXTBOOK[variant.title](list(work.model.parameters()))
        eager.step(short.loss)
        sides["textbook"] = lambda: eager.step(work.loss)
    work.forward()
    return sides, before


def measure(variant: Variant, work: Workload, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each side of one method."""
    size = work.size.replace(" ", "")
    sides, before = sides_of(variant, work)
    samples = take_turns(sides, clock=time.process_time, rounds=options.rounds, seconds=options.seconds, before=before)
    rows = []
    for side in sides:
        if side == "forward":
            continue
        middle, low, high = ratio(samples, side, "forward", variant.queries)
        target = TARGETS.get((variant.title, side, size)) if options.head == "class" else None
        rows.append(
            {
                "head": options.head,
                "size": size,
                "method": variant.title,
                "noise": side,
                "queries": variant.queries,
                "ratio": round(middle, 3),
                "quartiles": [round(low, 3), round(high, 3)],
                "forward_ms": round(sorted(samples["forward"])[len(samples["forward"]) // 2] * 1e3, 1),
                "rounds": len(samples[side]),
                "target": target,
                "verdict": verdict(round(middle, 3), target),
            }
        )
    return rows


def doubled(work: Workload, options: argparse.Namespace) -> dict[str, Any]:
    """The row of two copies of the batch in one forward pass."""
    with torch.no_grad():
        sides: Runs = {"forward": work.forward, "doubled": work.doubled().forward}
        samples = take_turns(sides, clock=time.process_time, rounds=options.rounds + 1, seconds=options.seconds)
    middle, low, high = ratio({name: times[1:] for name, times in samples.items()}, "doubled", "forward", 2)
    return {
        "head": options.head,
        "size": work.size.replace(" ", ""),
        "method": DOUBLED,
        "noise": "none",
        "queries": 2,
        "ratio": round(middle, 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "rounds": options.rounds,
        "target": None,
        "verdict": "",
    }


def keep(size: str, rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Save and print rows."""
    save("step_cost", head("step / (K x forward), process CPU time, one thread"), rows, KEYS, options.results)
    for row in rows:
        target = "" if row["target"] is None else f"   target {row['target']:.2f} {row['verdict']}"
        print(f"{size:6} {row['method']:27} {row['noise']:11} {row['ratio']:6.3f}{target}")


def main(words: list[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--methods", nargs="+", help="titles of the methods; left out: all")
    parser.add_argument("--sizes", nargs="+", default=None, help="rows x length, such as 8x64")
    parser.add_argument("--head", choices=("class", "vocabulary"), default="class")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=100.0, help="no round of a method begins later than this")
    options = parse(parser, words)
    torch.set_num_threads(1)
    chosen = [v for v in variants() if options.methods is None or v.title in options.methods]
    if options.quick:
        options.rounds = min(options.rounds, 2)
    for size in options.sizes or ["2x8" if options.quick else "8x64"]:
        rows, length = map(int, size.split("x"))
        work = build("tiny" if options.quick else "OPT-125M", rows=rows, length=length, head=options.head)
        keep(size, [doubled(work, options)], options)
        for variant in chosen:
            try:
                found = measure(variant, work, options)
            except ValueError as error:  # a package that is not installed
                print(f"{variant.title}: {error}")
                continue
            keep(size, found, options)


if __name__ == "__main__":
    main()
