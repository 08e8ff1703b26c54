"""The share that `--lr auto` takes, and how its runs compare with tuned ones.

    python experiments/rates.py tune --encoder FOLDER [--only NAME ...]
    python experiments/rates.py test --encoder FOLDER --decoder FOLDER --data FOLDER --models FOLDER [--only NAME ...]

``tune``: for each case and method, runs with multiples of the shipped share: 1, 2 and 1/2 and, while the best one is at
an end, beyond.  Writes results/factors.json and factors.md.  ``test``: for each case and method, runs of
`--lr auto` beside a search over constant rates (factors of 1.8 apart, until the best one is inside), same budget and
seeds, mean of the trials; then the best constant rate and `--lr auto` on three draws that the search has not seen,
because the best of several rates on the draws that chose it looks better than it is.  Writes results/rates.json and
rates.md.  What is there already is kept.
FOLDER of the encoder is what experiments/encoder.py made, that of the decoder what experiments/decoder.py made.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from options import need_decoder, parsed, parser_of
from rich.console import Console
from transformers import TrainerCallback

from zotune import NonFiniteLossError, rates
from zotune.config import MEASURED, config_from_text
from zotune.run.training import TrainingRun

METHODS: dict[str, dict[str, str]] = {
    "ZO": {"algorithm": "ZO"},
    "ZOAdam": {"algorithm": "ZOAdam"},
    "ZOSVRG": {"algorithm": "ZOSVRG"},
    "LOZO": {"algorithm": "LOZO"},
    "LOZO-M": {"algorithm": "LOZO", "momentum": "0.9"},
    "HiZOO": {"algorithm": "HiZOO"},
    "LOREN": {"algorithm": "LOREN"},
    "FZOO": {"algorithm": "FZOO"},
}
FULL: dict[str, Any] = {"full_parameter": True, "budget_queries": "8000"}
LORA = {"tuning": "lora", "budget_queries": "8000"}
PREFIX = {"tuning": "prefix", "budget_queries": "8000"}
PARTIAL = {"budget_queries": "8000"}
LONGER = {"budget_queries": "32000"}
ENCODER = {"model_name": "ENCODER"}
GPT2 = {"model_name": "DECODER"}
LLAMA = {"model_name": "llama-stories260K", "max_seq_length": "96"}
TUNE: dict[str, dict[str, Any]] = {
    "decoder sst2 full": {"task": "sst2", **FULL},
    "decoder cola full": {"task": "cola", **FULL},
    "decoder mnli full": {"task": "mnli", **FULL},
    "decoder sst2 lora": {"task": "sst2", **LORA},
    "decoder sst2 prefix": {"task": "sst2", **PREFIX},
    "encoder cola full": {**ENCODER, "task": "cola", "soft_prompt": True, **FULL},
    "encoder cola lora": {**ENCODER, "task": "cola", "soft_prompt": True, **LORA},
    "encoder cola prefix": {**ENCODER, "task": "cola", "soft_prompt": True, **PREFIX},
}
TEST: dict[str, dict[str, Any]] = {
    "decoder qnli lora": {"task": "qnli", **LORA},
    "decoder boolq partial": {"task": "boolq", **PARTIAL},
    "encoder mnli full": {**ENCODER, "task": "mnli", "soft_prompt": True, **FULL},
    "decoder rte full": {"task": "rte", **FULL},
    "decoder rte prefix": {"task": "rte", **PREFIX},
    "encoder qnli lora": {**ENCODER, "task": "qnli", "soft_prompt": True, **LORA},
    "encoder rte full": {**ENCODER, "task": "rte", "soft_prompt": True, **FULL},
    "decoder rte full, longer": {"task": "rte", **FULL, **LONGER},
    "encoder rte full, longer": {**ENCODER, "task": "rte", "soft_prompt": True, **FULL, **LONGER},
    "llama trec full": {**LLAMA, "task": "trec", **FULL},
    "llama sst5 lora": {**LLAMA, "task": "sst5", **LORA},
    "decoder wic full": {"task": "wic", **FULL},
    "decoder wic lora": {"task": "wic", **LORA},
    "decoder cb full": {"task": "cb", **FULL},
    "encoder wic full": {**ENCODER, "task": "wic", "soft_prompt": True, **FULL},
    "encoder cb lora": {**ENCODER, "task": "cb", "soft_prompt": True, **LORA},
    "decoder wic full, longer": {"task": "wic", **FULL, **LONGER},
    "decoder cb lora": {"task": "cb", **LORA},
    "decoder qnli full": {"task": "qnli", **FULL},
    "decoder boolq lora": {"task": "boolq", **LORA},
    "decoder mnli lora": {"task": "mnli", **LORA},
    "decoder rte lora": {"task": "rte", **LORA},
    "decoder cola lora": {"task": "cola", **LORA},
    "decoder cb prefix": {"task": "cb", **PREFIX},
    "decoder cb partial": {"task": "cb", **PARTIAL},
    "encoder cola prefix": {**ENCODER, "task": "cola", "soft_prompt": True, **PREFIX},
    "encoder qnli prefix": {**ENCODER, "task": "qnli", "soft_prompt": True, **PREFIX},
    "gpt2 rte full": {**GPT2, "task": "rte", **FULL},
    "gpt2 sst2 full": {**GPT2, "task": "sst2", **FULL},
    "gpt2 mnli full": {**GPT2, "task": "mnli", **FULL},
    "gpt2 rte lora": {**GPT2, "task": "rte", **LORA},
    "gpt2 sst2 lora": {**GPT2, "task": "sst2", **LORA},
    "gpt2 sst2 prefix": {**GPT2, "task": "sst2", **PREFIX},
    "gpt2 sst2 full, longer": {**GPT2, "task": "sst2", **FULL, **LONGER},
    "gpt2 rte full, longer": {**GPT2, "task": "rte", **FULL, **LONGER},
    "gpt2 sst2 lora, longer": {**GPT2, "task": "sst2", **LORA, **LONGER},
    "decoder rte lora, longer": {"task": "rte", **LORA, **LONGER},
    "decoder cola lora, longer": {"task": "cola", **LORA, **LONGER},
    "opt-mini trec full": {
        "model_name": "opt-mini",
        "task": "trec",
        "soft_prompt": True,
        **FULL,
        "budget_queries": "4000",
    },
}
Keep = Callable[[], None]
TRIALS = ("1", "2")
FRESH = ("3", "4", "5")
AUTO, AGAIN = "auto", " on fresh draws"
RATIO = 1.8
FURTHEST = 6  # from the first rate, as an exponent of RATIO
NEAR = 0.05  # rates of earlier searches that need not be tried again


def settings(case: dict[str, Any], method: str, options: argparse.Namespace) -> dict[str, Any]:
    given = {**case, **METHODS[method], "evaluations": "1", "samplesize_validation": "256"}
    name = given.get("model_name")
    made = {"ENCODER": options.encoder, "DECODER": options.decoder}
    if name in made:
        given |= {"model_name": str(made[name] / "model"), "data_dir": str(made[name] / "data")}
    elif name is not None:
        given |= {"model_name": str(options.models / name), "data_dir": str(options.data)}
    return given


def trained(given: dict[str, Any], *callbacks: TrainerCallback) -> dict[str, Any]:
    """A run: its rate, and the validation loss before and after; null where it diverged."""
    with tempfile.TemporaryDirectory() as place:
        config = config_from_text({**given, "results": place})
        run = TrainingRun(config, Console(quiet=True), callbacks=callbacks, pictures=False)
        try:
            run.execute()
        except NonFiniteLossError:
            run.finish("non-finite loss")
        finally:
            run.close()
        assert run.folder is not None
        config = json.loads((run.folder / "config.json").read_text())
        path = run.folder / "summary.json"
        summary = json.loads(path.read_text()) if path.is_file() else {"status": "diverged"}
    finished = summary["status"] == "finished"
    return {
        "lr": config["lr"],
        "measured": config.get(MEASURED),
        "first": summary["first"]["loss"] if summary.get("first") else None,
        "loss": summary["final"]["loss"] if finished else None,
        "accuracy": summary["final"]["accuracy"] if finished else None,
    }


def mean_loss(runs: list[dict[str, Any]]) -> float:
    losses = [run["loss"] for run in runs]
    return math.inf if None in losses else statistics.fmean(losses)


def with_multiple(given: dict[str, Any], multiple: float) -> list[dict[str, Any]]:
    """Runs of `--lr auto` with a multiple of the shipped share."""
    shipped = rates.REACH
    rates.REACH = multiple * shipped
    try:
        return [trained({**given, "lr": "auto", "trial": trial}) for trial in TRIALS]
    finally:
        rates.REACH = shipped


def search(loss: Callable[[int], float], reach: int) -> None:
    """Over exponents from -1 to 1 and, while the best one is at an end, beyond, as far as ``reach``."""
    low, high = -1, 1
    while True:
        best = min(range(low, high + 1), key=loss)
        if best == low and low > -reach:
            low -= 1
        elif best == high and high < reach:
            high += 1
        else:
            return


def tune(given: dict[str, Any], _: str, found: dict[str, Any], keep: Keep) -> None:
    def loss(number: int) -> float:
        multiple = 2.0**number
        key = f"{multiple:g}"
        if key not in found:
            found[key] = with_multiple(given, multiple)
            keep()
        return mean_loss(found[key])

    search(loss, 4)


def test(given: dict[str, Any], method: str, found: dict[str, Any], keep: Keep) -> None:
    def run(rate: str, trials: tuple[str, ...]) -> list[dict[str, Any]]:
        both = {"lr": rate, "lr_mezosvrg_mb": rate} if method == "ZOSVRG" and rate != AUTO else {"lr": rate}
        return [trained({**given, **both, "trial": trial}) for trial in trials]

    def kept(key: str, rate: str, trials: tuple[str, ...]) -> list[dict[str, Any]]:
        if key not in found:
            found[key] = run(rate, trials)
            keep()
        runs: list[dict[str, Any]] = found[key]
        return runs

    first = kept(AUTO, AUTO, TRIALS)
    known = constants(found)
    middle = float(best_of(known)) if known else first[0]["lr"]

    def loss(number: int) -> float:
        wanted = middle * RATIO**number
        near = [other for other in constants(found) if abs(float(other) / wanted - 1.0) < NEAR]
        rate = near[0] if near else repr(float(f"{wanted:.3g}"))
        return mean_loss(kept(rate, rate, TRIALS))

    search(loss, FURTHEST)
    for rate in (best_of(constants(found)), AUTO):
        kept(rate + AGAIN, rate, FRESH)


def constants(found: dict[str, Any]) -> dict[str, float]:
    """Mean losses of the search by rate."""
    return {rate: mean_loss(runs) for rate, runs in found.items() if rate != AUTO and not rate.endswith(AGAIN)}


def best_of(losses: dict[str, float]) -> str:
    return min(losses, key=losses.__getitem__)


def factors_table(results: dict[str, Any]) -> str:
    """How far the shipped share ends above the best of its multiples, and all losses."""
    return f"{excess_table(results)}\n{multiples_table(results)}"


def excess_table(results: dict[str, Any]) -> str:
    """For each method and case the loss of the shipped share above that of the best multiple, and which one that is."""
    methods = [method for method in METHODS if all(whole(found.get(method)) for found in results.values())]
    lines = [f"| method | {' | '.join(results)} |", f"|---|{'---:|' * len(results)}"]
    for method in methods:
        cells = []
        for found in results.values():
            losses = {float(multiple): mean_loss(runs) for multiple, runs in found[method].items()}
            best = min(sorted(losses, key=lambda multiple: abs(math.log(multiple))), key=losses.__getitem__)
            cells.append("best" if best == 1.0 else f"{above(losses[1.0], losses[best])} ({best:g})")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def whole(found: dict[str, Any] | None) -> bool:
    return found is not None and {"0.5", "1", "2"} <= found.keys()


def multiples_table(results: dict[str, Any]) -> str:
    """Losses at multiples of the shipped share."""
    lines = ["| case | method | loss before | half | shipped | twice | others |"]
    lines.append("|---|---|---:|---:|---:|---:|---|")
    for case, methods in results.items():
        for method, found in methods.items():
            if not whole(found):
                continue
            losses = {float(multiple): mean_loss(runs) for multiple, runs in found.items()}
            first = statistics.fmean([run["first"] for run in next(iter(found.values()))])
            others = ", ".join(f"{m:g}: {losses[m]:.4f}" for m in sorted(losses) if m not in (0.5, 1.0, 2.0))
            shown = " | ".join(f"{losses[m]:.4f}" for m in (0.5, 1.0, 2.0))
            lines.append(f"| {case} | {method} | {first:.3f} | {shown} | {others} |")
    return "\n".join(lines) + "\n"


def rates_table(results: dict[str, Any]) -> str:
    """Runs of `--lr auto` beside the best constant rate."""
    lines = [
        "| case | method | loss before | lr auto | loss | best constant rate | its loss | of | above it | fresh: auto |"
        " constant | above it |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for case, methods in results.items():
        for method, found in methods.items():
            auto, constant = found.get(AUTO), constants(found)
            if not auto or not constant:
                continue
            lowest = best_of(constant)
            first = statistics.fmean([run["first"] for run in auto])
            fresh = "| | | |"
            if AUTO + AGAIN in found and lowest + AGAIN in found:
                fresh = f"| {compared(found[AUTO + AGAIN], found[lowest + AGAIN])} |"
            lines.append(
                f"| {case} | {method} | {first:.3f} | {auto[0]['lr']:.2e} | {mean_loss(auto):.4f} | {float(lowest):.2e}"
                f" | {constant[lowest]:.4f} | {len(constant)} | {above(mean_loss(auto), constant[lowest])} {fresh}"
            )
    return "\n".join(lines) + "\n"


def compared(auto: list[dict[str, Any]], constant: list[dict[str, Any]]) -> str:
    """Means of fresh runs with the least and the greatest, and how far the former is above the latter."""
    both = [mean_loss(auto), mean_loss(constant)]
    cells = []
    for runs, mean in zip((auto, constant), both, strict=True):
        losses = [run["loss"] for run in runs if run["loss"] is not None]
        lost = len(runs) - len(losses)
        ends = f"{min(losses):.3f} to {max(losses):.3f}" if losses else ""
        cells.append(f"{mean:.4f} ({ends})" if not lost else f"{lost} of {len(runs)} diverged ({ends})")
    return f"{' | '.join(cells)} | {above(*both)}"


def above(auto: float, constant: float) -> str:
    return f"{100 * (auto / constant - 1):+.1f} %" if math.isfinite(auto) and math.isfinite(constant) else ""


def kept_at(path: Path) -> tuple[dict[str, Any], Keep]:
    """What a file has of earlier runs, and what writes it with those that have come to it."""
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def keep() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")

    return results, keep


def main() -> int:
    parser = parser_of(__doc__, (*TUNE, *TEST), needed=False)
    parser.add_argument("what", choices=("tune", "test"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options = parsed(parser)
    if options.what == "test":
        need_decoder(parser, options, options.only or TEST)
    cases, name, of_one, table = (
        (TUNE, "factors", tune, factors_table) if options.what == "tune" else (TEST, "rates", test, rates_table)
    )
    path = options.out / f"{name}.json"
    results, keep = kept_at(path)
    for case in options.only or cases:
        for method in options.methods:
            found = results.setdefault(case, {}).setdefault(method, {})
            of_one(settings(cases[case], method, options), method, found, keep)
            line = {key: round(mean_loss(runs), 4) for key, runs in found.items()}
            print(case, method, next(iter(found.values()))[0]["lr"], line, flush=True)
    path.with_suffix(".md").write_text(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
