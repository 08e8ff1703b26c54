"""`zotune compare`: plan, statistics against values worked out by hand, whole comparisons, stops and mistakes."""

import csv
import dataclasses
import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from command_runs import shelf, workshop
from scipy import stats

from zotune.cli import main
from zotune.compare import launch
from zotune.compare.curves import Curve, Result, _Before, read_results
from zotune.compare.plan import cells_of, place_of, slug
from zotune.compare.running import Runs, can_go_on, run_folder, state_of
from zotune.compare.statistics import aligned, band, binned, difference, mean_of, reaching, target_of
from zotune.config import ConfigError, compare_from_text, config_from_text
from zotune.config.compare import CompareConfig, labelled
from zotune.config.tuned import TUNED_FOR, circumstances, other_than_tuned
from zotune.hf.pacing import steps_again
from zotune.reports.comparison.conclusion import conclusion
from zotune.reports.comparison.findings import Findings
from zotune.reports.comparison.tables import _differences

__all__ = ["shelf", "workshop"]

SHARED = (
    *("--model_name", "../model", "--data_dir", "../data", "--samplesize", "24", "--samplesize_validation", "8"),
    *("--batchsize", "8", "--max_seq_length", "24", "--lr", "1e-3", "--device", "cpu"),
)


def compare(capsys, *words, code=0):
    ended = main(["compare", *SHARED, *words])
    out, err = capsys.readouterr()
    assert ended == code, err
    assert "Traceback" not in err
    return out.strip(), err


def curve(values, step=None, cost=None, metric="loss"):
    step = np.arange(len(values), dtype=float) if step is None else np.array(step, dtype=float)
    cost = 10 * step if cost is None else np.array(cost, dtype=float)
    return Curve(cost=cost, step=step, seconds=step / 2, values={metric: np.array(values, dtype=float)})


def result(label, trial, losses, *, diverged=False):
    own = curve(losses)
    return Result(
        label=label,
        algorithm="ZO",
        method="ZO",
        trial=trial,
        diverged=diverged,
        evaluations=own,
        training=own,
        memory_mb=1.0,
        settings={},
        command=[],
    )


# ---------------------------------------------------------------------------------------------------- settings


def test_methods_with_flags_of_their_own():
    entries = labelled("ZO, LOZO --rank 4 --lr=1e-4,LOZO-M, LOZO --rank 1", {"ZO": {"lr": "0.5"}})
    assert [(e.label, e.algorithm, e.given) for e in entries] == [
        ("ZO", "ZO", {"lr": "0.5"}),
        ("LOZO --rank 4 --lr 1e-4", "LOZO", {"rank": "4", "lr": "1e-4"}),
        ("LOZO-M", "LOZO", {"momentum": "0.9"}),
        ("LOZO --rank 1", "LOZO", {"rank": "1"}),
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--algorithms", "ZO,LOREM"], "There is no method 'LOREM'; did you mean LOREN?"),
        (["--algorithms", "ZO,AdamW"], "There is no method 'AdamW'; did you mean FOAdam?"),
        (["--algorithms", "ZO,MeZO-SVRG"], "did you mean ZOSVRG?"),
        (["--methods", "ZO,LOREN"], "There is no flag --methods; did you mean --algorithms?"),
        (["--seeds", "5"], "There is no flag --seeds; did you mean --trials?"),
        (["--algorithms", "ZO,ZO"], "--algorithms names ZO twice"),
        (["--algorithms", " , "], "--algorithms names no method"),
        (["--algorithms", "ZO --rnk 2"], "There is no flag --rnk for ZO; did you mean --rank?"),
        (["--algorithms", "ZO --lr"], "--lr of ZO in --algorithms needs a value."),
        (["--algorithms", "ZO --samplesize 3"], "--samplesize is the same for all methods"),
        (["--algorithms", "ZO --trial 3"], "--trial is the same for all methods"),
        (["--algorithms", "ZO 'x"], "quotation mark"),
        (["--trials", "0"], "--trials must be from 1"),
        (["--jobs", "1000"], "--jobs must be from 1 to 256"),
        (["--budget_queries", "many"], "--budget_queries takes a whole number"),
        (["--target", "speed=3"], "--target is accuracy=VALUE or loss=VALUE, not 'speed=3'."),
        (["--target", "loss=low"], "--target is accuracy=VALUE or loss=VALUE"),
        (["--reference", "LORN"], "--reference LORN is none of the methods ZO, LOZO, LOREN; did you mean LOREN?"),
        (["--settings", "nowhere.json"], "--settings nowhere.json cannot be read"),
        (["--epochs", "3"], "zotune compare sets --epochs itself"),
        (["--early_stopping"], "zotune compare sets --early_stopping itself"),
        (["--results", "x"], "zotune compare sets --results itself, for every run; give --out in its place."),
        (["--algorithm", "ZO"], "zotune compare takes several methods: give --algorithms in place of --algorithm."),
        (["--target", "accuracy=nan"], "--target is accuracy=VALUE or loss=VALUE"),
        (
            ["--target", "loss=-5"],
            "--target loss=-5 is never reached, because the loss of an evaluation is not below 0",
        ),
        (["--target", "accuracy=90"], "an accuracy is between 0 and 1; give 0.9 for 90 %."),
        (["--algorithms", "ZO --seed 3"], "There is no flag --seed for ZO."),
        (["--lr", "auto", "--algorithms", "ZO,FOAdam"], "give FOAdam a number, or leave --lr out"),
        (["--algorithms", "ZO --full_parameter=x"], "is a switch, so it takes no value"),
        (
            ["--algorithms", "ZO,LOREN --num_queries 1"],
            "LOREN --num_queries 1: --num_queries with LOREN must be at least 2",
        ),
        (["--task", "boolk"], "Did you mean 'boolq'?"),
        (["--algorithms", "ZO --lr auto", "--budget_queries", "350"], "--lr auto and the first step may take"),
        (["--budget_queries", "7"], "ZO, trial 0: --budget_queries 7 is less than the 16 forward passes"),
    ],
)
def test_mistakes_are_one_sentence_and_nothing_is_begun(workshop, capsys, words, sentence):
    out, err = compare(capsys, *words, "--out", "out", code=2)
    assert sentence in err
    assert out == ""
    assert not list(workshop.glob("out/**/metrics.csv"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is no JSON"),
        ("[]", "not of the form"),
        ('{"ZO": 1}', "not of the form"),
        ('{"ZOO": {}}', "There is no method 'ZOO'; did you mean"),
        ('{"ZO": {"lrr": 1}}', "did you mean --lr?"),
        ('{"ZO": {"lr": [1]}}', "is no value"),
    ],
)
def test_files_of_settings_that_cannot_be_used(workshop, capsys, content, sentence):
    (workshop / "best.json").write_text(content)
    _, err = compare(capsys, "--settings", "best.json", code=2)
    assert sentence in err


def test_every_trial_of_every_method_has_the_same_data_and_budget(tmp_path):
    config, shared = compare_from_text(
        {"algorithms": "ZO,FOAdam", "trials": "3", "budget_queries": "999", "task": "cb"}
    )
    cells = cells_of(config, shared, tmp_path)
    assert [(c.entry.label, c.trial) for c in cells] == [(m, t) for t in range(3) for m in ("ZO", "FOAdam")]
    fixed = {
        name: {c.config.__dict__[name] for c in cells} for name in ("task", "budget_queries", "init_seed", "samplesize")
    }
    assert fixed == {"task": {"cb"}, "budget_queries": {999}, "init_seed": {42}, "samplesize": {512}}


def test_labels_have_folders_of_their_own():
    labels = ["LOZO", "LOZO --rank 4", "LOZO --rank  4", "LOZO-M", "lozo --rank 4" * 9]
    names = [slug(label) for label in labels]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w.-]{1,60}", name) for name in names)


# -------------------------------------------------------------------------------------------------- statistics


def test_paired_differences_have_the_interval_of_a_paired_t_test():
    rng = np.random.Generator(np.random.PCG64(1))
    ours, theirs = rng.normal(size=(2, 6))
    found = difference(
        [result("a", t, [9, x]) for t, x in enumerate(ours)],
        [result("b", t, [9, x]) for t, x in reversed(list(enumerate(theirs)))],
        "loss",
    )
    low, high = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.mean == pytest.approx(np.mean(ours - theirs))
    assert found.clear == (low > 0 or high < 0)


def test_runs_that_diverged_count_as_no_number():
    runs = [result("a", 0, [1.0, 0.5]), result("a", 1, [1.0, 0.1], diverged=True), result("a", 2, [1.0, 0.7])]
    assert mean_of([run.final("loss") for run in runs]).count == 2
    assert difference(runs, [result("b", t, [1.0, 0.4]) for t in range(3)], "loss").count == 2
    assert difference(runs[1:2], runs[1:2], "loss").count == 0
    assert not difference(runs[:1], [result("b", 0, [1.0, 0.4])], "loss").clear


def test_a_target_is_reached_at_the_first_good_evaluation_after_a_step():
    runs = [result("a", 0, [0.1, 0.9, 0.5, 0.4]), result("a", 1, [2, 0.9, 0.8, 0.4]), result("a", 2, [2, 2, 2, 2])]
    found = reaching(runs, "loss", 0.5)
    assert (found.cost, found.seconds, found.reached, found.runs) == (30.0, 1.5, 2, 3)  # the third comes last
    assert reaching([*runs[:2], *runs[2:] * 2], "loss", 0.5).reached == 2
    assert math.isnan(reaching([*runs[:2], *runs[2:] * 2], "loss", 0.5).cost)
    later = dataclasses.replace(runs[0], diverged=True)  # it had been there
    assert reaching([later], "loss", 0.5).reached == 0
    accurate = Result(**{**runs[0].__dict__, "evaluations": curve([0.9, 0.2, 0.8], metric="accuracy")})
    assert reaching([accurate], "accuracy", 0.8).cost == 20.0
    assert reaching([accurate], "accuracy", float("nan")).reached == 0


def test_the_target_is_what_no_run_of_the_reference_misses():
    runs = [result("a", 0, [2, 0.5]), result("a", 1, [2, 0.4]), result("a", 2, [2, 9.0], diverged=True)]
    assert target_of(runs, "loss") == 0.5
    assert reaching(runs[:2], "loss", target_of(runs, "loss")).reached == 2
    assert math.isnan(target_of(runs[2:], "loss"))


def test_sentences_need_three_trials_and_correct_for_the_number_of_methods():
    def findings(trials, shift, methods=2):
        noise = np.random.Generator(np.random.PCG64(2)).normal(size=(methods, trials)) * 0.1
        by_label = {
            f"m{number}": [
                result(f"m{number}", t, [9.0, 1.0 + number * shift + noise[number, t]]) for t in range(trials)
            ]
            for number in range(methods)
        }
        return Findings(by_label, "m0", None, trials)

    assert "clearly apart from the other (paired differences; 95 %" in conclusion(findings(5, 5.0), 96)[0]
    few = conclusion(findings(2, 5.0), 96)
    assert "apart" not in few[1]
    assert few[0] == "Two trials cannot tell methods apart; --trials 5 begins to."
    pair = findings(4, 0.1, methods=9).by_label
    alone = difference(pair["m8"], pair["m0"], "loss")
    among = difference(pair["m8"], pair["m0"], "loss", comparisons=8)
    level = 1 - 0.05 / 8
    ours, theirs = ([run.final("loss") for run in pair[label]] for label in ("m8", "m0"))
    low, high = stats.ttest_rel(ours, theirs).confidence_interval(level)
    assert (among.low, among.high) == pytest.approx((low, high))
    assert among.low < alone.low


def test_a_method_with_diverged_runs_is_not_named_the_best():
    lucky = [result("a", t, [3.0, 0.1], diverged=t > 0) for t in range(3)]
    sound = [result("b", t, [3.0, 0.5 + t / 100]) for t in range(3)]
    said = conclusion(Findings({"a": lucky, "b": sound}, "b", None, 3), 96)
    assert said[0].startswith(
        "At a budget of 96 forward passes b alone has no run that diverged, and a mean validation"
    )
    assert "lowest" not in said[0]  # its mean is above that of the run of a which is left
    assert "the loss of a became infinite" in said[1]


def test_a_better_mean_with_diverged_runs_is_no_mean_that_somebody_is_clearly_below():
    lucky = [result("a", t, [3.0, 0.1 + t / 1000], diverged=t == 0) for t in range(5)]
    sound, worse = ([result(n, t, [3.0, level + t / 100]) for t in range(5)] for n, level in (("b", 0.5), ("c", 0.9)))
    worse = [dataclasses.replace(r, evaluations=curve([3.0, 0.9 + r.trial**2 / 100])) for r in worse]
    findings = Findings({"a": lucky, "b": sound, "c": worse}, "b", None, 5)
    said = conclusion(findings, 96)[0]
    assert said.startswith(
        "At a budget of 96 forward passes, of the 2 methods without a run that diverged, b has the lowest"
    )
    assert "clearly apart from the other" in said
    table = _differences(findings)
    rows = {row[0]: row[1] for row in table.rows}
    assert rows["a"].endswith("* (4 of 5 trials)")
    assert "trials" not in rows["c"]
    assert "flatters the method that lost the run" in table.note
    assert "flatters" not in _differences(Findings({"b": sound, "c": worse}, "b", None, 5)).note
    every = [dataclasses.replace(r, diverged=r.trial == 0) for r in (*lucky, *sound)]
    said = conclusion(Findings({"a": every[:5], "b": every[5:]}, "b", None, 5), 96)[0]
    assert said.endswith("of the runs that are left.")


def test_a_comparison_without_a_run_that_is_left_says_so():
    blown = {
        label: [result(label, trial, [1.0, 9.0], diverged=True) for trial in range(3)] for label in ("ZO", "LOREN")
    }
    (only, *rest) = conclusion(Findings(by_label=blown, reference="ZO", aim=None, trials=3), 100)
    assert "in every run, so there is nothing to compare" in only
    assert not any("cannot be told apart" in sentence for sentence in rest)
    half = {**blown, "LOREN": [result("LOREN", trial, [1.0, 0.5]) for trial in range(3)]}
    said = conclusion(Findings(by_label=half, reference="ZO", aim=None, trials=3), 100)
    assert any(s.endswith("left out of means and figures. Of ZO no run is left.") for s in said)
    assert "So there are no differences from ZO; give another --reference." in said
    assert not any(
        "--reference" in s for s in conclusion(Findings(by_label=half, reference="LOREN", aim=None, trials=3), 9)
    )


def test_a_file_of_data_that_is_not_there_is_told_before_there_is_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--train_file", "nowhere.csv", "--template", "{text} It is {label}", "--out", "out"]) == 2
    said = capsys.readouterr().err
    assert "There is no file nowhere.csv; check --train_file." in said
    assert "trials each" not in said


def test_a_comparison_of_tuned_methods_has_a_folder_of_its_own(tmp_path):
    (tmp_path / "best.json").write_text('{"ZO": {"lr": 1e-3}}')
    plain, shared = compare_from_text({"task": "rte"})
    tuned, _ = compare_from_text({"task": "rte", "settings": str(tmp_path / "best.json")})
    named, _ = compare_from_text({"task": "rte", "settings": str(tmp_path / "best.json"), "out": str(tmp_path)})
    assert [place_of(config, shared).name for config in (plain, tuned, named)] == ["rte", "rte-tuned", tmp_path.name]


def test_settings_that_were_tuned_for_something_else_are_told(tmp_path):
    config = config_from_text({"algorithm": "ZO", "full_parameter": True, "budget_queries": "4000"}).resolved()
    best, methods = tmp_path / "best.json", ("ZO", "ZO --rank 2")
    assert other_than_tuned(best, methods, config) == []  # a file of one's own
    (tmp_path / TUNED_FOR).write_text(json.dumps({"ZO": circumstances(config), "LOREN": {"tuning": "lora"}}))
    assert other_than_tuned(best, methods, config) == [
        f"{best} was tuned with --init_seed 42 too, on the heads, directions and order of these trials, which flatters"
        " it: give another --init_seed."
    ]
    other = {"algorithm": "ZO", "tuning": "lora", "budget_queries": "4000", "init_seed": "7"}
    other = config_from_text(other).resolved()
    assert other_than_tuned(best, methods, other) == [
        f"{best} was tuned without --tuning, and this is with --tuning lora.",
        f"{best} was tuned with --full_parameter, and this is without --full_parameter.",
    ]
    (tmp_path / TUNED_FOR).write_text("[]")
    assert other_than_tuned(best, methods, config) == []


def test_bands_and_bins():
    found = band([curve([1, 2, 3]), curve([3, 4, 5])], "loss", "cost")
    assert found.x.tolist() == [0, 10, 20]
    assert found.mean.tolist() == [2, 3, 4]
    assert found.deviation == pytest.approx([2**0.5] * 3)
    assert band([curve([1, 2])], "accuracy", "cost") is None
    means = binned(curve([1, 3, 5, 7, 9], step=[1, 2, 3, 4, 5]), 2, 50)
    assert means.values["loss"].tolist() == [2, 7]
    assert means.cost.tolist() == [15, 40]


def test_trials_with_steps_at_different_costs_are_averaged_at_the_same_ones():
    """Two trials on the same falling line, one of which measured longer: no band, and the mean is that line."""
    first, second = (np.arange(start, 100.0, 10.0) for start in (10.0, 17.0))
    curves = [curve(100.0 - cost, step=np.arange(len(cost)), cost=cost) for cost in (first, second)]
    found = band(aligned([binned(c, 10, 100) for c in curves], 10, 100), "loss", "cost")
    assert found.mean == pytest.approx(100.0 - found.x)
    assert found.deviation == pytest.approx(np.zeros(len(found.x)), abs=1e-9)
    assert (found.x[0], found.x[-1]) == (17.0, 90.0)
    assert aligned([], 10, 100) == []


# ------------------------------------------------------------------------------------------------- whole ones


def test_a_comparison_is_one_report_and_the_same_command_completes_it(workshop, capsys):
    words = ("--algorithms", "ZO,FOSGD,LOZO --rank 1", "--trials", "2", "--budget_queries", "128", "--evaluations", "2")
    _, err = compare(capsys, *words[:3], "1", *words[4:], "--out", "out")
    assert err.count(", accuracy ") == 3
    out, err = compare(capsys, *words, "--out", "out")
    assert "3 of 6 runs are there already." in err
    page = workshop / "out" / "report.html"
    assert out == "out/report.html"
    assert err.count(", accuracy ") == 3  # a line for each new run
    assert "At a budget of 128 forward passes" in err  # what the report says
    with (workshop / "out" / "runs.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert {(row["method"], row["trial"]) for row in rows} == {
        (method, trial) for method in ("ZO", "FOSGD", "LOZO --rank 1") for trial in "01"
    }
    assert all(96 < float(row["forward_passes"]) <= 128 for row in rows)
    text = page.read_text()
    assert not re.search(r"(src|href|srcset)=[\"'](?!data:)", text)  # self-contained
    assert text.count("<picture>") == 3
    assert "FOSGD" in text
    assert (workshop / "out" / "report.md").read_text().count("figures/") == 3
    pictures = {path.name for path in (workshop / "out" / "figures").iterdir()}
    assert {
        f"{n}{d}.{k}"
        for n in ("accuracy", "training-loss", "validation-loss")
        for d in ("", "-dark")
        for k in ("png", "svg")
    } == pictures
    before = {
        path: path.read_bytes() for path in (workshop / "out").rglob("*") if path.suffix in (".csv", ".svg", ".html")
    }
    _, err = compare(capsys, *words, "--out", "out")
    assert "6 of 6 runs are there already." in err
    assert "too. They are not in the report" not in err
    assert before == {path: path.read_bytes() for path in before}  # drawn again, bit for bit

    _, err = compare(capsys, *words, "--lr", "1e-4", "--out", "out", code=2)
    assert "holds a run with other settings (--lr 0.001 there, 0.0001 now)" in err
    _, err = compare(capsys, "--algorithms", "FOSGD,ZO", *words[2:], "--out", "out")
    assert "4 of 4 runs are there already." in err
    assert "finished runs of LOZO --rank 1, trial 0; LOZO --rank 1, trial 1 too." in err


def test_what_differs_beside_the_method_is_said(workshop, capsys):
    words = ("--algorithms", "ZO,LOZO --full_parameter --weight_decay 0.5 --clipping", "--trials", "1")
    _, err = compare(capsys, *words, "--budget_queries", "64", "--evaluations", "1", "--out", "out")
    assert "The methods differ in --full_parameter and --weight_decay too" in err
    report = (workshop / "out" / "report.md").read_text()
    assert "Tuning: partial ZO; full LOZO --full_parameter --weight_decay 0.5 --clipping." in report
    rows = [line for line in report[report.index("## Settings") :].splitlines() if line.startswith("| ")]
    assert rows[2].endswith("full_parameter False, weight_decay 0 |")
    for told in ("clipping True", "full_parameter True", "weight_decay 0.5"):
        assert told in rows[3]


def test_the_curves_are_those_of_the_rows(workshop, capsys):
    compare(capsys, "--algorithms", "ZOSVRG,FOAdam", "--trials", "1", "--budget_queries", "500", "--out", "out")
    config, shared = compare_from_text(
        {"algorithms": "ZOSVRG,FOAdam", "trials": "1", "budget_queries": "500"}
        | {word.removeprefix("--"): value for word, value in zip(SHARED[::2], SHARED[1::2], strict=True)}
    )
    zeroth, first = read_results(cells_of(config, shared, workshop / "out"))
    summary = json.loads((run_folder(workshop / "out/runs/ZOSVRG/trial-0") / "summary.json").read_text())
    assert zeroth.training.cost[-1] == summary["forwards"]
    assert zeroth.final("loss") == summary["final"]["loss"]
    assert first.training.cost.tolist()[:2] == [24.0, 48.0]  # a backward pass counts two
    assert (np.diff(zeroth.training.seconds) >= 0).all()
    assert zeroth.training.seconds[-1] < summary["seconds"]  # without the evaluations


@pytest.mark.parametrize("status", [["finished"], {"a": 1}, 3, None])
def test_a_status_that_is_none_counts_as_begun(tmp_path, status):
    run = tmp_path / "results" / "model" / "sst2" / "ZO"
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    (run / "summary.json").write_text(json.dumps({"status": status}))
    assert state_of(tmp_path) == "begun"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space"), "A file in out cannot be written (No space). Make room; the same command"),
        (OSError(errno.EIO, "I/O error", "out/x"), "out/x cannot be written (I/O error). The same command goes on."),
    ],
)
def test_a_report_that_cannot_be_written_names_the_folder(workshop, capsys, monkeypatch, error, sentence):
    def fail(*_):
        raise error

    monkeypatch.setattr(Runs, "all", lambda _: None)
    monkeypatch.setattr(launch, "_report", fail)
    _, err = compare(capsys, "--out", "out", code=1)
    assert sentence in err


def test_a_run_that_diverges_is_told(workshop, capsys):
    _, err = compare(
        capsys, "--algorithms", "ZO,FOSGD --lr 1e30", "--trials", "1", "--budget_queries", "256", "--out", "out"
    )
    assert "FOSGD --lr 1e30, trial 0: the loss became infinite or NaN in step" in err
    text = (workshop / "out" / "report.md").read_text()
    assert "the loss of FOSGD --lr 1e30 became infinite or NaN" in text
    assert "1, 1 diverged" in text
    assert state_of(workshop / "out/runs" / slug("FOSGD --lr 1e30") / "trial-0") == "diverged"


@pytest.mark.parametrize(("sent", "jobs"), [(signal.SIGINT, "2"), (signal.SIGTERM, "1")])
def test_a_stopped_comparison_goes_on_where_it_stood(workshop, capsys, sent, jobs):
    words = ["--algorithms", "ZO", "--trials", "2", "--budget_queries", "16000", "--evaluations", "2", "--jobs", jobs]
    command = [sys.executable, "-m", "zotune", "compare", *SHARED, *words, "--out", "out"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    waiting = time.monotonic() + 120
    files = "out/runs/*/*/results/*/*/*/metrics.csv"
    while not any("train," in path.read_text() for path in workshop.glob(files)) and time.monotonic() < waiting:
        time.sleep(0.05)
    process.send_signal(sent)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert b"the same command goes on" in err
    begun = [path.parent for path in workshop.glob("out/runs/*/*/results/*/*/*/config.json")]
    begun = [run for run in begun if can_go_on(run)]  # another one may have been stopped before its first step
    assert begun
    for run in begun:
        assert json.loads((run / "summary.json").read_text())["status"] == "stopped"
    config = CompareConfig(algorithms="ZO", budget_queries=16000, trials=2)
    assert config.entries()
    compare(capsys, *words, "--out", "out")
    again = [path.parent for path in workshop.glob("out/runs/*/*/results/*/*/*/config.json")]
    assert set(begun) <= set(again)
    assert len(again) == 2
    steps = [len((run / "metrics.csv").read_text().splitlines()) for run in again]
    assert steps == [1000 + 1 + 3] * 2  # no row twice, none missing


def test_two_comparisons_in_one_folder(workshop, capsys):
    from zotune.run.lock import FolderLock

    (workshop / "out").mkdir()
    lock = FolderLock(workshop / "out")
    _, err = compare(capsys, "--out", "out", code=2)
    lock.release()
    assert "wait for its end or stop it first" in err


def test_a_file_in_the_place_of_the_folder(workshop, capsys):
    (workshop / "out").write_text("")
    _, err = compare(capsys, "--out", "out", code=2)
    assert "--out out cannot be made" in err


def test_labels_that_matplotlib_and_html_would_read_as_something_else():
    with pytest.raises(ConfigError):
        labelled("ZO --lr $x$,ZO --lr $x$", {})


@pytest.fixture
def finished(workshop, shelf, capsys):
    """The folder of a finished run of ZO, in a comparison with FOSGD; made once, for processes take their time."""
    made = shelf / "compared"
    words = ("--algorithms", "ZO,FOSGD", "--trials", "1", "--budget_queries", "96", "--out", "out")
    if not made.exists():
        compare(capsys, *words)
        shutil.copytree(workshop / "out", made)
    else:
        shutil.copytree(made, workshop / "out")
    return run_folder(workshop / "out/runs/ZO/trial-0")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("metrics.csv", lambda text: text[: len(text) // 2]),
        ("metrics.csv", lambda text: ""),
        ("metrics.csv", lambda text: None),
        ("metrics.csv", lambda text: "\udcff"),
        ("config.json", lambda text: "{"),
    ],
)
def test_finished_runs_whose_files_are_damaged_are_named(finished, capsys, name, damage):
    run = finished
    text = damage((run / name).read_text())
    if text is None:
        (run / name).unlink()
    else:
        (run / name).write_text(text, errors="surrogateescape")
    words = ("--algorithms", "ZO,FOSGD", "--trials", "1", "--budget_queries", "96", "--out", "out")
    _, err = compare(capsys, *words, code=2)
    assert "ZO, trial 0: the files in" in err
    assert "are not as the run wrote them" in err


@pytest.mark.usefixtures("workshop")
def test_another_order_or_spelling_of_the_flags_is_the_same_comparison(capsys):
    begun = ("--algorithms", "ZO,FOSGD", "--trials", "1", "--budget_queries", "96", "--weight_decay", "0.5")
    compare(capsys, *begun, "--clipping", "--out", "out")
    words = ("--clipping", "--weight_decay", "5e-1", "--algorithms", "ZO,FOSGD", "--trials", "01")
    _, err = compare(capsys, *words, "--budget_queries", "96", "--out", "out")
    assert "2 of 2 runs are there already." in err


def test_a_refused_comparison_reserves_no_folder(workshop, capsys):
    compare(capsys, "--algorithms", "ZO", "--trials", "1", "--budget_queries", "3", "--out", "out", code=2)
    compare(capsys, "--algorithms", "ZO", "--trials", "1", "--budget_queries", "32", "--out", "out")


@pytest.mark.usefixtures("finished")
def test_runs_of_somebody_else_are_left_alone(workshop, capsys):
    (workshop / "out/runs/ZO/trial-0/run.json").unlink()
    words = ("--algorithms", "ZO", "--trials", "1", "--budget_queries", "96", "--out", "out")
    _, err = compare(capsys, *words, code=2)
    assert "holds a run that is not known here" in err


def test_a_run_that_is_still_trained_is_waited_for_by_hand(finished, capsys):
    from zotune.run.lock import FolderLock

    run = finished
    (run / "summary.json").unlink()
    lock = FolderLock(run)
    words = ("--algorithms", "ZO", "--trials", "1", "--budget_queries", "96", "--out", "out")
    _, err = compare(capsys, *words, code=2)
    lock.release()
    assert f"is being trained by process {os.getpid()}" in err
    compare(capsys, *words)


@pytest.mark.usefixtures("finished")
def test_first_order_runs_that_were_stopped_begin_again(workshop, capsys):
    run = run_folder(workshop / "out/runs/FOSGD/trial-0")
    (run / "summary.json").write_text(json.dumps({"status": "stopped"}))
    words = ("--algorithms", "ZO,FOSGD", "--trials", "1", "--budget_queries", "96", "--out", "out")
    _, err = compare(capsys, *words)
    assert "1 of 2 runs are there already." in err
    assert not run.exists()


def test_what_a_measured_rate_cost_is_in_the_report(workshop, capsys):
    words = ("--model_name", "embedded", "--algorithms", "ZO --lr auto,LOZO,LOREN --lr 1e-3")
    words = (*words, "--trials", "1", "--evaluations", "2")
    command = ["compare", *words, "--samplesize", "32", "--samplesize_validation", "8", "--budget_queries", "3200"]
    assert main([*command, "--out", "out"]) == 0
    err = capsys.readouterr().err
    assert "The rate of LOREN --lr 1e-3 was given, ZO --lr auto and LOZO measured their own: tune all" in err
    assert re.search(r"took of the budget up to \d\d% of that of ZO --lr auto and \d\d% of that of LOZO, which is", err)
    with (workshop / "out" / "runs.csv").open() as lines:
        seconds = [float(row["seconds"]) for row in csv.DictReader(lines)]
    told = re.findall(r"\] .* in (\d+):(\d\d) of training", err)
    assert [60 * int(m) + int(s) for m, s in told] == pytest.approx(seconds, abs=1.0)  # without the evaluations
    assert main(["sweep", "--algorithms", "ZO", "--runs", "1", "--out", "out"]) == 2
    assert "out is the folder of a comparison; give another --out." in capsys.readouterr().err
    with (workshop / "out" / "runs.csv").open() as lines:
        costs = {row["method"]: float(row["forward_passes"]) for row in csv.DictReader(lines)}
    assert all(3200.0 - 96.0 < cost <= 3200.0 for cost in costs.values())  # a step takes 32, of LOREN 96
    facts = json.loads(
        (run_folder(workshop / "out/runs" / slug("ZO --lr auto") / "trial-0") / "config.json").read_text()
    )
    share = facts["lr_measured"]["forwards"] / 3200
    assert f"took up to {share:.0%} of the budget" in (workshop / "out" / "report.md").read_text()


def test_a_rate_that_cannot_be_measured_does_not_take_the_report_of_the_others(workshop, capsys):
    words = ("--algorithms", "ZO,LOZO --lr auto --perturbation_scale 1e30", "--trials", "1", "--out", "out")
    for _ in range(2):  # it is tried again, and says the same
        out, err = compare(capsys, *words, "--budget_queries", "1600", code=1)
        assert "The loss is nan where --lr auto measures; lower --perturbation_scale" in err
        assert "is not in the report" in err
        assert out == "out/report.html"
    assert "| ZO |" in (workshop / "out" / "report.md").read_text()


def test_costs_in_the_midst_of_a_run_are_where_they_were_made():
    """Six measurements of 20 passes each, before the steps 3, 7, 12, 20, 35 and 55."""
    before = _Before(forwards=1000, later=120, seconds=0.0, steps=100)
    assert sorted(steps_again(100)) == [3, 7, 12, 20, 35, 55]
    assert [before.at(step) for step in (0, 3, 4, 7, 8, 55, 56, 100)] == [880, 880, 900, 900, 920, 980, 1000, 1000]


@pytest.mark.usefixtures("finished")
def test_a_killed_run_is_said_and_the_others_are_reported(capsys, monkeypatch):
    from zotune.compare import running

    real = subprocess.Popen

    def killed(command, **options):
        process = real(command, **options)
        process.kill()
        return process

    monkeypatch.setattr(running.subprocess, "Popen", killed)
    words = ("--algorithms", "ZO,LOZO", "--trials", "1", "--budget_queries", "96", "--out", "out")
    _, err = compare(capsys, *words, code=1)
    assert "LOZO, trial 0 was killed by signal 9" in err
    assert "LOZO, trial 0 is not in the report" in err
    out, err = compare(capsys, "--algorithms", "HiZOO", *words[2:], code=1)
    assert out == ""
