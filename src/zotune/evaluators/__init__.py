"""Evaluators: how the losses of a plan of probes are obtained."""

from zotune.evaluators.base import Closure, Evaluator, NonFiniteLossError
from zotune.evaluators.distributed import DataParallel
from zotune.evaluators.in_place import InPlace
from zotune.evaluators.overlay import Mode, Overlay
from zotune.evaluators.stacked import Stacked, Staged

__all__ = [
    "Closure",
    "DataParallel",
    "Evaluator",
    "InPlace",
    "Mode",
    "NonFiniteLossError",
    "Overlay",
    "Stacked",
    "Staged",
]
