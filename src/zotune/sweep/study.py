"""A search in one process: ask Optuna for settings, train with them, tell it the result."""

# ruff: noqa: ARG002  (the library fixes the signatures of callbacks)

from __future__ import annotations

import json
import logging
import math
import os
import platform
import statistics
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.trial import TrialState
from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from zotune import NonFiniteLossError
from zotune.config import AUTO, ConfigError, TrainConfig, config_from_text, dump_settings
from zotune.config.compare import Entry, Given
from zotune.config.sweep import SweepConfig
from zotune.hf.portions import MemoryShortError
from zotune.run.budget import FIRST_ORDER
from zotune.run.folder import write_json
from zotune.run.lock import one_at_a_time
from zotune.run.training import TrainingRun
from zotune.sweep.spaces import Space, as_given, checked_space, grid_of, points_of, read_space, space_of

DONE: Final = (TrialState.COMPLETE, TrialState.PRUNED)
_STARTUP = 4
"""Runs that are finished before any is broken off."""

CANDIDATES: Final = 3
"""Settings that are run again on other draws."""

ASKING: Final = "ask.lock"
_AGAIN = "again"
_AGAIN_SPENT = "again_forwards"
_MEASURED = "measured"
_MEASURING = "measuring"
_PLAN = "plan"
_PROCESS = "process"
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
        worker: number of this process among those of the search.
    """

    def __init__(
        self,
        config: SweepConfig,
        shared: Mapping[str, str | bool],
        entry: Entry,
        out: Path,
        *,
        say: Callable[[str], None],
        worker: int = 0,
    ) -> None:
        self.entry, self.base = entry, self._base_of(config, shared, entry)
        self._config, self._out, self._say, self.metric = config, out, say, config.metric
        self.settings = config_from_text(self.base).resolved()
        self.settings.validate()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # A search of several processes needs a seed for each, or all would begin with the same settings.
            seed = (self.settings.init_seed * 1009 + worker) % 2**32
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=_STARTUP, multivariate=True, constant_liar=config.jobs > 1
            )
        pruner = optuna.pruners.MedianPruner(n_startup_trials=_STARTUP) if config.prune == "median" else None
        self.study = optuna.create_study(
            storage=storage_of(config, out),
            study_name=study_name(self.settings, entry),
            direction="minimize" if config.metric == "loss" else "maximize",
            sampler=sampler,
            pruner=pruner or optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        self.space: Space | None = None
        self.goal = config.runs
        self._choose_space()

    @staticmethod
    def _base_of(config: SweepConfig, shared: Mapping[str, str | bool], entry: Entry) -> Given:
        spent = {"budget_queries": str(config.budget_queries), "evaluations": str(config.evaluations)}
        # Searched rates are numbers, and constant unless a schedule is asked for; so shall the one in the middle.
        return {"lr_scheduler_type": "constant", **shared, "algorithm": entry.algorithm, **entry.given, **spent}

    def _choose_space(self) -> None:
        """The space, unless it waits for a measured rate."""
        own = read_space(self._config.space).get(self.entry.method)
        grid = self._config.search == "grid"
        measured = self.study.user_attrs.get(_MEASURED)
        if own is not None:
            self.space = checked_space(own, self.entry, self.base)
        elif grid:
            self.space = grid_of(self.entry, self.settings)
        elif "lr" in self.entry.given or self.settings.lr != AUTO or measured is not None:
            self.space = space_of(self.entry, self.settings, measured)
        if self.space is None:
            return
        if not self.space:
            raise ConfigError(
                f"There is nothing to search for {self.entry.label}; leave its flags out or give --space."
            )
        self.goal = len(points_of(self.space)) if grid else self._config.runs

    def prepare(self) -> None:
        """Refuse a study of other settings, and put the points that are to be tried in any case in the queue."""
        self._forget_dead()
        if self.space is None:
            self._measure()
        assert self.space is not None
        self._check_plan()
        if self._config.search == "grid":
            kept = (*DONE, TrialState.WAITING, TrialState.RUNNING)
            there = [trial.params or trial.system_attrs.get("fixed_params") for trial in self.trials(*kept)]
            for point in points_of(self.space):
                if point not in there:
                    self.study.enqueue_trial(point, user_attrs={_QUEUED: True})
        elif not self.trials(*DONE, TrialState.WAITING):
            measured = self.study.user_attrs.get(_MEASURED)
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
        known = self.study.user_attrs.get(_PLAN)
        plan = json.loads(json.dumps(plan))
        if known == plan:
            return
        if known is not None and self.trials(*DONE):
            differing = [name for name in plan if known.get(name) != plan[name]]
            if differing == ["settings"]:
                differing = [f"--{n}" for n, value in plan["settings"].items() if known["settings"].get(n) != value]
            raise ConfigError(
                f"The study {self.study.study_name} has runs with another {differing[0]}; give another --out or"
                " --storage, or what it began with."
            )
        self.study.set_user_attr(_PLAN, plan)
        self._say(f"{self.entry.label}: searched are {', '.join(f'{n} {choice}' for n, choice in self.space.items())}.")

    def _forget_dead(self) -> None:
        """Take back what processes of this machine have begun that are no more."""
        for trial in self.trials(TrialState.RUNNING):
            host, _, process = str(trial.user_attrs.get(_PROCESS, "")).rpartition(":")
            if host == platform.node() and not _alive(int(process)):
                self.study.tell(trial.number, state=TrialState.FAIL)

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
        self.study.set_user_attr(_MEASURED, rate)
        self.study.set_user_attr(_MEASURING, forwards)
        self._choose_space()
        self._say(f"{self.entry.label}: --lr auto takes {shown(rate)}, around which the search looks.")

    def _settings(self, chosen: Mapping[str, Any]) -> TrainConfig:
        return config_from_text(
            {**self.base, **as_given(chosen), "results": str(self._out / "runs" / self.entry.label)}
        )

    def run(self) -> None:
        """Runs until there are as many as asked for, or the forward passes for all of them are spent."""
        while (trial := self._ask()) is not None:
            state, value = TrialState.FAIL, None
            try:
                value = self._train(trial)
                state = TrialState.COMPLETE
            except optuna.TrialPruned:
                state = TrialState.PRUNED
            finally:  # a run that was stopped by a person is tried again, so it must not stay as one that goes on
                self.study.tell(trial, value, state=state)
            self._report(trial.number)

    def _ask(self) -> optuna.Trial | None:
        """The next run, None if there is none; one process of this machine at a time, because SQLite would let two of
        them take the same run from the queue."""
        with one_at_a_time(self._out / ASKING):
            if self.finished():
                return None
            trial = self.study.ask()
            trial.set_user_attr(_PROCESS, f"{platform.node()}:{os.getpid()}")
        if self._config.search == "grid" and not trial.user_attrs.get(_QUEUED):
            self.study.tell(trial, state=TrialState.FAIL)  # another machine has taken the last point
            return None
        return trial

    def finished(self) -> bool:
        """Whether no further run begins."""
        total = self._config.total_queries
        if total is not None:
            kept = CANDIDATES * self._config.confirmations * self._config.budget_queries  # for the other draws
            if self.spent() >= (total - kept if kept < total / 2 else total):
                return True
        if self._config.search == "grid":
            return not self.trials(TrialState.WAITING)
        return len(self.trials(*DONE, TrialState.RUNNING)) >= self.goal

    def spent(self) -> int:
        """Forward passes of one example of all runs of the search and of the measurement before them."""
        runs = sum(spent_by(trial) for trial in self.study.get_trials(deepcopy=False))
        return runs + int(self.study.user_attrs.get(_MEASURING, 0))

    def spent_again(self) -> int:
        """Forward passes of one example of the runs on other draws."""
        return int(self.study.user_attrs.get(_AGAIN_SPENT, 0))

    def _report(self, number: int) -> None:
        trial = self.study.trials[number]
        chosen = ", ".join(f"{name} {shown(value)}" for name, value in trial.params.items())
        result = "broken off" if trial.state is TrialState.PRUNED else f"{self._config.metric} {trial.value:.4f}"
        done = len(self.trials(*DONE))
        self._say(f"{self.entry.label} [{done}/{self.goal}] {chosen}: {result}")

    def _train(self, trial: optuna.Trial) -> float:
        assert self.space is not None
        chosen = {name: choice.suggest(trial, name) for name, choice in self.space.items()}
        settings = self._settings(chosen)
        watcher = _Watcher(self.metric, 1 if settings.zeroth_order else FIRST_ORDER, trial)
        try:
            _executed(settings, watcher)
        finally:
            trial.set_user_attr(_SPENT, watcher.spent)
            trial.set_user_attr(_SCORES, {name: v for name, v in watcher.latest.items() if math.isfinite(v)})
            if watcher.folder is not None:
                trial.set_user_attr(_FOLDER, str(watcher.folder))
        return watcher.value

    # Settings that one run found good, on other draws.

    def confirm(self) -> None:
        """Run the best settings again, on other draws, until `CANDIDATES` of them have not diverged in any."""
        whole, total = 0, self._config.total_queries
        for trial in self.ranked()[: 2 * CANDIDATES]:
            known = self.again(trial)
            for number in range(len(known) + 1, self._config.confirmations + 1):
                if not all(map(math.isfinite, known)):
                    break
                if total is not None and self.spent() + self.spent_again() + self._config.budget_queries > total:
                    return
                settings = self._settings({**trial.params, "trial": number})
                watcher = _Watcher(self.metric, 1 if settings.zeroth_order else FIRST_ORDER)
                _executed(settings, watcher)
                known = [*known, watcher.value]
                self._note(trial, known, watcher.spent)
            if self._config.confirmations:
                shown_values = ", ".join(f"{value:.4f}" for value in known)
                self._say(f"{self.entry.label} [run {trial.number + 1} on other draws]: {self.metric} {shown_values}")
            whole += math.isfinite(self.mean(trial))
            if whole == CANDIDATES:
                return

    def ranked(self) -> list[optuna.trial.FrozenTrial]:
        """Finished runs that did not diverge, the best one first."""
        complete = [t for t in self.trials(TrialState.COMPLETE) if t.value is not None and math.isfinite(t.value)]
        return sorted(complete, key=lambda trial: self._sign * float(trial.value or 0.0))

    def best(self) -> optuna.trial.FrozenTrial | None:
        """The run whose settings are best in the mean of their draws; only those that were confirmed, if any were."""
        ranked = self.ranked()
        confirmed = [trial for trial in ranked if self.again(trial)] or ranked
        finite = [trial for trial in confirmed if math.isfinite(self.mean(trial))]
        finite = finite or [trial for trial in ranked if not self.again(trial)]  # all others have diverged
        return min(finite, key=lambda trial: self._sign * self.mean(trial), default=None)

    def again(self, trial: optuna.trial.FrozenTrial) -> list[float]:
        """The metric of a run's settings on other draws."""
        return again_of(self.study, trial)

    def mean(self, trial: optuna.trial.FrozenTrial) -> float:
        """The metric's mean over the draws of a run's settings."""
        return mean_of(self.study, trial)

    def _note(self, trial: optuna.trial.FrozenTrial, values: list[float], spent: int) -> None:
        kept = self.study.user_attrs.get(_AGAIN, {})
        self.study.set_user_attr(_AGAIN, {**kept, str(trial.number): [repr(value) for value in values]})
        self.study.set_user_attr(_AGAIN_SPENT, int(self.study.user_attrs.get(_AGAIN_SPENT, 0)) + spent)

    @property
    def _sign(self) -> float:
        return 1.0 if self.metric == "loss" else -1.0


def again_of(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> list[float]:
    """See `Search.again`."""
    return [float(value) for value in study.user_attrs.get(_AGAIN, {}).get(str(trial.number), [])]


def mean_of(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> float:
    """See `Search.mean`."""
    return statistics.fmean([float(trial.value or 0.0), *again_of(study, trial)])


def _executed(settings: TrainConfig, watcher: _Watcher) -> None:
    """Train.  A run that diverges leaves the watcher without metrics."""
    # What a run says goes to its folder's rows; a search of a hundred runs would fill the screen.
    run = TrainingRun(settings, Console(quiet=True), callbacks=[watcher], pictures=False)
    try:
        run.execute()
    except optuna.TrialPruned:
        run.finish("broken off")
        raise
    except NonFiniteLossError:
        run.finish("non-finite loss")
        watcher.latest = {}
    finally:
        run.close()
        watcher.folder = run.folder


class _Watcher(TrainerCallback):
    """Tells Optuna each evaluation, if it has asked for the run, and breaks off one that it thinks little of.

    Attributes:
        latest: metrics of the last evaluation.
        spent: forward passes of one example so far.
        folder: of the run, once it has ended.
    """

    def __init__(self, metric: str, passes: int, trial: optuna.Trial | None = None) -> None:
        self.latest: dict[str, float] = {}
        self.spent = 0
        self.folder: Path | None = None
        self._trial, self._metric, self._passes = trial, metric, passes
        self._trainer: Any = None
        self._evaluations = 0

    @property
    def value(self) -> float:
        """The metric in the end; the worst there is if the run diverged."""
        worst = math.inf if self._metric == "loss" else -math.inf
        value = self.latest.get(self._metric, math.nan)
        return worst if math.isnan(value) else value

    def attach(self, trainer: Any) -> None:
        """Remember whose counts are told."""
        self._trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count what has been spent."""
        self.spent = self._trainer.forwards * self._passes

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Tell, and ask."""
        self.latest = {name.removeprefix("eval_"): float(value) for name, value in (metrics or {}).items()}
        if self._trial is None or state.global_step == 0 or self._metric not in self.latest:
            return
        self._evaluations += 1
        self._trial.report(self.latest[self._metric], self._evaluations)
        if state.global_step < state.max_steps and self._trial.should_prune():
            raise optuna.TrialPruned


def storage_of(config: SweepConfig, out: Path) -> optuna.storages.BaseStorage:
    """The database of a search.

    Raises:
        ConfigError: it cannot be opened.
    """
    url = config.storage or f"sqlite:///{(out / 'sweep.db').resolve()}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return optuna.storages.get_storage(url)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"--storage {url} cannot be opened ({reason}).") from error


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


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def shown(value: object) -> str:
    """A setting as a person reads it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write_best(path: Path, best: Mapping[str, Mapping[str, Any]]) -> None:
    """The best settings by method, in the form that ``zotune compare --settings`` reads.

    Methods that are in the file already and not in ``best`` stay.
    """
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    write_json(
        path, {**(known if isinstance(known, dict) else {}), **{name: dict(flags) for name, flags in best.items()}}
    )


logging.getLogger("alembic").setLevel(logging.WARNING)
