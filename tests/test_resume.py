"""A run that was stopped anywhere and goes on ends in the same bits as one that was not."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_runs import ROWS, TINY, rows_of, shelf, stop_after, train, workshop
from safetensors.torch import load_file, save_file

from zotune.cli import main
from zotune.config.resume import with_checksum
from zotune.hf import lifecycle
from zotune.hf.recorder import RunRecorder
from zotune.hf.trainer import ZOTrainer
from zotune.perturbations import Slot
from zotune.run import training
from zotune.trajectory import Recorder, Step, read

__all__ = ["shelf", "workshop"]  # fixtures, for pytest to find in this module
pytestmark = pytest.mark.usefixtures("workshop")

METHODS = {
    "MeZO": "ZO --momentum 0",
    "MeZO with momentum": "ZO --momentum 0.9",
    "ZO-Adam": "ZOAdam --low_bit_adam 8",
    "SVRG": "ZOSVRG --q 3 --anneal 2",
    "SVRG with a copy": "ZOSVRG --q 3 --anchor copy",
    "LOZO": "LOZO --step_interval 4",
    "LOZO-M": "LOZO --step_interval 4 --momentum 0.9",
    "HiZOO": "HiZOO --hessian_smooth_type constant1e-4",
    "LOREN": "LOREN --momentum 0.9 --momentum_bits 8",
    "FZOO": "FZOO",
    "MeZO with an adaptive rate": "ZO --lr_scheduler_type adaptive",
    "LOREN with a measured rate": "LOREN --lr auto",
    "SVRG with an adaptive rate": "ZOSVRG --q 3 --lr_scheduler_type adaptive",
}


class Killed(BaseException):
    """The process dies here: nothing that comes after runs, but for what a system does."""


def kill(*_: object, **__: object) -> None:
    raise Killed


def run_until(patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> Path:
    """Start a run that dies; its folder."""
    patch.setattr(training.TrainingRun, "finish", lambda *_: None)
    patch.setattr(Recorder, "close", lambda self: self._file.close())
    with pytest.raises(Killed):
        main(["train", *TINY, *words])
    capsys.readouterr()
    (run,) = (path.parent for path in Path("results").glob("*/*/*/config.json"))
    return run


def resume(capsys: pytest.CaptureFixture[str], run: Path, code: int = 0) -> str:
    assert main(["train", "--resume", str(run)]) == code
    return capsys.readouterr().err


def log_of(run: Path) -> list[dict[str, float]]:
    """The log of the newest checkpoint, without what a clock says."""
    checkpoints = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    log = json.loads((checkpoints[-1] / "trainer_state.json").read_text())["log_history"]
    clocked = ("runtime", "per_second", "preparation_time")
    return [{k: v for k, v in row.items() if not k.endswith(clocked)} for row in log]


def assert_alike(run: Path, whole: Path) -> None:
    """Rows, steps, events and last weights of two runs are the same."""
    assert rows_of(run) == rows_of(whole)
    mine, other = (list(read(path / "trajectory.zo").items()) for path in (run, whole))
    assert [item for item in mine if getattr(item, "kind", "") != "weights"] == [
        item for item in other if getattr(item, "kind", "") != "weights"
    ]
    assert mine[-1] == other[-1]
    assert mine[-1].kind == "weights"
    if (whole / "last").is_dir():
        weights = [load_file(path / "last" / "model.safetensors") for path in (run, whole)]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        assert log_of(run) == log_of(whole)
        summaries = [json.loads((path / "summary.json").read_text()) for path in (run, whole)]
        assert next(s["final"]["accuracy"] for s in summaries) == summaries[1]["final"]["accuracy"]


def dying_at(real, count: int, before=lambda *_: None):
    """The function, which dies at its ``count``-th call, after ``before``."""
    calls = []

    def function(*args, **kwargs):
        calls.append(1)
        if len(calls) == count:
            before(*args)
            kill()
        return real(*args, **kwargs)

    return function


def in_a_query(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ZOTrainer, "_estimate", dying_at(ZOTrainer._estimate, 5))


def in_an_update(patch: pytest.MonkeyPatch) -> None:
    """After the first parameters of some step have been written."""
    patch.setattr(Slot, "keep", dying_at(Slot.keep, 50))


def before_its_row(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RunRecorder, "on_step_end", dying_at(RunRecorder.on_step_end, 4))


def in_a_row(patch: pytest.MonkeyPatch) -> None:
    def half(self, *_) -> None:
        with self.path.open("a") as file:
            file.write("train,4,1.3")

    patch.setattr(RunRecorder, "_write", dying_at(RunRecorder._write, 6, half))


def in_an_evaluation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ZOTrainer, "prediction_step", dying_at(ZOTrainer.prediction_step, 2))


def after_an_evaluation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RunRecorder, "on_evaluate", dying_at(RunRecorder.on_evaluate, 2))


def in_a_checkpoint(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lifecycle, "publish", dying_at(lifecycle.publish, 2))


def in_a_record(patch: pytest.MonkeyPatch) -> None:
    """Half of a record is on the disk."""

    def half(self, *_) -> None:
        self._file.seek(self._end)
        self._file.write(b"S\x10abc")

    patch.setattr(Recorder, "_append", dying_at(Recorder._append, 5, half))


MOMENTS = (
    in_a_query,
    in_an_update,
    before_its_row,
    in_a_row,
    in_an_evaluation,
    after_an_evaluation,
    in_a_checkpoint,
    in_a_record,
)


@pytest.mark.parametrize("words", METHODS.values(), ids=METHODS)
def test_every_method_goes_on_without_a_checkpoint(words: str, capsys, monkeypatch) -> None:
    own = ["--algorithm", *words.split(), "--epochs", "3", "--full_parameter"]
    with monkeypatch.context() as patch:
        in_an_update(patch)
        run = run_until(patch, capsys, *own)
    assert 0 < read(run / "trajectory.zo").steps < 9
    before = json.loads((run / "config.json").read_text())
    resume(capsys, run)
    assert json.loads((run / "config.json").read_text()).get("lr_measured") == before.get("lr_measured")
    whole, _ = train(capsys, *own)
    assert_alike(run, whole)


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
@pytest.mark.parametrize(
    "words", ["LOREN --momentum 0.9", "ZOSVRG --q 4", "LOZO --momentum 0.9 --step_interval 2", "ZO --lr auto"]
)
def test_any_moment(moment, words: str, capsys, monkeypatch) -> None:
    own = ["--algorithm", *words.split(), "--epochs", "3", "--save_ckpt", "--save_every", "0.67", "--early_stopping"]
    with monkeypatch.context() as patch:
        moment(patch)
        run = run_until(patch, capsys, *own)
    said = resume(capsys, run)
    assert "Traceback" not in said
    whole, _ = train(capsys, *own)
    assert_alike(run, whole)


def test_a_run_that_dies_again_and_again(capsys, monkeypatch) -> None:
    own = ["--algorithm", "ZOAdam", "--epochs", "4", "--batchsize_limit", "3", "--save_ckpt"]
    with monkeypatch.context() as patch:
        before_its_row(patch)
        run = run_until(patch, capsys, *own)
    for moment in MOMENTS:
        with monkeypatch.context() as patch:
            moment(patch)
            patch.setattr(training.TrainingRun, "finish", lambda *_: None)
            with contextlib.suppress(Killed):
                main(["train", "--resume", str(run)])
    capsys.readouterr()
    resume(capsys, run)
    whole, _ = train(capsys, *own)
    assert_alike(run, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("saved", [True, False])
def test_a_request_to_stop_finishes_the_step(number, saved: bool, capsys, monkeypatch) -> None:
    own = ["--algorithm", "HiZOO", "--epochs", "3", *["--save_ckpt"] * saved]
    with monkeypatch.context() as patch:
        real, calls = ZOTrainer._estimate, []

        def estimate(*args):
            calls.append(1)
            if len(calls) == 4:
                os.kill(os.getpid(), number)
            return real(*args)

        patch.setattr(ZOTrainer, "_estimate", estimate)
        run, said = train(capsys, *own, code=130)
    assert f"Stopped. No step is lost. Go on with: zotune train --resume {run}" in said
    assert read(run / "trajectory.zo").steps == 4
    assert len(rows_of(run, "train")) == 4
    assert (run / "checkpoint-4").is_dir() == saved
    resume(capsys, run)
    whole, _ = train(capsys, *own)
    assert_alike(run, whole)


def test_the_second_process_in_a_folder_is_refused(capsys, monkeypatch) -> None:
    def second() -> None:
        (run,) = (path.parent for path in Path("results").glob("*/*/*/config.json"))
        code = "import sys; from zotune.cli import main; sys.exit(main(sys.argv[1:]))"
        ended = subprocess.run(
            [sys.executable, "-c", code, "train", "--resume", str(run)], capture_output=True, text=True, check=False
        )
        said.append((ended.returncode, ended.stderr))

    said: list[tuple[int, str]] = []
    stop_after(monkeypatch, 2, second)
    run, _ = train(capsys, "--algorithm", "ZO")
    said = [(code, text.splitlines(keepends=True)[-1]) for code, text in said]
    assert said == [(2, f"{run} is being trained by process {os.getpid()}; wait for its end or stop it first.\n")]


def test_a_damaged_trajectory_is_kept_and_its_steps_are_made_again(capsys, monkeypatch) -> None:
    own = ["--algorithm", "ZO", "--momentum", "0.9", "--epochs", "3"]
    with monkeypatch.context() as patch:
        stop_after(patch, 6, kill)
        run = run_until(patch, capsys, *own)
    path = run / "trajectory.zo"
    content = path.read_bytes()
    steps = [item for item in read(path).items() if isinstance(item, Step)]
    assert len(steps) == 6
    damaged = bytearray(content)
    damaged[-60] ^= 4
    path.write_bytes(damaged)
    assert 0 < read(path).steps < 6
    said = resume(capsys, run)
    assert f"Warning: {path} is damaged at byte " in said
    assert (run / "trajectory.zo.damaged").read_bytes() == damaged
    whole, _ = train(capsys, *own)
    assert_alike(run, whole)


def test_a_finished_run_that_goes_on_changes_nothing(capsys) -> None:
    run, _ = train(capsys, "--algorithm", "LOZO", "--save_ckpt")
    before = (run / "trajectory.zo").read_bytes(), rows_of(run)
    resume(capsys, run)
    assert ((run / "trajectory.zo").read_bytes(), rows_of(run)) == before


@pytest.mark.parametrize("change", ["seed", "model"])
def test_another_base_model_is_refused(change: str, capsys, monkeypatch, workshop) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
        run, _ = train(capsys, "--algorithm", "ZO", code=130)
    settings = json.loads((run / "config.json").read_text())
    if change == "seed":
        (run / "config.json").write_text(json.dumps(with_checksum(settings | {"trial": 7})))
        wanted = "trajectory.zo was recorded by an optimizer with other arguments: continue it with the same"
    else:
        shutil.copytree(workshop / ".." / "model", workshop / "other")
        tensors = load_file(workshop / "other" / "model.safetensors")
        save_file(
            {name: x + 1e-3 if "layers.2." in name else x for name, x in tensors.items()},
            workshop / "other" / "model.safetensors",
            {"format": "pt"},
        )
        (run / "config.json").write_text(json.dumps(with_checksum(settings | {"model_name": "other"})))
        wanted = "trajectory.zo began with other weights: go on with the same model, bit for bit"
    assert wanted in resume(capsys, run, 2)


def test_micro_batches_and_rows_are_those_of_one_run(capsys, monkeypatch) -> None:
    own = ["--algorithm", "LOREN", "--batchsize_limit", "3", "--samplesize", str(ROWS - 1), "--epochs", "3"]
    with monkeypatch.context() as patch:
        before_its_row(patch)
        run = run_until(patch, capsys, *own)
    resume(capsys, run)
    whole, _ = train(capsys, *own)
    assert_alike(run, whole)
