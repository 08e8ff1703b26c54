"""`--lr auto`: the rate of a run, measured on its own batches before its first step."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from zotune import ZerothOrder
from zotune.config import ALGORITHMS, GUESSED, MEASURED, TrainConfig
from zotune.hf.measuring import small_rows
from zotune.hf.pacing import PaceKeeper, batches_again, cost_again
from zotune.hf.trainer import OptimizerFactory
from zotune.rates import SMALL, Rate, measure, most_rows, whole_batches_for
from zotune.run.arguments import steps_per_epoch
from zotune.run.budget import steps_of
from zotune.run.machine import Machine
from zotune.run.optimizers import optimizer_factory
from zotune.run.parts import Parts
from zotune.run.trainers import make_trainer


@dataclasses.dataclass(frozen=True)
class Measured:
    """Settings with a number as rate, forward passes of one example that it took, what config.json says about it, and
    a sentence for the person."""

    config: TrainConfig
    forwards: int
    facts: dict[str, Any]
    sentence: str


def measured_rate(
    config: TrainConfig,
    machine: Machine,
    parts: Parts,
    *,
    folder: Path,
    seed: int,
    order_seed: int,
    prepare: Callable[[OptimizerFactory], None],
    whole_budget: bool = False,
) -> Measured:
    """Measure the rate along directions of the method, on the first batches of the run.

    Where the loss has no curvature to go by, the rate is a cautious constant.

    Args:
        config: resolved settings with ``lr="auto"``.
        machine: where the run runs; all of its processes take part.
        parts: model, rows and objective.
        folder: for what the library's arguments name; nothing is written there.
        seed: of the directions.
        order_seed: of the order of the examples.
        prepare: called with what makes the optimizer, before the clock of the measurement runs.
        whole_budget: whether what it takes is no part of the budget of the run.

    Raises:
        MemoryShortError: there is not enough memory, and batches may not be halved.
        NonFiniteLossError: the loss is NaN or infinite at the weights.
    """
    still = dataclasses.replace(config, lr=0.0, lr_mezosvrg_mb=0.0)
    factory = optimizer_factory(still, steps_per_epoch=steps_per_epoch(config, len(parts.train)), seed=seed)
    prepare(factory)
    begun = time.perf_counter()
    trainer = make_trainer(
        still, machine, parts, folder=folder, factory=factory, order_seed=order_seed, dropout_seed=0, callbacks=[]
    )
    optimizer = trainer.create_optimizer()
    assert isinstance(optimizer, ZerothOrder)

    def again(forwards: int) -> int:
        """Small batches on which the curvature is measured each time, when so many forward passes are spent."""
        if config.lr_scheduler_type != "adaptive":
            return 0
        left = _after(config, forwards)
        planned = steps_of(left, len(parts.train)) * (config.num_queries or 2) * config.batchsize
        return batches_again(left.budget_queries or planned, config.batchsize)

    def spent_on(forwards: int) -> int:
        return forwards + cost_again(again(forwards), config.batchsize)

    def steps(forwards: int) -> int:
        return steps_of(config if whole_budget else _after(config, spent_on(forwards)), len(parts.train))

    assert config.lr_scheduler_type is not None
    found = measure(
        optimizer,
        trainer.step_batches(whole_batches_for(optimizer)),
        small=trainer.step_batches(SMALL, rows=small_rows(config.batchsize)),
        steps=steps,
        schedule=config.lr_scheduler_type,
    )
    rate, before = found.rate, found.forwards
    batches = 0 if rate is None else again(before)
    later = cost_again(batches, config.batchsize)
    forwards = before + later
    planned = steps(before)
    spent = {
        "again": batches,
        "forwards": forwards,
        "later": later,
        "steps": planned,
        "seconds": round(time.perf_counter() - begun, 3),
    }
    if rate is None:
        algorithm = ALGORITHMS[config.algorithm]
        minibatch = algorithm.lr if config.lr_mezosvrg_mb is None else config.lr_mezosvrg_mb
        kept = config.lr_scheduler_type if config.lr_scheduler_type != "adaptive" else "constant"  # nothing to follow
        cautious = dataclasses.replace(config, lr=algorithm.lr, lr_mezosvrg_mb=minibatch, lr_scheduler_type=kept)
        told = (
            f"--lr auto: the loss has no curvature along the directions; lr is {algorithm.lr:g}, {kept}, a guess"
            " on the careful side."
        )
        return Measured(cautious, forwards, {MEASURED: {"lr": algorithm.lr, GUESSED: True, **spent}}, told)
    minibatch = rate.lr if config.lr_mezosvrg_mb is None else config.lr_mezosvrg_mb
    chosen = dataclasses.replace(config, lr=rate.lr, lr_mezosvrg_mb=minibatch)
    facts = {MEASURED: {**dataclasses.asdict(rate), **spent}}
    sentence = (
        f"--lr auto: {rate.lr:.3g}, {rate.share:.0%} of the best single step (slope {rate.slope:.3g}, curvature"
        f" {rate.curvature:.3g} ± {rate.error:.2g}), measured with {before:,} forward passes of one example"
        + (f"; {later:,} more will be spent on measuring it again on the way." if later else ".")
    )
    return Measured(chosen, forwards, facts, sentence)


def most_forwards(config: TrainConfig) -> int:
    """Forward passes of one example that `measured_rate` takes at most, of resolved settings."""
    still = dataclasses.replace(config, lr=0.0, lr_mezosvrg_mb=0.0)
    number = torch.nn.Parameter(torch.zeros(1))
    optimizer = optimizer_factory(still, steps_per_epoch=1, seed=0)([{"params": [number], "param_names": ["one"]}])
    assert isinstance(optimizer, ZerothOrder)
    rows = min(config.batchsize, config.samplesize or config.batchsize)  # a step has no more than there are
    return most_rows(optimizer, rows)


def pace_of(facts: Mapping[str, Any]) -> PaceKeeper:
    """The pace of a run, from the facts of its config.json, with what was measured if anything was."""
    names, found = [field.name for field in dataclasses.fields(Rate)], facts.get(MEASURED)
    if not isinstance(found, dict) or not all(isinstance(found.get(name), int | float) for name in names):
        return PaceKeeper()
    return PaceKeeper({name: found[name] for name in names}, int(found.get("again") or 0))


def _after(config: TrainConfig, forwards: int) -> TrainConfig:
    """The settings with so many forward passes fewer to spend."""
    if config.budget_queries is None:
        return config
    return dataclasses.replace(config, budget_queries=max(1, config.budget_queries - forwards))
