"""One training run: the settings put together into data, model, trainer and files."""

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from rich.console import Console
from transformers import TrainerCallback

from zotune.config import AUTO, GUESSED, LARGEST, LIBRARIES, MEASURED, SHARES, TRAJECTORY, ConfigError, TrainConfig
from zotune.hf.adapters import merged
from zotune.hf.past import TrajectoryKeeper
from zotune.hf.progress import ProgressReporter
from zotune.hf.recorder import RunRecorder, libraries_memory
from zotune.hf.trainer import OptimizerFactory, ZOTrainer
from zotune.reports.curves import draw_curves
from zotune.reports.summary import build_summary
from zotune.run.arguments import steps_per_epoch, training_arguments
from zotune.run.base import about_of, check_frozen
from zotune.run.budget import step_costs, steps_of
from zotune.run.checkpoints import FirstStep, newest_checkpoint, readable, start_of
from zotune.run.folder import make_run_folder, read_facts, write_config, write_json
from zotune.run.keepers import BestModel, save_model
from zotune.run.lock import FolderLock
from zotune.run.machine import Machine, agree_on_path, choose_machine, connect, disconnect
from zotune.run.objectives import COUNTED
from zotune.run.optimizers import optimizer_factory, queries_text
from zotune.run.outcome import outcome
from zotune.run.parts import Parts, load_parts, rows_digest
from zotune.run.rates import Measured, measured_rate, pace_of
from zotune.run.seeds import Purpose, derive_seed
from zotune.run.speech import quiet_libraries
from zotune.run.stops import StopKeeper, undisturbed
from zotune.run.testing import score_test
from zotune.run.trainers import make_trainer
from zotune.run.warm import warm_up
from zotune.trajectory import TrajectoryError, read

logger = logging.getLogger("zotune")

ERROR_LOG: Final = "error.log"
BEST: Final = "best"
"""Folder of the best model."""
DATA: Final = "data_digest"
"""Key in config.json of the digest of all rows."""
TENTH: Final = 0.1
"""Share of a budget above which the person is told what measuring the rate took of it."""
OPTIONS: Final = "library_options"
"""Key in config.json of what --trainer_options held."""


class TrainingRun:
    """A run of `config`; `execute` trains, `finish` completes the files of a run that was stopped.

    Attributes:
        config: the settings, with the defaults of the algorithm and model once `execute` has begun.
        folder: the run folder, None until data and model have been loaded.
        first: False on the processes of a torchrun that neither write nor talk.
        stop: answers Ctrl-C and SIGTERM.

    Args:
        config: the settings.
        console: for people.
        callbacks: of the caller, for the trainer.
        pictures: whether curves.png is drawn.
    """

    def __init__(
        self,
        config: TrainConfig,
        console: Console,
        *,
        callbacks: Sequence[TrainerCallback] = (),
        pictures: bool = True,
    ) -> None:
        self.config = config
        self.folder: Path | None = None
        self.first = True
        self.stop = StopKeeper()
        self._test: dict[str, dict[str, Any] | None] = {}  # in summary.json, of runs that keep rows for the end
        self._console = console
        self._more_callbacks = callbacks
        self._pictures = pictures
        self._lock: FolderLock | None = None
        self._measured: dict[str, Any] = {}
        self._warm = False  # the kernels are compiled
        self._form: dict[str, Any] = {}  # of what is trained, for the last sentences

    def execute(self) -> Path:
        """Train and return the run folder.

        Raises `ConfigError` for settings, data or a model that cannot be used, before anything is trained, and
        `NonFiniteLossError` when the loss is NaN or infinite.
        """
        rate_given = self.config.lr is not None
        self.config = self.config.resolved()
        self.config.validate()
        machine = choose_machine(self.config, self.say)
        self.first = machine.first
        connect(machine)
        with quiet_libraries(self.say):
            parts = self._load(machine)
            self._check_steps(parts)
            self._check_same(parts)
            self._test = {} if parts.test is None else {"test": None}
            self._check_arguments(machine, parts)
            self._measure_rate(machine, parts)  # before there is a folder: a budget may be too small for it
            checkpoint = self._open_folder(machine)
            if self.config.zeroth_order:  # first, so that the compiler counts as a library
                self._warm_up(machine, self._optimizer_factory(len(parts.train)))
            trainer = self._trainer(machine, parts, resumed=checkpoint is not None)
            self._say_plan(parts, rate_given)
            first_step = FirstStep()
            trainer.add_callback(first_step)
            with readable(checkpoint, first_step), self._own_past(first_step):
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            if self.stop.requested is not None:
                self.stop.leave(self.stop.requested)
            self._keep_last(parts)
            self._score_test(trainer, parts)
            self.finish("finished")
        assert self.folder is not None
        return self.folder

    @contextmanager
    def _own_past(self, first_step: FirstStep) -> Iterator[None]:
        """A trajectory that does not belong to what is there is an error of settings."""
        try:
            yield
        except TrajectoryError as error:
            if first_step.begun:
                raise
            raise ConfigError(f"{error}.") from error

    def finish(self, status: str) -> None:
        """Write summary.json and curves.png from the rows there are; `status` says how the run ended."""
        if self.folder is None or not self.first or not (self.folder / "metrics.csv").is_file():
            return
        with undisturbed():
            with self._optional("summary.json"):
                summary = build_summary(self.folder)
                write_json(self.folder / "summary.json", {"status": status, **summary, **self._test})
                for sentence in outcome(summary, read_facts(self.folder), self.config, **self._form):
                    self.say(sentence)
            if self._pictures:
                with self._optional("curves.png"):
                    draw_curves(self.folder)

    @contextmanager
    def _optional(self, name: str) -> Iterator[None]:
        """A file about the run: what hinders its writing is worth a line, but changes nothing about the run."""
        try:
            yield
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0].rstrip(". ")
            self.say(f"Warning: {name} could not be written ({type(error).__name__}: {reason}).")

    def close(self) -> None:
        """Leave the group of processes, and the folder to others."""
        disconnect()
        if self._lock is not None:
            self._lock.release()

    def say(self, sentence: str) -> None:
        """Write one line for the person at the console."""
        self._console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def checkpoint(self) -> Path | None:
        """The newest checkpoint in the run folder."""
        return None if self.folder is None else newest_checkpoint(self.folder)

    def recorded(self) -> bool:
        """Whether the run folder holds steps from which the run can go on."""
        try:
            return self.folder is not None and read(self.folder / TRAJECTORY).end > 0
        except TrajectoryError:
            return False

    def log_path(self) -> Path:
        """Where the traceback of a crash goes; makes a run folder when there is none yet."""
        if self.folder is None:
            self.folder = self.config.resume or make_run_folder(self.config)
        return self.folder / ERROR_LOG

    def _load(self, machine: Machine) -> Parts:
        parts = load_parts(
            self.config,
            dtype=self._dtype(),
            device=machine.device,
            row_seed=self._seed("rows"),
            head_seed=self._seed("head"),
        )
        self.config = dataclasses.replace(self.config, max_seq_length=parts.max_seq_length)
        self._form = {
            "in_words": None if self.config.tuning == "head" else parts.in_words,
            "smooth": parts.objective.differentiable,
            "counted": parts.objective.name in COUNTED,
        }
        return parts

    def _dtype(self) -> torch.dtype:
        # First-order training in half precision keeps float32 weights and computes under autocast.
        if self.config.zeroth_order and self.config.bf16:
            return torch.bfloat16
        if self.config.zeroth_order and self.config.fp16:
            return torch.float16
        return torch.float32

    def _open_folder(self, machine: Machine) -> Path | None:
        """Take or make the run folder and write the settings; the checkpoint to go on from, for a resumed run."""
        config = self.config
        if config.resume is None:
            self.folder = agree_on_path(machine, lambda: make_run_folder(config))
            if machine.first:
                self._lock = FolderLock(self.folder)
            return None
        run = config.resume
        self._measured = {name: value for name, value in read_facts(run).items() if name == MEASURED}
        none = run / "none"
        checkpoint = agree_on_path(machine, lambda: self._start(run) or none)
        self.folder = run
        return None if checkpoint == none else checkpoint

    def _start(self, run: Path) -> Path | None:
        """The checkpoint that the run in a folder goes on from, or None; only one process may."""
        self._lock = FolderLock(run)
        start = start_of(run, recorded=self.config.zeroth_order)
        for sentence in start.said:
            self.say(sentence)
        return start.checkpoint

    def _check_same(self, parts: Parts) -> None:
        """Raise `ConfigError` if data or frozen weights are not those that a run which goes on began with."""
        run = self.config.resume
        if run is None:
            return
        if read_facts(run).get(DATA) != rows_digest(*parts.rows):
            raise ConfigError(
                "The rows are not those that the run began with, because the data, the tokenizer or the adapter has"
                " changed since; restore them or start a new run."
            )
        if read_facts(run).get(OPTIONS, {}) != self.config.library_options():
            raise ConfigError(
                f"--trainer_options {self.config.trainer_options} is no longer what the run began with; restore it or"
                " start a new run."
            )
        if self.config.zeroth_order and (run / TRAJECTORY).is_file():
            with contextlib.suppress(TrajectoryError):  # what is wrong with the file itself is said later
                check_frozen(parts.model, read(run / TRAJECTORY).header.about, self.config.model_name)

    def _trainer(self, machine: Machine, parts: Parts, *, resumed: bool) -> ZOTrainer:
        config = self.config
        assert self.folder is not None
        rows = len(parts.train)
        trainable, parameters = parts.parameters
        if machine.first and not resumed:
            shares = parts.class_shares
            facts = {
                "method": self._method_name(),
                "parameters": parameters,
                "trainable_parameters": trainable,
                "train_examples": rows,
                "validation_examples": len(parts.validation),
                **({} if parts.test is None else {"test_examples": len(parts.test)}),
                "steps_per_epoch": steps_per_epoch(config, rows),
                "processes": machine.processes,
                "device_used": str(machine.device),
                LIBRARIES: round(libraries_memory(parts.model, machine.device) / 1e6, 1),
                **self._measured,
                **({} if shares is None else {SHARES: shares}),
                DATA: rows_digest(*parts.rows),
                OPTIONS: config.library_options(),
            }
            write_config(self.folder, config, facts)
        return make_trainer(
            config,
            machine,
            parts,
            folder=self.folder,
            factory=self._optimizer_factory(rows),
            order_seed=self._seed("order"),
            dropout_seed=self._seed("dropout"),
            callbacks=self._callbacks(parts),
            resumed=resumed,
        )

    def measure(self) -> tuple[float, int]:
        """The rate that ``--lr auto`` would take, and the forward passes of one example that it takes to know it.

        Trains nothing and makes no run folder.

        Raises:
            ConfigError: see `execute`.
        """
        self.config = dataclasses.replace(self.config, lr=AUTO).resolved()
        self.config.validate()
        machine = choose_machine(self.config, self.say)
        with quiet_libraries(self.say), tempfile.TemporaryDirectory() as folder:
            measured = self._measured_rate(machine, self._load(machine), Path(folder), whole_budget=True)
        assert isinstance(measured.config.lr, float)
        return measured.config.lr, measured.forwards

    def _measure_rate(self, machine: Machine, parts: Parts) -> None:
        """Put a number in the place of --lr auto; what it takes is part of a budget."""
        if self.config.lr != AUTO:
            return
        with tempfile.TemporaryDirectory() as folder:
            measured = self._measured_rate(machine, parts, Path(folder))
        budget = self.config.budget_queries
        if budget is not None:
            budget -= measured.forwards
            if budget < next(step_costs(self.config, len(parts.train))):
                raise ConfigError(
                    f"--budget_queries {self.config.budget_queries} is used up by --lr auto, which takes"
                    f" {measured.forwards}; give more, or a number as --lr."
                )
        self.config = dataclasses.replace(measured.config, budget_queries=budget)
        self._measured = measured.facts
        self.say(measured.sentence)
        if budget is not None and (share := measured.forwards / (budget + measured.forwards)) > TENTH:
            self.say(f"That is {share:.0%} of --budget_queries; a number as --lr takes none of it.")

    def _measured_rate(self, machine: Machine, parts: Parts, folder: Path, *, whole_budget: bool = False) -> Measured:
        return measured_rate(
            self.config,
            machine,
            parts,
            folder=folder,
            seed=self._seed("rate"),
            order_seed=self._seed("order"),
            prepare=partial(self._warm_up, machine),
            whole_budget=whole_budget,
        )

    def _warm_up(self, machine: Machine, factory: OptimizerFactory) -> None:
        """Compile what the optimizer needs, once a run."""
        if not self._warm:
            warm_up(factory, self._dtype(), machine.device, self.say)
        self._warm = True

    def _check_arguments(self, machine: Machine, parts: Parts) -> None:
        """Raise `ConfigError` for arguments that the library does not take, before there is a folder."""
        config = dataclasses.replace(self.config, lr=0.0) if self.config.lr == AUTO else self.config
        training_arguments(config, machine, folder=config.results, rows=len(parts.train), seed=0, resumed=False)

    def _optimizer_factory(self, rows: int) -> OptimizerFactory:
        steps = steps_per_epoch(self.config, rows)
        return optimizer_factory(self.config, steps_per_epoch=steps, seed=self._seed("directions"))

    def _callbacks(self, parts: Parts) -> list[TrainerCallback]:
        assert self.folder is not None
        callbacks: list[TrainerCallback] = []
        if self.config.zeroth_order:
            about = about_of(
                self.config,
                parts.model,
                dtype=self._dtype(),
                head_seed=self._seed("head"),
                question=parts.objective.form == "question",
            )
            callbacks.append(TrajectoryKeeper(self.folder / TRAJECTORY, about))
        if self.config.lr_scheduler_type == "adaptive":
            callbacks.append(pace_of(self._measured))
        callbacks += [
            RunRecorder(self.folder, tensorboard=self.config.logging == "tensorboard"),
            ProgressReporter(self._console),
        ]
        if self.config.early_stopping:
            callbacks.append(transformers.EarlyStoppingCallback(self.config.patience))
        if self.config.save_ckpt:
            callbacks.append(BestModel(self.folder / BEST, parts.tokenizer))
        self.stop.save = self.config.save_ckpt
        return [*callbacks, *self._more_callbacks, self.stop]

    def _keep_last(self, parts: Parts) -> None:
        if self.config.save_ckpt and self.first:
            assert self.folder is not None
            save_model(parts.model, parts.tokenizer, self.folder / "last")
            if self.config.merge:
                whole = merged(parts.model)
                save_model(whole, parts.tokenizer, self.folder / "merged")

    def _score_test(self, trainer: ZOTrainer, parts: Parts) -> None:
        """Score the rows that were kept for the end, if any."""
        if parts.test is None:
            return
        assert self.folder is not None
        found = score_test(trainer, parts, self.folder / BEST)
        self._test = {"test": found}
        if found["accuracy"] is not None:
            self.say(f"test accuracy {found['accuracy']:.4f} on {found['examples']} rows, {found['weights']} weights")

    def _method_name(self) -> str:
        return "LOZO-M" if self.config.algorithm == "LOZO" and self.config.momentum else self.config.algorithm

    def _steps(self, parts: Parts) -> int:
        return steps_of(self.config, len(parts.train))

    def _check_steps(self, parts: Parts) -> None:
        steps, budget = self._steps(parts), self.config.budget_queries
        given = f"--epochs {self.config.epochs:g}" if budget is None else f"--budget_queries {budget}"
        if steps > LARGEST:
            raise ConfigError(f"{given} are {steps} steps, more than {LARGEST}; give fewer.")
        if steps == 0:
            first = next(step_costs(self.config, len(parts.train)))
            raise ConfigError(f"{given} is less than the {first} forward passes of the first step; give more.")

    def _say_plan(self, parts: Parts, rate_given: bool) -> None:
        config = self.config
        steps = self._steps(parts)
        trainable, parameters = parts.parameters
        data = config.task if config.train_file is None else config.train_file
        what = f"{self._method_name()} on {data} with {config.model_name}"
        found = self._measured.get(MEASURED)
        origin = "the default" if found is None else "a guess" if found.get(GUESSED) else "measured"
        origin = "" if rate_given else f" ({origin}; --lr sets it)"
        said = [
            f"{what}: {steps} steps of {config.batchsize} of {len(parts.train):,} examples",
            f"lr {config.lr:g}{origin}",
            f"{trainable:,} of {parameters:,} parameters.",
        ]
        if config.algorithm == "ZOSVRG":
            said.insert(2, f"lr_mezosvrg_mb {config.lr_mezosvrg_mb:g}")
        if config.zeroth_order:
            said.insert(1, queries_text(config))
        self.say(", ".join(said))

    def _seed(self, purpose: Purpose) -> int:
        return derive_seed(self.config.init_seed, self.config.trial, purpose)
