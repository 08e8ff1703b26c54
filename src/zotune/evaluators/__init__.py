"""Evaluators: how the losses of a plan of probes are obtained."""

from zotune.evaluators.base import Closure, Evaluator, NonFiniteLossError
from zotune.evaluators.distributed import DataParallel
from zotune.evaluators.grouped import repeat, split
from zotune.evaluators.in_place import InPlace
from zotune.evaluators.overlay import Mode, Overlay
from zotune.evaluators.stacked import Grouped, Stacked

__all__ = [
    "Closure",
    "DataParallel",
    "Evaluator",
    "Grouped",
    "InPlace",
    "Mode",
    "NonFiniteLossError",
    "Overlay",
    "Stacked",
    "repeat",
    "split",
]
