"""Measured costs of a model that is loaded."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from zotune.bench.clock import take_turns, wall_clock
from zotune.bench.costs import FORWARD, STEP, Cost
from zotune.bench.peak import peak_bytes
from zotune.bench.variants import Variant
from zotune.bench.workload import Workload, one_layer


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A variant that could not be measured.

    Attributes:
        variant: the method.
        reason: why, as a sentence of which "it" is the method.
        memory: whether it is for want of memory; otherwise nobody knows whether it would fit.
    """

    variant: Variant
    reason: str
    memory: bool = False


def prepare(variants: Iterable[Variant], device: torch.device, dtype: torch.dtype, noise: str | None) -> None:
    """Load and compile whatever the variants need, so that it counts neither as time nor as memory of a step."""
    work = one_layer(2, 2, device, dtype)
    for variant in variants:
        with contextlib.suppress(ValueError):  # a package that is not installed; said when its turn comes
            variant.prepare(variant.optimizer(work.model, noise=noise), work)


def measure(
    work: Workload, variants: Iterable[Variant], *, noise: str | None, rounds: int, libraries: int
) -> Iterator[Cost | Refused]:
    """The costs of a step, one variant after another.

    Args:
        work: model and batch.
        variants: what to measure.
        noise: law of the directions, None for each method's own.
        rounds: steps that are measured; the median counts.
        libraries: bytes that were in use before the model was there, which do not count.
    """
    device = work.ids.device
    work.forward()
    base = peak_bytes(work.forward, device)
    for variant in variants:
        try:
            yield _cost(work, variant, noise, rounds, libraries, base)
        except ValueError as error:  # a package that is not installed
            yield Refused(variant=variant, reason=str(error))
        except torch.OutOfMemoryError:
            yield Refused(variant=variant, reason="it does not fit", memory=True)


def _cost(work: Workload, variant: Variant, noise: str | None, rounds: int, libraries: int, base: int | None) -> Cost:
    optimizer = variant.optimizer(work.model, noise=noise)
    short = work.shortened()
    variant.prepare(optimizer, short, work)
    device = work.ids.device
    sides = {FORWARD: work.forward, STEP: lambda: variant.run(optimizer, work)}
    before = {STEP: lambda: variant.settle(optimizer, short)}
    samples = take_turns(sides, clock=wall_clock(device), rounds=rounds, before=before)
    variant.settle(optimizer, short)
    peak = peak_bytes(sides[STEP], device)
    return Cost(
        variant=variant,
        seconds=statistics.median(samples[STEP]),
        forward=statistics.median(samples[FORWARD]),
        memory=None if peak is None else peak - libraries,
        inference=None if base is None else base - libraries,
        samples=samples,
    )
