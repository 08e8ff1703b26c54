"""The law behind `--lr auto`: at which share of the line search is the best constant rate of MeZO?

    python experiments/law.py --encoder FOLDER --data FOLDER --models FOLDER [--only NAME ...]

For each case a search over constant rates (factors of 1.8 apart, until the best one is inside; two trials), and for
each rate the curvature h along 64 directions at the first weights and in the middle of the run.  The line search of
MeZO is 1 / h, so the share is the rate times h.  Writes results/law.json and law.md.  What is there already is kept.
"""

# ruff: noqa: ARG002  (the library fixes the signatures of callbacks)

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from options import parsed, parser_of
from rates import (
    FURTHEST,
    LONGER,
    RATIO,
    TEST,
    TRIALS,
    TUNE,
    Keep,
    best_of,
    kept_at,
    mean_loss,
    search,
    settings,
    trained,
)
from transformers import TrainerCallback

from zotune.hf.trainer import ZOTrainer
from zotune.probing import curvature_now

DIRECTIONS, ROWS, LENGTH = 64, 2, 32.0
CASES: dict[str, tuple[dict[str, Any], float]] = {
    "decoder sst2 full": (TUNE["decoder sst2 full"], 5e-4),
    "decoder cola full": (TUNE["decoder cola full"], 5e-4),
    "decoder qnli lora": (TEST["decoder qnli lora"], 9e-4),
    "decoder boolq partial": (TEST["decoder boolq partial"], 1.5e-3),
    "encoder mnli full": (TEST["encoder mnli full"], 1.2e-4),
    "llama trec full": (TEST["llama trec full"], 2.5e-4),
    "decoder cola full, longer": ({**TUNE["decoder cola full"], **LONGER}, 1.5e-4),
    "decoder boolq partial, longer": ({**TEST["decoder boolq partial"], **LONGER}, 9e-4),
}


class Curvatures(TrainerCallback):
    """Measures at the beginning and in the middle of a run."""

    def __init__(self) -> None:
        self.found: list[tuple[float, float]] = []
        self.steps = 0
        self._trainer: ZOTrainer | None = None

    def attach(self, trainer: ZOTrainer) -> None:
        self._trainer = trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps = state.max_steps
        if state.global_step not in (0, state.max_steps // 2):
            return
        assert self._trainer is not None
        assert self._trainer.zeroth_order is not None
        with torch.no_grad():
            batches = self._trainer.step_batches(DIRECTIONS, rows=ROWS, last=True)
            now = curvature_now(self._trainer.zeroth_order, batches, LENGTH)
        self.found.append((math.nan, math.nan) if now is None else tuple(now))


def looked(given: dict[str, Any]) -> dict[str, Any]:
    watch = Curvatures()
    return {**trained(given, watch), "steps": watch.steps, "curvatures": watch.found}


def tried(given: dict[str, Any], middle: float, found: dict[str, Any], keep: Keep) -> None:
    def loss(number: int) -> float:
        rate = repr(float(f"{middle * RATIO**number:.3g}"))
        if rate not in found:
            found[rate] = [looked({**given, "lr": rate, "trial": trial}) for trial in TRIALS]
            keep()
        return mean_loss(found[rate])

    search(loss, FURTHEST)


def share(rate: str, runs: list[dict[str, Any]], when: int) -> float:
    """Rate times curvature, the mean of the trials."""
    return float(rate) * sum(run["curvatures"][when][0] for run in runs) / len(runs)


def table(results: dict[str, Any]) -> str:
    lines = [
        "| case | steps | best rate | its share at first | in the middle | x root of the steps | loss | other shares in"
        " the middle (loss) |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for case, found in results.items():
        if len(found) < 3:  # unfinished
            continue
        losses = {rate: mean_loss(runs) for rate, runs in found.items()}
        best = best_of(losses)
        steps, middle = found[best][0]["steps"], share(best, found[best], 1)
        others = [
            f"{share(rate, found[rate], 1):.2f} ({losses[rate]:.3f})"
            for rate in sorted(losses, key=float)
            if rate != best and losses[rate] < 10.0 and len(found[rate][0]["curvatures"]) > 1
        ]
        lines.append(
            f"| {case} | {steps} | {float(best):.2e} | {share(best, found[best], 0):.3f} | {middle:.3f}"
            f" | {middle * math.sqrt(steps):.2f} | {losses[best]:.4f} | {', '.join(others)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    options = parsed(parser_of(__doc__, CASES, needed=True))
    path = options.out / "law.json"
    results, keep = kept_at(path)
    for case in options.only or CASES:
        given, middle = CASES[case]
        found = results.setdefault(case, {})
        tried(settings(given, "ZO", options), middle, found, keep)
        print(case, {rate: round(mean_loss(runs), 4) for rate, runs in found.items()}, flush=True)
    path.with_suffix(".md").write_text(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
