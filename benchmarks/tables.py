"""The tables of docs/speed-and-memory.md, made from the JSON results; a figure that no file holds is "not measured".

python benchmarks/tables.py        writes them into the page
"""

import json
import re
from pathlib import Path
from typing import Any

from common import RESULTS
from eager import TEXTBOOK

REPLAY_PAGE = Path(__file__).resolve().parents[1] / "docs" / "trajectories.md"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "speed-and-memory.md"
MISSING = "not measured"
_MARKS = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Rows = list[dict[str, Any]]


def load(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """A file of results, empty if there is none."""
    path = folder / f"{name}.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    return {"rows": [], **content}


def pick(rows: Rows, **wanted: Any) -> dict[str, Any] | None:
    """The row with these values."""
    return next((row for row in rows if all(row.get(key) == value for key, value in wanted.items())), None)


def figure(row: dict[str, Any] | None, key: str, form: str = "{:.2f}") -> str:
    if row is None or row.get(key) is None:
        return MISSING
    text = form.format(row[key])
    return f"{text} (target {row['target']:g}: {row['verdict']})" if row.get("target") is not None else text


def grid(headings: list[str], lines: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(headings) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [headings, rule, *lines]) + "\n"


def methods(rows: Rows) -> list[str]:
    """Titles in the order in which the package lists them."""
    from zotune.bench.variants import VARIANTS

    there = {row["method"] for row in rows}
    return [variant.title for variant in VARIANTS if variant.title in there]


def time_table(folder: Path = RESULTS, head: str = "class", size: str = "8x64") -> str:
    """Steps over their forward passes."""
    rows = [row for row in load("step_cost", folder)["rows"] if row["head"] == head and row["size"] == size]
    lines = []
    for title in methods(rows):
        sides = [pick(rows, method=title, noise=noise) for noise in ("gaussian", "rademacher", "textbook")]
        queries = next(str(row["queries"]) for row in sides if row)
        textbook = figure(sides[2], "ratio") if title in TEXTBOOK else "-"
        lines.append([title, queries, *(figure(row, "ratio") for row in sides[:2]), textbook])
    return grid(["method", "K", "gaussian", "rademacher", "textbook way"], lines or [[MISSING, *["-"] * 4]])


SIDES_OF_BATCHES = (
    ("LOZO", "gaussian"),
    ("LOZO, stacked", "gaussian"),
    ("LOZO", "textbook"),
    ("two batches in one forward", "none"),
)


def batch_table(folder: Path = RESULTS) -> str:
    """LOZO at several batch sizes."""
    rows = [row for row in load("step_cost", folder)["rows"] if row["head"] == "class"]
    lines = []
    for size in ("1x64", "4x64", "8x64", "16x64"):
        sides = [pick(rows, method=title, noise=noise, size=size) for title, noise in SIDES_OF_BATCHES]
        lines.append([size.replace("x", " x "), *(figure(row, "ratio") for row in sides)])
    return grid(
        ["rows x tokens", "LOZO", "always stacked", "textbook way", "two batches in one forward, no step"], lines
    )


def memory_table(folder: Path = RESULTS) -> str:
    """Peaks over inference."""
    rows = [row for row in load("memory", folder)["rows"] if row["head"] == "class" and row["device"] == "cpu"]
    rows = [row for row in rows if row["dtype"] == "float32"]
    lines = []
    for title in methods(rows):
        mine, other = (pick(rows, method=title, way=way) for way in ("zotune", "textbook"))
        textbook = figure(other, "of_inference") if title in TEXTBOOK else "-"
        lines.append([title, figure(mine, "of_inference", "{:.3f}"), figure(mine, "of_inference_process"), textbook])
        if mine is not None and mine.get("target") is not None:  # the target belongs to the first figure
            lines[-1][2] = f"{mine['of_inference_process']:.2f}"
    headings = ["method", "above the libraries", "whole process", "textbook way, above the libraries"]
    return grid(headings, lines or [[MISSING, *["-"] * 3]])


def passes_table(folder: Path = RESULTS) -> str:
    """Nanoseconds per weight."""
    rows = load("passes", folder)["rows"]
    order = ("copy", "textbook", "gaussian 1", "gaussian 2", "gaussian 20", "rademacher 1", "rademacher 2")
    order = (*order, "rademacher 20", "textbook, rank 2", "addmm, rank 2", "rank 2")
    lines = [[side, figure(pick(rows, side=side), "ns"), figure(pick(rows, side=side), "copies")] for side in order]
    for line in lines:
        line[2] = line[2].split(" (")[0]
    return grid(["side and directions", "ns per weight", "copies"], lines)


def drift_table(folder: Path = RESULTS) -> str:
    """Half precision."""
    rows = load("drift", folder)["rows"]
    sides = {
        "drift, textbook way": ("drift", "textbook"),
        "drift, zotune": ("drift", "zotune"),
        "1e-5 kept, to nearest": ("kept of 1e-05", "to nearest"),
        "1e-5 kept, zotune": ("kept of 1e-05", "stochastic"),
        "1e-6 kept, to nearest": ("kept of 1e-06", "to nearest"),
        "1e-6 kept, zotune": ("kept of 1e-06", "stochastic"),
    }
    dtypes = ("float32", "bfloat16", "float16")
    lines = [
        [name, *(figure(pick(rows, what=what, way=way, dtype=dtype), "value", "{:.3g}") for dtype in dtypes)]
        for name, (what, way) in sides.items()
    ]
    return grid(["", *dtypes], lines)


def gpu_table(folder: Path = RESULTS) -> str:
    """Models on a GPU: milliseconds a step and gigabytes, zotune's (Gaussian) and the textbook way's."""
    rows = load("gpu", folder)["rows"]
    shapes = ("GPT-2-XL", "Llama-3-8B", "OPT-13B")
    titles = ["forward pass", *(methods(rows) or ["MeZO", "LOZO", "HiZOO", "LOREN"])]
    lines = []
    for title in titles:
        cells = []
        for shape in shapes:
            wanted = {"shape": shape, "size": "16x128", "method": title}
            mine = pick(rows, way="inference" if title == "forward pass" else "gaussian", **wanted)
            other = pick(rows, way="textbook", **wanted)
            cells.append(_gpu_cell(mine) + (f"; textbook {_gpu_cell(other)}" if other else ""))
        lines.append([title, *cells])
    return grid(["16 x 128 tokens, bfloat16", *shapes], lines)


def _gpu_cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return MISSING
    if "refused" in row:
        return "-"
    target = f" (target {row['target_ms']:g}: {row['verdict']})" if "target_ms" in row else ""
    return f"{row['ms']:.0f} ms{target}, {(row['memory_mb'] or 0) / 1000:.1f} GB"


def replay_table(folder: Path = RESULTS) -> str:
    """Replaying a run beside making it again."""
    rows = load("replay", folder)["rows"]
    lines = []
    for title in methods(rows):
        sides = [pick(rows, method=title, noise=noise) for noise in ("gaussian", "rademacher")]
        cells = [figure(row, "replay_ns") + " / " + figure(row, "rerun_ns", "{:.1f}") for row in sides]
        size = figure(sides[0], "bytes_1000_steps", "{:,}")
        lines.append([title, *cells, size, figure(sides[0], "bytes_a_query", "{:.1f}")])
    headings = ["method", "gaussian", "rademacher", "bytes of 1,000 steps", "bytes a query"]
    return grid(headings, lines or [[MISSING, *["-"] * 4]])


XEON = RESULTS / "xeon"
"""A second machine, whose memory is slow beside its arithmetic."""

TABLES = {
    "time": time_table,
    "time-vocabulary": lambda folder=RESULTS: time_table(folder, head="vocabulary"),
    "batches": batch_table,
    "memory": memory_table,
    "passes": passes_table,
    "drift": drift_table,
    "gpu": gpu_table,
    "time-xeon": lambda folder=RESULTS: time_table(folder / XEON.name),
    "batches-xeon": lambda folder=RESULTS: batch_table(folder / XEON.name),
    "replay": replay_table,
    "passes-xeon": lambda folder=RESULTS: passes_table(folder / XEON.name),
}


def render(page: str, folder: Path = RESULTS) -> str:
    """The page with its tables made anew."""
    return _MARKS.sub(lambda found: found[1] + "\n" + TABLES[found[2]](folder) + "\n" + found[3], page)


if __name__ == "__main__":
    for page in (PAGE, REPLAY_PAGE):
        page.write_text(render(page.read_text()))
