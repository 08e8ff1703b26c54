"""A run as a small file of numbers: its losses, from which anybody with the base model rebuilds the weights.

`Recorder` writes it while an optimizer runs, `read` reads and checks it, `replay` makes the steps again.
"""

from __future__ import annotations

from zotune.trajectory.frames import TrajectoryError
from zotune.trajectory.header import Header
from zotune.trajectory.reader import Event, Item, Step, Trajectory, read
from zotune.trajectory.replay import build, go_on, replay
from zotune.trajectory.writer import Recorder

__all__ = [
    "Event",
    "Header",
    "Item",
    "Recorder",
    "Step",
    "Trajectory",
    "TrajectoryError",
    "build",
    "go_on",
    "read",
    "replay",
]
