"""What breaks around a run: stops at odd moments, places that cannot be written, damaged checkpoints and settings."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_runs import TINY, rows_of, shelf, stop_after, train, workshop
from transformers import TrainerControl, TrainerState

from zotune.cli import main
from zotune.config.resume import with_checksum
from zotune.run import keepers, training
from zotune.run.checkpoints import newest_checkpoint
from zotune.run.launch import write_path
from zotune.run.stops import Terminated, terminable, undisturbed

__all__ = ["shelf", "workshop"]  # fixtures, for pytest to find in this module
pytestmark = pytest.mark.usefixtures("workshop")

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINTS = ("--save_ckpt", "--algorithm", "ZO")


def _interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("library", "program"),
    [("torch", [str(ROOT / "main.py")]), ("transformers", ["-c", "from zotune.cli import main; main(['train'])"])],
    ids=["main.py", "zotune train"],
)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_a_stop_while_the_libraries_load_is_one_sentence(library, program, number, code, tmp_path):
    # A stand-in for the library that is stopped while it is being imported.
    (tmp_path / f"{library}.py").write_text(f"import os\nos.kill(os.getpid(), {int(number)})\nraise ImportError\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    ended = subprocess.run(
        [sys.executable, *program], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (
        code,
        "",
        "Stopped before this command had done anything.\n",
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_second_stop_does_not_break_the_finishing(number, capsys, monkeypatch):
    def draw(run):
        os.kill(os.getpid(), number)
        (run / "curves.png").write_text("drawn")

    monkeypatch.setattr(training, "draw_curves", draw)
    stop_after(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    run, said = train(capsys, code=130)
    assert (run / "curves.png").is_file()
    assert "No step is lost. Go on with: zotune train --resume" in said


def test_the_handlers_of_the_process_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with terminable():
        with undisturbed():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_finished_run_without_a_picture_is_finished(capsys, monkeypatch):
    def draw(run):
        raise RuntimeError("no fonts\nat all")

    monkeypatch.setattr(training, "draw_curves", draw)
    run, said = train(capsys)
    assert "Warning: curves.png could not be written (RuntimeError: no fonts).\n" in said
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("code", [130, 1])
def test_unreadable_rows_do_not_change_how_a_run_ends(code, capsys, monkeypatch):
    def spoil():
        next(Path("results").rglob("metrics.csv")).write_bytes(b"\xff\xfe\n")
        raise KeyboardInterrupt if code == 130 else RuntimeError

    stop_after(monkeypatch, 2, spoil)
    _, said = train(capsys, code=code)
    assert "Warning: summary.json could not be written" in said


def _loop(place):
    place.symlink_to(place)


def _dangling(place):
    place.symlink_to(place.parent / "nowhere" / "at all")


def _file_inside(place):
    place.mkdir()
    (place / "model").write_text("in the way")


@pytest.mark.parametrize("make", [_loop, _dangling, _file_inside])
def test_a_run_folder_that_cannot_be_made_is_a_sentence(make, workshop, capsys):
    make(workshop / "there")
    run, said = train(capsys, "--results", "there", code=2)
    assert run is None
    assert "No run folder can be made in --results there (" in said


@pytest.mark.parametrize("flag", ["results", "data_dir", "resume", "model_name"])
def test_a_path_too_long_for_the_file_system_is_a_sentence(flag, capsys):
    code = main(["train", f"--{flag}", "x" * 5000])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert "xxx" in err
    assert len(err) < 500
    assert "Traceback" not in err


def test_a_home_folder_of_nobody_is_a_sentence(capsys):
    assert main(["train", "--results", "~no such user/x"]) == 2
    assert "--results ~no such user/x names the home folder of nobody" in capsys.readouterr().err


def test_a_path_that_is_no_text_is_written_byte_for_byte(capfdbinary):
    write_path(Path(os.fsdecode(b"r\xe9sults")))
    assert capfdbinary.readouterr().out == b"r\xe9sults\n"


def test_a_crash_whose_log_cannot_be_written_says_what_it_was(capsys, monkeypatch):
    def crash():
        next(Path("results").rglob("metrics.csv")).with_name("error.log").mkdir()
        raise RuntimeError("a defect")

    stop_after(monkeypatch, 2, crash)
    _, said = train(capsys, code=1)
    assert "it says 'a defect', and error.log cannot be written" in said


def test_a_stop_before_the_first_step_says_to_start_again(capsys, monkeypatch):
    monkeypatch.setattr(training.RunRecorder, "on_train_begin", lambda *_, **__: _interrupt())
    _, said = train(capsys, code=130)
    assert said.endswith("Stopped. Nothing was trained yet; start it again.\n")


def test_a_missing_model_is_named_before_missing_data(capsys, workshop):
    (workshop / "empty").mkdir()
    (workshop / "blank").mkdir()
    (workshop / "blank" / "config.json").write_text("{}")
    words = ["--model_name", "blank", "--data_dir", "empty"]
    assert main(["train", *words]) == 2
    assert "blank holds no tokenizer" in capsys.readouterr().err


@pytest.fixture
def stopped(capsys):
    """A run that was stopped behind its second checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 6, _interrupt)
        run, _ = train(capsys, *CHECKPOINTS, "--epochs", "3", code=130)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 7, _interrupt)
        assert main(["train", "--resume", str(run)]) == 130
    capsys.readouterr()
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
    return run


def resume(capsys, run, code):
    folders = sorted(run.parent.iterdir())
    assert main(["train", "--resume", str(run)]) == code
    out, err = capsys.readouterr()
    assert sorted(run.parent.iterdir()) == folders
    assert "Traceback" not in err
    assert (out == "") == (code == 2)
    return err


PARTS = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors")


def test_damaged_checkpoints_are_passed_over(stopped, capsys):
    newest, older = stopped / "checkpoint-6", stopped / "checkpoint-3"
    assert newest_checkpoint(stopped) == newest
    for name in PARTS:
        content = (newest / name).read_bytes()
        flipped = bytes([*content[:-9], content[-9] ^ 1, *content[-8:]])
        for damaged in (b"", content[: len(content) // 2], content + b"0", flipped):
            (newest / name).write_bytes(damaged)
            assert newest_checkpoint(stopped) == older, name
        (newest / name).unlink()
        assert newest_checkpoint(stopped) == older, name
        (newest / name).write_bytes(content)
    (newest / "optimizer.pt").unlink()
    said = resume(capsys, stopped, 0)
    assert "Warning: checkpoint-6 is incomplete or damaged and is not used." in said
    assert [int(row["step"]) for row in rows_of(stopped, "train")] == list(range(1, 10))


def test_settings_that_do_not_fit_the_checkpoint_are_named(stopped, capsys):
    path = stopped / "config.json"
    content = path.read_text()
    settings = json.loads(content)
    path.write_text(json.dumps(with_checksum(settings | {"num_queries": settings["num_queries"] + 2})))
    said = resume(capsys, stopped, 2)
    assert f"{stopped / 'checkpoint-6'} was made with queries_per_step={settings['num_queries']}, but" in said
    assert "restore config.json or start a new run." in said
    path.write_text(content)


def test_rows_that_cannot_be_read_are_named_and_missing_ones_made_again(stopped, capsys):
    rows = rows_of(stopped)
    for content in (b"\xff\n", b"kind,step\ntrain,x\n", b"kind,loss\ntrain,1\n", b""):
        (stopped / "metrics.csv").write_bytes(content)
        said = resume(capsys, stopped, 2)
        assert "cannot be read as the rows of the run; restore it, or delete it, and its rows are made again." in said
    (stopped / "metrics.csv").unlink()
    assert "its rows are made again from trajectory.zo" in resume(capsys, stopped, 0)
    assert rows_of(stopped)[: len(rows)] == rows
    assert [int(row["step"]) for row in rows_of(stopped, "train")] == list(range(1, 10))


def test_without_checkpoint_and_steps_a_run_cannot_go_on(stopped, capsys):
    (stopped / "trajectory.zo").unlink()
    rows = (stopped / "metrics.csv").read_bytes()
    (stopped / "metrics.csv").unlink()
    assert "metrics.csv is missing" in resume(capsys, stopped, 2)
    (stopped / "metrics.csv").write_bytes(rows)
    for checkpoint in stopped.glob("checkpoint-*"):
        (checkpoint / "trainer_state.json").unlink()
    assert "no step and no checkpoint to go on from, only incomplete ones" in resume(capsys, stopped, 2)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 0.5])
def test_a_model_whose_loss_is_not_finite_is_not_the_best(loss, monkeypatch, tmp_path):
    assert bool(evaluated(monkeypatch, tmp_path, [(3, 0.9, loss)])) == (loss == 0.5)


def evaluated(monkeypatch, folder, evaluations):
    """Steps of the models that are kept as the best of evaluations: step, accuracy, loss."""
    saved = []

    def save(*_, evaluation):
        saved.append(evaluation["step"])
        (folder / keepers.EVALUATION).write_text(json.dumps(evaluation))

    monkeypatch.setattr(keepers, "save_model", save)
    for step, accuracy, loss in evaluations:
        state = TrainerState(global_step=step, is_world_process_zero=True)
        best = keepers.BestModel(folder, SimpleNamespace())  # a new one each time, as when a run goes on
        metrics = {"eval_accuracy": accuracy, "eval_loss": loss}
        best.on_evaluate(SimpleNamespace(), state, TrainerControl(), model=None, metrics=metrics)
    return saved


@pytest.mark.parametrize(
    ("evaluations", "kept"),
    [
        ([(0, 0.6, 1.0), (5, 0.5, 0.1)], [0]),  # the model that came in was better
        ([(0, 0.6, 1.0), (5, 0.6, 0.9), (9, 0.6, 0.95)], [0, 5]),
        ([(0, 0.6, 1.0), (5, 0.6, 1.0), (9, 0.7, 2.0)], [0, 9]),
    ],
)
def test_the_best_model_is_never_worse_than_the_one_that_came_in(evaluations, kept, monkeypatch, tmp_path):
    assert evaluated(monkeypatch, tmp_path, evaluations) == kept


@pytest.mark.parametrize("there", [(".best.saving", ".best.old"), (".best.old",)])
def test_a_best_model_whose_writing_was_killed_is_there_again_when_the_run_goes_on(there, tmp_path):
    for name in there:
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(name)
    best = keepers.BestModel(tmp_path / "best", SimpleNamespace())
    best.on_train_begin(SimpleNamespace(), TrainerState(is_world_process_zero=True), TrainerControl())
    assert (tmp_path / "best/name").read_text() == there[0]  # the new one, which is whole where the old one waits


def test_a_best_model_that_is_gone_comes_back_with_an_equal_one(monkeypatch, tmp_path):
    saved = []
    monkeypatch.setattr(keepers, "save_model", lambda *_, evaluation: saved.append(evaluation["step"]))
    best = keepers.BestModel(tmp_path / "best", SimpleNamespace())
    for step, accuracy in ((8, 0.7), (12, 0.8)):
        state = TrainerState(global_step=step, is_world_process_zero=True, best_metric=0.8)
        metrics = {"eval_accuracy": accuracy, "eval_loss": 0.5}
        best.on_evaluate(SimpleNamespace(), state, TrainerControl(), model=None, metrics=metrics)
    assert saved == [12]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"step": 3, "accuracy": NaN, "loss": 1}', '{"step": 1e999}'])
def test_a_damaged_evaluation_of_the_best_model_is_none(content, tmp_path):
    (tmp_path / keepers.EVALUATION).write_text(content)
    assert keepers.best_evaluation(tmp_path) is None


def test_csv_texts_may_be_long_and_labels_may_be_decimal(workshop, capsys):
    limit = csv.field_size_limit()
    (workshop / "own").mkdir()
    for split in ("train", "validation"):
        (workshop / "own" / f"{split}.csv").write_text("sentence,label\n" + "good " * 40_000 + ",1.0\nbad,0.0\n")
    run, _ = train(capsys, "--data_dir", "own", "--epochs", "1")
    assert json.loads((run / "config.json").read_text())["train_examples"] == 2
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--epochs 1e300", "--epochs must be at most 1,000,000,000"),
        ("--epochs 9e8", "steps, more than 1000000000; give fewer"),
        ("--eval_every 1e18", "--eval_every must be at most"),
        ("--save_ckpt --save_every 1e18", "--save_every must be at most"),
        ("--batchsize 99999999999999999999", "--batchsize must be at most 1,000,000,"),
        ("--num_queries 99999999999999999998", "--num_queries must be at most 1,000,000,"),
        ("--samplesize 99999999999999999999", "--samplesize must be at most"),
        ("--max_seq_length 99999999999999999999", "--max_seq_length must be at most"),
    ],
)
def test_absurd_numbers_are_refused(words, sentence, capsys, workshop):
    assert main(["train", *TINY, *words.split()]) == 2
    assert sentence in capsys.readouterr().err
    assert not (workshop / "results").exists()


def test_more_text_than_can_be_generated_is_refused(capsys):
    assert main(["train", "--samplesize", "1000001"]) == 2
    assert "--samplesize must be at most 1,000,000 for generated text" in capsys.readouterr().err


def test_a_current_folder_that_was_deleted_is_a_sentence(workshop, capsys):
    workshop.rmdir()
    assert main(["train"]) == 2
    assert capsys.readouterr().err == "The current folder does not exist any more; change to another one.\n"
