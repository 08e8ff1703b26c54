"""How many steps a budget of forward passes pays for.

The unit is the forward pass of one example, which is what all methods have in common: a query on a batch of 16 costs
16, a snapshot of MeZO-SVRG the whole training sample, and a backward pass twice the forward pass that it belongs to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from zotune.config import TrainConfig
from zotune.run.optimizers import svrg_queries

FIRST_ORDER: Final = 3
"""Cost of a forward and a backward pass of one example, in forward passes."""


def step_costs(config: TrainConfig, rows: int) -> Iterator[int]:
    """The cost of every step, the first one first, without end.

    Args:
        config: resolved settings.
        rows: training examples.
    """
    per_epoch = math.ceil(rows / config.batchsize)
    step = 0
    while True:
        batch = min(config.batchsize, rows - step % per_epoch * config.batchsize)
        if not config.zeroth_order:
            yield FIRST_ORDER * batch
        elif config.algorithm != "ZOSVRG":
            assert config.num_queries is not None
            yield config.num_queries * batch
        else:
            each = svrg_queries(config)
            yield each * rows if step % config.q == 0 else 2 * each * batch
        step += 1


def steps_within(config: TrainConfig, rows: int, budget: int) -> int:
    """The most steps whose cost together is at most ``budget``; see `step_costs`."""
    per_epoch = math.ceil(rows / config.batchsize)
    period = math.lcm(per_epoch, config.q) if config.algorithm == "ZOSVRG" else per_epoch
    costs: list[int] = []
    spent = 0
    for cost in step_costs(config, rows):
        if spent + cost > budget:
            return len(costs)
        costs.append(cost)
        spent += cost
        if len(costs) == period:
            break
    rounds, left = divmod(budget, spent)  # the costs of a period come again and again
    rest = 0
    for cost in costs:
        if cost > left:
            break
        left -= cost
        rest += 1
    return rounds * period + rest


def steps_of(config: TrainConfig, rows: int) -> int:
    """Steps of a whole run of ``config`` (resolved) on so many training examples."""
    if config.budget_queries is not None:
        return steps_within(config, rows, config.budget_queries)
    return math.ceil(config.epochs * math.ceil(rows / config.batchsize))
