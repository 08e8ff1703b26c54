"""Whole runs through the command line: every method, every flag, the files, and the data."""

import dataclasses
import json
from pathlib import Path

import pytest
from command_runs import STEPS_PER_EPOCH, losses_of, rows_of, shelf, train, workshop, write_sst2
from test_cli import readme_words

from zotune.cli import main
from zotune.config import ALGORITHMS, METHOD_FLAGS, TrainConfig
from zotune.reports.curves import draw_curves
from zotune.run import training
from zotune.run.arguments import steps_per_epoch
from zotune.run.machine import micro_batch
from zotune.run.optimizers import optimizer_plan

__all__ = ["shelf", "workshop"]  # fixtures, for pytest to find in this module
pytestmark = pytest.mark.usefixtures("workshop")

STEPS = 2 * STEPS_PER_EPOCH


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_leaves_a_complete_run_folder(algorithm, capsys):
    run, said = train(capsys, "--algorithm", algorithm, "--full_parameter")
    assert [int(row["step"]) for row in rows_of(run, "train")] == list(range(1, STEPS + 1))
    assert [int(row["step"]) for row in rows_of(run, "eval")] == [0, 3, 6]
    assert all(0 <= float(row["accuracy"]) <= 1 for row in rows_of(run, "eval"))
    queries = int(rows_of(run)[-1]["queries"])
    assert queries == STEPS * (ALGORITHMS[algorithm].queries or 1)
    config = json.loads((run / "config.json").read_text())
    assert (config["algorithm"], config["train_examples"], config["steps_per_epoch"]) == (algorithm, 24, 3)
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    assert (run / "curves.png").is_file()
    assert "lr 0.001," in said
    assert "from here on" not in said  # LOZO's queries share their forwards, also those that warm it up
    assert run.parts[:3] == ("results", "model", "sst2")


def test_without_settings_the_embedded_model_learns_generated_text(capsys, monkeypatch):
    monkeypatch.setattr(training, "draw_curves", draw_curves)
    assert (
        main(["train", "--samplesize", "16", "--samplesize_validation", "4", "--epochs", "1", "--device", "cpu"]) == 0
    )
    out, err = capsys.readouterr()
    run = Path(out.strip())
    assert run.parts[:3] == ("results", "embedded", "sst2")
    assert run.name.startswith("LOREN-")
    assert run.name.endswith("-s42-t0")
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    config = json.loads((run / "config.json").read_text())
    assert config["lr"] == config["lr_measured"]["lr"] > 0.0
    assert f"--lr auto: {config['lr']:.3g}, {config['lr_measured']['share']:.0%} of the best single step" in err
    assert f"lr {config['lr']:g} (measured; --lr sets it)" in err


def test_the_readme_command_runs_as_it_stands(capsys):
    words = readme_words(
        epochs=1,
        model="embedded",
        task="sst2",
        algorithm="LOREN",
        lr=1e-3,
        num_queries=6,
        bsz=256,
        bsz_lim=128,
        trial=1,
    )
    assert main(["train", *words]) == 0
    out, err = capsys.readouterr()
    run = Path(out.strip())
    assert len(rows_of(run, "train")) == 2
    others = "--lr_mezosvrg_mb --q --anneal --eps --rank --step_interval --hessian_smooth_type"
    assert f"no effect with LOREN: {others}\n" in err


def test_the_same_seed_gives_the_same_rows_and_another_one_others(capsys):
    first, second, seed, trial = (
        rows_of(train(capsys, *words)[0]) for words in ([], [], ["--init_seed", "7"], ["--trial", "1"])
    )
    assert first == second
    assert first != seed
    assert first != trial


def test_runs_never_share_a_folder(capsys):
    runs = {train(capsys)[0] for _ in range(3)}
    assert len(runs) == 3


def test_micro_batches_give_the_same_losses(capsys):
    whole = losses_of(train(capsys)[0])
    parts = losses_of(train(capsys, "--batchsize_limit", "3")[0])
    assert parts == pytest.approx(whole, rel=1e-4)


def test_micro_batches_divide_the_batch():
    assert [micro_batch(16, limit) for limit in (1, 3, 4, 15, 16, 99)] == [1, 2, 4, 8, 16, 16]


FLIPS = [
    ("ZO", "momentum", 0.5), ("ZO", "noise", "rademacher"), ("ZO", "num_queries", 4),
    ("ZO", "perturbation_scale", 1e-2), ("ZO", "clipping", True), ("ZO", "backend", "reference"), ("ZO", "lr", 1.0),
    ("ZOAdam", "eps", 1e-3), ("ZOAdam", "low_bit_adam", 8), ("ZOAdam", "num_queries", 4),
    ("ZOAdam", "noise", "rademacher"),
    ("ZOSVRG", "lr_mezosvrg_mb", 1e-9), ("ZOSVRG", "q", 3), ("ZOSVRG", "anneal", 2.0),
    ("ZOSVRG", "anchor", "copy"), ("ZOSVRG", "num_queries", 6),
    ("ZOSVRG", "lr", 1.0), ("ZOSVRG", "noise", "rademacher"),
    ("LOZO", "rank", 1), ("LOZO", "step_interval", 2), ("LOZO", "momentum", 0.5), ("LOZO", "noise", "rademacher"),
    ("HiZOO", "hessian_smooth_type", "constant1e-2"), ("HiZOO", "num_queries", 5), ("HiZOO", "noise", "rademacher"),
    ("LOREN", "lr_cov", 0.0), ("LOREN", "damping", 1.0), ("LOREN", "momentum", 0.9),
    ("LOREN", "momentum_bits", 8), ("LOREN", "direction_rank", 2), ("LOREN", "num_queries", 2),
    ("LOREN", "noise", "rademacher"), ("FZOO", "noise", "gaussian"), ("FZOO", "num_queries", 4),
    ("FZOO", "perturbation_scale", 1e-2),
    ("FOSGD", "momentum", 0.5), ("FOSGD", "lr", 1.0), ("FOAdam", "eps", 1e-3),
]  # fmt: skip


@pytest.mark.parametrize(("algorithm", "flag", "value"), FLIPS)
def test_every_flag_of_a_method_reaches_its_optimizer(algorithm, flag, value):
    plain = TrainConfig(algorithm=algorithm, lr=0.5, lr_mezosvrg_mb=0.25)
    flipped = dataclasses.replace(plain, **{flag: value})
    plans = [optimizer_plan(config.resolved(), steps_per_epoch=10, seed=1) for config in (plain, flipped)]
    assert plans[0][0] is plans[1][0]
    assert sum(plans[0][1][name] != plans[1][1][name] for name in plans[0][1]) == 1


def test_flips_cover_every_flag_of_every_method():
    covered = {(algorithm, flag) for algorithm, flag, _ in FLIPS}
    common = {"perturbation_scale", "num_queries", "backend", "noise", "clipping"}
    for algorithm, about in ALGORITHMS.items():
        for flag in about.flags - common:
            assert (algorithm, flag) in covered
    assert common <= {flag for _, flag in covered} <= METHOD_FLAGS | {"lr", "clipping"}


CHANGES = {
    "ZO": ["--momentum 0.5", "--noise rademacher", "--num_queries 4", "--perturbation_scale 0.1", "--clipping"],
    "ZOAdam": ["--eps 1"],
    "ZOSVRG": ["--lr_mezosvrg_mb 0", "--q 3"],
    "LOZO": ["--rank 1", "--step_interval 2", "--momentum 0.5"],
    "HiZOO": ["--hessian_smooth_type constant1e-2"],
    "LOREN": ["--damping 1", "--momentum 0.9", "--full_parameter", "--bf16", "--soft_prompt", "--weight_decay 10"],
    "FOSGD": ["--momentum 0.5", "--clipping", "--weight_decay 1"],
    "FOAdam": ["--eps 1", "--bf16"],
}


@pytest.mark.parametrize("algorithm", CHANGES)
def test_flags_change_the_losses_of_a_run(algorithm, capsys):
    base = ["--algorithm", algorithm, "--epochs", "1", "--lr", "0.01"]
    plain = losses_of(train(capsys, *base)[0])
    for change in CHANGES[algorithm]:
        assert losses_of(train(capsys, *base, *change.split())[0]) != plain, change


def test_a_rate_of_zero_trains_nothing(capsys):
    run, _ = train(capsys, "--lr", "0", "--save_ckpt")
    accuracies = [(row["loss"], row["accuracy"]) for row in rows_of(run, "eval")]
    assert len(set(accuracies)) == 1


def test_the_compiler_of_the_kernels_is_a_library_of_the_process(capsys, monkeypatch):
    """What it takes is none of the memory of zeroth-order training."""
    order = []
    monkeypatch.setattr(training, "warm_up", lambda *_: order.append("compiled"))
    monkeypatch.setattr(training, "libraries_memory", lambda *_: order.append("measured") or 12_000_000)
    run, _ = train(capsys, "--algorithm", "ZO")
    assert order == ["compiled", "measured"]
    assert json.loads((run / "config.json").read_text())["libraries_mb"] == 12.0


def test_best_and_last_model_open_again(capsys):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run, _ = train(capsys, "--save_ckpt", "--save_every", "0.4")
    for kept in ("best", "last"):
        model = AutoModelForSequenceClassification.from_pretrained(run / kept)
        assert model.config.num_labels == 2
        assert len(AutoTokenizer.from_pretrained(run / kept)("good")["input_ids"]) > 0
    assert len(list(run.glob("checkpoint-*"))) == 2


def test_early_stopping_stops(capsys):
    run, _ = train(capsys, "--lr", "0", "--epochs", "9", "--early_stopping", "--patience", "2")
    # The accuracy never changes: the first evaluation of the training is the best, and two more are the patience.
    assert len(rows_of(run, "train")) == 3 * 3
    assert len(rows_of(run, "eval")) == 1 + 3


def test_fewer_examples_than_asked_for_are_all_taken_with_a_line(capsys, workshop):
    write_sst2(workshop / "data", 10)
    run, said = train(capsys, "--data_dir", "data", "--epochs", "1")
    assert json.loads((run / "config.json").read_text())["train_examples"] == 10
    assert steps_per_epoch(TrainConfig(batchsize=8), 10) == len(rows_of(run, "train")) == 2
    assert "10 train rows, not 24" in said


def test_wrong_data_ends_with_2_before_a_folder_is_made(capsys, workshop):
    write_sst2(workshop / "data", 10, labels=(0, -1))
    run, said = train(capsys, "--data_dir", "data", code=2)
    assert run is None
    assert "Row 2 of" in said
    assert not (workshop / "results").exists()


def test_a_folder_that_holds_no_model_ends_with_2(capsys, workshop):
    write_sst2(workshop / "data", 10)
    _, said = train(capsys, "--model_name", "./data", "--data_dir", "data", code=2)
    assert len(said.strip().splitlines()) <= 3


def test_a_gpu_that_is_not_there_gives_one_line(capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("This machine has a GPU.")
    _, said = train(capsys, "--device", "0", "--epochs", "1")
    assert said.count("There is no GPU here, so --device 0 runs on the CPU.") == 1


def test_tensorboard_writes_event_files(capsys):
    pytest.importorskip("tensorboard")
    run, _ = train(capsys, "--logging", "tensorboard", "--epochs", "1")
    assert list(run.rglob("events.out.tfevents.*"))
