"""How good the rates of `--lr auto` are, next to smaller and larger ones.

    python experiments/rates.py --data FOLDER --models FOLDER [--only NAME ...] [--out experiments/results/rates]

For each case (a model, a task, a way of tuning) and each method: the rate that `--lr auto` measures, and runs of the
same budget with multiples of it.  Writes rates.json (runs that are there already are kept) and rates.md: the final
validation losses, and by how much the loss at the measured rate is above the lowest.  The factors of `zotune.rates`
were chosen on the cases that are not named ``test``.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from zotune import NonFiniteLossError
from zotune.config import config_from_text
from zotune.run.training import TrainingRun

METHODS: dict[str, dict[str, str]] = {
    "ZO": {"algorithm": "ZO"},
    "ZOAdam": {"algorithm": "ZOAdam"},
    "ZOSVRG": {"algorithm": "ZOSVRG"},
    "LOZO": {"algorithm": "LOZO"},
    "LOZO-M": {"algorithm": "LOZO", "momentum": "0.9"},
    "HiZOO": {"algorithm": "HiZOO"},
    "LOREN": {"algorithm": "LOREN"},
    "FZOO": {"algorithm": "FZOO"},
}
MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0)
LORA = {"tuning": "lora", "perturbation_scale": "1e-2"}
PREFIX = {"tuning": "prefix", "perturbation_scale": "1e-1"}
FULL: dict[str, Any] = {"full_parameter": True}
CASES: dict[str, dict[str, Any]] = {
    "embedded sst2 partial": {"budget_queries": "16000"},
    "embedded rte full": {"task": "rte", "budget_queries": "16000", **FULL},
    "llama cb full": {"model_name": "llama-stories260K", "task": "cb", "budget_queries": "12000", **FULL},
    "llama trec lora": {"model_name": "llama-stories260K", "task": "trec", "budget_queries": "12000", **LORA},
    "opt-mini mnli full": {
        "model_name": "opt-mini",
        "task": "mnli",
        "budget_queries": "3200",
        "batchsize": "8",
        **FULL,
    },
    "test embedded cola lora": {"task": "cola", "budget_queries": "16000", **LORA},
    "test llama sst2 full": {"model_name": "llama-stories260K", "budget_queries": "12000", **FULL},
    "test opt-mini trec partial": {
        "model_name": "opt-mini",
        "task": "trec",
        "budget_queries": "3200",
        "batchsize": "8",
    },
}


def settings(case: str, method: str, options: argparse.Namespace, place: Path) -> dict[str, Any]:
    given = {
        **CASES[case],
        **METHODS[method],
        "evaluations": "2",
        "results": str(place),
        "samplesize_validation": "128",
    }
    if "model_name" in given:
        given |= {"model_name": str(options.models / given["model_name"]), "data_dir": str(options.data)}
    return given


def trained(given: dict[str, Any]) -> dict[str, Any]:
    """One run; its last evaluation, and the rate that `--lr auto` measured if it did."""
    run = TrainingRun(config_from_text(given), Console(quiet=True), pictures=False)
    try:
        run.execute()
    except NonFiniteLossError:
        run.finish("non-finite loss")
    finally:
        run.close()
    assert run.folder is not None
    config = json.loads((run.folder / "config.json").read_text())
    if not (run.folder / "summary.json").is_file():
        return {"lr": config["lr"], "loss": math.inf}
    summary = json.loads((run.folder / "summary.json").read_text())
    loss = summary["final"]["loss"] if summary["status"] == "finished" else None
    return {
        "lr": config["lr"],
        "measured": config.get("lr_measured"),
        "first": summary["first"]["loss"],
        "loss": math.inf if loss is None else loss,
    }


def one(case: str, method: str, options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Runs with every multiple of the measured rate; the first one measures it."""
    with tempfile.TemporaryDirectory() as place:
        given = settings(case, method, options, Path(place))
        if "1.0" not in found:
            found["1.0"] = trained({**given, "lr": "auto"})
            print(case, method, found["1.0"], flush=True)
        for multiple in MULTIPLES:
            if str(multiple) not in found:
                rate = repr(multiple * found["1.0"]["lr"])
                both = {"lr": rate, "lr_mezosvrg_mb": rate} if method == "ZOSVRG" else {"lr": rate}
                found[str(multiple)] = trained({**given, **both})
                print(case, method, multiple, rate, found[str(multiple)]["loss"], flush=True)


def table(results: dict[str, Any]) -> str:
    lines = [
        "| case | method | lr auto | first loss | " + " | ".join(f"x {m:g}" for m in MULTIPLES) + " | above the best |"
    ]
    lines.append("|---|---|---:|---:|" + "---:|" * (len(MULTIPLES) + 1))
    best: dict[str, list[float]] = {}
    for case, methods in results.items():
        for method, found in methods.items():
            losses = [found[str(multiple)]["loss"] for multiple in MULTIPLES]
            lowest = MULTIPLES[min(range(len(MULTIPLES)), key=losses.__getitem__)]
            best.setdefault(method, []).append(lowest)
            cells = " | ".join(f"{loss:.4f}" if loss < 100 else "diverged" for loss in losses)
            above = found["1.0"]["loss"] / min(losses) - 1
            rate, first = found["1.0"]["lr"], found["1.0"]["first"]
            lines.append(f"| {case} | {method} | {rate:.3g} | {first:.4f} | {cells} | {100 * above:.1f} % |")
    lines += ["", "| method | best multiples of the cases | geometric mean |", "|---|---|---:|"]
    for method, multiples in best.items():
        mean = math.exp(statistics.fmean(map(math.log, multiples)))
        lines.append(f"| {method} | {', '.join(f'{multiple:g}' for multiple in multiples)} | {mean:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="holds a folder for each task")
    parser.add_argument("--models", type=Path, required=True, help="holds opt-mini and llama-stories260K")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "rates")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    path = options.out.with_suffix(".json")
    for case in options.only:
        for method in options.methods:
            results = json.loads(path.read_text()) if path.is_file() else {}
            found = results.setdefault(case, {}).setdefault(method, {})
            one(case, method, options, found)
            path.write_text(json.dumps(results, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(table(json.loads(path.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
