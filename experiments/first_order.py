"""Constant rates of the first-order baselines by tuning: where the defaults of `zotune train` come from.

    python experiments/first_order.py --encoder FOLDER --data FOLDER --models FOLDER [--only NAME ...]

For each case runs of AdamW and SGD at rates half a decade apart, from that of wide models outwards until the best one
is inside; 8,000 forward passes of one example (a backward pass counts two), mean of two trials.  Writes
results/first-order.json and first-order.md.  What is there already is kept.
FOLDER of the encoder is what experiments/encoder.py made.
"""

from __future__ import annotations

import math
import sys
from typing import Any

from options import parsed, parser_of
from rates import ENCODER, FULL, LLAMA, LORA, PREFIX, TRIALS, best_of, kept_at, mean_loss, search, settings, trained

from zotune.config import ALGORITHMS

METHODS = ("FOAdam", "FOSGD")
RATIO = math.sqrt(10.0)
FURTHEST = 8  # from the first, as an exponent of RATIO
CASES: dict[str, dict[str, Any]] = {
    "decoder sst2 full": {"task": "sst2", **FULL},
    "decoder sst2 lora": {"task": "sst2", **LORA},
    "decoder sst2 prefix": {"task": "sst2", **PREFIX},
    "decoder rte full": {"task": "rte", **FULL},
    "decoder rte lora": {"task": "rte", **LORA},
    "decoder rte prefix": {"task": "rte", **PREFIX},
    "encoder cola full": {**ENCODER, "task": "cola", "soft_prompt": True, **FULL},
    "encoder cola lora": {**ENCODER, "task": "cola", "soft_prompt": True, **LORA},
    "llama trec full": {**LLAMA, "task": "trec", **FULL},
    "llama trec lora": {**LLAMA, "task": "trec", **LORA},
}


def begin_at(given: dict[str, Any]) -> float:
    """The rate of wide models with full weights, which is where all other models began, too; the embedded one's own."""
    algorithm = ALGORITHMS[given["algorithm"]]
    return algorithm.lr if "model_name" in given else algorithm.lr_embedded


def table(results: dict[str, Any]) -> str:
    """The best rate of each case, what is within a twentieth of it in loss, and where the search began."""
    lines = ["| case | method | began at | its loss | best rate | its loss | within 5 % | rates tried |"]
    lines.append("|---|---|---:|---:|---:|---:|---|---:|")
    for case, methods in results.items():
        for method, found in methods.items():
            losses = {rate: mean_loss(runs) for rate, runs in found["runs"].items()}
            lowest, own = best_of(losses), f"{found['began']:.2g}"
            near = ", ".join(rate for rate in sorted(losses, key=float) if losses[rate] <= 1.05 * losses[lowest])
            at_own = f"{losses[own]:.4f}" if own in losses else ""
            lines.append(
                f"| {case} | {method} | {own} | {at_own} | {lowest} | {losses[lowest]:.4f} | {near} | {len(losses)} |"
            )
    return "\n".join(lines) + "\n"


def main() -> int:
    options = parsed(parser_of(__doc__, CASES, needed=True))
    path = options.out / "first-order.json"
    results, keep = kept_at(path)
    for case in options.only or CASES:
        for method in METHODS:
            given = {**settings(CASES[case], "ZO", options), "algorithm": method}
            found = results.setdefault(case, {}).setdefault(method, {"runs": {}})
            found.setdefault("began", begin_at(given))

            def loss(number: int, given: dict[str, Any] = given, found: dict[str, Any] = found) -> float:
                rate = f"{found['began'] * RATIO**number:.2g}"
                if rate not in found["runs"]:
                    found["runs"][rate] = [trained({**given, "lr": rate, "trial": trial}) for trial in TRIALS]
                    keep()
                return mean_loss(found["runs"][rate])

            search(loss, FURTHEST)
            print(case, method, {rate: round(mean_loss(runs), 4) for rate, runs in found["runs"].items()}, flush=True)
    path.with_suffix(".md").write_text(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
