"""All methods, tuned at equal budget and compared over five trials: the page of the experiments.

    python experiments/methods.py --data FOLDER --models FOLDER [--only NAME ...] [--first] [--kept] [--work FOLDER]

For each case three commands: `zotune sweep` over two decades (the rate of each method, with other heads, directions and
order than those of the comparison, and other examples as far as there are more: --init_seed 7), `zotune sweep` again
over seven rates about the best of them, and `zotune compare` with the best settings.  Where the zeroth-order methods
stay at chance (AT_CHANCE) the second search is left out, but for trec with the llama.  What is finished is not done
again.  With ``--kept`` only the comparison is made, with the settings that are in the results already.
Keeps report.md, figures, tables of runs, the tried settings and the best ones in experiments/results/methods/NAME, of
the first search in its folder coarse (with ``--first`` also the comparison of what that one found).
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from options import parsed

HERE = Path(__file__).parent
METHODS = "ZO,ZOAdam,ZOSVRG,LOZO,LOZO-M,HiZOO,LOREN,FZOO,FOAdam"
LLAMA = ("--model_name", "llama-stories260K", "--full_parameter", "--max_seq_length", "96")
OPT = ("--model_name", "opt-mini", "--full_parameter")
EMBEDDED = ("--model_name", "embedded", "--full_parameter")
CASES = {
    "llama-sst2": (*LLAMA, "--task", "sst2"),
    "llama-cb": (*LLAMA, "--task", "cb"),
    "llama-rte": (*LLAMA, "--task", "rte"),
    "llama-mnli": (*LLAMA, "--task", "mnli"),
    "llama-trec": (*LLAMA, "--task", "trec"),
    "opt-trec": (*OPT, "--task", "trec"),
    "embedded-sst2": (*EMBEDDED, "--task", "sst2"),
    "embedded-rte": (*EMBEDDED, "--task", "rte"),
    "embedded-cb": (*EMBEDDED, "--task", "cb"),
}
AT_CHANCE = ("llama-sst2", "llama-cb", "llama-rte", "llama-mnli", "opt-trec")
BUDGET = "6000"
RUNS = "7"
RATIO, NEXT = 1.4, 3
"""Of the second search: between two rates, and how many there are on either side of the best one of the first."""

TRIALS = "5"
SHARED = ("--samplesize", "512", "--samplesize_validation", "256", "--budget_queries", BUDGET)
KEPT = ("report.md", "runs.csv", "evaluations.csv", "trials.csv", "best.json", "sweep.png")


def command(*words: str) -> None:
    print("zotune", shlex.join(words), flush=True)
    subprocess.run([sys.executable, "-m", "zotune", *words], check=True)


def words_of(name: str, options: argparse.Namespace) -> list[str]:
    words = list(CASES[name])
    if "embedded" not in words:
        place = words.index("--model_name") + 1
        words[place] = str(options.models / words[place])
        words += ["--data_dir", str(options.data)]
    return [*words, *SHARED]


def near(best: Path, space: Path) -> Path:
    """Write rates about the best ones of a search as the space of a second one."""
    found = json.loads(best.read_text())
    steps = range(-NEXT, NEXT + 1)
    lists = {
        method: {"lr": [float(f"{flags['lr'] * RATIO**k:.3g}") for k in steps]}
        | {flag: [value] for flag, value in flags.items() if flag == "lr_mezosvrg_mb"}
        for method, flags in found.items()
    }
    space.write_text(json.dumps(lists, indent=1) + "\n")
    return space


def run(name: str, options: argparse.Namespace) -> None:
    shared, work = words_of(name, options), options.work / name
    coarse, fine, kept = work / "coarse", work / "fine", options.results / name
    if options.kept:
        keep_report(compared(shared, work / "compare", settings=best_of(kept)), kept, options)
        return
    sweep = ("sweep", "--algorithms", METHODS, *shared, "--evaluations", "4", "--init_seed", "7")
    command(*sweep, "--space", str(HERE / "spaces.json"), "--runs", RUNS, "--out", str(coarse))
    if name in AT_CHANCE:
        fine = coarse
    else:
        space = ("--space", str(near(coarse / "best.json", work / "space.json")), "--search", "grid")
        command(*sweep, *space, "--prune", "none", "--confirmations", "2", "--out", str(fine))
    if fine != coarse:
        keep(coarse, kept / "coarse", options)
        if options.first:
            keep(compared(shared, work / "compare-coarse", settings=best_of(coarse)), kept / "coarse", options)
    keep(fine, kept, options)
    keep_report(compared(shared, work / "compare", settings=best_of(fine)), kept, options)


def compared(shared: list[str], out: Path, *, methods: str = METHODS, settings: tuple[str, ...] = ()) -> Path:
    """Compare over the trials; the folder."""
    command(
        "compare",
        "--algorithms",
        methods,
        *shared,
        *settings,
        "--trials",
        TRIALS,
        "--evaluations",
        "6",
        "--out",
        str(out),
    )
    return out


def best_of(search: Path) -> tuple[str, ...]:
    return "--settings", str(search / "best.json")


def keep(folder: Path, kept: Path, options: argparse.Namespace) -> None:
    """Copy what is worth keeping; where the models and the data lie is nobody's business."""
    kept.mkdir(parents=True, exist_ok=True)
    for found in (path for path in folder.iterdir() if path.name in KEPT):
        shutil.copy(found, kept / found.name)
        if found.suffix in (".md", ".csv"):
            text = found.read_text()
            for place, called in ((options.models, "MODELS"), (options.data, "DATA")):
                text = text if place is None else text.replace(str(place), called)
            (kept / found.name).write_text(text)


def keep_report(folder: Path, kept: Path, options: argparse.Namespace) -> None:
    """Copy a report with its figures for a light ground."""
    keep(folder, kept, options)
    (kept / "figures").mkdir(exist_ok=True)
    for picture in (folder / "figures").glob("*.png"):
        if "-dark" not in picture.name:
            shutil.copy(picture, kept / "figures" / picture.name)


def parser_of(doc: str, cases: Iterable[str], name: str) -> argparse.ArgumentParser:
    """What the scripts on these cases are told; ``name``: of their folders."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--data", type=Path, help="holds a folder for each task (glue/sst2, super_glue/rte ...)")
    parser.add_argument("--models", type=Path, help="holds llama-stories260K and opt-mini")
    parser.add_argument("--only", nargs="+", choices=list(cases), default=list(cases))
    parser.add_argument("--work", type=Path, default=Path("results") / name)
    parser.add_argument("--results", type=Path, default=HERE / "results" / name)
    return parser


def told(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What a script was told, once there is what its cases need."""
    options = parsed(parser)
    real = [name for name in options.only if "embedded" not in CASES[name]]
    if real and (options.data is None or options.models is None):
        parser.error(f"{real[0]} needs --data and --models; the embedded cases (--only embedded-rte) need neither")
    return options


def main() -> int:
    parser = parser_of(__doc__, CASES, "methods")
    parser.add_argument("--first", action="store_true", help="compare with what the first search found as well")
    parser.add_argument("--kept", action="store_true", help="compare with the settings in --results, without a search")
    options = told(parser)
    for name in options.only:
        run(name, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
