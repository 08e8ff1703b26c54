"""How a run can end - stopped, diverged, crashed - what is left then, and how it goes on."""

import json
import math
import os
import signal
from pathlib import Path

import pytest
from command_runs import STEPS_PER_EPOCH, rows_of, shelf, stop_after, train, workshop

from zotune import ZerothOrder
from zotune.cli import main

__all__ = ["shelf", "workshop"]  # fixtures, for pytest to find in this module
pytestmark = pytest.mark.usefixtures("workshop")

STEPS = 2 * STEPS_PER_EPOCH
ESTIMATE = ZerothOrder.estimate


def test_a_loss_that_is_not_finite_ends_with_3_and_keeps_the_rows(capsys):
    run, said = train(capsys, "--lr", "1e30", "--algorithm", "ZO", code=3)
    assert 1 <= len(rows_of(run, "train")) < STEPS
    assert "lower --lr or --perturbation_scale" in said
    assert json.loads((run / "summary.json").read_text())["status"] == "non-finite loss"


def test_first_order_divergence_ends_with_3(capsys):
    _, said = train(capsys, "--lr", "1e30", "--algorithm", "FOSGD", code=3)
    assert "--perturbation_scale" not in said


def _interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [_interrupt, lambda: os.kill(os.getpid(), signal.SIGTERM)], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("algorithm", ["LOREN", "FOSGD"])
def test_a_stopped_run_keeps_its_rows_and_says_how_to_go_on(algorithm, stop, capsys, monkeypatch):
    stop_after(monkeypatch, 2, stop)
    run, said = train(capsys, "--algorithm", algorithm, code=130)
    assert len(rows_of(run, "train")) == 2
    how = (
        "--save_ckpt makes them"
        if algorithm == "FOSGD"
        else f"No step is lost. Go on with: zotune train --resume {run}"
    )
    assert how in said
    assert (run / "curves.png").is_file()
    assert json.loads((run / "summary.json").read_text())["status"] == "stopped"


@pytest.mark.parametrize("algorithm", ["LOREN", "ZOSVRG", "FOAdam"])
def test_a_resumed_run_has_the_rows_of_one_that_was_never_stopped(algorithm, capsys):
    base = ["--algorithm", algorithm, "--save_ckpt", "--early_stopping"]
    whole, _ = train(capsys, *base)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 5, _interrupt)
        run, said = train(capsys, *base, code=130)
    assert f"zotune train --resume {run}" in said
    assert main(["train", "--resume", str(run)]) == 0
    out, err = capsys.readouterr()
    assert Path(out.strip()) == run, err
    assert rows_of(run) == rows_of(whole)
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"


def test_a_first_order_run_without_checkpoints_cannot_be_resumed(capsys):
    run, _ = train(capsys, "--epochs", "1", "--algorithm", "FOAdam")
    assert main(["train", "--resume", str(run)]) == 2
    assert "has no step and no checkpoint to go on from" in capsys.readouterr().err


def test_a_crash_leaves_its_details_in_a_file(capsys, monkeypatch):
    def crash():
        raise RuntimeError("a defect")

    stop_after(monkeypatch, 2, crash)
    run, said = train(capsys, code=1)
    assert "RuntimeError" in said
    assert "a defect" in (run / "error.log").read_text()
    assert len(rows_of(run, "train")) == 2


@pytest.mark.parametrize("algorithm", ["ZO", "LOZO", "LOREN"])
@pytest.mark.parametrize("step", [0, 3, 5])
def test_an_error_in_a_query_loses_no_step_and_the_run_goes_on_to_the_same_rows(algorithm, step, capsys):
    whole, _ = train(capsys, "--algorithm", algorithm, "--save_ckpt")

    def estimate(self, closure, weight=1.0):
        if self.t == step:
            raise KeyError("mine")
        return ESTIMATE(self, closure, weight)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ZerothOrder, "estimate", estimate)
        run, said = train(capsys, "--algorithm", algorithm, "--save_ckpt", code=1)
    assert "The run broke off with KeyError" in said
    if step == 0:
        assert "start it again" in said
        return
    assert len(rows_of(run, "train")) == step
    assert "No step is lost" in said
    assert main(["train", "--resume", str(run)]) == 0
    assert rows_of(run) == rows_of(whole)
    ends = [(folder / "last" / "model.safetensors").read_bytes() for folder in (run, whole)]
    assert ends[0] == ends[1]


@pytest.mark.parametrize("algorithm", ["ZO", "LOZO", "HiZOO"])
def test_a_loss_that_is_nan_for_a_while_loses_no_step(algorithm, capsys):
    whole, _ = train(capsys, "--algorithm", algorithm, "--save_ckpt")

    def estimate(self, closure, weight=1.0):
        return ESTIMATE(self, (lambda: math.nan) if self.t == 3 else closure, weight)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ZerothOrder, "estimate", estimate)
        run, said = train(capsys, "--algorithm", algorithm, "--save_ckpt", code=3)
        assert "The loss is nan at step 4" in said
        assert len(rows_of(run, "train")) == 3
        assert main(["train", "--resume", str(run)]) == 3
        assert "The loss is nan at step 4" in capsys.readouterr().err
    assert main(["train", "--resume", str(run)]) == 0
    assert rows_of(run) == rows_of(whole)
    ends = [(folder / "last" / "model.safetensors").read_bytes() for folder in (run, whole)]
    assert ends[0] == ends[1]
