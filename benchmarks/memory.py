"""Peak memory of a training step over that of a forward pass of the same batch.

Each side runs in a process of its own, so that no side lives on what another has left.  In it:

1. The libraries are loaded and the kernels compiled; the resident set is noted (`libraries`).
2. The model is made.  Forward passes under `torch.no_grad`, and the peak of the last one (`inference`).
3. The optimizer is made and takes its first steps on two tokens, so that its states exist; the peak of a step on the
   batch (`step`).

The resident set is trimmed and its high-water mark set back before each measured piece (`zotune.bench.peak`), and the
C library is told to take tensors above one MB from the system and to give them back (`MALLOC`): left alone, it keeps
up to a hundred MB of freed activations in pieces, more in one run and less in the next, on either side.  Both
peaks contain the weights, and the activations of one forward pass, as every query of a step runs without autograd.
Two ratios are given: of the whole processes, and of what lies above the libraries, which is the stricter one; the
targets are held against the latter.  On a GPU memory is that of allocated tensors, and no libraries are in it.

    python benchmarks/memory.py [--methods MeZO ...] [--head vocabulary] [--size 8x64] [--dtype bfloat16]
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from common import arguments, build, head, parse, save, verdict
from eager import TEXTBOOK

from zotune.bench.measure import prepare
from zotune.bench.peak import peak_bytes, resident_bytes
from zotune.bench.variants import Variant, variants
from zotune.bench.workload import Workload

LEAN, LOW_BIT = 1.02, {"LOREN, 8-bit momentum": 1.3, "ZO-Adam, 8 bits": 1.6}
TARGETS = {name: LEAN for name in ("MeZO", "LOZO", "LOZO-M", "MeZO-SVRG", "LOREN")} | LOW_BIT
"""Largest step / inference, in float32."""

MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_ARENA_MAX": "1"}

KEYS = ("device", "dtype", "head", "size", "method", "way")


def side(options: Any) -> dict[str, Any]:
    """Measure one side in this process: sizes in MB."""
    torch.set_num_threads(1)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    variant = next(v for v in variants() if v.title == options.side)
    prepare([variant], device, dtype, None)
    libraries = resident_bytes(device)
    rows, length = map(int, options.size.split("x"))
    shape = "tiny" if options.quick else options.shape
    work = build(shape, rows=rows, length=length, head=options.head, dtype=dtype, device=options.device)
    work.forward()
    inference = peak_bytes(work.forward, device)
    step = step_of(variant, options.way, work)
    peak = peak_bytes(lambda: step(work), device)
    if libraries is None or inference is None or peak is None:
        raise SystemExit("This system does not tell the peak of a process.")
    return {"libraries": libraries, "inference": inference, "step": peak}


def step_of(variant: Variant, way: str, work: Workload) -> Callable[[Workload], object]:
    """The step of an optimizer that has taken its first ones, on a short batch: it takes a batch."""
    short = work.shortened()
    if way == "textbook":
        eager = TEXTBOOK[variant.title](list(work.model.parameters()))
        eager.step(short.loss)
        return lambda batch: eager.step(batch.loss)
    optimizer = variant.optimizer(work.model)
    variant.prepare(optimizer, short, work)
    return lambda batch: variant.run(optimizer, batch)


def row_of(options: Any, title: str, way: str, sizes: dict[str, int]) -> dict[str, Any]:
    above = (sizes["step"] - sizes["libraries"]) / (sizes["inference"] - sizes["libraries"])
    target = TARGETS.get(title) if way == "zotune" and options.dtype == "float32" else None
    return {
        "device": options.device,
        "dtype": options.dtype,
        "head": options.head,
        "size": options.size,
        "method": title,
        "way": way,
        **{f"{name}_mb": round(value / 1e6, 1) for name, value in sizes.items()},
        "of_inference": round(above, 3),
        "of_inference_process": round(sizes["step"] / sizes["inference"], 3),
        "target": target,
        "verdict": verdict(round(above, 3), target),
    }


def main(words: list[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--methods", nargs="+", help="titles of the methods; left out: all")
    parser.add_argument("--shape", default="OPT-125M")
    parser.add_argument("--size", default="8x64")
    parser.add_argument("--head", choices=("class", "vocabulary"), default="class")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ways", nargs="+", choices=("zotune", "textbook"), default=("zotune", "textbook"))
    parser.add_argument("--side", help="measure this method in this process and print its sizes")
    parser.add_argument("--way", choices=("zotune", "textbook"), default="zotune")
    words = sys.argv[1:] if words is None else words
    options = parse(parser, words)
    if options.side is not None:
        print(json.dumps(side(options)))
        return
    for variant in variants():
        if options.methods is not None and variant.title not in options.methods:
            continue
        for way in options.ways:
            if way == "textbook" and variant.title not in TEXTBOOK:
                continue
            command = [sys.executable, __file__, *words, "--side", variant.title, "--way", way]
            ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **MALLOC})
            if ended.returncode:
                print(f"{variant.title} ({way}): {(ended.stderr.strip().splitlines() or ['?'])[-1]}")
                continue
            row = row_of(options, variant.title, way, json.loads(ended.stdout.splitlines()[-1]))
            save("memory", head("peak memory, MB = 10**6 bytes", options.device), [row], KEYS, options.results)
            target = "" if row["target"] is None else f"   target {row['target']:.2f} {row['verdict']}"
            print(f"{row['method']:24} {way:9} {row['of_inference']:6.3f} of inference{target}")


if __name__ == "__main__":
    main()
