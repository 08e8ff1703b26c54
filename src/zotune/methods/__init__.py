"""The methods, one paper a file."""

from __future__ import annotations

from dataclasses import dataclass

from zotune.methods.fzoo import FZOO
from zotune.methods.hizoo import HiZOO
from zotune.methods.loren import LOREN
from zotune.methods.lozo import LOZO
from zotune.methods.mezo import MeZO, ZOAdam
from zotune.methods.svrg import MeZOSVRG
from zotune.optimizer import ZerothOrder

__all__ = ["FZOO", "LOREN", "LOZO", "METHODS", "HiZOO", "MeZO", "MeZOSVRG", "Method", "ZOAdam"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row of the table of methods.

    Attributes:
        optimizer: the class.
        title: one line.
        paper: where it was published.
    """

    optimizer: type[ZerothOrder]
    title: str
    paper: str


METHODS: dict[str, Method] = {
    "ZO": Method(optimizer=MeZO, title="two-point descent (MeZO)", paper="arXiv 2305.17333"),
    "ZOAdam": Method(optimizer=ZOAdam, title="Adam on the two-point estimate", paper="arXiv 2305.17333"),
    "ZOSVRG": Method(optimizer=MeZOSVRG, title="variance-reduced two-point descent", paper="arXiv 2404.08080"),
    "LOZO": Method(optimizer=LOZO, title="low-rank directions; with momentum LOZO-M", paper="arXiv 2410.07698"),
    "HiZOO": Method(optimizer=HiZOO, title="diagonal-Hessian-scaled directions", paper="arXiv 2402.15173"),
    "LOREN": Method(optimizer=LOREN, title="learnt rank-one curvature, leave-one-out losses", paper="arXiv 2511.07971"),
    "FZOO": Method(optimizer=FZOO, title="normalised one-sided sign directions", paper="arXiv 2506.09034"),
}
"""The zeroth-order methods by their name on the command line."""
