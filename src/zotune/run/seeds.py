"""Every seed of a run, derived from `--init_seed` and `--trial` by one pure function."""

from typing import Final, Literal

import numpy as np

Purpose = Literal["rows", "head", "order", "directions", "dropout", "rate"]

_NUMBERS: Final[dict[Purpose, int]] = {"rows": 0, "head": 1, "order": 2, "directions": 3, "dropout": 4, "rate": 5}


def derive_seed(init_seed: int, trial: int, purpose: Purpose) -> int:
    """A seed below 2**32 for one purpose: numpy's `SeedSequence((init_seed, trial, number of the purpose))`.

    The choice of the examples ("rows") leaves `trial` out, so that repetitions differ in the order of the examples,
    the new head, the directions and dropout, and in nothing else.
    """
    repetition = 0 if purpose == "rows" else trial
    return int(np.random.SeedSequence((init_seed, repetition, _NUMBERS[purpose])).generate_state(1, np.uint32)[0])
