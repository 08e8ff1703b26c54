"""Everything that is measured on a GPU, in one call of under ten minutes; one JSON file, written after every row.

1. Bits: the GPU's kernels against the specification (`bits.py`).
2. For GPT-2-XL, Llama-3-8B and OPT-13B (their shapes, random bfloat16 weights): time and peak memory of a bare forward
   pass, and of a step of each method, zotune's and the textbook way (`eager.py`).  16 x 128 tokens, and 64 x 128; the
   LOREN poster does not state its batch, 128 tokens is the length in its repository's command.

Each part has a share of the time (`PARTS`), and what finds none left is listed under `left_out`.  What does not fit
into the GPU is said so.  Times are wall-clock medians, sides taking turns with forward passes; memory is that of
tensors.

    python benchmarks/gpu_all.py [--minutes 9.5]
    python benchmarks/gpu_all.py --smoke        a tiny model on the CPU: does the script work?
"""

import gc
import itertools
import json
import statistics
import sys
import time
from typing import Any

import torch
from bits import cases, differing
from common import arguments, build, head, parse, verdict
from eager import TEXTBOOK
from memory import step_of

from zotune.bench.clock import ratio, take_turns, wall_clock
from zotune.bench.measure import prepare
from zotune.bench.peak import peak_bytes
from zotune.bench.variants import Variant, variants
from zotune.bench.workload import Workload

PARTS = {
    ("OPT-13B", "16x128"): 0.35,
    ("Llama-3-8B", "16x128"): 0.20,
    ("GPT-2-XL", "16x128"): 0.10,
    ("OPT-13B", "64x128"): 0.10,
    ("Llama-3-8B", "64x128"): 0.06,
    ("GPT-2-XL", "64x128"): 0.04,
}
"""Share of the time of each part; what one leaves goes to those after it."""

SHARE_OF_BITS = 0.15
ROUNDS = 5
FIRST = ("MeZO", "LOZO", "LOREN", "LOREN, 8-bit momentum", "HiZOO", "MeZO-SVRG")
"""Measured first, should the time run out."""

MILLISECONDS = {("OPT-13B", "16x128", "MeZO"): 200.0, ("OPT-13B", "16x128", "LOZO"): 100.0}
LOREN_OVER_MEZO = 1.02
"""Targets: time of a step on an H200, and LOREN's memory over MeZO's."""


class Report:
    """The file of results, and the time that is left."""

    def __init__(self, options: Any, device: torch.device) -> None:
        self.path = options.results / "gpu.json"
        self.seconds = options.minutes * 60
        self.end = time.perf_counter()
        self.content: dict[str, Any] = {
            **head("ms a step, MB = 10**6 bytes", str(device)),
            "bits": None,
            "rows": [],
            "left_out": [],
        }

    def begin(self, share: float) -> None:
        """A part begins that has a share of the time, and what the parts before have left."""
        self.end += share * self.seconds

    def out_of_time(self) -> bool:
        return time.perf_counter() > self.end

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.content, indent=1) + "\n")


def check_bits(report: Report, device: torch.device, every: int) -> None:
    chosen = dict(itertools.islice(cases(), 0, None, every))
    done, wrong = differing(chosen, device, report.out_of_time)
    report.content["bits"] = {"cases": len(chosen), "compared": done, "different": wrong}
    report.write()
    print(f"bits: {done} of {len(chosen)} cases compared, {len(wrong)} different")


def sides(smoke: bool) -> list[tuple[Variant, str]]:
    """(method, way) in the order of their importance."""
    known = {v.title: v for v in variants()}
    first = [known[title] for title in FIRST if title in known][: 2 if smoke else None]
    both = [(v, way) for v in first for way in ("gaussian", "rademacher")]
    eager = [(known[title], "textbook") for title in list(TEXTBOOK)[: 1 if smoke else None]]
    rest = [] if smoke else [(v, "gaussian") for v in known.values() if v not in first]
    return [*both, *eager, *rest]


def measure(variant: Variant, way: str, work: Workload) -> dict[str, Any]:
    """Time and memory of one side."""
    device, short = work.ids.device, work.shortened()
    if way == "textbook":
        step = step_of(variant, way, work)
        before: dict[str, Any] = {}
    else:
        optimizer = variant.optimizer(work.model, noise=way)
        variant.prepare(optimizer, short, work)
        step = lambda batch: variant.run(optimizer, batch)  # noqa: E731
        before = {"step": lambda: variant.settle(optimizer, short)}
    step(work)
    runs = {"forward": work.forward, "step": lambda: step(work)}
    samples = take_turns(runs, clock=wall_clock(device), rounds=ROUNDS, seconds=20.0, before=before)
    if before:
        before["step"]()
    peak = peak_bytes(runs["step"], device)
    return {
        "ms": round(statistics.median(samples["step"]) * 1e3, 2),
        "ratio": round(ratio(samples, "step", "forward", variant.queries)[0], 3),
        "memory_mb": None if peak is None else round(peak / 1e6, 1),
    }


def measure_model(report: Report, shape: str, size: str, device: torch.device, dtype: torch.dtype) -> None:
    rows, length = map(int, size.split("x"))
    work = build(shape, rows=rows, length=length, dtype=dtype, device=str(device))
    work.forward()
    inference = peak_bytes(work.forward, device)
    clock = wall_clock(device)
    forward = statistics.median(take_turns({"f": work.forward}, clock=clock, rounds=ROUNDS)["f"])
    base = {"shape": shape, "size": size, "dtype": str(dtype).removeprefix("torch.")}
    here: list[dict[str, Any]] = [
        {
            **base,
            "method": "forward pass",
            "way": "inference",
            "ms": round(forward * 1e3, 2),
            "memory_mb": None if inference is None else round(inference / 1e6, 1),
        }
    ]
    report.content["rows"].append(here[0])
    for variant, way in sides(shape == "tiny"):
        if report.out_of_time():
            report.content["left_out"].append(f"{shape} {size} {variant.title} {way}")
            continue
        row = {**base, "method": variant.title, "way": way, "queries": variant.queries}
        try:
            row |= measure(variant, way, work)
            if row["memory_mb"] and inference:
                row["of_inference"] = round(row["memory_mb"] * 1e6 / inference, 3)
        except torch.OutOfMemoryError:
            row["refused"] = "does not fit into the memory of this GPU"
        except ValueError as error:  # a package that is not installed
            row["refused"] = str(error)
        row |= _held(row, here)
        here.append(row)
        report.content["rows"].append(row)
        report.write()
        print(f"{shape:11} {size:7} {variant.title:24} {way:10} {row.get('ms', '-')} ms {row.get('memory_mb', '-')} MB")
        gc.collect()


def _held(row: dict[str, Any], here: list[dict[str, Any]]) -> dict[str, Any]:
    """The targets of a row and whether it meets them."""
    if row["way"] != "gaussian" or "ms" not in row:
        return {}
    target = MILLISECONDS.get((row["shape"], row["size"], row["method"]))
    if target is not None:
        return {"target_ms": target, "verdict": verdict(row["ms"], target)}
    mezo = next((r for r in here if r["method"] == "MeZO" and r["way"] == "gaussian" and r.get("memory_mb")), None)
    if row["method"] != "LOREN" or mezo is None:
        return {}
    over = round(row["memory_mb"] / mezo["memory_mb"], 3)
    return {"of_mezo": over, "target_of_mezo": LOREN_OVER_MEZO, "verdict": verdict(over, LOREN_OVER_MEZO)}


def main(words: list[str] | None = None) -> int:
    parser = arguments(__doc__)
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--smoke", dest="quick", action="store_true", help="the same as --quick")
    options = parse(parser, words)
    if not options.quick and not torch.cuda.is_available():
        sys.stderr.write("There is no GPU here, so nothing was measured; --smoke tries the script on the CPU.\n")
        return 2
    device = torch.device("cpu" if options.quick else "cuda")
    dtype = torch.float32 if options.quick else torch.bfloat16
    report = Report(options, device)
    report.begin(SHARE_OF_BITS)
    prepare([v for v, _ in sides(options.quick)], device, dtype, None)
    check_bits(report, device, every=40 if options.quick else 1)
    for (shape, size), share in ({("tiny", "2x8"): 1.0} if options.quick else PARTS).items():
        report.begin(share)
        try:
            measure_model(report, shape, size, device, dtype)
        except torch.OutOfMemoryError:
            report.content["left_out"].append(f"{shape} {size}: does not fit into the memory of this GPU")
        gc.collect()
        report.write()
    print(f"written: {report.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
