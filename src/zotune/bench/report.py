"""The table of `zotune bench`, its advice, and its numbers for programs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any, Final

from rich.table import Table

from zotune.bench import texts
from zotune.bench.clock import spread
from zotune.bench.costs import FORWARD, STEP, Cost
from zotune.bench.measure import Refused
from zotune.bench.notes import Certainty, batches_of, of_inference
from zotune.bench.variants import Variant
from zotune.config import BenchConfig

_PREFERRED: Final = ("LOREN", "HiZOO", "LOZO", "ZO")
"""Order of the advice: learnt curvature first, and what needs the least memory last."""


def fits(cost: Cost, free: int | None) -> bool:
    """Whether a step finds the memory; yes where nothing is known."""
    return cost.memory is None or free is None or cost.memory <= free


def table(
    config: BenchConfig, entries: Sequence[Cost | Refused], free: int | None, trust: Certainty, *, title: str
) -> Table:
    """One row for each method; ratios have a decimal less where they are rough."""
    grid = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    costs = [entry for entry in entries if isinstance(entry, Cost)]
    unit, durations = texts.durations([cost.duration(config.steps, batches_of(config)) for cost in costs])
    columns = {
        "step": texts.seconds_texts([cost.seconds for cost in costs]),
        "x passes": [_ratio_text(cost.ratio, trust.time_places) for cost in costs],
        "memory": [texts.memory_text(cost.memory) for cost in costs],
        "x inference": [_ratio_text(of_inference(cost), trust.memory_places) for cost in costs],
        "fits": ["yes" if fits(cost, free) else "no" for cost in costs],
        f"{config.steps} steps" + (f"\n{unit}" if unit else ""): durations,
    }
    grid.add_column("method", no_wrap=True)
    for heading in ("passes", *columns):
        grid.add_column(heading, justify="right", no_wrap=True)
    measured = iter(zip(*columns.values(), strict=True))
    for entry in entries:
        if isinstance(entry, Refused):
            cells = ["no" if heading == "fits" and entry.memory else "-" for heading in columns]
        else:
            cells = list(next(measured))
        grid.add_row(entry.variant.title, str(entry.variant.queries), *cells)
    return grid


def _ratio_text(ratio: float | None, places: int) -> str:
    return "-" if ratio is None else f"{ratio:.{places}f}"


def advice(config: BenchConfig, entries: Sequence[Cost | Refused], free: int | None, trust: Certainty) -> list[str]:
    """Sentences for the person: what to take, what is fastest, or how to make it fit."""
    costs = [entry for entry in entries if isinstance(entry, Cost) and fits(entry, free)]
    if not costs and all(isinstance(entry, Refused) and not entry.memory for entry in entries):
        return []
    if not costs:
        return [f"No method fits into the {texts.memory_text(free)} that are free; {_smaller(config)}."]
    query = min(costs, key=lambda cost: cost.seconds / cost.variant.queries)
    lines = [] if trust.rough else [f"Cheapest query: {query.variant.title}."]
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
    """The rows as a program reads them: seconds and bytes.

    A spread is the distance of the quartiles of the rounds over their median; null where nothing tells.
    """
    return [
        {"method": entry.variant.title, "refused": entry.reason, "fits": False if entry.memory else None}
        if isinstance(entry, Refused)
        else {
            "method": entry.variant.title,
            "queries": entry.variant.queries,
            "seconds": entry.seconds,
            "seconds_spread": spread(entry.rounds(STEP)),
            "seconds_rounds": entry.rounds(STEP),
            "forward_seconds": entry.forward,
            "forward_seconds_spread": spread(entry.rounds(FORWARD)),
            "forward_seconds_rounds": entry.rounds(FORWARD),
            "ratio": entry.ratio,
            "ratio_spread": entry.ratio_spread,
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
