"""Convergence per query of directions that can share one forward: LOREN with low-rank directions against dense ones.

Low-rank directions (`LOREN(rank=r)`) let all queries of a step go through the model together, see
`zotune.evaluators.stacked`; dense ones cannot.  What that costs in progress per query is measured here, at the same
number of queries, each setting at its best learning rate of a small grid (chosen on other trials than those reported).

    python benchmarks/shared_forward.py

The task is that of `make demo`.  Results go to benchmarks/results/shared_forward.json.
"""

import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from loren_momentum import TUNING, outcome, spread

from zotune.config import TrainConfig

RESULTS = Path(__file__).parent / "results" / "shared_forward.json"
CONFIG = TrainConfig(full_parameter=True, epochs=5.0, eval_every=5.0)
RANKS: tuple[int | None, ...] = (None, 1, 4, 16)
RATES = (3e-4, 1e-3, 3e-3)
TRIALS = 3


def measure(rank: int | None) -> dict[str, Any]:
    config = dataclasses.replace(CONFIG, direction_rank=rank)
    tuned = {rate: [outcome(config, lr=rate, trial=trial) for trial in TUNING] for rate in RATES}
    means = {rate: statistics.mean(run["loss"] for run in runs) for rate, runs in tuned.items()}
    best = min(means, key=lambda rate: means[rate])
    runs = [outcome(config, lr=best, trial=trial) for trial in range(len(TUNING), len(TUNING) + TRIALS)]
    return {
        "tuning_loss": {f"{rate:g}": round(loss, 4) for rate, loss in means.items()},
        "lr": best,
        "queries": runs[0]["queries"],
        **spread("loss", runs),
        **spread("accuracy", runs),
    }


def main() -> None:
    torch.set_num_threads(1)
    begin, rows = time.process_time(), {}
    for rank in RANKS:
        name = "dense" if rank is None else f"rank {rank}"
        rows[name] = measure(rank)
        print(name, rows[name], flush=True)
    report = {"trials": TRIALS, "cpu_seconds": round(time.process_time() - begin), "settings": rows}
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
