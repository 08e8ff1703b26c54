"""The tables of the experiments' page, from the runs and reports in experiments/results/methods.

    python experiments/tables.py

Prints them in Markdown: validation loss, accuracy and training loss at the end, mean and standard deviation over the
trials that did not diverge; the last row is what predicting how frequent the classes are would give.
"""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "methods"
NAMES = {
    "ZO": "MeZO",
    "ZOAdam": "ZO-Adam",
    "ZOSVRG": "MeZO-SVRG",
    "LOZO": "LOZO",
    "LOZO-M": "LOZO-M",
    "HiZOO": "HiZOO",
    "LOREN": "LOREN",
    "FZOO": "FZOO",
    "FOAdam": "AdamW",
}
UNTAUGHT = "shares of the classes"
TABLES: Sequence[tuple[str, Sequence[tuple[str, str]]]] = (
    (
        "What is learnt, generated text with the embedded model:",
        [(f"embedded-{task}", column) for task in ("sst2", "rte", "cb") for column in ("loss", "accuracy")],
    ),
    ("", [(f"embedded-{task}", "training_loss") for task in ("sst2", "rte", "cb")]),
    (
        "trec, which AdamW alone learns, with the llama and with opt-mini:",
        [(f"{name}-trec", column) for name in ("llama", "opt") for column in ("loss", "accuracy", "training_loss")],
    ),
    (
        "At chance, with the llama:",
        [(f"llama-{task}", column) for task in ("sst2", "rte", "mnli") for column in ("loss", "training_loss")],
    ),
    (
        "CommitmentBank (200 training and 56 validation rows), with the llama:",
        [("llama-cb", column) for column in ("loss", "accuracy", "training_loss", "difference")],
    ),
)


def title(case: str, column: str) -> str:
    """Of a column of the page."""
    if column == "difference":
        return "loss minus MeZO's"
    return f"{case.replace('-', ' ')} {column.replace('_', ' ')}"


def of_runs(case: str, method: str, column: str) -> str:
    """Mean and deviation over the trials."""
    with (RESULTS / case / "runs.csv").open(encoding="utf-8") as file:
        runs = [run for run in csv.DictReader(file) if run["method"] == method]
    kept = [float(run[column]) for run in runs if run["diverged"] == "0"]
    lost = len(runs) - len(kept)
    return f"{statistics.fmean(kept):.3f} ± {statistics.stdev(kept):.3f}" + (f" ({lost} diverged)" if lost else "")


def of_report(case: str, heading: str, row: str, column: str) -> str:
    """A cell of a table of a report; "" where it has none."""
    text = (RESULTS / case / "report.md").read_text(encoding="utf-8")
    table = text.partition(f"## {heading}")[2].strip().partition("\n\n")[0].splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table]
    found = {cells[0]: cells for cells in rows}.get(row)
    return found[head.index(column)].replace("\\*", "").strip() if found else ""


def rounded(text: str) -> str:
    """Numbers with three digits."""
    return re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.3f}", text)


def cell(case: str, method: str, column: str) -> str:
    """A cell of the page."""
    if column == "difference":
        return rounded(of_report(case, "Difference from ZO", method, "loss"))
    if method != UNTAUGHT:
        return of_runs(case, method, column)
    return "" if column == "training_loss" else rounded(of_report(case, "At the end of the budget", method, column))


def table(columns: Sequence[tuple[str, str]]) -> str:
    """A table of the page."""
    lines = [f"| method | {' | '.join(title(*column) for column in columns)} |", f"|---|{'---:|' * len(columns)}"]
    shown = [*NAMES, UNTAUGHT] if any(column in ("loss", "accuracy") for _, column in columns) else [*NAMES]
    for method in shown:
        cells = [cell(case, method, column) for case, column in columns]
        lines.append(f"| {NAMES.get(method, method)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print("\n".join(f"{heading}\n\n{table(columns)}" for heading, columns in TABLES))
