"""What replaying a run costs beside making it again: nanoseconds of process CPU time per weight and step, one thread.

A run of a few steps is recorded on OPT-125M's shape (random weights, 8 x 64 tokens), with its forward passes: that is
what anybody pays who has the data and repeats it.  Then its file alone is replayed on the base weights, and must end at
the same bits.  Each is timed behind its first five steps, which make the state, and in which evaluators check
themselves.  Beside them stands the size of a file of
1,000 steps, from two shorter ones of the same method.

    python benchmarks/replay.py [--methods MeZO LOREN ...] [--steps N]
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import arguments, build, head, parse, save

import zotune
from zotune.bench.variants import VARIANTS, Variant
from zotune.bench.workload import Workload
from zotune.trajectory import Recorder, go_on, read
from zotune.trajectory import build as rebuild

KEYS = ("method", "noise")

_FIRST = 5
"""Steps that are not timed."""


def recorded(variant: Variant, noise: str, work: Workload, steps: int, file: Path) -> float:
    """Record a run; seconds of its steps behind the first ones."""
    optimizer = variant.optimizer(work.model, noise=noise)
    with Recorder(file, optimizer):
        for _ in range(_FIRST):
            variant.run(optimizer, work)
        begin = time.process_time()
        for _ in range(steps):
            variant.run(optimizer, work)
        return time.process_time() - begin


def replayed(work: Workload, steps: int, file: Path) -> float:
    """Replay it; seconds of its steps behind the first ones."""
    trajectory = read(file)
    optimizer = rebuild(trajectory.header, work.model.named_parameters())
    go_on(trajectory, optimizer, until=_FIRST)
    begin = time.process_time()
    go_on(trajectory, optimizer, until=_FIRST + steps)
    return time.process_time() - begin


def size_of_thousand(variant: Variant, noise: str, folder: Path) -> tuple[int, int]:
    """Bytes of a file of 1,000 steps, and forward passes of these steps, from files of 40 and 80 steps."""
    sizes, queries = [], 0
    for steps in (40, 80):
        layer = torch.nn.Linear(4, 4)
        optimizer, file = variant.optimizer(layer, noise=noise), folder / f"{steps}.zo"
        with Recorder(file, optimizer):
            for step in range(steps):
                optimizer.step(lambda step=step, layer=layer: layer.weight.sum() + 1.0 / (1 + step))
        sizes.append(file.stat().st_size)
        queries = optimizer.queries
    each = (sizes[1] - sizes[0]) / 40
    return round(sizes[0] + 960 * each), round(1000 * queries / 80)


def measure(variant: Variant, noise: str, options: argparse.Namespace) -> dict[str, Any]:
    """The row of one method."""
    work = build(options.shape, rows=options.rows, length=options.length)
    base = {name: value.clone() for name, value in work.model.state_dict().items()}
    weights = sum(p.numel() for p in work.model.parameters())
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "run.zo"
        forward = recorded(variant, noise, work, options.steps, file)
        last = zotune.digest(work.model.parameters())
        work.model.load_state_dict(base)
        again = replayed(work, options.steps, file)
        assert zotune.digest(work.model.parameters()) == last, "a replay ends at the same bits"
        size, queries = size_of_thousand(variant, noise, Path(place))
    return {
        "method": variant.title,
        "noise": noise,
        "steps": options.steps,
        "replay_ns": round(again / options.steps / weights * 1e9, 3),
        "rerun_ns": round(forward / options.steps / weights * 1e9, 3),
        "rerun_over_replay": round(forward / again, 1),
        "bytes_1000_steps": size,
        "bytes_a_query": round(size / queries, 1),
    }


def main(words: list[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--methods", nargs="+", help="titles of the methods; left out: all")
    parser.add_argument("--steps", type=int, default=3, help="timed steps behind the first five")
    options = parse(parser, words)
    torch.set_num_threads(1)
    options.shape, options.rows, options.length = ("tiny", 2, 8) if options.quick else ("OPT-125M", 8, 64)
    for variant in VARIANTS:
        if (options.methods and variant.title not in options.methods) or variant.stacked:
            continue
        for noise in ("gaussian", "rademacher"):
            row = measure(variant, noise, options)
            save("replay", head("ns per weight and step, process CPU time, one thread"), [row], KEYS, options.results)
            print(
                f"{row['method']:26} {noise:10} replay {row['replay_ns']:7.3f} ns, rerun {row['rerun_ns']:8.2f} ns "
                f"({row['rerun_over_replay']} times), {row['bytes_1000_steps']} bytes in 1,000 steps"
            )


if __name__ == "__main__":
    main()
