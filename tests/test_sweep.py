"""`zotune sweep`: spaces, whole searches, going on, several processes on one database, mistakes."""

import csv
import json
import math
import shlex

import pytest
from command_runs import shelf, workshop

from zotune.cli import main
from zotune.config import ALGORITHMS, TrainConfig
from zotune.config.compare import DERIVED, labelled

optuna = pytest.importorskip("optuna", reason="zotune sweep needs optuna; install zotune[sweep].")
from zotune.reports.sweep import _limits  # noqa: E402
from zotune.sweep.spaces import Choice, Range, grid_of, points_of, space_of  # noqa: E402

__all__ = ["shelf", "workshop"]
SHARED = (
    *("--model_name", "../model", "--data_dir", "../data", "--samplesize", "24", "--samplesize_validation", "8"),
    *("--batchsize", "8", "--max_seq_length", "24", "--device", "cpu", "--evaluations", "2"),
)


def sweep(capsys, *words, code=0):
    ended = main(["sweep", *SHARED, *words])
    out, err = capsys.readouterr()
    assert ended == code, err
    assert "Traceback" not in err
    return out.strip(), err


def study(workshop, name, place="out"):
    storage = optuna.storages.get_storage(f"sqlite:///{workshop / place / 'sweep.db'}")
    return optuna.load_study(study_name=f"model/sst2/{name}", storage=storage)


@pytest.mark.parametrize("method", [*ALGORITHMS, *DERIVED])
@pytest.mark.parametrize("tuning", ["full", "lora", "prefix"])
def test_built_in_spaces_hold_the_default_and_make_valid_settings(method, tuning):
    (entry,) = labelled(method, {})
    momentum = float(entry.given.get("momentum", 0))
    config = TrainConfig(algorithm=entry.algorithm, tuning=tuning, momentum=momentum).resolved()
    space = space_of(entry, config)
    assert isinstance(space["lr"], Range)
    assert space["lr"].low < config.lr < space["lr"].high
    points = points_of(grid_of(entry, config))
    assert points
    for point in [*points, {name: getattr(config, name) for name in space}]:
        TrainConfig(**{**config.__dict__, **point}).validate()


def test_the_papers_lists():
    (entry,) = labelled("ZO", {})
    scales = {
        tuning: grid_of(entry, TrainConfig(algorithm="ZO", tuning=tuning).resolved())
        for tuning in ("full", "lora", "prefix")
    }
    assert scales["full"] == {"lr": Choice((1e-6, 1e-7)), "perturbation_scale": Choice((1e-3,))}
    assert scales["lora"] == {"lr": Choice((1e-4, 5e-5)), "perturbation_scale": Choice((1e-2,))}
    assert scales["prefix"] == {"lr": Choice((1e-2, 1e-3)), "perturbation_scale": Choice((1e-1,))}
    (fixed,) = labelled("LOZO --rank 4", {})
    assert "rank" not in grid_of(fixed, TrainConfig(algorithm="LOZO", rank=4).resolved())


def test_a_search_keeps_the_best_and_goes_on(workshop, capsys):
    words = ("--algorithms", "ZO,LOZO --rank 1", "--budget_queries", "128", "--out", "out")
    out, err = sweep(capsys, *words, "--runs", "3")
    assert out == "out/best.json"
    best = json.loads((workshop / "out" / "best.json").read_text())
    with (workshop / "out" / "trials.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 6
    for method in ("ZO", "LOZO"):
        losses = {
            float(row["lr"]): float(row["loss"])
            for row in rows
            if row["method"] == method and row["state"] == "finished"
        }
        assert best[method]["lr"] == min(losses, key=losses.get)
    assert best["LOZO"]["rank"] == "1"
    assert (workshop / "out" / "sweep.png").stat().st_size > 1000

    # The printed command makes the best run again.
    command = shlex.split(next(line for line in err.splitlines() if line.startswith("zotune train")))
    assert main([*command[1:], "--results", "again"]) == 0
    run = capsys.readouterr().out.strip()
    wanted = min(float(row["loss"]) for row in rows if row["method"] == "ZO" and row["state"] == "finished")
    assert json.loads((workshop / run / "summary.json").read_text())["final"]["loss"] == pytest.approx(wanted, rel=1e-3)

    before = [trial.params for trial in study(workshop, "ZO").trials]
    sweep(capsys, *words, "--runs", "4")
    after = [trial.params for trial in study(workshop, "ZO").trials]
    assert after[:3] == before
    assert len(after) == 4
    _, err = sweep(capsys, *words, "--runs", "4", "--init_seed", "7", code=2)
    assert "has runs with other settings" in err

    words = ("--algorithms", "ZO,LOZO", "--settings", "out/best.json", "--trials", "1", "--budget_queries", "64")
    assert main(["compare", *SHARED, *words, "--out", "compared"]) == 0
    rate = f"{best['ZO']['lr']:g}"
    assert f"| ZO | {rate} |" in (workshop / "compared" / "report.md").read_text()


def test_a_grid_is_tried_once_whole(workshop, capsys):
    (workshop / "space.json").write_text(json.dumps({"ZO": {"lr": [1e-3, 1e-4], "num_queries": [2, 4]}}))
    words = ("--algorithms", "ZO", "--search", "grid", "--space", "space.json", "--prune", "none")
    sweep(capsys, *words, "--budget_queries", "64", "--out", "out")
    tried = {(trial.params["lr"], trial.params["num_queries"]) for trial in study(workshop, "ZO").trials}
    assert tried == {(1e-3, 2), (1e-3, 4), (1e-4, 2), (1e-4, 4)}
    sweep(capsys, *words, "--budget_queries", "64", "--out", "out")
    assert len(study(workshop, "ZO").trials) == 4


def test_a_budget_for_all_runs_of_a_method(workshop, capsys):
    words = ("--algorithms", "ZO", "--budget_queries", "64", "--prune", "none", "--runs", "50")
    sweep(capsys, *words, "--total_queries", "150", "--out", "out")
    assert [trial.user_attrs["forwards"] for trial in study(workshop, "ZO").trials] == [64, 64, 64]


def test_runs_that_diverge_do_not_end_a_search(workshop, capsys):
    (workshop / "space.json").write_text(json.dumps({"FOSGD": {"lr": [1e30, 1e-3]}}))
    words = ("--algorithms", "FOSGD", "--search", "grid", "--space", "space.json", "--prune", "none")
    sweep(capsys, *words, "--budget_queries", "480", "--out", "out")
    assert json.loads((workshop / "out" / "best.json").read_text())["FOSGD"]["lr"] == 1e-3
    assert math.inf in [trial.value for trial in study(workshop, "FOSGD").trials]


def test_runs_worse_than_the_median_are_broken_off(workshop, capsys):
    rates = [1e-4, 2e-4, 3e-4, 4e-4, 3e-1]
    (workshop / "space.json").write_text(json.dumps({"ZO": {"lr": rates}}))
    words = ("--algorithms", "ZO", "--search", "grid", "--space", "space.json", "--full_parameter")
    _, err = sweep(capsys, *words, "--budget_queries", "512", "--out", "out")
    assert "lr 0.3: broken off" in err
    (worst,) = [trial for trial in study(workshop, "ZO").trials if trial.params["lr"] == 0.3]
    assert worst.user_attrs["forwards"] < 512


def test_processes_share_a_study(workshop, capfd):
    words = ["--algorithms", "ZO", "--budget_queries", "64", "--runs", "4", "--jobs", "2", "--out", "out"]
    assert main(["sweep", *SHARED, *words]) == 0
    trials = study(workshop, "ZO").trials
    assert 4 <= len(trials) <= 5
    assert len({trial.params["lr"] for trial in trials}) == len(trials)
    capfd.readouterr()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--search", "random"], "--search knows tpe or grid, not 'random'"),
        (["--runs", "0"], "--runs must be from 1"),
        (["--algorithms", "LORN"], "did you mean LOREN?"),
        (["--metric", "los"], "did you mean loss?"),
        (["--storage", "nosuch://x"], "--storage nosuch://x cannot be opened"),
        (["--space", "nowhere.json"], "--space nowhere.json cannot be read"),
        (["--lr", "fast"], "--lr takes a number or auto, not 'fast'."),
        (["--budget_queries", "3"], "--budget_queries 3 is less than"),
    ],
)
def test_mistakes_are_one_sentence(workshop, capsys, words, sentence):
    _, err = sweep(capsys, *words, "--out", "out", code=2)
    assert sentence in err


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"ZO": {"lr": {"low": 1, "high": 0.1}}}, "with 0 < A < B"),
        ({"ZO": {"lr": []}}, "give a list of values"),
        ({"ZO": {"samplesize": [1]}}, "--space names samplesize, which no method can search"),
        ({"ZO": [1]}, "is not of the form"),
        ({"ZZ": {}}, "There is no method 'ZZ'"),
    ],
)
def test_spaces_that_cannot_be_used(workshop, capsys, content, sentence):
    (workshop / "space.json").write_text(json.dumps(content))
    _, err = sweep(capsys, "--algorithms", "ZO", "--space", "space.json", "--out", "out", code=2)
    assert sentence in err


def test_the_axis_of_the_metric_leaves_out_what_is_far_off():
    low, high = _limits([0.1, 0.2, 0.3, 0.4, 1e9, math.inf])
    assert low < 0.1
    assert 0.4 < high < 1e9
    assert _limits([math.inf]) == (0.0, 1.0)
