"""`zotune bench` as the command line sees it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console

from zotune.bench import models, report
from zotune.bench.costs import Cost, Foresight, memory_of
from zotune.bench.machine import describe, free_memory
from zotune.bench.measure import Refused, measure, prepare
from zotune.bench.peak import resident_bytes
from zotune.bench.shapes import Shapes, shapes_of
from zotune.bench.variants import variants
from zotune.bench.workload import random_workload
from zotune.config import BenchConfig, ConfigError
from zotune.run.machine import choose_machine
from zotune.run.speech import quiet_libraries

logger = logging.getLogger("zotune")

Say = Callable[[str], None]

_WIDTH = 120  # of the table where standard output is no terminal


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """A benchmark that is under way: what was asked for, where, and of which shapes.

    `shapes` is None where the model's forward pass needs its weights; `free` where the system does not tell.
    """

    config: BenchConfig
    device: torch.device
    free: int | None
    length: int
    shapes: Shapes | None
    say: Say


def launch(config: BenchConfig, console: Console) -> int:
    """Measure or foretell; the table goes to standard output, everything else to ``console``.

    Returns:
        The exit code: 0, 2 for a model or a machine that cannot be used, or 1 when the model broke off or the file of
        numbers could not be written.
    """

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    try:
        with quiet_libraries(say):
            bench = _begin(config, say)
            entries = _foretold(bench) if config.plan else _measured(bench)
            _show(bench, entries)
            saved = _save(bench, entries)
    except ConfigError as error:
        say(str(error))
        return 2
    except Exception as error:  # the model's own code, or the machine: the person gets a sentence
        reason = (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
        say(f"{config.model_name} broke off with {type(error).__name__}: {reason}.")
        logger.debug("bench broke off", exc_info=error)
        return 1
    return 0 if saved else 1


def _begin(config: BenchConfig, say: Say) -> _Bench:
    device = choose_machine(config.training(), say).device
    outline = models.outline(config)
    length = models.length_of(config, outline)
    if length < config.max_seq_length:
        say(f"{config.model_name} reads at most {length} tokens, so --max_seq_length is {length} here.")
    shapes = None
    try:
        shapes = shapes_of(outline, rows=config.batchsize, length=length)
    except Exception as error:  # the forward pass of a model may do anything
        if config.plan:
            raise ConfigError(
                f"{config.model_name} cannot be run without its weights ({type(error).__name__}); leave --plan out."
            ) from error
    return _Bench(config=config, device=device, free=free_memory(device), length=length, shapes=shapes, say=say)


def _foretold(bench: _Bench) -> list[Cost | Refused]:
    config = bench.config
    assert bench.shapes is not None
    bench.say(f"Testing how fast this machine is; no weight of {config.model_name} is loaded.")
    foresight = Foresight(bench.device, models.dtype_of(config))
    entries: list[Cost | Refused] = []
    for variant in variants(config.algorithm):
        try:
            entries.append(foresight.cost(variant, bench.shapes, config.noise))
        except ValueError as error:  # a package that is not installed
            entries.append(Refused(variant=variant, reason=str(error)))
    return entries


def _measured(bench: _Bench) -> list[Cost | Refused]:
    config, free, chosen = bench.config, bench.free, variants(bench.config.algorithm)
    need = {v.title: 0 if bench.shapes is None else memory_of(v, bench.shapes, bench.device) for v in chosen}
    possible = [v for v in chosen if free is None or need[v.title] <= free]
    entries: dict[str, Cost | Refused] = {
        v.title: Refused(variant=v, reason=f"it would need about {report.memory_text(need[v.title])}")
        for v in chosen
        if v not in possible
    }
    if possible:
        bench.say(f"Loading {config.model_name} ...")
        prepare(possible, bench.device, models.dtype_of(config), config.noise)
        libraries = resident_bytes(bench.device) or 0
        model = models.load(config, bench.device)
        vocabulary = model.config.get_text_config().vocab_size
        work = random_workload(model, rows=config.batchsize, length=bench.length, vocabulary=vocabulary, labels=2)
        for entry in measure(work, possible, noise=config.noise, rounds=config.rounds, libraries=libraries):
            bench.say(f"{entry.variant.title} is measured.")
            entries[entry.variant.title] = entry
    return [entries[v.title] for v in chosen]


def _show(bench: _Bench, entries: Sequence[Cost | Refused]) -> None:
    config, free = bench.config, bench.free
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console = Console(file=sys.stdout, highlight=False, width=_WIDTH)
    how = "foretold" if config.plan else "measured"
    title = f"{config.model_name}, {config.batchsize} x {bench.length} tokens on {bench.device}, {how}"
    console.print(report.table(config, entries, free, title=title))
    lines = [f"{report.memory_text(free)} are free."]
    lines += [f"{e.variant.title}: {e.reason}." for e in entries if isinstance(e, Refused)]
    for line in [*lines, *report.advice(config, entries, free)]:
        console.print(line, markup=False, soft_wrap=True)


def _save(bench: _Bench, entries: Sequence[Cost | Refused]) -> bool:
    """Write the numbers to the file that was asked for, and say so if that fails."""
    path, free = bench.config.output, bench.free
    if path is None:
        return True
    numbers = {"machine": describe(bench.device), "free_memory": free, "rows": report.as_json(entries, free)}
    try:
        path.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    except OSError as error:  # it could be written at the start
        bench.say(f"--output {path} could not be written ({error.strerror or error}); the table has the numbers.")
        return False
    return True
