"""Where a measured rate loses what a tuned one does not.

    python experiments/parts.py --encoder FOLDER --decoder FOLDER --data FOLDER --models FOLDER [--only NAME ...]

For cases of experiments/rates.py with the model of experiments/decoder.py and the embedded one, on draws that no search
has seen: the best constant rate of results/rates.json with the whole budget (`constant`), with the forward passes that
measuring leaves (`shorter`), and as the peak of the schedule of a measured rate (`scheduled`); then `--lr auto`.
Writes results/parts.json and parts.md.  What is there already is kept.
"""

from __future__ import annotations

import json
import statistics
import sys
from typing import Any

from options import HERE, need_decoder, parsed, parser_of
from rates import AUTO, FRESH, TEST, Keep, above, best_of, constants, kept_at, mean_loss, settings, trained

CASES = (
    "gpt2 sst2 full",
    "gpt2 rte full",
    "gpt2 sst2 lora",
    "decoder qnli full",
)
METHODS = ("ZO", "LOREN")
TRIALS = (*FRESH, "6")
CONSTANT, SHORTER, SCHEDULED = "constant", "shorter", "scheduled"


def run(given: dict[str, Any], rate: str, found: dict[str, Any], keep: Keep) -> None:
    """All four, each on all trials; those of fewer passes have as many as `--lr auto` of the same trial."""

    def kept(name: str, trial: str, **more: str) -> None:
        runs = found.setdefault(name, {})
        if trial not in runs:
            runs[trial] = trained({**given, "trial": trial, **more})
            keep()

    for trial in TRIALS:
        kept(AUTO, trial, lr=AUTO)
        left = int(given["budget_queries"]) - found[AUTO][trial]["measured"]["forwards"]
        kept(CONSTANT, trial, lr=rate)
        kept(SHORTER, trial, lr=rate, budget_queries=str(left))
        kept(SCHEDULED, trial, lr=rate, lr_scheduler_type="adaptive")


def table(results: dict[str, Any]) -> str:
    """Mean losses, and how far each is above that of the constant rate."""
    lines = [
        "| case | method | constant rate | passes for measuring | without these passes | with the schedule | lr auto |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for case, methods in results.items():
        for method, found in methods.items():
            means = {name: mean_loss(list(runs.values())) for name, runs in found.items()}
            cells = [
                f"{means[name]:.4f} ({above(means[name], means[CONSTANT])})" for name in (SHORTER, SCHEDULED, AUTO)
            ]
            taken = statistics.fmean(each["measured"]["forwards"] for each in found[AUTO].values())
            lines.append(f"| {case} | {method} | {means[CONSTANT]:.4f} | {taken:,.0f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = parser_of(__doc__, CASES, needed=False)
    options = parsed(parser)
    need_decoder(parser, options, options.only or CASES)
    searched = json.loads((HERE / "results" / "rates.json").read_text())
    results, keep = kept_at(options.out / "parts.json")
    for case in options.only or CASES:
        for method in METHODS:
            if method not in searched.get(case, {}):
                continue
            rate = best_of(constants(searched[case][method]))
            found = results.setdefault(case, {}).setdefault(method, {})
            run(settings(TEST[case], method, options), rate, found, keep)
            line = {name: round(mean_loss(list(runs.values())), 4) for name, runs in found.items()}
            print(case, method, rate, line, flush=True)
    (options.out / "parts.md").write_text(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
