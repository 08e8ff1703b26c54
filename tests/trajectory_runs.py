"""What the tests of trajectories share: methods, a small model, and a run that changes whatever can change."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from zotune import FZOO, LOREN, LOZO, HiZOO, MeZO, MeZOSVRG, ZOAdam
from zotune.optimizer import ZerothOrder
from zotune.trajectory import Recorder

METHODS: dict[str, tuple[type[ZerothOrder], dict[str, Any]]] = {
    "MeZO": (MeZO, {"queries": 4, "clip": 5.0}),
    "MeZO momentum": (MeZO, {"momentum": 0.9}),
    "ZOAdam": (ZOAdam, {"betas": (0.8, 0.99)}),
    "ZOAdam 8 bits": (ZOAdam, {"bits": 8}),
    "SVRG": (MeZOSVRG, {"period": 3, "anneal": 2.0, "anneal_window": 2, "lr_minibatch": 2e-3}),
    "SVRG copy": (MeZOSVRG, {"period": 3, "anchor": "copy"}),
    "LOZO": (LOZO, {"period": 3}),
    "LOZO-M": (LOZO, {"period": 3, "momentum": 0.8}),
    "HiZOO": (HiZOO, {"smoothing": "constant1e-2"}),
    "LOREN": (LOREN, {"lr_cov": 1e-2}),
    "LOREN momentum": (LOREN, {"lr_cov": 1e-2, "momentum": 0.9}),
    "LOREN 16 bits": (LOREN, {"momentum": 0.9, "momentum_bits": 16}),
    "LOREN 8 bits": (LOREN, {"momentum": 0.9, "momentum_bits": 8}),
    "LOREN rank": (LOREN, {"rank": 2, "momentum": 0.5}),
    "FZOO": (FZOO, {"queries": 4}),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NOISES = ("gaussian", "rademacher")
STEPS = 20


def model_of(dtype: torch.dtype = torch.float32, wide: int = 7) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(8, wide), nn.Tanh(), nn.Linear(wide, 3))
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator).mul(0.5).to(dtype)
    return model


def loss_at(model: nn.Module, step: int) -> Callable[[], torch.Tensor]:
    dtype = next(model.parameters()).dtype
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(step)).to(dtype)
    return lambda: model(x).float().square().mean()


def build(case: str, model: nn.Module, **options: Any) -> ZerothOrder:
    """Two groups, one with weight decay."""
    cls, own = METHODS[case]
    if 8 in (own.get("bits"), own.get("momentum_bits")) and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed.")
    named = list(model.named_parameters())
    groups = [{"params": named[:2], "weight_decay": 0.1}, {"params": named[2:]}]
    return cls(groups, **({"lr": 1e-3, "seed": 7} | own | options))


def train(optimizer: ZerothOrder, model: nn.Sequential, until: int, begin: int | None = None) -> None:
    """Another rate every third step, another eps of a group from step 5 on, a layer frozen from 8 to 13, and two
    batches in some steps."""
    for step in range(optimizer.t if begin is None else begin, until):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 / (1 + step // 3)
        optimizer.param_groups[1]["eps"] = 1e-3 if step < 5 else 2e-3
        if step == 16:
            optimizer.param_groups[0]["lr"] = 3e-4
        model[0].requires_grad_(not 8 <= step < 14)
        if step % 4 == 1:
            optimizer.estimate(loss_at(model, 100 + step), weight=3)
        optimizer.step(loss_at(model, step))


def record(path: Path, case: str = "MeZO", steps: int = STEPS, **options: Any) -> tuple[nn.Sequential, ZerothOrder]:
    model = model_of(options.pop("dtype", torch.float32), options.pop("wide", 7))
    optimizer = build(case, model, **options)
    with Recorder(path, optimizer):
        train(optimizer, model, steps)
    return model, optimizer


def same(one: Any, two: Any) -> bool:
    """Whether two states are one, in kinds and bits."""
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and one.dtype is two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return isinstance(two, dict) and one.keys() == two.keys() and all(same(v, two[k]) for k, v in one.items())
    if isinstance(one, (list, tuple)):
        return type(one) is type(two) and len(one) == len(two) and all(map(same, one, two))
    return type(one) is type(two) and (one == two or (one != one and two != two))
