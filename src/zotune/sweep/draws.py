"""Settings that one run of a search found good, on other draws: head, directions and order of the examples.

One run can be lucky at a rate at which others diverge.  These runs are trials of a study of their own beside that of
the search, in the same database, each with the number of the run whose settings it has and that of its draw.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Final, Literal

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from zotune.sweep.sharing import PROCESS, forget_dead, this_process, told

CANDIDATES: Final = 3
"""Settings that are run again."""

Direction = Literal["minimize", "maximize"]
_RUN, _DRAW, _SPENT = "run", "draw", "forwards"
_ANY: Final[dict[str, BaseDistribution]] = {_RUN: IntDistribution(0, 2**31), _DRAW: IntDistribution(1, 2**31)}


class Draws:
    """What is known of the settings of a search on other draws.

    Args:
        storage: database of the search.
        name: of its study.
        direction: of the metric.
    """

    def __init__(self, storage: optuna.storages.BaseStorage, name: str, direction: Direction) -> None:
        self.study = optuna.create_study(
            storage=storage,
            study_name=f"{name} on other draws",
            direction=direction,
            sampler=optuna.samplers.RandomSampler(0),  # asked for nothing
            load_if_exists=True,
        )

    def values(self, run: int) -> list[float]:
        """The metric of a run's settings on the draws that are done."""
        return list(self._by_draw(TrialState.COMPLETE).get(run, {}).values())

    def mean(self, trial: FrozenTrial) -> float:
        """The metric's mean over all draws of a run's settings."""
        return statistics.fmean([float(trial.value or 0.0), *self.values(trial.number)])

    @property
    def spent(self) -> int:
        """Forward passes of one example."""
        return sum(int(count) for name, count in self.study.user_attrs.items() if name.startswith(_SPENT))

    @property
    def running(self) -> int:
        """Runs that go on."""
        return len(self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))

    def to_come(self, budget: int) -> int:
        """Forward passes that the runs that go on have left of their budgets."""
        known = self.study.user_attrs
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return sum(max(0, budget - int(known.get(f"{_SPENT} {trial.number}", 0))) for trial in running)

    def wanted(self, ranked: Sequence[FrozenTrial], draws: int) -> tuple[FrozenTrial, int] | None:
        """The next run and draw that nobody has begun, until `CANDIDATES` of the best runs diverge in no draw.

        Args:
            ranked: finished runs, the best one first.
            draws: of each.
        """
        forget_dead(self.study)
        begun = self._by_draw(TrialState.COMPLETE, TrialState.RUNNING)
        whole = 0
        for trial in ranked[: 2 * CANDIDATES]:
            known = begun.get(trial.number, {})
            if any(map(math.isinf, known.values())):
                continue
            left = set(range(1, draws + 1)) - known.keys()
            if left:
                return trial, min(left)
            whole += 1
            if whole == CANDIDATES:
                break
        return None

    def begin(self, run: int, draw: int) -> int | None:
        """Take a run upon this process; its number, or None if another one was faster."""
        mine = create_trial(
            state=TrialState.RUNNING,
            params={_RUN: run, _DRAW: draw},
            distributions=_ANY,
            user_attrs={PROCESS: this_process()},
        )
        self.study.add_trial(mine)
        same = [
            trial
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING))
            if trial.params == mine.params
        ]
        own = [t for t in same if t.state is TrialState.RUNNING and t.user_attrs[PROCESS] == this_process()]
        if same[0].number == own[-1].number:
            return own[-1].number
        self.end(own[-1].number, None)
        return None

    def end(self, number: int, value: float | None, spent: int = 0) -> None:
        """Tell the metric in the end, None if the run was stopped, and the forward passes that it took."""
        self.count(number, spent)
        told(self.study, number, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)

    def count(self, number: int, spent: int) -> None:
        """Forward passes that a run has made so far."""
        self.study.set_user_attr(f"{_SPENT} {number}", spent)  # a key for each: no process overwrites another's

    def _by_draw(self, *states: TrialState) -> dict[int, dict[int, float]]:
        """Values by run and draw, in the order of the draws; NaN for a run that goes on."""
        found: dict[int, dict[int, float]] = {}
        for trial in self.study.get_trials(deepcopy=False, states=states):
            value = math.nan if trial.value is None else float(trial.value)
            found.setdefault(trial.params[_RUN], {}).setdefault(trial.params[_DRAW], value)
        return {run: dict(sorted(values.items())) for run, values in found.items()}
