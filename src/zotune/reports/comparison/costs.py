"""What the methods of a comparison took, and the settings that they ran with, as tables."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any, Final

from zotune.compare.curves import Result
from zotune.compare.statistics import mean_of
from zotune.config import ALGORITHMS, TrainConfig
from zotune.reports.comparison.findings import (
    NONE,
    TIMES,
    Findings,
    Table,
    guessed,
    last,
    listed,
    or_none,
    setting,
    shares_taken,
    untuned,
    with_own_rate,
)
from zotune.reports.words import LAST_BLOCKS

SMALLEST_MB: Final = 100.0
"""Memory of model and training from which on its ratio is more than the noise of a process."""


def cost_table(findings: Findings) -> Table:
    """Memory, passes and seconds."""
    against = "ZO" if "ZO" in findings.by_label else findings.reference
    base = _training_memory(findings.by_label.get(against, []))
    every = findings.results
    on_cpu = any(not str(result.settings.get("device_used")).startswith("cuda") for result in every)
    told = not on_cpu or (base >= SMALLEST_MB and all(result.libraries_mb for result in every))
    rows = []
    for label, results in findings.by_label.items():
        own = _training_memory(results)
        passes = mean_of([1e3 * last(r.training.seconds) / last(r.training.cost) for r in results if not r.diverged])
        rows.append(
            (
                label,
                or_none(_memory(results), lambda x: f"{x:,.0f}"),
                *([or_none(own, lambda x: f"{x:,.0f}")] if on_cpu else []),
                or_none(own / base, lambda x: f"{x:.2f}{TIMES}") if told else NONE,
                or_none(mean_of([last(r.training.cost) for r in results]).mean, lambda x: f"{x:,.0f}"),
                or_none(mean_of([last(r.training.step) for r in results]).mean, lambda x: f"{x:,.0f}"),
                or_none(mean_of([last(r.training.seconds) for r in results]).mean, lambda x: f"{x:.1f}"),
                or_none(passes.mean, lambda x: f"{x:.3f}"),
            )
        )
    note = "Largest peak of the runs: what torch allocated on the GPU." if not on_cpu else _OF_A_PROCESS
    if base < SMALLEST_MB and not told:
        note += f" {against} has less than {SMALLEST_MB:g} MB of it, which says nothing beside the libraries' own."
    note += " Seconds are of training, without evaluations; runs at once share the machine."
    head = (
        "method",
        "peak memory (MB)",
        *(["without libraries (MB)"] if on_cpu else []),
        f"ratio to {against}",
        "forward passes",
        "steps",
        "seconds",
        "seconds per 1,000 passes",
    )
    return Table("Memory and time", head, tuple(rows), note)


_OF_A_PROCESS: Final = (
    "Peak memory is the largest of the runs, of the whole process; without what it held beside the model before the"
    " first step it is that of model and training, and the ratio is of that (zotune bench measures it more exactly)."
)


def _training_memory(results: Sequence[Result]) -> float:
    """Median over the runs of the peak without the libraries."""
    return statistics.median([r.memory_mb - r.libraries_mb for r in results]) if results else math.nan


def settings_table(findings: Findings) -> Table:
    """Rates and what else each method ran with."""
    rows, shared = [], differing(findings)
    for label, results in findings.by_label.items():
        if not results:
            continue
        settings = {**results[0].settings, "lr": _rates(results)}
        algorithm = ALGORITHMS[results[0].algorithm]
        named = ("perturbation_scale", "num_queries") if algorithm.zeroth_order else ()
        first = ("lr", "lr_scheduler_type", *named, "batchsize")
        usual = {"backend": TrainConfig.backend, "noise": algorithm.noise, "anchor": TrainConfig.anchor}
        hidden = {name for name, value in usual.items() if settings.get(name) == value}
        hidden |= set() if settings.get("momentum") else {"momentum_bits"}
        others = sorted(algorithm.flags - set(first) - hidden)
        told = {name: settings[name] for name in others if settings.get(name) not in (None, False)}
        told |= {name: settings.get(name) for name in shared}
        rest = ", ".join(f"{name} {setting(value)}" for name, value in told.items())
        rows.append(
            (
                label,
                *(setting(settings[name]) if name in settings and name in first else NONE for name in _FIRST),
                rest,
            )
        )
    return Table("Settings", ("method", *_FIRST, "others of the method"), tuple(rows), _of_rates(findings))


def differing(findings: Findings) -> list[str]:
    """Settings that are no method's own and yet not the same for all of them: what is trained, precision, decay ..."""
    every = _settings(findings).values()
    own = {name for algorithm in ALGORITHMS.values() for name in algorithm.flags}
    names = sorted({field.name for field in dataclasses.fields(TrainConfig)} - own - {*_FIRST, *_OF_A_RUN})
    return [name for name in names if len({setting(settings.get(name)) for settings in every}) > 1]


def trained(findings: Findings) -> str:
    """Which weights the runs train, in a word, or in one for each method where they differ; and what the word means."""
    kinds: dict[str, list[str]] = {}
    for label, settings in _settings(findings).items():
        kind = settings.get("tuning") or ("full" if settings.get("full_parameter") else "partial")
        kinds.setdefault(str(kind), []).append(label)
    if len(kinds) == 1:
        return "".join(f"{kind}, which trains {_MEANING[kind]}" if kind in _MEANING else kind for kind in kinds)
    named = "; ".join(f"{kind} {listed(labels)}" for kind, labels in kinds.items())
    return f"{named}. Partial trains {_MEANING['partial']}" if "partial" in kinds else named


_MEANING: Final = {
    "partial": f"{LAST_BLOCKS} (--full_parameter trains all weights)",
    "full": "all weights",
}


def _settings(findings: Findings) -> dict[str, dict[str, Any]]:
    """Those of the first run of each method that has any."""
    return {label: results[0].settings for label, results in findings.by_label.items() if results}


def _of_rates(findings: Findings) -> str:
    """Where the rates of the runs come from."""
    said = []
    if taken := [share for found in findings.by_label.values() for share in shares_taken(found)]:
        said.append(
            f"Measured rates are those of --lr auto, each trial its own, and took up to {max(taken):.0%} of the budget."
        )
    if guessed(findings.results):
        said.append("Guessed ones are cautious constants: the loss showed no curvature along the directions.")
    if chosen := with_own_rate(findings):
        said.append(f"The rates of {listed(chosen)} were given, by --lr or --settings.")
    if names := untuned(findings):
        said.append(f"{listed(names)}: the default, a constant.")
    return " ".join(said)


_OF_A_RUN: Final = ("algorithm", "trial", "results", "resume", "device", "budget_queries", "logging", "save_ckpt")
"""Settings that differ from run to run, or say nothing of how it trains."""

_FIRST: Final = ("lr", "lr_scheduler_type", "perturbation_scale", "num_queries", "batchsize")


def _rates(results: Sequence[Result]) -> str:
    """The rate of the runs of a method, or from what to what it goes where each has measured its own."""
    rates = sorted(float(result.settings["lr"]) for result in results)
    if not shares_taken(results):
        return setting(rates[0])
    ends = dict.fromkeys(f"{rate:.2g}" for rate in (rates[0], rates[-1]))
    guesses = len(guessed(results))
    return " to ".join(ends) + (
        ", measured" if not guesses else ", guessed" if guesses == len(results) else ", measured or guessed"
    )


def _memory(results: Sequence[Result]) -> float:
    return max((result.memory_mb for result in results), default=math.nan)
