"""Whole runs of `zotune train` on a tiny random model and two dozen sentences; `shelf` and `workshop` are fixtures."""

import csv
import gc
from pathlib import Path

import pytest
from tiny_models import save

from zotune.cli import main
from zotune.hf.recorder import RunRecorder
from zotune.run import training

ROWS = 24
BATCH = 8
STEPS_PER_EPOCH = ROWS // BATCH
NOT_REPEATED = ("seconds", "memory_mb")
TINY = (
    f"--model_name ../model --data_dir ../data --samplesize {ROWS} --samplesize_validation 8 --batchsize {BATCH}"
    " --max_seq_length 24 --epochs 2 --lr 1e-3 --device cpu"
).split()


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    """A folder with `model` (random Llama and its tokenizer), `data` (sst2 as csv) and places to run in."""
    folder = tmp_path_factory.mktemp("shelf")
    save(folder / "model", "llama")
    write_sst2(folder / "data", ROWS)
    # Every run ends with a full collection, which otherwise walks through the libraries' modules each time.
    gc.freeze()
    yield folder
    gc.unfreeze()


@pytest.fixture
def workshop(shelf, monkeypatch, tmp_path_factory):
    """Run beside the shelf's model and data, without drawing; the pictures have tests of their own."""
    folder = Path(tmp_path_factory.mktemp("run"))
    for name in ("model", "data"):
        (folder / name).symlink_to(shelf / name)
    place = folder / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setattr(training, "draw_curves", lambda run: (run / "curves.png").write_text("drawn"))
    return place


def write_sst2(folder, rows, labels=(0, 1)):
    """Write `rows` sentences with labels in turn, as train.csv and validation.csv."""
    folder.mkdir()
    for split in ("train", "validation"):
        lines = [
            "sentence,label",
            *(f"the {n} was {'good' if n % 2 else 'bad'},{labels[n % len(labels)]}" for n in range(rows)),
        ]
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")


def train(capsys, *words, code=0):
    """Run `zotune train` with the tiny settings and `words`; returns (run folder or None, what was said)."""
    ended = main(["train", *TINY, *words])
    out, err = capsys.readouterr()
    assert ended == code, err
    assert "Traceback" not in err
    assert len(out.splitlines()) <= 1
    return (Path(out.rstrip("\n")) if out else None), err


def rows_of(run, kind=None):
    """The rows of metrics.csv, of one kind or all, without the columns that no two runs share."""
    with (run / "metrics.csv").open(newline="") as lines:
        rows = [{k: v for k, v in row.items() if k not in NOT_REPEATED} for row in csv.DictReader(lines)]
    return [row for row in rows if kind in (None, row["kind"])]


def losses_of(run):
    """The training losses of a run, step by step."""
    return [float(row["loss"]) for row in rows_of(run, "train")]


def stop_after(monkeypatch, step, stop):
    """Let `stop()` happen right after the row of `step` has been written."""
    write = RunRecorder.on_step_end

    def on_step_end(self, args, state, control, **context):
        write(self, args, state, control, **context)
        if state.global_step == step:
            stop()

    monkeypatch.setattr(RunRecorder, "on_step_end", on_step_end)


def begun_and_resumed(capsys, monkeypatch, *words):
    """The folder of a run that was stopped in its fourth step, and has gone on to its end."""

    def interrupt():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        stop_after(patch, 4, interrupt)
        half, _ = train(capsys, *words, code=130)
    assert half is not None
    assert main(["train", "--resume", str(half)]) == 0
    capsys.readouterr()
    return half
