"""`zotune bench` as the command line sees it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console

from zotune.bench import models, report
from zotune.bench.costs import Cost, Foresight, memory_of
from zotune.bench.machine import describe, free_memory
from zotune.bench.measure import Refused, measure, prepare
from zotune.bench.notes import certainty, notes
from zotune.bench.peak import resident_bytes
from zotune.bench.shapes import Shapes, shapes_of
from zotune.bench.texts import memory_text
from zotune.bench.variants import Variant, variants
from zotune.bench.workload import random_workload
from zotune.config import BenchConfig, ConfigError
from zotune.run.machine import choose_machine
from zotune.run.speech import quiet_libraries
from zotune.run.stops import Terminated, terminable, undisturbed

logger = logging.getLogger("zotune")

Say = Callable[[str], None]

_WIDTH = 120  # of the table, at least: on a narrower terminal its lines wrap, and no figure is cut off


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


@dataclass(frozen=True, kw_only=True)
class _Result:
    """What has been found out.

    Attributes:
        entries: in the order of the methods.
        missing: the methods that the command was stopped before.
        code: 0, or the exit code of that stop.
    """

    entries: Sequence[Cost | Refused]
    missing: Sequence[Variant]
    code: int


def launch(config: BenchConfig, console: Console) -> int:
    """Measure or foretell; the table goes to standard output, everything else to ``console``.

    Returns:
        The exit code: 0, 2 for a model or a machine that cannot be used, 1 when the model broke off or the file of
        numbers could not be written, or 130 and 143 when stopped, with the table of what there is by then.
    """

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    try:
        with terminable(), quiet_libraries(say):
            bench = _begin(config, say)
            result = _collected(bench)
            with undisturbed():
                _show(bench, result)
                saved = _save(bench, result)
    except ConfigError as error:
        say(str(error))
        return 2
    except (KeyboardInterrupt, Terminated) as stop:
        say("Stopped before there was anything to show.")
        return _code(stop)
    except Exception as error:  # the model's own code, or the machine: the person gets a sentence
        reason = (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
        say(f"{config.model_name} broke off with {type(error).__name__}: {reason}.")
        logger.debug("bench broke off", exc_info=error)
        return 1
    return result.code or (0 if saved else 1)


def _code(stop: BaseException) -> int:
    return 143 if isinstance(stop, Terminated) else 130


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


def _collected(bench: _Bench) -> _Result:
    """All that is found out up to the end, or up to a stop."""
    config, chosen = bench.config, variants(bench.config.algorithm)
    found: dict[str, Cost | Refused] = {}
    code = 0
    try:
        for entry in (_foretold if config.plan else _measured)(bench, chosen):
            found[entry.variant.title] = entry
    except (KeyboardInterrupt, Terminated) as stop:
        if not any(isinstance(entry, Cost) for entry in found.values()):
            raise
        bench.say("Stopped; the table has what there is.")
        code = _code(stop)
    return _Result(
        entries=[found[v.title] for v in chosen if v.title in found],
        missing=[v for v in chosen if v.title not in found],
        code=code,
    )


def _foretold(bench: _Bench, chosen: Sequence[Variant]) -> Iterator[Cost | Refused]:
    config = bench.config
    assert bench.shapes is not None
    bench.say(f"Testing how fast this machine is; no weight of {config.model_name} is loaded.")
    foresight = Foresight(bench.device, models.dtype_of(config))
    for variant in chosen:
        try:
            yield foresight.cost(variant, bench.shapes, config.noise)
        except ValueError as error:  # a package that is not installed
            yield Refused(variant=variant, reason=str(error))


def _measured(bench: _Bench, chosen: Sequence[Variant]) -> Iterator[Cost | Refused]:
    config, free = bench.config, bench.free
    need = {v.title: 0 if bench.shapes is None else memory_of(v, bench.shapes, bench.device) for v in chosen}
    possible = [v for v in chosen if free is None or need[v.title] <= free]
    for variant in chosen:
        if variant not in possible:
            reason = f"it would need about {memory_text(need[variant.title])}"
            yield Refused(variant=variant, reason=reason, memory=True)
    if possible:
        bench.say(f"Loading {config.model_name} ...")
        prepare(possible, bench.device, models.dtype_of(config), config.noise)
        libraries = resident_bytes(bench.device) or 0
        model = models.load(config, bench.device)
        vocabulary = model.config.get_text_config().vocab_size
        work = random_workload(model, rows=config.batchsize, length=bench.length, vocabulary=vocabulary, labels=2)
        for entry in measure(work, possible, noise=config.noise, rounds=config.rounds, libraries=libraries):
            how = "is measured" if isinstance(entry, Cost) else "could not be measured"
            bench.say(f"{entry.variant.title} {how}.")
            yield entry


def _show(bench: _Bench, result: _Result) -> None:
    config, free, entries = bench.config, bench.free, result.entries
    console = Console(file=sys.stdout, highlight=False)
    console.width = max(console.width if console.is_terminal else 0, _WIDTH)
    how = "foretold" if config.plan else "measured"
    title = f"{config.model_name}, {config.batchsize} x {bench.length} tokens on {bench.device}, {how}"
    trust = certainty(entries, bench.device)
    console.print(report.table(config, entries, free, trust, title=title))
    lines = [f"{memory_text(free)} are free.", *notes(config, entries, trust)]
    if result.missing:  # what is best among some says nothing about the others
        lines.append(f"Stopped; not {how}: {'; '.join(v.title for v in result.missing)}.")
    else:
        lines += report.advice(config, entries, free, trust)
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _save(bench: _Bench, result: _Result) -> bool:
    """Write the numbers to the file that was asked for, and say so if that fails."""
    path, free = bench.config.output, bench.free
    if path is None:
        return True
    numbers = {
        "machine": describe(bench.device),
        "free_memory": free,
        "time_uncertainty": certainty(result.entries, bench.device).time,
        "rows": report.as_json(result.entries, free),
        "missing": [variant.title for variant in result.missing],
    }
    try:
        path.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    except OSError as error:  # it could be written at the start
        bench.say(f"--output {path} could not be written ({error.strerror or error}); the table has the numbers.")
        return False
    return True
