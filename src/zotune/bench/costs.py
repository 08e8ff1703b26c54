"""What a step costs, told before it is tried: memory from shapes, time from shapes and a short test of the machine."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from zotune.bench.clock import Samples, ratio, take_turns, wall_clock
from zotune.bench.shapes import Shapes
from zotune.bench.variants import Variant
from zotune.bench.workload import one_layer

STEP: Final = "step"
FORWARD: Final = "forward"

_ROUNDS: Final = 5
_SAMPLE: Final = (1024, 2048)  # weights of the test of a method: more than the caches hold, less than a second


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A step of one method on one batch.

    Attributes:
        variant: the method.
        seconds: of a step.
        forward: seconds of a forward pass of the batch.
        memory: peak in bytes, weights included; None where the system does not tell.
        inference: the same of a forward pass.
        samples: seconds of each round, by the names `STEP` and `FORWARD`, of which the medians are above; None where
            nothing was measured.
    """

    variant: Variant
    seconds: float
    forward: float
    memory: int | None
    inference: int | None
    samples: Samples | None = None

    @property
    def ratio(self) -> float:
        """Time over that of its forward passes; where it was measured, of those just before and after each step."""
        if self.samples is None:
            return self.seconds / (self.variant.queries * self.forward)
        return ratio(self.samples, STEP, FORWARD, self.variant.queries)[0]

    @property
    def ratio_spread(self) -> float | None:
        """Distance of the quartiles of the ratio over the ratio; None of fewer than two rounds."""
        if self.samples is None or len(self.samples[STEP]) < 2:
            return None
        middle, low, high = ratio(self.samples, STEP, FORWARD, self.variant.queries)
        return (high - low) / middle

    def rounds(self, side: str) -> list[float]:
        """Seconds of each round of `STEP` or `FORWARD`; none where nothing was measured."""
        return [] if self.samples is None else list(self.samples[side])

    def duration(self, steps: int, batches: int) -> float:
        """Seconds of ``steps`` steps, where the training sample is ``batches`` batches long."""
        if self.variant.algorithm != "ZOSVRG":
            return steps * self.seconds
        # Every second step is a snapshot: two passes over the full sample and half of the passes over the weights.
        full = self.seconds / 2 + 2 * (batches - 1) * self.forward
        return steps * (self.seconds + full) / 2


def memory_of(variant: Variant, shapes: Shapes, device: torch.device) -> int:
    """Peak of a step in bytes: a forward pass, the perturbed weights of a layer, and what the method keeps.

    Forward passes made together need their activations together, and no perturbed weights.
    """
    together = variant.passes_at_once(shapes.tokens, device)
    more = (together - 1) * shapes.activations if together > 1 else shapes.scratch
    return shapes.inference + more + sum(variant.state(shape, shapes.width) for shape in shapes.trained)


class Foresight:
    """Foretells costs on a machine.

    Args:
        device: where it would compute.
        dtype: type of the weights.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._speed: float | None = None

    def cost(self, variant: Variant, shapes: Shapes, noise: str | None) -> Cost:
        """The cost of a step: its operations at the speed of a matrix product, and its passes over the weights.

        The passes are timed on two million weights with the method's own optimizer.
        """
        forward = shapes.flops / self.speed()
        passes = self._seconds_per_weight(variant, noise) * shapes.trained_parameters
        return Cost(
            variant=variant,
            seconds=variant.queries * forward + passes,
            forward=forward,
            memory=memory_of(variant, shapes, self.device),
            inference=shapes.inference,
        )

    def speed(self) -> float:
        """Floating-point operations per second in a matrix product of middling size."""
        if self._speed is None:
            tokens, columns, rows = (512, 1024, 1024) if self.device.type == "cpu" else (2048, 4096, 4096)
            x = torch.ones(tokens, columns, device=self.device, dtype=self.dtype)
            layer = nn.Linear(columns, rows, bias=False, device=self.device, dtype=self.dtype)
            with torch.no_grad():
                layer(x)
                seconds = self._median(lambda: [layer(x) for _ in range(4)])
            self._speed = 4 * 2 * tokens * columns * rows / seconds
        return self._speed

    def _seconds_per_weight(self, variant: Variant, noise: str | None) -> float:
        work = one_layer(*_SAMPLE, self.device, self.dtype)
        optimizer = variant.optimizer(work.model, noise=noise)
        variant.prepare(optimizer, work)
        seconds = self._median(lambda: variant.run(optimizer, work), lambda: variant.settle(optimizer, work))
        return seconds / (_SAMPLE[0] * _SAMPLE[1])

    def _median(self, run: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
        clock = wall_clock(self.device)
        samples = take_turns({"": run}, clock=clock, rounds=_ROUNDS, before={"": before})
        return statistics.median(samples[""])
