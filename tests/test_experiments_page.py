"""The tables of the experiments' page are those of the results beside it."""

import csv
import json
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
RESULTS = ROOT / "experiments" / "results"
METHODS = {
    "MeZO": "ZO",
    "ZO-Adam": "ZOAdam",
    "MeZO-SVRG": "ZOSVRG",
    "LOZO": "LOZO",
    "LOZO-M": "LOZO-M",
    "HiZOO": "HiZOO",
    "LOREN": "LOREN",
    "FZOO": "FZOO",
    "AdamW": "FOAdam",
}
REAL = ("trec", "sst2", "rte", "mnli", "cb")


def tables(first):
    """Headers and rows of the page's tables whose first column is called so."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", PAGE, re.M):
        lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
        if lines[0][0] == first:
            found.append((lines[0], lines[2:]))
    return found


def cell_of(case, method, column):
    with (RESULTS / "methods" / case / "runs.csv").open(encoding="utf-8") as file:
        runs = [run for run in csv.DictReader(file) if run["method"] == method]
    kept = [float(run[column]) for run in runs if run["diverged"] == "0"]
    lost = len(runs) - len(kept)
    shown = f"{statistics.fmean(kept):.3f} ± {statistics.stdev(kept):.3f}"
    return shown + (f" ({lost} diverged)" if lost else "")


def test_every_cell_of_losses_and_accuracies_is_that_of_the_runs():
    checked = 0
    for header, rows in tables("method"):
        case = "llama-cb"  # the table without a name in its columns
        for column, title in enumerate(header[1:], 1):
            name, what = re.fullmatch(r"(.*?) ?(loss|accuracy|training loss|loss minus MeZO's)", title).groups()
            case = f"llama-{name}" if name in REAL else name.replace(" ", "-") or case
            if what.endswith("MeZO's"):
                continue
            assert [row[0] for row in rows] == list(METHODS)
            for row in rows:
                assert row[column] == cell_of(case, METHODS[row[0]], what.replace(" ", "_")), (case, row[0], title)
                checked += 1
    assert checked == 9 * (8 + 4 + 6 + 3)


def test_the_rates_are_those_of_the_runs_and_are_counted_right():
    results = json.loads((RESULTS / "rates.json").read_text(encoding="utf-8"))
    _, rows = tables("case")[0]
    above = []
    for row in rows:
        case, method = row[0], row[1].split()[0]
        found = results[case][method]
        auto, constant = row[9], row[10]
        if auto:
            best = next(key for key in found if key.endswith(" on fresh draws") and not key.startswith("auto"))
            means = [statistics.fmean(run["loss"] for run in found[key]) for key in ("auto on fresh draws", best)]
            assert [f"{mean:.4f}" for mean in means] == [auto, constant], (case, method)
            above.append(100.0 * (means[0] / means[1] - 1.0))
    counts = re.search(r"Of all (\d+) it is (\d+) and (\d+), the median (-?[\d.]+) %", PAGE)
    assert counts is not None
    within = [sum(share <= limit for share in above) for limit in (5.0, 10.0)]
    assert [int(counts[number]) for number in (1, 2, 3)] == [len(above), *within]
    assert float(counts[4]) == pytest.approx(statistics.median(above), abs=0.051)
