"""What the curvature of LOREN and HiZOO adds: runs with more and less of it, and with none.

    python experiments/curvature.py --data FOLDER --models FOLDER [--only NAME ...] [--work FOLDER]

For the cases of experiments/methods.py in which anything is learnt: `zotune compare` of LOREN with rates `--lr_cov` of
the curvature, and of HiZOO with smoothings, at the learning rates that its searches found for the defaults.
Keeps report.md and the table of runs in experiments/results/curvature/NAME.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from methods import AT_CHANCE, CASES, HERE, TRIALS, command, keep, words_of
from options import parsed

COVARIANCES = ("0", "1e-3", "1e-1", "1")
SMOOTHINGS = ("constant0", "constant1e-8", "constant1e-5", "constant1e-3")


def variants(name: str) -> str:
    """The list of methods for `zotune compare`."""
    best = json.loads((HERE / "results" / "methods" / name / "best.json").read_text())
    loren = [f"LOREN --lr {best['LOREN']['lr']} --lr_cov {rate}" for rate in COVARIANCES]
    hizoo = [f"HiZOO --lr {best['HiZOO']['lr']} --hessian_smooth_type {kind}" for kind in SMOOTHINGS]
    return ", ".join([*loren, *hizoo])


def main() -> int:
    learnt = [name for name in CASES if name not in AT_CHANCE]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="holds a folder for each task (trec ...)")
    parser.add_argument("--models", type=Path, help="holds llama-stories260K")
    parser.add_argument("--only", nargs="+", choices=learnt, default=learnt)
    parser.add_argument("--work", type=Path, default=Path("results/curvature"))
    parser.add_argument("--results", type=Path, default=HERE / "results" / "curvature")
    options = parsed(parser)
    for name in options.only:
        shared, work = words_of(name, options), options.work / name
        settings = ("--trials", TRIALS, "--evaluations", "6", "--out", str(work))
        command("compare", "--algorithms", variants(name), *shared, *settings)
        keep(work, options.results / name, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
