"""`zotune sweep`: spaces, whole searches, going on, several processes on one database, mistakes."""

import csv
import json
import math
import re
import shlex
import time

import pytest
from command_runs import shelf, workshop

from zotune.cli import main
from zotune.config import ALGORITHMS, TrainConfig
from zotune.config.compare import DERIVED, labelled

optuna = pytest.importorskip("optuna", reason="zotune sweep needs optuna; install zotune[sweep].")
from zotune.reports.style import DARK  # noqa: E402
from zotune.sweep import sharing  # noqa: E402
from zotune.sweep.draws import Draws  # noqa: E402
from zotune.sweep.spaces import Range, grid_of, space_of  # noqa: E402
from zotune.sweep.study import Search  # noqa: E402

__all__ = ["shelf", "workshop"]
SHARED = (
    *("--model_name", "../model", "--data_dir", "../data", "--samplesize", "24", "--samplesize_validation", "8"),
    *("--batchsize", "8", "--max_seq_length", "24", "--device", "cpu", "--evaluations", "2"),
)
ONCE = ("--confirmations", "0")


def sweep(capsys, *words, code=0):
    ended = main(["sweep", *SHARED, *(() if "--confirmations" in words else ONCE), *words])
    out, err = capsys.readouterr()
    assert ended == code, err
    assert "Traceback" not in err
    return out.strip(), err


def storage(workshop, place="out"):
    return optuna.storages.get_storage(f"sqlite:///{workshop / place / 'sweep.db'}")


def study(workshop, name, place="out"):
    return optuna.load_study(study_name=f"model/sst2/{name}", storage=storage(workshop, place))


def again(workshop, capsys, err):
    """The loss that the first command gives that a search has printed."""
    command = shlex.split(next(line for line in err.splitlines() if line.startswith("zotune train")))
    assert main([*command[1:], "--results", "again"]) == 0
    run = capsys.readouterr().out.strip()
    return json.loads((workshop / run / "summary.json").read_text())["final"]["loss"]


@pytest.mark.parametrize("method", [*ALGORITHMS, *DERIVED])
@pytest.mark.parametrize("tuning", ["full", "lora", "prefix"])
def test_built_in_spaces_hold_the_default_and_make_valid_settings(method, tuning):
    (entry,) = labelled(method, {})
    momentum = float(entry.given.get("momentum", 0))
    config = TrainConfig(algorithm=entry.algorithm, tuning=tuning, momentum=momentum, lr=1e-3).resolved()
    space = space_of(entry, config)
    assert isinstance(space["lr"], Range)
    assert space["lr"].low < config.lr < space["lr"].high
    points = [point for masked in (False, True) for point in grid_of(entry, config, masked=masked)]
    assert points
    for point in [*points, {name: getattr(config, name) for name in space}]:
        TrainConfig(**{**config.__dict__, **point}).validate()


def test_the_papers_lists():
    def lists(method, tuning, masked, **settings):
        (entry,) = labelled(method, {})
        return grid_of(
            entry, TrainConfig(algorithm=entry.algorithm, tuning=tuning, **settings).resolved(), masked=masked
        )

    def pairs(points, *names):
        return {tuple(point[name] for name in names) for point in points}

    rate_and_scale = ("lr", "perturbation_scale")
    assert pairs(lists("ZO", "full", masked=False), *rate_and_scale) == {(1e-6, 1e-3), (1e-7, 1e-3)}
    assert pairs(lists("ZO", "lora", masked=False), *rate_and_scale) == {(1e-4, 1e-2), (5e-5, 1e-2)}
    assert pairs(lists("ZO", "prefix", masked=False), *rate_and_scale) == {(1e-2, 1e-1), (1e-3, 1e-1)}
    assert pairs(lists("ZO", "full", masked=True), *rate_and_scale) == {(1e-5, 1e-3), (1e-6, 1e-3), (1e-7, 1e-3)}
    assert pairs(lists("ZO", "lora", masked=True), *rate_and_scale) == {(1e-4, 1e-3), (5e-5, 1e-3), (1e-5, 1e-3)}
    # Rates of LOZO are those of the released code times the rank.
    found = lists("LOZO", "full", masked=False)
    assert pairs(found, "lr", "rank") == {(1e-6, 1), (2e-6, 2), (4e-6, 4), (1e-7, 1), (2e-7, 2), (4e-7, 4)}
    assert len(found) == 12
    fixed = lists("LOZO --rank 4", "full", masked=False, rank=4)
    assert pairs(fixed, "lr", "step_interval") == {(4e-6, 50), (4e-7, 50), (4e-6, 100), (4e-7, 100)}
    assert all("rank" not in point for point in fixed)
    assert (4e-7, 4) in pairs(lists("LOZO", "full", masked=True), "lr", "rank")
    assert lists("FOAdam --lr 1e-3", "full", masked=False) == []
    assert pairs(lists("FOSGD", "full", masked=False), "lr") == {(0.3,), (0.03,), (0.003,)}  # about its default


def test_a_search_keeps_the_best_and_goes_on(workshop, capsys):
    words = ("--algorithms", "ZO,LOZO --rank 1", "--budget_queries", "128", "--out", "out")
    out, err = sweep(capsys, *words, "--runs", "3")
    assert out == "out/best.json"
    best = json.loads((workshop / "out" / "best.json").read_text())
    with (workshop / "out" / "trials.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 6
    for method in ("ZO", "LOZO --rank 1"):
        losses = {
            float(row["lr"]): float(row["loss"])
            for row in rows
            if row["method"] == method and row["state"] == "finished"
        }
        assert best[method]["lr"] == min(losses, key=losses.get)
    assert best["LOZO --rank 1"]["rank"] == "1"
    assert (workshop / "out" / "sweep.png").stat().st_size > 1000
    light, dark = ((workshop / "out" / f"sweep{theme}.svg").read_text() for theme in ("", "-dark"))
    assert "validation loss (nats per example)" in light
    assert (DARK.ground.lower() in dark, DARK.ground.lower() in light) == (True, False)

    # The printed command makes the best run again.
    wanted = min(float(row["loss"]) for row in rows if row["method"] == "ZO" and row["state"] == "finished")
    assert f"loss of {wanted:.4f}, in one run, which this command makes again:" in err
    assert again(workshop, capsys, err) == pytest.approx(wanted, rel=1e-5)

    before = [trial.params for trial in study(workshop, "ZO").trials]
    sweep(capsys, *words, "--runs", "4")
    after = [trial.params for trial in study(workshop, "ZO").trials]
    assert after[:3] == before
    assert len(after) == 4
    _, err = sweep(capsys, *words, "--runs", "4", "--init_seed", "7", code=2)
    assert "has runs with another --init_seed" in err

    words = (
        "--algorithms",
        "ZO,LOZO --rank 1",
        "--settings",
        "out/best.json",
        "--trials",
        "1",
        "--budget_queries",
        "64",
    )
    capsys.readouterr()
    assert main(["compare", *SHARED, *words, "--out", "out"]) == 2
    assert "out is the folder of a search; give another --out." in capsys.readouterr().err
    assert main(["compare", *SHARED, *words, "--out", "compared"]) == 0
    rate = f"{best['ZO']['lr']:g}"
    assert f"| ZO | {rate} |" in (workshop / "compared" / "report.md").read_text()


def test_a_grid_is_tried_once_whole(workshop, capsys):
    (workshop / "space.json").write_text(json.dumps({"ZO": {"lr": [1e-3, 1e-4], "num_queries": [2, 4]}}))
    words = ("--algorithms", "ZO", "--search", "grid", "--space", "space.json", "--prune", "none")
    _, err = sweep(capsys, *words, "--budget_queries", "64", "--out", "out")
    tried = {(trial.params["lr"], trial.params["num_queries"]) for trial in study(workshop, "ZO").trials}
    assert tried == {(1e-3, 2), (1e-3, 4), (1e-4, 2), (1e-4, 4)}
    assert "is at the end of its range" in err  # of two rates each is
    assert "The best num_queries" not in err
    sweep(capsys, *words, "--budget_queries", "64", "--out", "out")
    assert len(study(workshop, "ZO").trials) == 4


def test_the_best_settings_are_run_on_other_draws_and_the_mean_counts(workshop, capsys, monkeypatch):
    """Of five rates the best one diverges in trial 1 and the next one is bad there, so the third is taken."""
    from zotune.sweep import watching

    rates = [1e-3, 2e-3, 3e-3, 4e-3, 5e-3]
    (workshop / "space.json").write_text(json.dumps({"ZO": {"lr": rates}}))
    real, asked = watching.executed, []

    def executed(settings, watcher):
        asked.append((settings.lr, settings.trial))
        real(settings, watcher)
        first = 0.1 * (1 + rates.index(settings.lr))  # the first rate is best
        again = {1e-3: None, 2e-3: 2.0}.get(settings.lr, first)
        value = first if settings.trial == 0 else again
        watcher.latest = {} if value is None else {"loss": value}

    monkeypatch.setattr(watching, "executed", executed)
    words = ("--algorithms", "ZO", "--search", "grid", "--space", "space.json", "--prune", "none")
    words = (*words, "--budget_queries", "64", "--confirmations", "1", "--out", "out")
    _, err = sweep(capsys, *words)
    assert asked[5:] == [(1e-3, 1), (2e-3, 1), (3e-3, 1), (4e-3, 1)]  # until three have not diverged
    assert json.loads((workshop / "out" / "best.json").read_text()) == {"ZO": {"lr": 3e-3}}
    assert (
        "The best settings gave a validation loss of 0.3000, the mean over 2 draws (0.3000, 0.3000); this command is"
        " the first of them, which gave 0.3000:\nzotune train "
    ) in err
    assert "ZO: all runs took 576 forward passes" in err
    with (workshop / "out" / "trials.csv").open() as lines:
        rows = {float(row["lr"]): row for row in csv.DictReader(lines)}
    assert [rows[rate]["draws"] for rate in rates] == ["2", "2", "2", "2", "1"]
    assert float(rows[2e-3]["mean_loss"]) == pytest.approx(1.1)
    assert rows[1e-3]["mean_loss"] == "inf"
    sweep(capsys, *words)
    assert len(asked) == 9  # nothing is done again
    sweep(capsys, *words, "--confirmations", "2")
    assert asked[9:] == [(2e-3, 2), (3e-3, 2), (4e-3, 2)]  # what has diverged is known well enough


def test_it_is_said_which_loss_is_a_mean_and_which_one_the_command_gives(workshop, capsys):
    words = ("--algorithms", "ZO", "--lr", "1e-2", "--full_parameter", "--runs", "1", "--budget_queries", "256")
    _, err = sweep(capsys, *words, "--confirmations", "2", "--out", "out")
    told = re.search(
        r"loss of ([\d.]+), the mean over 3 draws \(([\d., ]+)\).* the first of them, .*gave ([\d.]+):", err
    )
    mean, draws, first = float(told[1]), [float(value) for value in told[2].split(", ")], told[3]
    assert mean == pytest.approx(sum(draws) / 3, abs=1e-4)
    assert len(set(draws)) == 3
    assert f"{draws[0]:.4f}" == first == f"{again(workshop, capsys, err):.4f}"


def test_a_setting_that_was_bad_on_another_draw_is_not_taken_because_the_others_had_no_room(
    workshop, capsys, monkeypatch
):
    from zotune.sweep import watching

    rates = [1e-3, 2e-3, 3e-3]
    (workshop / "space.json").write_text(json.dumps({"ZO": {"lr": rates}}))
    real = watching.executed

    def executed(settings, watcher):
        real(settings, watcher)
        first = 0.1 * (1 + rates.index(settings.lr))
        watcher.latest = {"loss": first if settings.trial == 0 else 2.0}

    monkeypatch.setattr(watching, "executed", executed)
    words = ("--algorithms", "ZO", "--search", "grid", "--space", "space.json", "--prune", "none", "--out", "out")
    words = (*words, "--budget_queries", "64", "--confirmations", "1")
    _, err = sweep(capsys, *words, "--total_queries", "256")  # three runs and one on another draw
    assert "ZO: --total_queries leaves too little for --confirmations 1 of 3 settings" in err
    assert json.loads((workshop / "out" / "best.json").read_text()) == {"ZO": {"lr": 2e-3}}
    _, err = sweep(capsys, *words)
    assert "leaves too little" not in err
    assert json.loads((workshop / "out" / "best.json").read_text()) == {"ZO": {"lr": 1e-3}}


def test_no_setting_of_a_list_is_tried_twice(workshop, capsys):
    """TPE would propose the better of two rates again and again, and confirm it three times."""
    (workshop / "space.json").write_text(json.dumps({"LOZO": {"lr": [1e-3, 5e-4], "rank": [1, 2]}}))
    words = ("--algorithms", "LOZO", "--budget_queries", "64", "--space", "space.json", "--confirmations", "1")
    _, err = sweep(capsys, *words, "--runs", "3", "--out", "out")
    tried = [tuple(t.params.values()) for t in study(workshop, "LOZO").trials if t.value is not None]
    assert len(tried) == len(set(tried)) == 3
    again = [t.params["run"] for t in study(workshop, "LOZO on other draws").trials if t.value is not None]
    assert len(set(again)) == 3
    assert "[3/3]" in err
    _, err = sweep(capsys, *words, "--runs", "9", "--out", "out")
    tried = [tuple(t.params.values()) for t in study(workshop, "LOZO").trials if t.value is not None]
    assert len(tried) == len(set(tried)) == 4
    assert "[4/4]" in err


def test_other_draws_are_part_of_the_budget_for_all_runs(workshop, capsys):
    (workshop / "space.json").write_text(json.dumps({"ZO": {"lr": {"low": 1e-4, "high": 1e-3}}}))
    words = ("--algorithms", "ZO", "--budget_queries", "64", "--prune", "none", "--runs", "50", "--space", "space.json")
    _, err = sweep(capsys, *words, "--total_queries", "640", "--confirmations", "1", "--out", "out")
    assert [trial.user_attrs["forwards"] for trial in study(workshop, "ZO").trials] == [64] * 7
    assert "ZO: 7 of 50 runs fitted into the budget, which took 640 forward passes" in err


def test_a_rate_that_cannot_be_measured_is_a_sentence(workshop, capsys):
    words = ("--algorithms", "ZO --perturbation_scale 1e30", "--budget_queries", "2000", "--runs", "2")
    _, err = sweep(capsys, *words, "--out", "out", code=2)
    assert "ZO --perturbation_scale 1e30: its rate cannot be measured" in err


def test_a_budget_for_all_runs_of_a_method(workshop, capsys):
    (workshop / "space.json").write_text(json.dumps({"ZO": {"lr": {"low": 1e-4, "high": 1e-3}}}))
    words = ("--algorithms", "ZO", "--budget_queries", "64", "--prune", "none", "--runs", "50", "--space", "space.json")
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
        (["--runs", "4", "--search", "grid"], "--runs 4 has no effect with --search grid"),
        (["--algorithms", "LORN"], "did you mean LOREN?"),
        (["--metric", "los"], "did you mean loss?"),
        (["--storage", "nosuch://x"], "--storage nosuch://x cannot be opened"),
        (["--storage", "sqlite://", "--jobs", "2"], "is in the memory of one process"),
        (["--space", "nowhere.json"], "--space nowhere.json cannot be read"),
        (["--lr", "fast"], "--lr takes a number or auto, not 'fast'."),
        (["--algorithms", "ZO", "--lr", "0"], "A search around --lr 0 is none"),
        (["--algorithms", "FOAdam --lr 1e-3"], "There is nothing to search for FOAdam --lr 1e-3"),
        (["--budget_queries", "3"], "--budget_queries 3 is less than"),
        (
            ["--budget_queries", "64", "--total_queries", "63"],
            "--total_queries 63 is less than the --budget_queries 64 of one run; give several times as many.",
        ),
        (["--storage", ""], "--storage must not be empty"),
        (["--storage", "sqlite:////nowhere/x.db"], "x.db cannot be opened (unable to open database file). Let it be"),
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
        ({"ZO": {"rank": [1]}}, "--space names rank, which has no effect with ZO"),
        ({"ZO": {"lr": [1e-3, True]}}, "give a list of values"),
        ({"ZO": {"lr": [1e-3, "x"]}}, "give a list of values"),
        ({"ZO": {"num_queries": [2, 3]}}, "--num_queries with ZO must be an even number"),
        ({"LOREN": {"lr": [1e-3]}}, "--space has LOREN, which --algorithms does not name"),
        ({"ZO": {}}, "There is nothing to search for ZO"),
        ({"ZZ": {}}, "There is no method 'ZZ'"),
    ],
)
def test_spaces_that_cannot_be_used(workshop, capsys, content, sentence):
    (workshop / "space.json").write_text(json.dumps(content))
    _, err = sweep(capsys, "--algorithms", "ZO", "--space", "space.json", "--out", "out", code=2)
    assert sentence in err


def test_a_grid_point_whose_run_was_stopped_is_tried_again(workshop, capsys, monkeypatch):
    from zotune.sweep.study import Search

    (workshop / "space.json").write_text(json.dumps({"ZO": {"lr": [1e-4, 2e-4, 3e-4]}}))
    words = ("--algorithms", "ZO", "--search", "grid", "--space", "space.json", "--prune", "none")
    words = (*words, "--budget_queries", "32", "--out", "out")

    def stopped(self, trial):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Search, "_train", stopped)
        _, err = sweep(capsys, *words, code=130)
        assert "the same command goes on" in err
    found = study(workshop, "ZO")
    hanging = found.ask()  # as of a process that was killed
    hanging.set_user_attr("process", f"{sharing._MACHINE}:{2**22 + 1}:0")
    sweep(capsys, *words)
    done = [
        trial.params["lr"] for trial in study(workshop, "ZO").get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    ]
    assert sorted(done) == [1e-4, 2e-4, 3e-4]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--metric", "accuracy"), "has runs with another metric"),
        (("--space", "other.json"), "has runs with another space"),
        (("--weight_decay", "0.1"), "has runs with another --weight_decay (0.0 there, 0.1 now)"),
    ],
)
def test_a_study_goes_on_as_it_began(workshop, capsys, words, sentence):
    (workshop / "space.json").write_text(json.dumps({"ZO": {"lr": {"low": 1e-4, "high": 1e-3}}}))
    (workshop / "other.json").write_text(json.dumps({"ZO": {"perturbation_scale": {"low": 1e-4, "high": 1e-3}}}))
    first = ("--algorithms", "ZO", "--runs", "1", "--budget_queries", "32", "--out", "out")
    sweep(capsys, *first, "--space", "space.json")
    spaces = () if "--space" in words else ("--space", "space.json")
    _, err = sweep(capsys, *first, *spaces, *words, code=2)
    assert sentence in err


def test_another_rate_is_named_though_the_space_is_another_too(workshop, capsys):
    words = ("--algorithms", "ZO", "--runs", "1", "--budget_queries", "32", "--out", "out")
    sweep(capsys, *words, "--lr", "1e-3")
    _, err = sweep(capsys, *words, "--lr", "2e-3", code=2)
    assert "The study model/sst2/ZO has runs with another --lr (0.001 there, 0.002 now); give another --out" in err


@pytest.mark.parametrize(
    ("name", "value"),
    [("plan", []), ("plan", {"settings": 3}), ("plan", {}), ("plan", "x"), ("measured", "x"), ("measured", [1.0])],
)
def test_a_damaged_plan_is_named(workshop, capsys, name, value):
    words = ("--algorithms", "ZO", "--runs", "1", "--budget_queries", "32", "--out", "out", "--lr")
    sweep(capsys, *words, "1e-3")
    study(workshop, "ZO").set_user_attr(name, value)
    if name == "measured":
        study(workshop, "ZO").set_user_attr("plan", {"settings": {}})
    _, err = sweep(capsys, *words, "1e-3", code=2)
    assert "The study model/sst2/ZO is damaged; give another --out or --storage." in err


def test_a_search_in_which_none_begins_says_so(workshop, capsys):
    words = ("--algorithms", "ZO", "--lr", "auto", "--budget_queries", "64", "--out", "out")
    _, err = sweep(capsys, *words, "--total_queries", "64")
    assert "ZO: no run began, because" in err
    assert "lower rates" not in err


def test_a_search_in_which_all_diverge_says_so(workshop, capsys):
    (workshop / "space.json").write_text(json.dumps({"FOSGD": {"lr": [1e30]}}))
    words = ("--algorithms", "FOSGD", "--space", "space.json", "--budget_queries", "480", "--out", "out")
    _, err = sweep(capsys, *words)
    assert "FOSGD: all runs diverged or were broken off" in err
    assert "give --space with lower rates" in err


def killed_at_the_first_evaluation(patch):
    """As if the process were killed after an evaluation: it tells nothing more."""
    from zotune.sweep import watching

    real = watching.Watcher.on_evaluate

    def evaluated(self, args, state, control, **kwargs):
        real(self, args, state, control, **kwargs)
        if state.global_step:
            raise KeyboardInterrupt

    patch.setattr(watching.Watcher, "on_evaluate", evaluated)
    patch.setattr(Search, "_keep", lambda *_: None)
    patch.setattr(Draws, "end", lambda *_: None)


def test_forward_passes_of_killed_runs_count(workshop, capsys, monkeypatch):
    (workshop / "space.json").write_text(json.dumps({"ZO": {"lr": {"low": 1e-4, "high": 1e-3}}}))
    words = ("--algorithms", "ZO", "--prune", "none", "--runs", "50", "--space", "space.json")
    words = (*words, "--budget_queries", "64", "--out", "out", "--total_queries", "150")
    with monkeypatch.context() as patch:
        killed_at_the_first_evaluation(patch)
        sweep(capsys, *words, code=130)
    sweep(capsys, *words)
    assert [trial.user_attrs["forwards"] for trial in study(workshop, "ZO").trials] == [32, 64, 64]


def test_forward_passes_of_killed_runs_on_other_draws_count(workshop, capsys, monkeypatch):
    words = ("--algorithms", "ZO", "--lr", "1e-3", "--runs", "1", "--budget_queries", "64", "--out", "out")
    sweep(capsys, *words)
    again = Draws(storage(workshop), "model/sst2/ZO", "minimize")
    with monkeypatch.context() as patch:
        killed_at_the_first_evaluation(patch)
        sweep(capsys, *words, "--confirmations", "1", code=130)
        assert (again.spent, again.to_come(64)) == (32, 32)
    hanging = again.study.trials[0]
    again.study._storage.set_trial_user_attr(hanging._trial_id, "process", f"{sharing._MACHINE}:{2**22 + 1}:0")
    sweep(capsys, *words, "--confirmations", "1")
    assert again.spent == 96


def test_a_refused_search_reserves_no_study(workshop, capsys):
    (workshop / "space.json").write_text(json.dumps({"ZO": {"lr": {"low": 1e-4, "high": 1e-3}}}))
    first = ("--algorithms", "ZO", "--runs", "1", "--space", "space.json", "--out", "out")
    sweep(capsys, *first, "--budget_queries", "3", code=2)
    sweep(capsys, *first, "--budget_queries", "32")


def test_switches_and_whole_numbers_are_searched(workshop, capsys):
    space = {"LOREN": {"full_parameter": [True, False], "num_queries": {"low": 2, "high": 8}, "lr": [1e-3]}}
    (workshop / "space.json").write_text(json.dumps(space))
    words = ("--algorithms", "LOREN", "--runs", "3", "--space", "space.json", "--budget_queries", "128")
    _, err = sweep(capsys, *words, "--out", "out")
    tried = [trial.params for trial in study(workshop, "LOREN").trials]
    assert {type(params["num_queries"]) for params in tried} == {int}
    assert "--full_parameter True" not in err


def test_processes_try_no_grid_point_twice_and_run_other_draws_side_by_side(workshop, capfd):
    (workshop / "space.json").write_text(json.dumps({"ZO": {"lr": [1e-4, 2e-4]}}))
    words = ["--algorithms", "ZO", "--search", "grid", "--space", "space.json", "--prune", "none", "--jobs", "3"]
    words += ["--budget_queries", "32", "--confirmations", "2", "--out", "out"]
    assert main(["sweep", *SHARED, *words]) == 0
    done = study(workshop, "ZO").get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    assert sorted(trial.params["lr"] for trial in done) == [1e-4, 2e-4]
    again = study(workshop, "ZO on other draws").trials
    done = [(trial.params["run"], trial.params["draw"]) for trial in again if trial.value is not None]
    assert sorted(done) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert "ZO: all runs took 192 forward passes" in capfd.readouterr().err


def test_that_draws_have_no_room_is_said_once_by_however_many_processes(workshop, capfd):
    (workshop / "space.json").write_text(json.dumps({"ZO": {"lr": [1e-4, 2e-4, 3e-4]}}))
    words = ["--algorithms", "ZO", "--search", "grid", "--space", "space.json", "--prune", "none", "--jobs", "2"]
    words += ["--budget_queries", "32", "--total_queries", "128", "--confirmations", "1", "--out", "out"]
    assert main(["sweep", *SHARED, *words]) == 0
    err = capfd.readouterr().err
    assert err.count("ZO: --total_queries leaves too little for --confirmations 1 of 3") == 1
    assert all(line.startswith(("ZO", "zotune train", "The best lr")) for line in err.splitlines()), err


def test_what_a_silent_machine_has_begun_is_begun_again(workshop, capsys, monkeypatch):
    """Runs of another machine are waited for while it gives signs of life, and no longer."""
    from zotune.sweep import launch

    (workshop / "space.json").write_text(json.dumps({"ZO": {"lr": [1e-4, 2e-4]}}))
    words = ("--algorithms", "ZO", "--search", "grid", "--space", "space.json", "--prune", "none")
    words = (*words, "--budget_queries", "32", "--out", "out")
    sweep(capsys, *words)  # without other draws
    found, again = study(workshop, "ZO"), Draws(storage(workshop), "model/sst2/ZO", "minimize")
    (first, _) = found.trials
    hanging = found.ask(fixed_distributions=first.distributions)  # the other point, as if it had not been made
    hanging.set_user_attr("process", "elsewhere:7:0")
    number = again.begin(1, 1)
    again.study._storage.set_trial_user_attr(again.study.trials[number]._trial_id, "process", "elsewhere:7:0")
    for one in (found, again.study):
        one.set_user_attr("alive elsewhere:7:0", time.time())

    waited = []

    def silent(seconds):
        waited.append([trial.state.name for trial in again.study.trials])
        for one in (found, again.study):
            one.set_user_attr("alive elsewhere:7:0", time.time() - 1000.0)

    monkeypatch.setattr(launch.time, "sleep", silent)
    _, err = sweep(capsys, *words, "--confirmations", "1")
    assert "ZO: 2 runs of other processes go on; waiting for their end." in err
    assert waited == [["RUNNING"]]
    assert found.trials[2].state.name == "FAIL"
    assert [trial.state.name for trial in again.study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert again.values(1)
    assert sharing.told(again.study, number, 0.5, state=optuna.trial.TrialState.COMPLETE) is None  # it is too late


def test_a_grid_point_of_a_silent_machine_is_made_by_those_that_go_on(workshop, capsys, monkeypatch):
    from zotune.sweep import launch

    (workshop / "space.json").write_text(json.dumps({"ZO": {"lr": [1e-4, 2e-4]}}))
    words = ("--algorithms", "ZO", "--search", "grid", "--space", "space.json", "--prune", "none")
    words = (*words, "--budget_queries", "32", "--out", "out")
    real, taken = Search._ask, []

    def ask(self):
        trial = real(self)
        if trial is not None and not taken:  # another machine takes the first point and falls silent
            taken.append(trial.number)
            trial.set_user_attr("process", "elsewhere:7:0")
            self.study.set_user_attr("alive elsewhere:7:0", time.time())
            return real(self)
        return trial

    def silent(seconds):
        study(workshop, "ZO").set_user_attr("alive elsewhere:7:0", time.time() - 1000.0)

    monkeypatch.setattr(Search, "_ask", ask)
    monkeypatch.setattr(launch.time, "sleep", silent)
    sweep(capsys, *words)
    states = [(trial.system_attrs["fixed_params"]["lr"], trial.state.name) for trial in study(workshop, "ZO").trials]
    assert states == [(1e-4, "FAIL"), (2e-4, "COMPLETE"), (1e-4, "COMPLETE")]


def test_a_process_that_was_taken_for_dead_gives_its_run_up(workshop, capsys, monkeypatch):
    from zotune.sweep import watching

    (workshop / "space.json").write_text(json.dumps({"ZO": {"lr": [1e-4, 2e-4]}}))
    words = ("--algorithms", "ZO", "--search", "grid", "--space", "space.json", "--prune", "none")
    real, seen = watching.Watcher.on_evaluate, []

    def evaluated(self, *args, **kwargs):
        if self._trial is not None and self.spent and not seen:
            seen.append(self._trial.number)
            found = study(workshop, "ZO")
            found.tell(self._trial.number, state=optuna.trial.TrialState.FAIL)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(watching.Watcher, "on_evaluate", evaluated)
    _, err = sweep(capsys, *words, "--budget_queries", "64", "--out", "out")
    assert "ZO: a run is given up; this process was silent for too long." in err
    found = study(workshop, "ZO")
    assert sorted(t.params["lr"] for t in found.trials if t.state.name == "COMPLETE") == [1e-4, 2e-4]
    lost = [n for name, n in found.user_attrs.items() if name.startswith("lost")]
    assert sum(lost) + sum(trial.user_attrs["forwards"] for trial in found.trials) == 32 + 2 * 64  # none counts twice


def test_machines_that_begin_together_try_no_point_twice_and_begin_with_other_settings(workshop, capsys):
    """A second search that was prepared between the first one's look at the queue and its points in it."""
    (workshop / "space.json").write_text(json.dumps({"ZO": {"lr": [1e-4, 2e-4]}}))
    words = ("--algorithms", "ZO", "--search", "grid", "--space", "space.json", "--prune", "none")
    words = (*words, "--budget_queries", "32", "--out", "out")
    sweep(capsys, *words)
    found = study(workshop, "ZO")
    for rate in (1e-4, 2e-4):
        found.enqueue_trial({"lr": rate}, user_attrs={"queued": True})
    sweep(capsys, *words)
    assert [trial.state.name for trial in study(workshop, "ZO").trials] == ["COMPLETE", "COMPLETE", "FAIL", "FAIL"]

    sweep(capsys, "--algorithms", "LOZO", "--lr", "1e-3", "--runs", "3", "--budget_queries", "32", "--out", "two")
    rates = [trial.params["lr"] for trial in study(workshop, "LOZO", "two").trials]
    assert len(set(rates)) == 3


def test_flags_of_all_runs_are_not_searched_by_a_grid(workshop, capsys):
    words = ("--algorithms", "ZO", "--search", "grid", "--budget_queries", "32", "--out", "out")
    sweep(capsys, *words, "--perturbation_scale", "1e-2")
    assert [trial.params for trial in study(workshop, "ZO").trials] == [{"lr": 1e-6}, {"lr": 1e-7}]
    _, err = sweep(capsys, *words, "--perturbation_scale", "1e-2", "--lr", "1e-3", code=2)
    assert "There is nothing to search for ZO" in err


def test_of_two_processes_that_take_the_same_draw_one_yields():
    storage = optuna.storages.InMemoryStorage()
    mine, other = (Draws(storage, "a", "minimize") for _ in range(2))
    assert mine.begin(3, 1) == 0
    mine.study._storage.set_trial_user_attr(mine.study.trials[0]._trial_id, "process", "elsewhere:7:0")
    assert other.begin(3, 1) is None
    assert other.begin(3, 2) == 2
    mine.end(0, 0.5, 64)
    other.end(2, 0.25, 32)
    assert other.values(3) == [0.5, 0.25]
    assert other.spent == 96
