"""A search in one process: ask Optuna for settings, train with them, tell it the result."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.trial import TrialState
from rich.console import Console

from zotune import NonFiniteLossError
from zotune.config import AUTO, ConfigError, TrainConfig, config_from_text, dump_settings, shortened
from zotune.config.compare import Entry, Given
from zotune.config.sweep import SweepConfig
from zotune.hf.models import is_masked
from zotune.hf.portions import MemoryShortError
from zotune.run.folder import write_json
from zotune.run.lock import one_at_a_time
from zotune.run.training import TrainingRun
from zotune.sweep import watching
from zotune.sweep.database import at_failure, lock_of, storage_of
from zotune.sweep.draws import CANDIDATES, Direction, Draws
from zotune.sweep.sharing import PROCESS, alive, forget_dead, this_process, told
from zotune.sweep.spaces import (
    Choice,
    Space,
    as_given,
    checked_space,
    grid_of,
    points_of,
    read_space,
    space_holding,
    space_of,
)

DONE: Final = (TrialState.COMPLETE, TrialState.PRUNED)
BEGUN: Final = (*DONE, TrialState.RUNNING, TrialState.FAIL)
_THERE: Final = (*DONE, TrialState.WAITING, TrialState.RUNNING)
_STARTUP = 4
"""Runs that are finished before any is broken off."""

_MEASURED = "measured"
_LOST = "lost"
_MEASURING = "measuring"
_PLAN = "plan"
_QUEUED = "queued"
_SPENT = "forwards"
_FOLDER = "folder"
_SCORES = "scores"


class Search:
    """The search for one method's settings.

    Args:
        config: of `zotune sweep`.
        shared: flags of all runs.
        entry: the method.
        out: folder of the search.
        say: takes a line for the person.
    """

    def __init__(
        self,
        config: SweepConfig,
        shared: Mapping[str, str | bool],
        entry: Entry,
        out: Path,
        *,
        say: Callable[[str], None],
    ) -> None:
        self.entry, self.base = entry, self._base_of(config, shared, entry)
        self._config, self._out, self._say, self.metric = config, out, say, config.metric
        self._fixed, self._lock = {*shared, *entry.given}, lock_of(config, out)
        self.settings = config_from_text(self.base).resolved()
        self.settings.validate()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=_STARTUP) if config.prune == "median" else None
        storage, name = storage_of(config, out), study_name(self.settings, entry)
        direction: Direction = "minimize" if config.metric == "loss" else "maximize"
        self.draws = Draws(storage, name, direction)
        self.study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction=direction,
            sampler=self._sampler(0),
            pruner=pruner or optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        self.space: Space | None = None
        self.goal, self.points = config.chosen_runs, list[dict[str, Any]]()
        self._choose_space()

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """For the run of that number: processes and machines that had the same seed would all begin alike."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                seed=(self.settings.init_seed * 1009 + number) % 2**32,
                n_startup_trials=_STARTUP,
                multivariate=True,
                constant_liar=self._config.jobs > 1 or self._config.storage is not None,
            )

    @staticmethod
    def _base_of(config: SweepConfig, shared: Mapping[str, str | bool], entry: Entry) -> Given:
        spent = {"budget_queries": str(config.budget_queries), "evaluations": str(config.evaluations)}
        # Searched rates are numbers, and constant unless a schedule is asked for; so shall the one in the middle.
        return {"lr_scheduler_type": "constant", **shared, "algorithm": entry.algorithm, **entry.given, **spent}

    def _choose_space(self) -> None:
        """The space, unless it waits for a measured rate."""
        own = read_space(self._config.space).get(self.entry.method)
        grid = self._config.search == "grid"
        measured = self._measured()
        if own is not None:
            self.space = checked_space(own, self.entry, self.base)
        elif grid:
            try:
                masked = is_masked(self.settings.model_name, trust_remote_code=self.settings.trust_remote_code)
            except ValueError as error:
                raise ConfigError(str(error)) from error
            self.points = grid_of(self.entry, self.settings, masked=masked, fixed=self._fixed)
            self.space = space_holding(self.points)
        elif "lr" in self.entry.given or self.settings.lr != AUTO or measured is not None:
            self.space = space_of(self.entry, self.settings, measured)
        if self.space is None:
            return
        if not self.space:
            raise ConfigError(
                f"There is nothing to search for {self.entry.label}; leave its flags out or give --space."
            )
        if grid or all(isinstance(choice, Choice) for choice in self.space.values()):
            self.points = self.points or points_of(self.space)
        self.goal = self._config.chosen_runs
        if self.points:  # none is tried twice
            self.goal = len(self.points) if grid else min(self.goal, len(self.points))

    def prepare(self) -> None:
        """Refuse a study of other settings, and measure the rate around which the search looks, if it does."""
        with one_at_a_time(self._lock):
            forget_dead(self.study)
            if self.space is None:
                self._measure()
            self._check_plan()

    def _queue(self) -> None:
        """Put what is to be tried in any case in the queue, unless it is there or done."""
        assert self.space is not None
        if self._config.search == "grid":
            for point in self._untried():
                self.study.enqueue_trial(point, user_attrs={_QUEUED: True})
        elif not self.trials(*_THERE):
            measured = self._measured()
            rates = {} if measured is None else {"lr": measured, "lr_mezosvrg_mb": measured}
            defaults = {**self.settings.__dict__, **rates}
            first = {name: choice.beginning(defaults[name]) for name, choice in self.space.items()}
            self.study.enqueue_trial(first)

    def trials(self, *states: TrialState) -> list[optuna.trial.FrozenTrial]:
        """The trials in these states."""
        return self.study.get_trials(deepcopy=False, states=states)

    def _check_plan(self) -> None:
        """Refuse to go on with a study that was begun with other settings, unless it has no run yet."""
        assert self.space is not None
        plan = {
            "settings": dump_settings(self.settings),
            "space": {name: repr(choice) for name, choice in self.space.items()},
            **{name: getattr(self._config, name) for name in ("search", "metric", "prune")},
        }
        known = self._known_plan()
        plan = json.loads(json.dumps({**plan, _MEASURED: self._measured()}))
        if known == plan:
            return
        if known is not None and self.trials(*DONE, TrialState.RUNNING):
            raise ConfigError(
                f"The study {self.study.study_name} has runs with another {_difference(known, plan)}; give another"
                " --out or --storage, or what it began with."
            )
        self.study.set_user_attr(_PLAN, plan)
        self._say(f"{self.entry.label}: searched are {', '.join(f'{n} {choice}' for n, choice in self.space.items())}.")

    def _measure(self) -> None:
        """The rate of `--lr auto`, around which the search looks."""
        run = TrainingRun(self._settings({"lr": AUTO}), Console(quiet=True))
        try:
            rate, forwards = run.measure()
        except (NonFiniteLossError, MemoryShortError) as error:
            raise ConfigError(
                f"{self.entry.label}: its rate cannot be measured ({error}); give it an --lr or another"
                " --perturbation_scale in --algorithms, or leave it out."
            ) from error
        self.study.set_user_attr(f"{_MEASURING} {this_process()}", forwards)
        if self._measured() is None:  # or another machine was faster, whose last digits may differ
            self.study.set_user_attr(_MEASURED, rate)
        self._choose_space()
        self._say(f"{self.entry.label}: --lr auto takes {shown(self._measured())}, around which the search looks.")

    def _measured(self) -> float | None:
        """The measured rate: that of the plan, once there is one."""
        rate = (self._known_plan() or {}).get(_MEASURED)
        rate = self.study.user_attrs.get(_MEASURED) if rate is None else rate
        if rate is not None and not isinstance(rate, (int, float)):
            raise self._damaged()
        return rate

    def _known_plan(self) -> dict[str, Any] | None:
        """What the study began with, None if nothing has begun."""
        known = self.study.user_attrs.get(_PLAN)
        if known is None or (isinstance(known, dict) and isinstance(known.get("settings"), dict)):
            return known
        raise self._damaged()

    def _damaged(self) -> ConfigError:
        return ConfigError(f"The study {self.study.study_name} is damaged; give another --out or --storage.")

    def _settings(self, chosen: Mapping[str, Any]) -> TrainConfig:
        return config_from_text(
            {**self.base, **as_given(chosen), "results": str(self._out / "runs" / self.entry.label)}
        )

    def settings_of(self, trial: optuna.trial.FrozenTrial) -> TrainConfig:
        """The whole settings of a run, but for its draw."""
        return self._settings(trial.params).resolved()

    def run(self) -> None:
        """Runs until there are as many as asked for, or the forward passes for all of them are spent."""
        with alive(self.study):
            while (trial := self._ask()) is not None:
                # A run that was stopped by a person is tried again, so it must not stay as one that goes on.
                with at_failure(partial(told, self.study, trial, state=TrialState.FAIL)):
                    state, value = self._ended(trial)
                if told(self.study, trial, value, state=state) is not None:
                    self._report(trial.number)

    def _ended(self, trial: optuna.Trial) -> tuple[TrialState, float | None]:
        """Train; how that ended, and the metric."""
        try:
            return TrialState.COMPLETE, self._train(trial)
        except optuna.TrialPruned:
            return TrialState.PRUNED, None
        except watching.TakenError:
            self._say(f"{self.entry.label}: a run is given up; this process was silent for too long.")
            return TrialState.FAIL, None

    def _ask(self) -> optuna.Trial | None:
        """The next run, None if there is none; one process of this machine at a time, because SQLite would let two of
        them take the same run from the queue."""
        with one_at_a_time(self._lock):
            forget_dead(self.study)
            self._queue()
            while not self.finished():
                self.study.sampler = self._sampler(len(self.study.get_trials(deepcopy=False)))
                trial = self.study.ask()
                trial.set_user_attr(PROCESS, this_process())
                if not self._is_double(trial):
                    return trial
                told(self.study, trial, state=TrialState.FAIL)
                # TPE likes what was good, also where lists leave nothing else near it.
                if self._config.search == "tpe" and (untried := self._untried()):
                    self.study.enqueue_trial(untried[trial.number % len(untried)])
        return None

    def _is_double(self, trial: optuna.Trial) -> bool:
        """Whether the same settings are tried already, in this process or on another machine."""
        if self.points and self._config.search == "tpe":
            self._proposed(trial)  # now it has a point
        point = _fixed_of(self.study.get_trials(deepcopy=False)[trial.number])
        if not point:  # of a grid another machine has taken the last one; two equal numbers of a range are no matter
            return self._config.search == "grid"
        others = self.trials(*DONE, TrialState.RUNNING)
        return any(other.number < trial.number and _fixed_of(other) == point for other in others)

    def _proposed(self, trial: optuna.Trial) -> dict[str, Any]:
        assert self.space is not None
        return {name: choice.suggest(trial, name) for name, choice in self.space.items()}

    def _untried(self) -> list[dict[str, Any]]:
        """Of the points those that nobody has begun or queued."""
        there = [_fixed_of(trial) for trial in self.trials(*_THERE)]
        return [point for point in self.points if point not in there]

    @property
    def busy(self) -> int:
        """Runs of other processes that go on."""
        forget_dead(self.study)
        forget_dead(self.draws.study)
        return len(self.trials(TrialState.RUNNING)) + self.draws.running

    def finished(self) -> bool:
        """Whether no further run begins."""
        total = self._config.total_queries
        if total is not None:
            kept = CANDIDATES * self._config.confirmations * self._config.budget_queries  # for the other draws
            budgets = [self._config.budget_queries - spent_by(trial) for trial in self.trials(TrialState.RUNNING)]
            begun = sum(max(0, left) for left in budgets)
            if self.spent() + begun >= (total - kept if kept < total / 2 else total):
                return True
        if self._config.search == "grid":
            return not self.trials(TrialState.WAITING)
        return len(self.trials(*DONE, TrialState.RUNNING)) >= self.goal

    def spent(self) -> int:
        """Forward passes of one example of all runs of the search and of the measurement before them."""
        runs = sum(spent_by(trial) for trial in self.study.get_trials(deepcopy=False))
        return runs + sum(int(n) for name, n in self.study.user_attrs.items() if name.startswith((_MEASURING, _LOST)))

    def _report(self, number: int) -> None:
        trial = self.study.trials[number]
        chosen = ", ".join(f"{name} {shown(value)}" for name, value in trial.params.items())
        score = shown_score(trial.value)
        result = "broken off" if trial.state is TrialState.PRUNED else f"{self._config.metric} {score}"
        done = len(self.trials(*DONE))
        self._say(f"{self.entry.label} [{done}/{self.goal}] {chosen}: {result}")

    def _train(self, trial: optuna.Trial) -> float:
        assert self.space is not None
        settings = self._settings(self._proposed(trial))
        watcher = watching.Watcher(self.metric, settings, trial, note=partial(trial.set_user_attr, _SPENT))
        with at_failure(partial(self._keep, trial, watcher)):
            watching.executed(settings, watcher)
        self._keep(trial, watcher)
        return watcher.value

    def _keep(self, trial: optuna.Trial, watcher: watching.Watcher) -> None:
        kept: dict[str, Any] = {
            _SPENT: watcher.spent,
            _SCORES: {name: value for name, value in watcher.latest.items() if math.isfinite(value)},
        }
        if watcher.folder is not None:
            kept[_FOLDER] = str(watcher.folder)
        try:
            for name, value in kept.items():
                trial.set_user_attr(name, value)
        except optuna.exceptions.UpdateFinishedTrialError:  # others took this process for dead
            counted = spent_by(self.study.get_trials(deepcopy=False)[trial.number])
            self.study.set_user_attr(f"{_LOST} {this_process()} {trial.number}", max(0, watcher.spent - counted))

    # Settings that one run found good, on other draws.

    def confirm(self) -> None:
        """Run the best settings again, on other draws, until `CANDIDATES` of them have not diverged in any."""
        with alive(self.draws.study):
            while (claim := self._claim()) is not None:
                trial, draw, number = claim
                settings = self._settings({**trial.params, "trial": draw})
                self._again(settings, number)
                values = ", ".join(shown_score(value) for value in self.draws.values(trial.number))
                self._say(f"{self.entry.label} [run {trial.number + 1} on other draws]: {self.metric} {values}")

    def _again(self, settings: TrainConfig, number: int) -> None:
        """A run on another draw, which has that number."""
        watcher = watching.Watcher(self.metric, settings, note=partial(self.draws.count, number))
        with at_failure(lambda: self.draws.end(number, None, watcher.spent)):
            watching.executed(settings, watcher)
        self.draws.end(number, watcher.value, watcher.spent)

    def _claim(self) -> tuple[optuna.trial.FrozenTrial, int, int] | None:
        """A run, the draw on which this process makes it again, and the number of that; None if there is none."""
        total = self._config.total_queries
        with one_at_a_time(self._lock):
            while (wanted := self.draws.wanted(self.ranked(), self._config.confirmations)) is not None:
                begun = self.draws.to_come(self._config.budget_queries) + self._config.budget_queries
                if total is not None and self.spent() + self.draws.spent + begun > total:
                    return None
                trial, draw = wanted
                if (number := self.draws.begin(trial.number, draw)) is not None:
                    return trial, draw, number
        return None

    def ranked(self) -> list[optuna.trial.FrozenTrial]:
        """Finished runs that did not diverge, the best one first; of each settings the first run."""
        complete = [t for t in self.trials(TrialState.COMPLETE) if t.value is not None and math.isfinite(t.value)]
        firsts = [t for place, t in enumerate(complete) if t.params not in [other.params for other in complete[:place]]]
        return sorted(firsts, key=lambda trial: self._sign * float(trial.value or 0.0))

    def best(self) -> optuna.trial.FrozenTrial | None:
        """The run whose settings are best in the mean of their draws; only those that were confirmed, unless there was
        no room for all that were to be: a bad mean is then no better than what was seen once."""
        ranked = self.ranked()
        confirmed = [trial for trial in ranked if self.draws.values(trial.number)]
        confirmed = confirmed if confirmed and self.are_confirmed(ranked) else ranked
        finite = [trial for trial in confirmed if math.isfinite(self.draws.mean(trial))]
        finite = finite or [t for t in ranked if not self.draws.values(t.number)]  # all others have diverged
        return min(finite, key=lambda trial: self._sign * self.draws.mean(trial), default=None)

    def are_confirmed(self, ranked: list[optuna.trial.FrozenTrial]) -> bool:
        """Whether all runs on other draws have begun."""
        return self.draws.wanted(ranked, self._config.confirmations) is None

    @property
    def _sign(self) -> float:
        return 1.0 if self.metric == "loss" else -1.0


def _difference(known: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """The first thing in which two plans differ, a flag of the runs with both values."""
    before = known["settings"]
    for name, value in plan["settings"].items():
        if before.get(name) != value:
            return f"--{name} ({shortened(before.get(name))} there, {shortened(value)} now)"
    return next((name for name in plan if known.get(name) != plan[name]), "settings")


def _fixed_of(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    """The point of a run that was in the queue; the settings of another one."""
    return dict(trial.system_attrs.get("fixed_params") or trial.params)


def study_name(settings: TrainConfig, entry: Entry) -> str:
    """Name of the study of a method, so that one database can hold those of many tasks and models."""
    data = settings.task if settings.train_file is None else Path(settings.train_file).name
    return f"{Path(settings.model_name).name}/{data}/{entry.label}"


def spent_by(trial: optuna.trial.FrozenTrial) -> int:
    """Forward passes of one example that a run has made."""
    return int(trial.user_attrs.get(_SPENT, 0))


def scores_of(trial: optuna.trial.FrozenTrial) -> dict[str, float]:
    """Metrics of a run's last evaluation."""
    return dict(trial.user_attrs.get(_SCORES, {}))


def shown(value: object) -> str:
    """A setting as a person reads it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def shown_score(value: float | None) -> str:
    """A metric as a person reads it."""
    return f"{value:.4f}" if value is not None and math.isfinite(value) else "none (diverged)"


def merge_json(path: Path, fresh: Mapping[str, Mapping[str, Any]]) -> None:
    """Write an object for each method: of best settings, the form that ``zotune compare --settings`` reads.

    Methods that are in the file already and not in ``fresh`` stay.
    """
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    kept = known if isinstance(known, dict) else {}
    write_json(path, {**kept, **{name: dict(entries) for name, entries in fresh.items()}})


logging.getLogger("alembic").setLevel(logging.WARNING)
