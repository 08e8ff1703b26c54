"""The table and the advice of `zotune bench`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any, Final

from rich.table import Table

from zotune.bench.costs import Cost
from zotune.bench.measure import Refused
from zotune.bench.variants import Variant
from zotune.config import BenchConfig

_PREFERRED: Final = ("LOREN", "HiZOO", "LOZO", "ZO")
"""Order of the advice: learnt curvature first, and what needs the least memory last."""


def fits(cost: Cost, free: int | None) -> bool:
    """Whether a step finds the memory; yes where nothing is known."""
    return cost.memory is None or free is None or cost.memory <= free


def table(config: BenchConfig, entries: Sequence[Cost | Refused], free: int | None, *, title: str) -> Table:
    """One row for each method."""
    grid = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    grid.add_column("method", no_wrap=True)
    for heading in ("passes", "step", "x passes", "memory", "x inference", "fits", f"{config.steps} steps"):
        grid.add_column(heading, justify="right", no_wrap=True)
    batches = -(-config.samplesize // config.batchsize)
    for entry in entries:
        if isinstance(entry, Refused):
            grid.add_row(entry.variant.title, str(entry.variant.queries), *["-"] * 4, "no", "-")
            continue
        relative = "-" if not entry.memory or not entry.inference else f"{entry.memory / entry.inference:.2f}"
        grid.add_row(
            entry.variant.title,
            str(entry.variant.queries),
            time_text(entry.seconds),
            f"{entry.ratio:.2f}",
            memory_text(entry.memory),
            relative,
            "yes" if fits(entry, free) else "no",
            time_text(entry.duration(config.steps, batches)),
        )
    return grid


def advice(config: BenchConfig, entries: Sequence[Cost | Refused], free: int | None) -> list[str]:
    """Sentences for the person: what to take, what is fastest, or how to make it fit."""
    costs = [entry for entry in entries if isinstance(entry, Cost) and fits(entry, free)]
    if not costs:
        return [f"No method fits into the {memory_text(free)} that are free; {_smaller(config)}."]
    query = min(costs, key=lambda cost: cost.seconds / cost.variant.queries)
    lines = [f"Cheapest query: {query.variant.title}."]
    chosen = next((c for name in _PREFERRED for c in costs if c.variant.algorithm == name), costs[0])
    lines.append(f"A good first try that fits: {chosen.variant.title}, with")
    lines.append(f"  {command(config, chosen.variant)}")
    return lines


def command(config: BenchConfig, variant: Variant) -> str:
    """The training command that a row of the table stands for."""
    switches = [
        f"--{name}" for name in ("full_parameter", "bf16", "fp16", "trust_remote_code") if getattr(config, name)
    ]
    words = ["zotune", "train", "--model_name", config.model_name, "--algorithm", variant.algorithm]
    for name, value in variant.settings.items():
        words += [f"--{name}", f"{value:g}" if isinstance(value, float) else str(value)]
    words += ["--batchsize", str(config.batchsize), "--max_seq_length", str(config.max_seq_length)]
    return shlex.join([*words, *switches])


def as_json(entries: Sequence[Cost | Refused], free: int | None) -> list[dict[str, Any]]:
    """The rows as a program reads them: seconds and bytes."""
    return [
        {"method": entry.variant.title, "refused": entry.reason}
        if isinstance(entry, Refused)
        else {
            "method": entry.variant.title,
            "queries": entry.variant.queries,
            "seconds": entry.seconds,
            "forward_seconds": entry.forward,
            "memory": entry.memory,
            "inference_memory": entry.inference,
            "fits": fits(entry, free),
        }
        for entry in entries
    ]


def _smaller(config: BenchConfig) -> str:
    ways = ["a smaller --batchsize"] if config.batchsize > 1 else []
    ways += [] if config.bf16 or config.fp16 else ["--bf16"]
    return f"try {' or '.join(ways or ['a smaller model'])}"


def memory_text(size: int | None) -> str:
    """Bytes for people: 1 GB is 10**9."""
    if size is None:
        return "?"
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def time_text(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 100:
        return f"{seconds:.2f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
