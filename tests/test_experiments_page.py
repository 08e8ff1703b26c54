"""The tables of the experiments' page are those of the results beside it."""

import csv
import json
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from scipy import stats

from zotune.config import ALGORITHMS

ROOT = Path(__file__).resolve().parents[1]
PAGE, RATES = ((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("experiments", "measured-rates"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
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


def tables(first, page=PAGE):
    """Headers and rows of a page's tables whose first column is called so."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", page, re.M):
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
        for column, title in enumerate(header[1:], 1):
            if title == "loss minus MeZO's":
                continue
            name, what = re.fullmatch(r"(.*?) (loss|accuracy|training loss)", title).groups()
            assert [row[0] for row in rows if row[0] != "shares of the classes"] == list(METHODS)
            for row in rows[: len(METHODS)]:
                wanted = cell_of(name.replace(" ", "-"), METHODS[row[0]], what.replace(" ", "_"))
                assert row[column] == wanted, (title, row[0])
                checked += 1
    assert checked == 9 * (6 + 3 + 6 + 6 + 3)


def test_the_tables_are_those_that_the_script_prints():
    made = subprocess.run(
        [sys.executable, str(ROOT / "experiments" / "tables.py")], capture_output=True, text=True, check=True
    ).stdout
    for block in re.findall(r"(?:^\|.*\n)+", made, re.M):
        assert block in PAGE


@pytest.mark.parametrize("report", sorted(RESULTS.glob("methods/*/report.md")), ids=lambda path: path.parent.name)
def test_reports_are_those_of_today(report):
    text = report.read_text(encoding="utf-8")
    assert "| shares of the classes |" in text
    assert "without libraries (MB)" in text
    assert "were given, by --lr or --settings." in text  # and not measured
    assert "Measured rates are" not in text
    assert "Tuning: full, which trains all weights." in text
    assert "nothing but that may have been learnt" not in text


def test_the_rates_are_those_of_the_runs_and_are_counted_right():
    results = json.loads((RESULTS / "rates.json").read_text(encoding="utf-8"))
    _, rows = next((head, rows) for head, rows in tables("case", RATES) if "best constant rate" in head)
    above: dict[str, list[float]] = {"short": [], "longer": [], "hardly learnt": []}
    for row in rows:
        case, method = row[0], row[1].split()[0]
        found = results[case][method]
        auto, constant = row[9], row[10]
        if auto:
            best = next(key for key in found if key.endswith(" on fresh draws") and not key.startswith("auto"))
            means = [statistics.fmean(run["loss"] for run in found[key]) for key in ("auto on fresh draws", best)]
            assert [f"{mean:.4f}" for mean in means] == [auto.split()[0], constant.split()[0]], (case, method)
            share = 100.0 * (means[0] / means[1] - 1.0)
            if not case.startswith(("decoder", "gpt2")):
                above["hardly learnt"].append(share)
            else:
                above["longer" if "longer" in case else "short"].append(share)
    counts = re.search(
        r"(\d+) of the (\d+) comparisons with the embedded decoder .* and (\d+) within 10 %; the median is ([\d.]+) %",
        RATES,
    )
    others = re.search(r"of the other (\d+), with an encoder .*, (\d+) are within 5 %", RATES)
    longer = re.search(
        r"Of the (\d+) comparisons with 32,000 passes in which a task is learnt (\d+) are within 5 %, and the median is"
        r" ([\d.]+) %",
        RATES,
    )
    told = re.search(
        r"in (\d+) of (\d+) comparisons of short runs in which a task is learnt, within 10 % in (\d+)", README
    )
    assert counts is not None
    assert others is not None
    assert told is not None
    within = [sum(share <= limit for share in above["short"]) for limit in (5.0, 10.0)]
    assert [int(counts[number]) for number in (2, 1, 3)] == [len(above["short"]), *within]
    assert [int(told[number]) for number in (2, 1, 3)] == [len(above["short"]), *within]
    assert float(counts[4]) == pytest.approx(statistics.median(above["short"]), abs=0.051)
    for found, name in ((others, "hardly learnt"), (longer, "longer")):
        assert [int(found[1]), int(found[2])] == [len(above[name]), sum(e <= 5.0 for e in above[name])]
    assert float(longer[3]) == pytest.approx(statistics.median(above["longer"]), abs=0.051)
    assert "†" not in RATES  # all runs are of the present version
    cases = [(row[0], row[1]) for row in rows if row[9] and row[0].startswith(("decoder", "gpt2"))]
    short = [method for case, method in cases if "longer" not in case]
    told = re.search(
        r"(\d+) of the (\d+) comparisons of short runs in which a task is learnt are of MeZO or LOREN", RATES
    )
    assert [int(told[1]), int(told[2])] == [sum(method in ("ZO", "LOREN") for method in short), len(short)]


def searched():
    """Of every search of rates.json: case, method, its entries, and the losses of its constant rates."""
    results = json.loads((RESULTS / "rates.json").read_text(encoding="utf-8"))
    for case, methods in results.items():
        for method, found in methods.items():
            losses = {
                float(key): statistics.fmean(math.inf if run["loss"] is None else run["loss"] for run in runs)
                for key, runs in found.items()
                if key[0].isdigit() and "fresh" not in key
            }
            if losses and "auto" in found:
                yield case, method, found, losses


def on_fresh_draws(found):
    """Runs of `--lr auto` and of the best constant rate on draws that no search has seen, None where there are none."""
    again = {key.startswith("auto"): runs for key, runs in found.items() if key.endswith(" on fresh draws")}
    return (again[True], again[False]) if True in again else None


def test_what_measured_rates_learn_is_counted_right():
    falls, points, sides = [], [], []
    for case, _, found, _ in searched():
        again = on_fresh_draws(found)
        if not case.startswith(("decoder", "gpt2")) or "longer" in case or again is None:
            continue
        auto, constant = (
            {what: [run[what] for run in runs] for what in ("first", "loss", "accuracy")} for runs in again
        )
        first, *ends = (statistics.fmean(losses) for losses in (constant["first"], auto["loss"], constant["loss"]))
        falls.append(100.0 * (first - ends[0]) / (first - ends[1]))
        points.append(100.0 * (statistics.fmean(constant["accuracy"]) - statistics.fmean(auto["accuracy"])))
        beyond = [a - 1.05 * c for a, c in zip(auto["loss"], constant["loss"], strict=True)]
        t = statistics.fmean(beyond) / (statistics.stdev(beyond) / len(beyond) ** 0.5)
        certain = stats.t.ppf(0.95, len(beyond) - 1)
        sides.append(1 if t > certain else -1 if t < -certain else 0)
    told = re.search(
        r"in these (\d+), a measured one reaches ([\d.]+) % in the median and at least 95 % in (\d+); its accuracy is"
        r" ([\d.]+) points lower in the median and at most one point in (\d+)\. .* (\d+) of the \d+ are within 5 %"
        r" beyond doubt and (\d+) are not .* the other (\d+) cannot",
        RATES,
    )
    assert told is not None
    counted = (len(falls), statistics.median(falls), sum(fall >= 95.0 for fall in falls))
    counted += (statistics.median(points), sum(lost <= 1.0 for lost in points), *(sides.count(k) for k in (-1, 1, 0)))
    assert [float(number) for number in told.groups()] == pytest.approx(counted, abs=0.051)


def test_the_unseen_model_is_counted_right():
    above, lost = [], 0
    for case, _, found, losses in searched():
        if not case.startswith("gpt2") or "longer" in case:
            continue
        best = min(losses, key=losses.__getitem__)
        constants = [(float(key), runs) for key, runs in found.items() if key[0].isdigit() and "fresh" not in key]
        lost += any(run["loss"] > run["first"] for rate, runs in constants if 1.7 < rate / best < 1.9 for run in runs)
        auto, constant = (statistics.fmean(run["loss"] for run in runs) for runs in on_fresh_draws(found))
        above.append(100.0 * (auto / constant - 1.0))
    told = re.search(r"(\d+) of (\d+) comparisons with 8,000 passes are within 5 % and (\d+) within 10 %: MeZO", RATES)
    assert [int(n) for n in told.groups()] == [sum(a <= 5.0 for a in above), len(above), sum(a <= 10.0 for a in above)]
    assert f"In {('no', 'one', 'two', 'three', 'four', 'five', 'six', 'seven')[lost]} of the ten" in RATES


def test_what_is_said_of_shares_and_of_other_rates_is_so():
    shares, above = [], {0.556: [], 3.24: []}
    for case, _, found, losses in searched():
        best = min(losses, key=losses.__getitem__)
        auto = [run for key, runs in found.items() if key.startswith("auto") for run in runs]
        shares.append(best / statistics.fmean(run["measured"]["step"] for run in auto))
        for multiple, ends in above.items():
            if case.startswith(("decoder", "gpt2")):
                ends += [
                    v / losses[best] - 1.0 for rate, v in losses.items() if abs(rate / best / multiple - 1.0) < 0.11
                ]
    told = re.search(
        r"are ([\d.]+) times in the median, half of them ([\d.]+) to ([\d.]+), all of them ([\d.]+) to ([\d.]+);", RATES
    )
    low, middle, high = statistics.quantiles(shares, n=4)
    assert [float(number) for number in told.groups()] == pytest.approx(
        [middle, low, high, min(shares), max(shares)], abs=0.0051
    )
    told = re.search(
        r"0\.56 times the best one end (\d+) % higher in the median and more than a fifth higher in (\d+) of (\d+),"
        r" rates 3\.2 times as large half as high again or more in (\d+) of (\d+)",
        RATES,
    )
    half, three = above.values()
    counted = (sum(e > 0.2 for e in half), len(half), sum(e >= 0.5 for e in three), len(three))
    assert [int(number) for number in told.groups()] == [round(100 * statistics.median(half)), *counted]


def test_what_is_said_of_measuring_is_so():
    page = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    factors, passes = {}, []
    for case, method, found, _ in searched():
        auto = [run for key, runs in found.items() if key.startswith("auto") for run in runs]
        rates = [run["lr"] for run in auto]
        if "longer" not in case and len(rates) == 5:
            factors.setdefault(method, []).append(max(rates) / min(rates))
            passes += [run["measured"]["forwards"] - run["measured"]["later"] for run in auto]
    told = re.search(r"as many forward passes as (\d+) to (\d+) queries", page)
    assert [int(number) for number in told.groups()] == [min(passes) // 16, max(passes) // 16]
    told = re.search(
        r"is ([\d.]+) to ([\d.]+) times the smallest in the median for LOREN, MeZO, FZOO and HiZOO, ([\d.]+)"
        r" times for LOZO, .* and for ZO-Adam",
        page,
    )
    few, many = (
        [statistics.median(factors[method]) for method in methods]
        for methods in (("LOREN", "ZO", "FZOO", "HiZOO"), ("LOZO", "ZOAdam"))
    )
    counted = [min(few), max(few), max(many)]
    assert max(many) - min(many) < 0.1
    assert [float(number) for number in told.groups()] == pytest.approx(counted, abs=0.051)


def test_no_run_with_a_measured_rate_diverged_and_few_ended_above_where_they_began():
    results = json.loads((RESULTS / "rates.json").read_text(encoding="utf-8"))
    runs = [runs for methods in results.values() for found in methods.values() for runs in found.items()]
    auto = [run for key, found in runs if key.startswith("auto") for run in found]
    assert all(run["loss"] is not None for run in auto)
    rises = [run["loss"] - run["first"] for run in auto if run["loss"] > run["first"]]
    assert f"of the {len(auto)} runs with `--lr auto` below none diverged, and {len(rises)} ended above" in RATES
    assert f"by {min(rises):.2f} to {max(rises):.2f}," in RATES


def test_where_the_distance_comes_from():
    results = json.loads((RESULTS / "parts.json").read_text(encoding="utf-8"))
    rows = next(rows for head, rows in tables("case", RATES) if "passes for measuring" in head)
    assert [(row[0], row[1]) for row in rows] == [(case, method) for case in results for method in results[case]]
    for case, method, constant, _, *cells in rows:
        means = {
            name: statistics.fmean(run["loss"] for run in runs.values()) for name, runs in results[case][method].items()
        }
        assert f"{means['constant']:.4f}" == constant
        for name, cell in zip(("shorter", "scheduled", "auto"), cells, strict=True):
            assert cell == f"{means[name]:.4f} ({100.0 * (means[name] / means['constant'] - 1.0):+.1f} %)"


def test_how_far_the_shipped_share_is_above_the_best_multiple():
    """Losses of half and twice the share, and beyond where the search went on."""
    factors = json.loads((RESULTS / "factors.json").read_text(encoding="utf-8"))
    header, rows = next((head, rows) for head, rows in tables("method", RATES))
    assert header[1:] == list(factors)
    excesses = []
    for method, *cells in rows:
        for case, cell in zip(header[1:], cells, strict=True):
            losses = {key: [run["loss"] for run in runs] for key, runs in factors[case][method].items()}
            means = {
                float(key): math.inf if None in found else statistics.fmean(found) for key, found in losses.items()
            }
            assert {0.5, 1.0, 2.0} <= means.keys()
            excess = 100.0 * (means[1.0] / min(means.values()) - 1.0)
            excesses.append(excess)
            assert cell == "best" if excess == 0.0 else cell.startswith(f"+{excess:.1f} % ("), (case, method, cell)
    counts = re.search(
        r"best one in (\d+) of these (\d+), within 5 % of the best in (\d+) and within 10 % in (\d+)", RATES
    )
    assert counts is not None
    within = [sum(excess <= limit for excess in excesses) for limit in (0.0, 5.0, 10.0)]
    assert [int(count) for count in counts.groups()] == [within[0], len(excesses), *within[1:]]


def test_first_order_rates_of_a_narrow_model_that_they_were_not_chosen_with():
    found = json.loads((RESULTS / "narrow.json").read_text(encoding="utf-8"))
    shown = {case: f"{run['accuracy']:.3f}" for case, run in found.items()}
    assert f"at an accuracy of {shown['full']} on 872 rows with full weights and {shown['lora']} with LoRA" in RATES
    assert f"with 1e-5, the rate of wide models, at {shown['full, rate of wide models']}" in RATES
    given = {"full": ("full", None), "lora": ("lora", None), "full, rate of wide models": ("full", 1024)}
    for case, (trained, width) in given.items():
        rate = ALGORITHMS["FOAdam"].first_order_rate("opt-mini", trained, width or 192)
        assert found[case]["lr"] == pytest.approx(rate)
