"""Every task asked without training and with demonstrations, and trained for a few steps in every way of the papers.

    python experiments/papers.py --model FOLDER --data FOLDER [--steps 50] [--tasks copa squad ...]

The data folder holds a folder for each task, at any depth; ReCoRD and DROP are the few rows in experiments/rows,
written for this purpose.  Each entry is one command of zotune, in this process.  It shows that each of them works, and
what a handful of steps do to a small model; rates and scales are the papers', not tuned.  Writes papers.json (entries
that are there already are kept) and papers.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from zotune.cli import main
from zotune.tasks import TASKS

HERE = Path(__file__).parent
METHODS = {"MeZO": ["ZO"], "LOZO": ["LOZO"], "LOZO-M": ["LOZO", "--momentum", "0.9"]}
TUNINGS = {
    "full": ["--tuning", "full", "--lr", "1e-5", "--perturbation_scale", "1e-3"],
    "LoRA": ["--tuning", "lora", "--lr", "1e-3", "--perturbation_scale", "1e-2"],
    "prefix": ["--tuning", "prefix", "--lr", "1e-2", "--perturbation_scale", "1e-1"],
}
BATCH = 4


def command(words: list[str]) -> str:
    """Run one command; what it writes to standard output.

    Raises:
        RuntimeError: its exit code was another than 0; the message has what it said.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    if code:
        raise RuntimeError(f"zotune {' '.join(words)}: exit code {code}: {err.getvalue()[-500:]}")
    return out.getvalue()


def headline(name: str, scores: dict[str, Any]) -> float:
    """The metric that the papers report for a task: F1 of squad and drop, accuracy of all others."""
    return float(scores["f1" if name in ("squad", "drop") else "accuracy"])


def asked(name: str, shared: list[str], demonstrations: int, place: Path) -> dict[str, Any]:
    words = ["evaluate", *shared, "--max_new_tokens", "8", "--demonstrations", str(demonstrations)]
    command([*words, "--output", str(place / "scores.json")])
    return {"after": headline(name, json.loads((place / "scores.json").read_text())["scores"])}


def trained(name: str, shared: list[str], options: list[str], steps: int, rows: int, place: Path) -> dict[str, Any]:
    words = [
        "train",
        *shared,
        *options,
        "--samplesize",
        str(rows),
        "--batchsize",
        str(BATCH),
    ]
    epochs = steps / -(-rows // BATCH)
    often = ["--epochs", str(epochs), "--eval_every", str(epochs), "--max_new_tokens", "8"]
    run = Path(command([*words, *often, "--results", str(place)]).strip())
    summary = json.loads((run / "summary.json").read_text())
    losses = [summary[when]["loss"] for when in ("first", "final")]
    found = [headline(name, summary[when]) for when in ("first", "final")]
    return {"before": found[0], "after": found[1], "loss before": losses[0], "loss after": losses[1]}


def objective(name: str) -> list[str]:
    return ["--objective", "likelihood" if name in ("squad", "drop") else "options"]


def entries(options: argparse.Namespace, place: Path) -> dict[str, dict[str, Any]]:
    """All entries by "task way", written down as soon as they are there."""
    file = options.results / "papers.json"
    found: dict[str, dict[str, Any]] = json.loads(file.read_text())["entries"] if file.exists() else {}
    for name in options.tasks or TASKS:
        data = HERE / "rows" / name if name in ("record", "drop") else next(options.data.glob(f"**/{name}"))
        rows = sum(1 for _ in (data / "train.jsonl").open()) if name in ("record", "drop") else options.rows
        shared = ["--model_name", str(options.model), "--task", name, "--data_dir", str(data), "--device", "cpu"]
        shared += ["--samplesize_validation", str(options.validation), "--max_seq_length", str(options.length)]
        ways: dict[str, Any] = {
            "zero-shot": lambda n=name, s=shared: asked(n, s, 0, place),
            "4-shot": lambda n=name, s=shared: asked(n, s, 4, place),
        }
        for method, words in METHODS.items():
            for tuning, how in TUNINGS.items():
                given = [*how, *objective(name), "--algorithm", *words]
                ways[f"{method} {tuning}"] = lambda n=name, s=shared, g=given, r=rows: trained(
                    n, s, g, options.steps, r, place
                )
        if name == "squad":
            given = [*TUNINGS["full"], "--objective", "f1", "--algorithm", "ZO"]
            ways["MeZO on F1"] = lambda n=name, s=shared, g=given, r=rows: trained(n, s, g, options.steps, r, place)
        for way, run in ways.items():
            if f"{name} {way}" not in found:
                try:
                    found[f"{name} {way}"] = run()
                except RuntimeError as error:
                    found[f"{name} {way}"] = {"error": str(error)}
                about = {"model": options.model.name, "steps": options.steps, "batch": BATCH, "rows": options.rows}
                about["max_seq_length"] = options.length
                file.write_text(json.dumps({"about": about, "entries": found}, indent=1) + "\n")
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row for each task, a column for each way; trained ones with their loss before and after."""
    ways = ["zero-shot", "4-shot", *(f"{method} {tuning}" for method in METHODS for tuning in TUNINGS)]
    lines = ["| task | " + " | ".join(ways) + " |", "|---" * (len(ways) + 1) + "|"]
    for name in TASKS:
        cells = []
        for way in ways:
            entry = found.get(f"{name} {way}", {})
            if "after" not in entry:
                cells.append("failed" if entry else "")
                continue
            loss = f" ({entry['loss before']:.3f} > {entry['loss after']:.3f})" if "loss after" in entry else ""
            cells.append(f"{100 * entry['after']:.0f}{loss}")
        if any(cells):
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def run(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=TASKS)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rows", type=int, default=200, help="training rows")
    parser.add_argument("--validation", type=int, default=64, help="validation rows")
    parser.add_argument("--length", type=int, default=2048, help="most tokens of a question, if the model reads them")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args(words)
    options.results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        found = entries(options, Path(place))
    text = table(found)
    (options.results / "papers.md").write_text(text)
    print(text)
    return sum("error" in entry for entry in found.values())


if __name__ == "__main__":
    sys.exit(run())
