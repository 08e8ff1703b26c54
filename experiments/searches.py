"""The figures of the searches of experiments/methods.py, from their tables: `zotune sweep` draws them so at its end.

    python experiments/searches.py

Draws sweep.png beside every trials.csv in experiments/results/methods.  A table has the mean of the draws of a setting
and not each of them, so where there were several others the mark of another draw is their mean.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

from methods import BUDGET, CASES
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from zotune.reports.style import LIGHT
from zotune.reports.sweep_plot import Found, draw

RESULTS = Path(__file__).parent / "results" / "methods"
METRIC = "loss"


def trial_of(row: dict[str, str]) -> FrozenTrial:
    """A run of a table, as Optuna has it."""
    broken_off, rate = row["state"] == "broken off", float(row["lr"])
    value = math.inf if row["state"] == "diverged" or not row[METRIC] else float(row[METRIC])
    attributes: dict[str, Any] = {"scores": {METRIC: value} if math.isfinite(value) else {}}
    kept: dict[str, Any] = {
        "params": {"lr": rate},
        "distributions": {"lr": FloatDistribution(rate, rate)},
        "user_attrs": attributes,
    }
    if broken_off:
        trial = create_trial(state=TrialState.PRUNED, **kept)
    else:
        trial = create_trial(state=TrialState.COMPLETE, value=value, **kept)
    trial.number = int(row["run"])
    return trial


def found_in(rows: list[dict[str, str]], best: float) -> Found:
    """The runs of one method; ``best``: the rate that was chosen."""
    again: dict[int, list[float]] = {}
    for row in rows:
        if (draws := int(row["draws"])) > 1 and row[f"mean_{METRIC}"]:
            others = (float(row[f"mean_{METRIC}"]) * draws - float(row[METRIC])) / (draws - 1)
            again[int(row["run"])] = [others] * (draws - 1)
    chosen = next((int(row["run"]) for row in rows if math.isclose(float(row["lr"]), best, rel_tol=1e-6)), None)
    return Found([trial_of(row) for row in rows], again, chosen)


def main() -> int:
    for table in sorted(RESULTS.glob("**/trials.csv")):
        name = table.relative_to(RESULTS).parts[0]
        with table.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        best = json.loads(table.with_name("best.json").read_text(encoding="utf-8"))
        found = {
            method: found_in([row for row in rows if row["method"] == method], float(best[method]["lr"]))
            for method in dict.fromkeys(row["method"] for row in rows)
        }
        words = CASES[name]
        task, model = (words[words.index(flag) + 1] for flag in ("--task", "--model_name"))
        about = f"{task} with {model}, {int(BUDGET):,} forward passes a run"
        table.with_name("sweep.png").write_bytes(draw(found, METRIC, "png", LIGHT, about=about))
    return 0


if __name__ == "__main__":
    sys.exit(main())
