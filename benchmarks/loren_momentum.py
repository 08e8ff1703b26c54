"""LOREN without momentum, and with a buffer of 32, 16 or 8 bits: the same number of queries, each at its best rate.

A setting's learning rate is the one of a small grid with the lowest mean validation loss over the tuning trials; what
is reported are other trials (another order of the examples, other directions, another head) at that rate.  Without
momentum the grid is ten times that with momentum 0.9, which adds up ten steps' changes.

    python benchmarks/loren_momentum.py [embedded] [stories]

`embedded` is the task of `make demo`; `stories` (a Llama of 260K parameters, sst2) needs the folder `shared` beside the
checkout.  Results are added to benchmarks/results/loren_momentum.json.
"""

import dataclasses
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from zotune.config import TrainConfig
from zotune.run import run_training

RESULTS = Path(__file__).parent / "results" / "loren_momentum.json"
SHARED = Path(__file__).resolve().parents[2] / "shared"
SETTINGS: dict[str, dict[str, Any]] = {
    "off": {"momentum": 0.0},
    "32 bits": {"momentum": 0.9, "momentum_bits": 32},
    "16 bits": {"momentum": 0.9, "momentum_bits": 16},
    "8 bits": {"momentum": 0.9, "momentum_bits": 8},
}
GAIN = {"off": 10.0}  # on the grid
TUNING = (0, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    config: TrainConfig
    rates: tuple[float, ...]
    """Of momentum 0.9."""
    trials: int = 6
    """Beside the tuning trials."""


def problems() -> dict[str, Problem]:
    common = {"full_parameter": True, "eval_every": 5.0}
    return {
        "embedded": Problem(config=TrainConfig(epochs=5.0, **common), rates=(3e-5, 1e-4, 3e-4)),
        "stories": Problem(
            config=TrainConfig(
                model_name=str(SHARED / "models" / "llama-stories260K"),
                data_dir=SHARED / "data" / "glue" / "sst2",
                epochs=5.0,
                samplesize=256,
                max_seq_length=32,
                soft_prompt=True,  # a new head on so small a model learns nothing in so few queries
                **common,
            ),
            rates=(1e-5, 2e-5, 4e-5),
            trials=4,
        ),
    }


def outcome(config: TrainConfig, **own: Any) -> dict[str, float]:
    """Final validation loss and accuracy, final training loss and queries of one run."""
    with tempfile.TemporaryDirectory() as folder:
        run = run_training(dataclasses.replace(config, results=Path(folder), **own), Console(file=io.StringIO()))
        made = json.loads((run / "summary.json").read_text())
    final = made["final"]
    return {"loss": final["loss"], "accuracy": final["accuracy"], "queries": final["queries"]}


def compare(problem: Problem) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    trials = range(len(TUNING), len(TUNING) + problem.trials)
    for name, own in SETTINGS.items():
        tuned = {
            rate * GAIN.get(name, 1.0): [
                outcome(problem.config, lr=rate * GAIN.get(name, 1.0), trial=t, **own) for t in TUNING
            ]
            for rate in problem.rates
        }
        means = {rate: statistics.mean(run["loss"] for run in runs) for rate, runs in tuned.items()}
        best = min(means, key=lambda rate: means[rate])
        runs = [outcome(problem.config, lr=best, trial=trial, **own) for trial in trials]
        rows[name] = {
            "tuning_loss": {f"{rate:g}": round(loss, 4) for rate, loss in means.items()},
            "lr": best,
            "queries": runs[0]["queries"],
            **spread("loss", runs),
            **spread("accuracy", runs),
        }
        print(name, rows[name], flush=True)
    return rows


def spread(key: str, runs: list[dict[str, float]]) -> dict[str, Any]:
    values = [run[key] for run in runs]
    return {
        key: round(statistics.mean(values), 4),
        f"{key}_deviation": round(statistics.stdev(values), 4),
        f"{key}_of_trials": [round(value, 4) for value in values],
    }


def main() -> None:
    known = problems()
    torch.set_num_threads(1)
    for name in sys.argv[1:] or ["embedded"]:
        if name not in known:
            raise SystemExit(f"There is no problem {name}; choose {' or '.join(known)}.")
        begin = time.process_time()
        rows = compare(known[name])
        report = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        seconds = round(time.process_time() - begin)
        report[name] = {"cpu_seconds": seconds, "trials": known[name].trials, "settings": rows}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
