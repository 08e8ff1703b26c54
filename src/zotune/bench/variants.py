"""The methods as they are measured: each with the settings of `zotune train` that choose it, and its state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import nn

from zotune.bench.workload import Workload
from zotune.config import ALL, TrainConfig
from zotune.evaluators.stacked import TOKENS, Stacked
from zotune.hf.groups import parameter_groups
from zotune.methods import MeZOSVRG
from zotune.optimizer import ZerothOrder
from zotune.run.optimizers import optimizer_plan

_FIRST_STEPS: Final = 3  # see `zotune.evaluators.overlay` and `zotune.evaluators.stacked`
_COMPARED: Final = 5  # steps: the first on another batch, and the next, whose number is a power of two

RATE: Final = 1e-9
"""Learning rate of measured steps: every pass over the weights is done, and the model stays what it is."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A method with its options.

    Attributes:
        title: what tables call it.
        algorithm: its name on the command line.
        settings: fields of `TrainConfig` beside the algorithm.
        stacked: make the forward passes of low-rank directions in one in any case, not only where it saves time.
        queries: forward passes of a step on one batch.
        state: bytes that it keeps beside the weights for one parameter, from its shape (as a matrix: rows, columns)
            and the bytes of one of its weights.
        package: what it needs beside zotune's own dependencies, and zotune's extra that brings it.
    """

    title: str
    algorithm: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    stacked: bool = False
    queries: int = 2
    state: Callable[[torch.Size, int], int] = lambda shape, width: 0  # noqa: ARG005
    package: tuple[str, str] | None = None

    def passes_at_once(self, tokens: int, device: torch.device) -> int:
        """Forward passes whose activations are there together, for a batch of so many tokens."""
        if self.algorithm != "LOZO":
            return 1
        most = self.queries if self.stacked else TOKENS.get(device.type, TOKENS["cuda"]) // max(tokens, 1)
        return max(1, min(self.queries, most))

    def prepare(self, optimizer: ZerothOrder, short: Workload, work: Workload | None = None) -> None:
        """Take the first steps, in which an optimizer makes its state and watches its queries more than later on.

        They are taken on a short batch; those in which LOZO compares the forwards of a batch of another size are taken
        on the batch that is measured.
        """
        for _ in range(_FIRST_STEPS):
            self.run(optimizer, short)
        while work is not None and isinstance(optimizer.evaluator, Stacked) and optimizer.t < _COMPARED:
            self.run(optimizer, work)
        self.settle(optimizer, short)

    def settle(self, optimizer: ZerothOrder, work: Workload) -> None:
        """Bring MeZO-SVRG behind a full-batch step, for which it takes the batch."""
        if isinstance(optimizer, MeZOSVRG) and optimizer.needs_full:
            self.run(optimizer, work)

    def run(self, optimizer: ZerothOrder, work: Workload) -> None:
        """One step on the workload's batch."""
        optimizer.estimate(work.loss)
        optimizer.step()

    def optimizer(self, model: nn.Module, *, noise: str | None = None, rate: float = RATE) -> ZerothOrder:
        """The optimizer of the model's trainable parameters, as `zotune train` would make it.

        Raises:
            ValueError: if a package that it needs is not installed.
        """
        config = TrainConfig(algorithm=self.algorithm, lr=rate, lr_mezosvrg_mb=rate, noise=noise, **self.settings)
        kind, arguments = optimizer_plan(config.resolved(), steps_per_epoch=100, seed=0)
        try:
            optimizer = kind(parameter_groups(model, weight_decay=0.0), **arguments)
        except ValueError as error:  # in the words of someone who writes Python
            if self.package is None:
                raise
            name, extra = self.package
            raise ValueError(f"it needs the package {name} (pip install 'zotune[{extra}]')") from error
        assert isinstance(optimizer, ZerothOrder)
        if self.stacked:
            optimizer.evaluator = Stacked(tokens=_ANY_SIZE)
        return optimizer


_ANY_SIZE: Final = 2**40  # rows
_SMALLEST: Final = 4096  # parameters below keep their state in float32


def _per_weight(bytes_each: float) -> Callable[[torch.Size, int], int]:
    return lambda shape, width: int(shape.numel() * bytes_each)  # noqa: ARG005


def _matrix(shape: torch.Size) -> bool:
    return len(shape) >= 2


def _lozo(rank: int, *, momentum: bool) -> Callable[[torch.Size, int], int]:
    def state(shape: torch.Size, width: int) -> int:  # noqa: ARG001
        if not _matrix(shape):
            return 4 * shape.numel() if momentum else 0
        columns = shape.numel() // shape[0]
        return 4 * rank * (columns + (shape[0] if momentum else 0))

    return state


def _loren(bytes_each: float) -> Callable[[torch.Size, int], int]:
    def state(shape: torch.Size, width: int) -> int:  # noqa: ARG001
        curvature = 4 * (shape.numel() // shape[0]) if _matrix(shape) else 0
        small = bytes_each > 0 and shape.numel() < _SMALLEST
        return curvature + int(shape.numel() * (4 if small else bytes_each))

    return state


def _eight_bits(tensors: int) -> Callable[[torch.Size, int], int]:
    """One byte a weight and a float32 scale for each block of 256; small parameters stay in float32."""
    return lambda shape, width: int(tensors * shape.numel() * (1 + 4 / 256 if shape.numel() >= _SMALLEST else 4))  # noqa: ARG005


VARIANTS: Final = (
    Variant(title="MeZO", algorithm="ZO"),
    Variant(title="MeZO, momentum", algorithm="ZO", settings={"momentum": 0.9}, state=_per_weight(4)),
    Variant(title="ZO-Adam", algorithm="ZOAdam", state=_per_weight(8)),
    Variant(
        title="ZO-Adam, 8 bits",
        algorithm="ZOAdam",
        settings={"low_bit_adam": 8},
        state=_eight_bits(2),
        package=("bitsandbytes", "low-bit"),
    ),
    Variant(title="MeZO-SVRG", algorithm="ZOSVRG", settings={"anchor": "recompute"}, queries=4),
    Variant(
        title="MeZO-SVRG, anchor copied",
        algorithm="ZOSVRG",
        settings={"anchor": "copy"},
        queries=4,
        state=lambda shape, width: shape.numel() * width,
    ),
    Variant(title="LOZO", algorithm="LOZO", state=_lozo(2, momentum=False)),
    Variant(title="LOZO, stacked", algorithm="LOZO", stacked=True, state=_lozo(2, momentum=False)),
    Variant(title="LOZO-M", algorithm="LOZO", settings={"momentum": 0.9}, state=_lozo(2, momentum=True)),
    Variant(title="HiZOO", algorithm="HiZOO", queries=3, state=_per_weight(4)),
    Variant(title="LOREN", algorithm="LOREN", queries=6, state=_loren(0)),
    Variant(
        title="LOREN, momentum",
        algorithm="LOREN",
        queries=6,
        settings={"momentum": 0.9, "momentum_bits": 32},
        state=_loren(4),
    ),
    Variant(
        title="LOREN, 16-bit momentum",
        algorithm="LOREN",
        queries=6,
        settings={"momentum": 0.9, "momentum_bits": 16},
        state=_loren(2),
    ),
    Variant(
        title="LOREN, 8-bit momentum",
        algorithm="LOREN",
        queries=6,
        settings={"momentum": 0.9, "momentum_bits": 8},
        state=_loren(1 + 4 / 256),
    ),
    Variant(title="FZOO", algorithm="FZOO", queries=8),
)
"""The methods and options that `zotune bench` and the scripts in `benchmarks/` measure."""


def variants(algorithm: str = ALL) -> list[Variant]:
    """The variants of one algorithm by its name on the command line, or all."""
    return [variant for variant in VARIANTS if algorithm in (ALL, variant.algorithm)]
