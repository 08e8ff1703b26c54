"""All methods, tuned at equal budget and compared over five trials: the page of the experiments.

    python experiments/methods.py --data FOLDER --models FOLDER [--only NAME ...] [--work FOLDER]

For each case two commands: `zotune sweep` (the rate of each method, with other heads, directions and order than those
of the comparison, and other examples as far as there are more: --init_seed 7) and `zotune compare` with the best
settings.  What is finished is not done again.
Keeps report.md, figures, tables of runs, the tried settings and the best ones in experiments/results/methods/NAME.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from options import parsed

HERE = Path(__file__).parent
METHODS = "ZO,ZOAdam,ZOSVRG,LOZO,LOZO-M,HiZOO,LOREN,FZOO,FOAdam"
LLAMA = ("--model_name", "llama-stories260K", "--full_parameter", "--max_seq_length", "96")
CASES = {
    "llama-sst2": (*LLAMA, "--task", "sst2"),
    "llama-cb": (*LLAMA, "--task", "cb"),
    "llama-rte": (*LLAMA, "--task", "rte"),
    "llama-mnli": (*LLAMA, "--task", "mnli"),
    "llama-trec": (*LLAMA, "--task", "trec"),
    "embedded-sst2": ("--model_name", "embedded", "--task", "sst2", "--full_parameter"),
    "embedded-rte": ("--model_name", "embedded", "--task", "rte", "--full_parameter"),
}
BUDGET = "6000"
RUNS = "7"
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


def run(name: str, options: argparse.Namespace) -> None:
    shared, work = words_of(name, options), options.work / name
    spaces = ["--space", str(HERE / "spaces.json"), "--runs", RUNS, "--evaluations", "4", "--init_seed", "7"]
    command("sweep", "--algorithms", METHODS, *shared, *spaces, "--out", str(work / "sweep"))
    best = ["--settings", str(work / "sweep" / "best.json"), "--trials", TRIALS, "--evaluations", "6"]
    command("compare", "--algorithms", METHODS, *shared, *best, "--out", str(work / "compare"))
    kept = options.results / name
    (kept / "figures").mkdir(parents=True, exist_ok=True)
    for found in (path for part in ("sweep", "compare") for path in (work / part).iterdir() if path.name in KEPT):
        shutil.copy(found, kept / found.name)
        if found.suffix in (".md", ".csv"):  # where the models and the data lie is nobody's business
            text = found.read_text()
            for folder, called in ((options.models, "MODELS"), (options.data, "DATA")):
                text = text if folder is None else text.replace(str(folder), called)
            (kept / found.name).write_text(text)
    for picture in (work / "compare" / "figures").glob("*.png"):
        if "-dark" not in picture.name:
            shutil.copy(picture, kept / "figures" / picture.name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="holds a folder for each task (glue/sst2, super_glue/rte ...)")
    parser.add_argument("--models", type=Path, help="holds llama-stories260K")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--work", type=Path, default=Path("results/methods"))
    parser.add_argument("--results", type=Path, default=HERE / "results" / "methods")
    options = parsed(parser)
    real = [name for name in options.only if "embedded" not in CASES[name]]
    if real and (options.data is None or options.models is None):
        parser.error(f"{real[0]} needs --data and --models; --only embedded-sst2 embedded-rte needs neither")
    for name in options.only:
        run(name, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
