"""zotune: fine-tune language models from forward passes alone, at the memory of inference."""

from zotune.checks import digest
from zotune.evaluators import DataParallel, InPlace, NonFiniteLossError, Overlay
from zotune.methods import FZOO, LOREN, LOZO, METHODS, HiZOO, MeZO, MeZOSVRG, ZOAdam
from zotune.optimizer import ZerothOrder

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
    "ZOAdam",
    "ZerothOrder",
    "digest",
]
