"""metrics.csv and the progress of a run."""

import csv
import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_runs import make_trainer
from transformers import TrainerCallback, TrainerState

from zotune.hf import recorder as recorder_module
from zotune.hf.progress import ProgressReporter
from zotune.hf.recorder import RunRecorder, peak_memory

COLUMNS = ["kind", "step", "epoch", "queries", "forwards", "loss", "accuracy", "lr", "seconds", "memory_mb"]
EVERY_FEW_STEPS = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 3}


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def without_times(folder: Path) -> list[str]:
    return [line.rsplit(",", 2)[0] for line in (folder / "metrics.csv").read_text().splitlines()]


def test_one_row_per_step_and_per_evaluation(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path / "run")
    trainer = make_trainer(tmp_path, callbacks=[recorder], eval_on_start=True, **EVERY_FEW_STEPS)
    trainer.train()
    rows = rows_of(tmp_path / "run")
    assert list(rows[0]) == COLUMNS
    steps = [(row["kind"], int(row["step"])) for row in rows]
    assert steps == [
        ("eval", 0),
        *(("train", i) for i in range(1, 5)),
        ("eval", 4),
        ("train", 5),
        ("train", 6),
        ("eval", 6),
    ]
    assert recorder.rows == len(rows) == 9
    last = rows[-2]
    assert float(last["loss"]) == trainer.last_loss
    assert (int(last["queries"]), int(last["forwards"])) == (trainer.queries, trainer.forwards) == (12, 92)
    assert float(last["lr"]) == 1e-2
    assert (last["accuracy"], rows[-1]["lr"]) == ("", "")
    assert 0.0 <= float(rows[-1]["accuracy"]) <= 1.0
    assert float(rows[-1]["memory_mb"]) > 50
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds)


class Stop(TrainerCallback):
    """Raises after the given step, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._step:
            raise KeyboardInterrupt


class ReadBack(TrainerCallback):
    """Notes how many lines the file has at the end of each step."""

    def __init__(self, path: Path) -> None:
        self.counts: list[int] = []
        self._path = path

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.counts.append(self._path.read_text().count("\n"))


def test_rows_are_in_the_file_when_the_step_ends(tmp_path: Path) -> None:
    watching = ReadBack(tmp_path / "metrics.csv")
    make_trainer(tmp_path, callbacks=[RunRecorder(tmp_path), watching], max_steps=3).train()
    assert watching.counts == [2, 3, 4]


def test_a_resumed_run_has_the_rows_of_an_uninterrupted_one(tmp_path: Path) -> None:
    make_trainer(tmp_path / "whole", callbacks=[RunRecorder(tmp_path / "whole")], **EVERY_FEW_STEPS).train()
    stopped = make_trainer(tmp_path / "parts", callbacks=[RunRecorder(tmp_path / "parts"), Stop(5)], **EVERY_FEW_STEPS)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    with (tmp_path / "parts" / "metrics.csv").open("a") as file:
        file.write("train,6,1.5,1")  # a line that was being written when the process was killed
    resumed = RunRecorder(tmp_path / "parts")
    make_trainer(tmp_path / "parts", callbacks=[resumed], **EVERY_FEW_STEPS).train(resume_from_checkpoint=True)
    assert without_times(tmp_path / "parts") == without_times(tmp_path / "whole")
    assert resumed.rows == 8
    seconds = [float(row["seconds"]) for row in rows_of(tmp_path / "parts")]
    assert seconds == sorted(seconds)


def test_the_same_seed_gives_the_same_rows_and_another_run_replaces_them(tmp_path: Path) -> None:
    for folder in ("a", "b", "a"):
        make_trainer(tmp_path, callbacks=[RunRecorder(tmp_path / folder)], max_steps=3).train()
    assert without_times(tmp_path / "a") == without_times(tmp_path / "b")
    make_trainer(tmp_path, callbacks=[RunRecorder(tmp_path / "c")], max_steps=3, data_seed=8).train()
    assert without_times(tmp_path / "c") != without_times(tmp_path / "a")


def test_further_metrics_get_their_own_column(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path)
    trainer = make_trainer(tmp_path, callbacks=[recorder], max_steps=2)
    inner = trainer.compute_metrics
    trainer.compute_metrics = lambda prediction: {**inner(prediction), "f1": 0.1 + 0.2}
    trainer.train()
    rows = rows_of(tmp_path)
    assert list(rows[0]) == [*COLUMNS[:7], "f1", *COLUMNS[7:]]
    assert [row["f1"] for row in rows] == ["", "", "0.30000000000000004"]
    assert [float(row["lr"]) for row in rows[:2]] == [1e-2, 1e-2]


def test_the_rate_is_the_one_the_step_was_made_with(tmp_path: Path) -> None:
    make_trainer(tmp_path, callbacks=[RunRecorder(tmp_path)], max_steps=2, lr_scheduler_type="linear").train()
    assert [float(row["lr"]) for row in rows_of(tmp_path)[:2]] == pytest.approx([1e-2, 5e-3])


def test_tensorboard_files_hold_the_same_losses(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    make_trainer(tmp_path, callbacks=[RunRecorder(tmp_path, tensorboard=True)], max_steps=3).train()
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    written = [event.value for event in events.Scalars("train/loss")]
    assert written == pytest.approx([float(row["loss"]) for row in rows_of(tmp_path)[:3]], rel=1e-6)
    assert [event.step for event in events.Scalars("eval/accuracy")] == [3]


def test_tensorboard_that_is_not_installed_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(recorder_module.__dict__["torch"].utils.__dict__, "tensorboard", None)
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"package tensorboard: pip install -e '\.\[tensorboard\]'"):
        RunRecorder(tmp_path, tensorboard=True)


@pytest.mark.parametrize("kind", [RunRecorder, ProgressReporter])
def test_other_ranks_write_nothing(tmp_path: Path, kind: type) -> None:
    output = io.StringIO()
    callback = RunRecorder(tmp_path) if kind is RunRecorder else ProgressReporter(Console(file=output))
    trainer = make_trainer(tmp_path / "model", callbacks=[])
    trainer.add_callback(callback)
    state = TrainerState(is_world_process_zero=False, global_step=1, max_steps=2)
    for event in ("on_train_begin", "on_step_end"):
        getattr(callback, event)(trainer.args, state, trainer.control)
    callback.on_evaluate(trainer.args, state, trainer.control, metrics={"eval_accuracy": 0.5})
    callback.close()
    assert not (tmp_path / "metrics.csv").exists()
    assert output.getvalue() == ""


def test_a_recorder_without_the_trainer_says_so(tmp_path: Path) -> None:
    state = TrainerState(is_world_process_zero=True)
    with pytest.raises(ValueError, match="works with ZOTrainer only"):
        RunRecorder(tmp_path).on_evaluate(None, state, None, metrics={"eval_loss": 1.0})  # type: ignore[arg-type]


def test_peak_memory_grows_with_what_is_held() -> None:
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(64 * 2**20, dtype=torch.uint8)
    assert peak_memory(torch.device("cpu")) >= before
    assert int(held[0]) == 1
    assert before > 10**7


# Progress.


def test_plain_lines_where_the_console_is_no_terminal(tmp_path: Path) -> None:
    output = io.StringIO()
    reporter = ProgressReporter(Console(file=output, width=40))
    make_trainer(tmp_path, callbacks=[reporter], max_steps=20, eval_strategy="steps", eval_steps=10).train()
    lines = output.getvalue().splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    assert [line.split(" ")[1] for line in steps] == [f"{step}/20" for step in range(2, 21, 2)]
    assert "accuracy" not in "".join(steps)  # it has lines of its own
    for word in ("training loss", "queries/s", "left", "(100 %)"):
        assert word in steps[-1]
    assert sum(line.startswith("validation after step") for line in lines) == 2
    assert "\x1b" not in output.getvalue()


def test_a_bar_on_a_terminal_that_is_left_clean_by_an_interrupt(tmp_path: Path) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120)
    trainer = make_trainer(tmp_path, callbacks=[ProgressReporter(console), Stop(3)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    text = output.getvalue()
    assert "3/6" in text
    assert "queries/s" in text
    assert text.rstrip().endswith("\x1b[?25h")  # the cursor is back
    shutil.rmtree(tmp_path)
