"""What the curvature of LOREN and HiZOO adds: runs with more and less of it, and with none.

    python experiments/curvature.py --data FOLDER --models FOLDER [--only NAME ...] [--work FOLDER]

For the cases of experiments/methods.py in which anything is learnt: `zotune compare` of LOREN with rates `--lr_cov` of
the curvature, and of HiZOO with smoothings, at the learning rates that its searches found for the defaults.
Keeps report.md and the table of runs in experiments/results/curvature/NAME.
"""

from __future__ import annotations

import json
import sys

from methods import AT_CHANCE, CASES, HERE, compared, keep, parser_of, told, words_of

COVARIANCES = ("0", "1e-3", "1e-1", "1")
SMOOTHINGS = ("constant0", "constant1e-8", "constant1e-5", "constant1e-3")


def variants(name: str) -> str:
    """The list of methods for `zotune compare`."""
    best = json.loads((HERE / "results" / "methods" / name / "best.json").read_text())
    loren = [f"LOREN --lr {best['LOREN']['lr']} --lr_cov {rate}" for rate in COVARIANCES]
    hizoo = [f"HiZOO --lr {best['HiZOO']['lr']} --hessian_smooth_type {kind}" for kind in SMOOTHINGS]
    return ", ".join([*loren, *hizoo])


def main() -> int:
    options = told(parser_of(__doc__, [name for name in CASES if name not in AT_CHANCE], "curvature"))
    for name in options.only:
        folder = compared(words_of(name, options), options.work / name, methods=variants(name))
        keep(folder, options.results / name, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
