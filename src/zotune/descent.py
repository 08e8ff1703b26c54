"""How fast the loss of a run falls, beside how fast its slopes say that it would.

The losses f_t of the last steps have a line through them by least squares, of the slope b with the standard error r
(that of the residuals; of a line through n points, Sxx = sum (t - mean t)^2, r^2 = residuals / (n - 2) / Sxx).  With
D_t, the decrease that a step's own slopes predict, the part of it that comes true is at least

    rho_low = (- b - `SURE` r) / mean D_t.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Final

FEWEST: Final = 12
"""Points that a line is put through at least ..."""

POINTS: Final = 64
"""... and at most: of longer stretches each is the mean of several steps, so checkpoints stay small."""

SURE: Final = 1.0
"""Standard errors below what was seen."""


class Descent:
    """See the equations above.

    Attributes:
        points: mean loss and summed D of equal numbers of steps, the latest ones last.
        part: the steps that make the next point.
    """

    def __init__(self) -> None:
        self.points: list[list[float]] = []
        self.part: list[list[float]] = []

    def take(self, losses: Sequence[float], predicted: float, steps: int) -> None:
        """Add a step.

        Args:
            losses: of its plan.
            predicted: D_t.
            steps: that are looked back at, about.
        """
        self.part.append([statistics.fmean(losses), predicted])
        together = max(1, steps // POINTS)
        if len(self.part) < together:
            return
        means, decreases = zip(*self.part, strict=True)
        self.points.append([statistics.fmean(means), math.fsum(decreases)])
        self.part = []
        self.points = self.points[-max(FEWEST, steps // together) :]

    @property
    def sure(self) -> float:
        """rho_low; 0 where nothing is certain."""
        if len(self.points) < FEWEST:
            return 0.0
        losses, predicted = zip(*self.points, strict=True)
        count, mean = len(losses), statistics.fmean(losses)
        places = [place - (count - 1) / 2.0 for place in range(count)]
        square = math.fsum(x * x for x in places)
        slope = math.fsum(x * (f - mean) for x, f in zip(places, losses, strict=True)) / square
        residuals = math.fsum((f - mean - slope * x) ** 2 for x, f in zip(places, losses, strict=True))
        error = math.sqrt(residuals / (count - 2) / square)
        whole = statistics.fmean(predicted)
        return max(0.0, (-slope - SURE * error) / whole) if whole > 0.0 else 0.0
