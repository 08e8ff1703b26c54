"""zotune: fine-tune language models from forward passes alone, at the memory of inference."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zotune.checks import digest
    from zotune.evaluators import DataParallel, InPlace, NonFiniteLossError, Overlay, Stacked, Staged
    from zotune.methods import FZOO, LOREN, LOZO, METHODS, HiZOO, MeZO, MeZOSVRG, ZOAdam
    from zotune.optimizer import ZerothOrder
    from zotune.pace import Pace
    from zotune.rates import Rate, present_curvature, suggest_rate

__version__ = "0.1.0"

__all__ = [
    "FZOO",
    "LOREN",
    "LOZO",
    "METHODS",
    "DataParallel",
    "HiZOO",
    "InPlace",
    "MeZO",
    "MeZOSVRG",
    "NonFiniteLossError",
    "Overlay",
    "Pace",
    "Rate",
    "Stacked",
    "Staged",
    "ZOAdam",
    "ZerothOrder",
    "digest",
    "present_curvature",
    "suggest_rate",
]

_HOMES = {
    "zotune.checks": ("digest",),
    "zotune.evaluators": ("DataParallel", "InPlace", "NonFiniteLossError", "Overlay", "Stacked", "Staged"),
    "zotune.methods": ("FZOO", "HiZOO", "LOREN", "LOZO", "METHODS", "MeZO", "MeZOSVRG", "ZOAdam"),
    "zotune.optimizer": ("ZerothOrder",),
    "zotune.pace": ("Pace",),
    "zotune.rates": ("Rate", "present_curvature", "suggest_rate"),
}


def __getattr__(name: str) -> Any:
    # On first use only: the command line answers --help and wrong flags without waiting for torch.
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(home), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
