"""The tables of docs/noise-quality.md, from the results: python benchmarks/battery/tables.py"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import judge
from report import amounts
from run import RESULTS

Record = dict[str, Any]
KINDS = {"small": "SmallCrush", "crush": "Crush, chosen tests", "big": "BigCrush, chosen tests", "rabbit": "Rabbit"}


def _amount(n: int) -> str:
    return f"{n / 1e9:.2f}e9"


def noise(data: Record) -> list[str]:
    """One row for every stream or group of direct tests of the noise itself."""
    lines = ["| read as | tests | p-values | words or numbers | smallest q |", "|---|---|---|---|---|"]
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for run in data["runs"]:
        if run["generator"] == "zotune" and not run["repeat"]:
            groups[run["stream"], run["suite"]].append(run)
    for (stream, suite), runs in groups.items():
        q = [judge.two_sided(row["p"]) for run in runs for row in run["results"]]
        read = sum(amounts(run) for run in runs)
        lines.append(f"| {stream} | {KINDS.get(suite, suite)} | {len(q)} | {_amount(read)} | {min(q):.2g} |")
    return lines


def generators(data: Record) -> list[str]:
    """One row for the noise and for every variant of it."""
    lines = [
        "| generator | p-values | words or numbers | q < 1e-10 | q < 0.01 (expected) | it failed on |",
        "|---|---|---|---|---|---|",
    ]
    for name, verdict in data["verdicts"].items():
        meaning = data["meanings"].get(name, "the kernels")
        failed_on = ", ".join(verdict["failed_on"]) or "nothing"
        lines.append(
            f"| {name}: {meaning} | {verdict['p_values']} | {_amount(verdict['numbers'])} | {verdict['failed']} | "
            f"{verdict['q_below_0.01']} ({verdict['expected_below_0.01']}) | {failed_on} |"
        )
    return lines


def tails(data: Record) -> list[str]:
    """What 24 bits of the radius do to the tails."""
    lines = ["| t | P(\\|z\\| > t), N(0, 1) | this Gaussian |", "|---|---|---|"]
    return lines + [
        f"| {row['t']} | {row['standard normal']:.5g} | {row['this Gaussian']:.5g} |" for row in data["tails"]
    ]


def timing(data: Record) -> list[str]:
    """ns per weight by the number of rounds."""
    median = data["timing"]["median"]
    rounds = sorted({int(name.split()[-2]) for name in median}, reverse=True)
    head = " | ".join(f"{count} rounds" for count in rounds)
    lines = [f"| | {head} |", "|---" * (len(rounds) + 1) + "|"]
    for side in dict.fromkeys(name.rsplit(", ", 1)[0] for name in median):
        values = " | ".join(f"{median[f'{side}, {count} rounds']:.2f}" for count in rounds)
        lines.append(f"| {side} | {values} |")
    return lines


def main() -> None:
    data = json.loads(RESULTS.read_text())
    parts = [noise(data), generators(data), tails(data), timing(data) if "timing" in data else []]
    print("\n\n".join("\n".join(part) for part in parts))


if __name__ == "__main__":
    main()
