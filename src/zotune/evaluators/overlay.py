"""The overlay: queries that never write the stored weights.

Each module that owns parameters gets, for the length of its own forward, parameters whose ``data`` points to a
scratch buffer with the perturbed weights.  torch's module-wide hooks, active only during a query, find the owners as
they run; the optimizer needs no reference to the model.  The scratch is as large as the deepest chain of owners, in
most models one layer: of an embedding only the rows that the batch uses are written, and of a language-model head one
block after another (`zotune.evaluators.gather`).

Parameters that are read outside the forward of their owner are found by watching, operator by operator, for reads of
stored weights.  Such a read gets the perturbed weights on the spot, and from then on the parameter is perturbed for
the whole length of each query (``HELD``); if it is read through another tensor that shares its memory, the memory
itself is written and restored from a copy, bit for bit (``WRITTEN``).  Parameters that no owner's forward has reached
so far are held as well.

Watched are all queries of the first step, and of the first in which a parameter takes part (a resumed run, an unfrozen
layer); one query of each step whose number is a power of two or a multiple of 50; and each query after one in which a
known owner did not run (experts that are routed to now and then).  Outside reads that begin in a later step are thus
found within 50 steps: the step is then evaluated again, and a warning names the parameter and the steps in doubt.
What torch cannot see cannot be found: weights read through a numpy array that shares their memory, by raw address, or
outside modules from another thread than the closure's.  `zotune.evaluators.InPlace` is right for all of these.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import nn

from zotune.estimators import Probe
from zotune.evaluators.base import Closure, Evaluator, Writer, as_loss
from zotune.evaluators.layout import Layout, Mode
from zotune.evaluators.query import Query
from zotune.evaluators.scratch import Scratch
from zotune.perturbations import Slot

__all__ = ["Mode", "Overlay"]

_log = logging.getLogger(__name__)


class Overlay(Evaluator):
    """The default evaluator; see the module's docstring.

    Args:
        mode: how parameters are treated at first; with ``WRITTEN`` they stay so, and nothing is hooked or watched.
    """

    def __init__(self, mode: Mode = Mode.OWNER) -> None:
        self.hooked = mode is not Mode.WRITTEN
        self.scratch = Scratch()
        self._initial = mode
        self._layout = Layout([])
        self._modes: dict[int, Mode] = {}
        self._reached: set[int] = set()
        self._leaked: set[int] = set()
        self._seen: dict[int, nn.Parameter] = {}  # watched for a whole step; kept, so that no id is used again
        self._last_watched = 0  # step
        self._restless = False  # an owner known from earlier queries did not run in the last one

    def modes(self, slots: Sequence[Slot]) -> dict[str, Mode]:
        """How each parameter is perturbed at present, by name."""
        return {slot.name: self.mode(slot) for slot in slots}

    def evaluate(
        self, slots: Sequence[Slot], plan: Sequence[Probe], write: Writer, closure: Closure, step: int
    ) -> list[float]:
        """See `Evaluator.evaluate`."""
        first = step == 0 or any(id(slot.param) not in self._seen for slot in slots)
        exposed = {id(slot.param) for slot in slots if self.mode(slot) is Mode.OWNER} - self._leaked
        losses, blind = self._losses(slots, plan, write, closure, step, first)
        self._seen.update((id(slot.param), slot.param) for slot in slots)
        late = [slot.name for slot in slots if id(slot.param) in self._leaked & exposed]
        if late and blind:
            _log.warning(
                "%s: read outside the forward of the owning module, seen in step %d for the first time; step %d is "
                "evaluated again, steps after %d may have missed such reads (evaluator=zotune.InPlace() never does)",
                ", ".join(late),
                step,
                step,
                self._last_watched,
            )
            losses, _ = self._losses(slots, plan, write, closure, step, first)
        self._last_watched = step if first or late or self._due(step) else self._last_watched
        return losses

    @staticmethod
    def _due(step: int) -> bool:
        return step & (step - 1) == 0 or step % 50 == 0

    def _losses(
        self, slots: Sequence[Slot], plan: Sequence[Probe], write: Writer, closure: Closure, step: int, first: bool
    ) -> tuple[list[float], bool]:
        """The losses of the plan, and whether any of its queries was not watched."""
        losses, blind = [], False
        if not self._layout.fits(slots):
            self._layout = Layout(slots)
        for number, probe in enumerate(plan):
            # autocast keeps casts of weights for as long as its context lasts: they belong to one query only
            torch.clear_autocast_cache()
            if probe.sign == 0 and probe.point == 0:
                losses.append(as_loss(closure(), step))
                continue
            due = number == len(plan) - 1 and self._due(step)
            watch = self.hooked and (first or due or self._restless)
            blind = blind or not watch
            query = Query(self._layout, self._own_modes(slots), write, probe, self.scratch, hooked=self.hooked)
            value = query.run(closure, watch=watch)
            self._learn(slots, query.reached, query.leaks, watched=watch)
            losses.append(as_loss(value, step))
        return losses, blind

    def mode(self, slot: Slot) -> Mode:
        """How a parameter is perturbed."""
        return self._modes.get(id(slot.param), self._initial)

    def _own_modes(self, slots: Sequence[Slot]) -> dict[int, Mode]:
        """The modes that are not ``OWNER``."""
        if self._initial is Mode.OWNER:
            return self._modes
        return {id(slot.param): self.mode(slot) for slot in slots}

    def _learn(self, slots: Sequence[Slot], reached: set[int], leaks: dict[int, Mode], *, watched: bool) -> None:
        """Take note of what one query has shown."""
        if not self.hooked:
            return
        self._reached |= reached
        self._leaked |= leaks.keys()
        self._restless = False
        if len(reached) == len(slots) and not self._modes and not leaks:
            return  # the usual query
        for slot in slots:
            number = id(slot.param)
            if self._modes.get(number) is Mode.WRITTEN:
                continue
            if number in leaks:
                self._modes[number] = leaks[number]
            elif number not in self._reached:
                self._modes[number] = Mode.HELD
            elif watched and number in reached and number not in self._leaked:
                self._modes.pop(number, None)  # only a watched query can tell that there were no other reads
            if number not in reached and self.mode(slot) is Mode.OWNER:
                self._restless = True
