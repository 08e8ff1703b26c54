"""metrics.csv, written while the run goes."""

# ruff: noqa: ARG002  (the library fixes the signatures of callbacks)

import csv
import io
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from zotune.bench.peak import status_bytes
from zotune.config.errors import missing_package

if TYPE_CHECKING:
    from .trainer import ZOTrainer

METRICS_FILE = "metrics.csv"
_HEAD = ("kind", "step", "epoch", "queries", "forwards", "loss", "accuracy")
_TAIL = ("lr", "seconds", "memory_mb")
_TIMINGS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "jit_compilation_time")


class RunRecorder(TrainerCallback):
    """One row of ``metrics.csv`` per training step and per evaluation, flushed at once.

    Columns: ``kind`` (train or eval), ``step``, ``epoch``, ``queries``, ``forwards`` (of one example), ``loss`` (mean
    cross entropy), ``accuracy``, further metrics of the evaluation by name, ``lr`` (first parameter group, in this
    step), ``seconds`` (since training began, over all resumes) and ``memory_mb`` (10**6 bytes; peak so far of the
    device memory of torch, or on a CPU of the process). A field that does not apply is empty. Numbers are written so
    that reading them back gives the same bits. A run that goes on first drops the rows behind its past (the steps in
    its trajectory, or else those of its checkpoint), and writes no row a second time. Only rank 0 writes.

    Args:
        run_dir: folder of the run; made if it does not exist.
        tensorboard: also write TensorBoard event files there.

    Raises:
        ValueError: ``tensorboard`` is asked for and the package is not installed.
    """

    def __init__(self, run_dir: Path, *, tensorboard: bool = False) -> None:
        if tensorboard:
            _event_writer_class()
        self.path = Path(run_dir) / METRICS_FILE
        self.rows = 0
        self._tensorboard = tensorboard
        self._events: Any = None
        self._columns: tuple[str, ...] = (*_HEAD, *_TAIL)
        self._present: set[tuple[str, int]] = set()  # rows of a run that goes on
        self._file: io.TextIOWrapper | None = None
        self._start = time.perf_counter()
        self._trainer: ZOTrainer | None = None

    def attach(self, trainer: "ZOTrainer") -> None:
        """Remember the trainer whose counts are written."""
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the file, or drop the rows behind the checkpoint and go on after it."""
        if not state.is_world_process_zero:
            return
        self._start = time.perf_counter()
        if max(state.global_step, self._require_trainer().past.end) and self.path.exists():
            self._rewind(state.global_step)
        elif not self.rows:
            self.path.unlink(missing_ok=True)
        if self._tensorboard:
            self._events = _event_writer_class()(str(self.path.parent), purge_step=state.global_step + 1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the row of a training step."""
        if state.is_world_process_zero:
            ledger = self._require_trainer().ledger
            self._write("train", state, {"loss": ledger.loss, "lr": ledger.lr})

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the row of an evaluation."""
        if state.is_world_process_zero:
            named = {name.removeprefix("eval_"): value for name, value in (metrics or {}).items() if name != "epoch"}
            self._write("eval", state, {name: value for name, value in named.items() if name not in _TIMINGS})

    def close(self) -> None:
        """Close the files; a later row opens them again."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._events is not None:
            self._events.close()
            self._events = None

    def _require_trainer(self) -> "ZOTrainer":
        if self._trainer is None:
            raise ValueError("RunRecorder works with ZOTrainer only; pass it in the trainer's callbacks.")
        return self._trainer

    def _write(self, kind: str, state: TrainerState, values: dict[str, Any]) -> None:
        trainer = self._require_trainer()
        if (kind, state.global_step) in self._present:
            return
        self._add_columns([name for name in values if name not in self._columns])
        row = {
            "kind": kind,
            "step": state.global_step,
            "epoch": float(state.epoch or 0.0),
            "queries": trainer.queries,
            "forwards": trainer.forwards,
            **values,
            "seconds": round(time.perf_counter() - self._start, 3),
            "memory_mb": round(peak_memory(trainer.args.device) / 1e6, 1),
        }
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = not self.path.exists()
            self._file = self.path.open("a", encoding="utf-8", newline="")
            if new:
                self._file.write(_line(self._columns))
        self._file.write(_line([row.get(name, "") for name in self._columns]))
        self._file.flush()
        self.rows += 1
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(f"{kind}/{name}", value, state.global_step)
            self._events.flush()

    def _add_columns(self, names: list[str]) -> None:
        """Make room for metrics that the first evaluation brings; the rows so far have none of them."""
        if not names:
            return
        old = self._columns
        self._columns = (*old[: -len(_TAIL)], *names, *_TAIL)
        if self.path.exists():
            self._replace([dict(zip(old, row, strict=True)) for row in self._read()[1]])

    def _rewind(self, step: int) -> None:
        """Keep the rows of the past: up to the checkpoint's step, or up to what the trajectory holds."""
        header, rows = self._read()
        self._columns = tuple(header)
        past = self._require_trainer().past

        def kept(row: dict[str, str]) -> bool:
            number = int(row["step"])
            return number <= max(step, past.end) if row["kind"] == "train" else number <= step or past.evaluated(number)

        kept_rows: list[dict[str, str]] = []
        for row in (dict(zip(header, values, strict=True)) for values in rows):
            place = (row["kind"], int(row["step"]))
            if kept(row) and place not in self._present:
                self._present.add(place)
                kept_rows.append(row)
        self._replace(kept_rows)
        self.rows = len(kept_rows)
        if kept_rows:
            self._start -= float(kept_rows[-1]["seconds"])

    def _read(self) -> tuple[list[str], list[list[str]]]:
        """Header and complete rows: a killed process may have left half a line."""
        text = self.path.read_text(encoding="utf-8")
        lines = list(csv.reader(text[: text.rfind("\n") + 1].splitlines()))
        header = lines[0] if lines else list(self._columns)
        return header, [row for row in lines[1:] if len(row) == len(header)]

    def _replace(self, rows: list[dict[str, str]]) -> None:
        """Write the file anew under another name first, so that a kill at any time leaves a whole file."""
        if self._file is not None:
            self._file.close()
            self._file = None
        partial = self.path.with_suffix(".csv.partial")
        lines = [_line(self._columns), *(_line([row.get(name, "") for name in self._columns]) for row in rows)]
        partial.write_text("".join(lines), encoding="utf-8", newline="")
        os.replace(partial, self.path)


def _line(values: Any) -> str:
    buffer = io.StringIO()
    # csv writes floats by repr, the shortest text that reads back to the same bits.
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue()


def peak_memory(device: torch.device) -> int:
    """Peak memory so far, in bytes: allocated by torch on a CUDA device, resident in the process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # getrusage also counts what the parent process held at the fork; the peak of this address space does not.
    return status_bytes("VmHWM") or _peak_without_proc()


def libraries_memory(model: nn.Module, device: torch.device) -> int:
    """What the process holds beside a model that has just been loaded, in bytes; 0 on a CUDA device."""
    if device.type == "cuda":
        return 0
    storages = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
    return max(0, (status_bytes("VmRSS") or 0) - sum({s.data_ptr(): int(s.nbytes()) for s in storages}.values()))


def _peak_without_proc() -> int:
    import psutil  # type: ignore[import-untyped]  # a dependency of accelerate; only macOS and Windows come here

    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", info.rss))


def _event_writer_class() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(missing_package("TensorBoard logging", "tensorboard", "tensorboard")) from error
    return SummaryWriter
