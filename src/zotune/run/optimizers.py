"""From the settings to the optimizer: which class, and what every flag of the method becomes."""

from collections.abc import Callable
from typing import Any, Final

import torch

from zotune.config import ALGORITHMS, TrainConfig
from zotune.methods import METHODS

ParamGroups = list[dict[str, Any]]

CLIP_NORM: Final = 1.0
"""Bound on the gradient's norm with `--clipping`, the same for zeroth and first order."""

_FIRST_ORDER: Final[dict[str, type[torch.optim.Optimizer]]] = {"FOSGD": torch.optim.SGD, "FOAdam": torch.optim.AdamW}


def optimizer_factory(
    config: TrainConfig, *, steps_per_epoch: int, seed: int
) -> Callable[[ParamGroups], torch.optim.Optimizer]:
    """A function from parameter groups to the optimizer that `config` (resolved) asks for.

    `seed` is the key of the directions; an epoch of `steps_per_epoch` steps is the window that MeZO-SVRG's annealing
    looks at.
    """
    kind, arguments = optimizer_plan(config, steps_per_epoch=steps_per_epoch, seed=seed)
    named = config.zeroth_order

    def build(groups: ParamGroups) -> torch.optim.Optimizer:
        if not named:
            groups = [{**group, "params": [parameter for _, parameter in group["params"]]} for group in groups]
        return kind(groups, **arguments)

    return build


def optimizer_plan(
    config: TrainConfig, *, steps_per_epoch: int, seed: int
) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """The optimizer's class and its keyword arguments; weight decay is already in the parameter groups."""
    arguments = _method_arguments(config, steps_per_epoch)
    if not config.zeroth_order:
        return _FIRST_ORDER[config.algorithm], {"lr": config.lr, **arguments}
    common = {
        "lr": config.lr,
        "eps": config.perturbation_scale,
        "queries": config.num_queries,
        "noise": config.noise,
        "seed": seed,
        "backend": config.backend,
        "clip": CLIP_NORM if config.clipping and "clipping" in ALGORITHMS[config.algorithm].flags else None,
    }
    return METHODS[config.algorithm].optimizer, {**common, **arguments}


def queries_text(config: TrainConfig) -> str:
    """How many forward passes a step takes, in words."""
    if config.algorithm != "ZOSVRG":
        return f"{config.num_queries} queries a step"
    each = svrg_queries(config)
    return f"{each} queries on the full sample every {config.q} steps and {2 * each} on a batch otherwise"


def svrg_queries(config: TrainConfig) -> int:
    """Forward passes of one estimate.

    Two passes of a full-batch step and four of a minibatch step are three a step on average; an even number is the
    passes of one estimate, which a full-batch step takes once and another twice.
    """
    assert config.num_queries is not None
    return config.num_queries * 2 // 3 if config.num_queries % 3 == 0 else config.num_queries


def _method_arguments(config: TrainConfig, steps_per_epoch: int) -> dict[str, Any]:
    match config.algorithm:
        case "ZO" | "FOSGD":
            return {"momentum": config.momentum}
        case "ZOAdam":
            return {"adam_eps": config.eps, "bits": config.low_bit_adam or 32}
        case "ZOSVRG":
            return {
                "lr_minibatch": config.lr_mezosvrg_mb,
                "period": config.q,
                "anneal": config.anneal,
                "anneal_window": steps_per_epoch,
                "anchor": config.anchor,
                "queries": svrg_queries(config),
            }
        case "LOZO":
            return {"rank": config.rank, "period": config.step_interval, "momentum": config.momentum}
        case "HiZOO":
            return {"smoothing": config.hessian_smooth_type}
        case "LOREN":
            return {
                "damping": config.damping,
                "lr_cov": config.lr_cov,
                "momentum": config.momentum,
                "momentum_bits": config.momentum_bits,
                "rank": config.direction_rank,
            }
        case "FOAdam":
            return {"eps": config.eps}
        case _:
            return {}
