"""AdamW with its default rates on a model that had no part in choosing them: opt-mini on all rows of real sst2.

    python experiments/narrow.py --data FOLDER --models FOLDER

Three epochs of 4,000 training rows, 872 validation rows, one trial: the default with full weights, the default of wide
models (1e-5), and the default with LoRA.  Writes results/narrow.json.  What is there already is kept.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from options import HERE, parsed
from rates import kept_at, trained

ROWS = {
    "task": "sst2",
    "samplesize": "4000",
    "samplesize_validation": "872",
    "epochs": "3",
    "algorithm": "FOAdam",
}
CASES: dict[str, dict[str, Any]] = {
    "full": {"full_parameter": True},
    "full, rate of wide models": {"full_parameter": True, "lr": "1e-5"},
    "lora": {"tuning": "lora"},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="holds a folder for each task")
    parser.add_argument("--models", type=Path, required=True, help="holds opt-mini")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parsed(parser)
    place = {"model_name": str(options.models / "opt-mini"), "data_dir": str(options.data)}
    results, keep = kept_at(options.out / "narrow.json")
    for case, own in CASES.items():
        if case not in results:
            results[case] = trained({**place, **ROWS, **own})
            keep()
        print(case, results[case], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
