"""What `zotune evaluate` writes: the score of every option, and several seeds with their mean and deviation."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from command_runs import shelf as shelf
from command_runs import workshop

from zotune.cli import main

__all__ = ["workshop"]


def told(*words: str, capsys: Any, code: int = 0) -> tuple[dict[str, Any], str, str]:
    given = ["evaluate", "../model", "--data_dir", "../data", "--samplesize_validation", "8", "--device", "cpu"]
    assert main([*given, "--output", "told.json", *words]) == code
    out, err = capsys.readouterr()
    return json.loads(Path("told.json").read_text()) if code == 0 else {}, out, err


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize("words", [[], ["--calibrate"], ["--demonstrations", "2", "--calibrate"]])
def test_the_scores_of_the_options_are_those_that_are_compared(words: list[str], capsys: Any) -> None:
    facts, _, _ = told(*words, capsys=capsys)
    assert facts["options"] == [["terrible", "great"]] * 8
    zero = [[0.0, 0.0]] * 8
    without = facts.get("without_content", zero)
    assert ("without_content" in facts) == ("--calibrate" in words)
    assert all(score < 0 for row in facts["option_scores"] for score in row)
    loss = 0.0
    for number, row in enumerate(facts["option_scores"]):
        compared = [a - b for a, b in zip(row, without[number], strict=True)]
        loss += math.log(sum(map(math.exp, compared))) - compared[facts["right"][number][0]]
        assert facts["answers"][number] == compared.index(max(compared))
        assert facts["texts"][number] == facts["options"][number][facts["answers"][number]]
    assert facts["scores"]["loss"] == pytest.approx(loss / 8)


@pytest.mark.usefixtures("workshop")
def test_written_answers_have_no_options(capsys: Any) -> None:
    Path("q.jsonl").write_text("\n".join(f'{{"a": "x {n}", "b": "y"}}' for n in range(4)))
    words = ["evaluate", "../model", "--train_file", "q.jsonl", "--template", "{a}: {b}", "--device", "cpu"]
    assert main([*words, "--samplesize_validation", "2", "--max_new_tokens", "3", "--output", "q.json"]) == 0
    facts = json.loads(Path("q.json").read_text())
    assert len(facts["texts"]) == 2
    assert not facts.keys() & {"options", "option_scores", "without_content"}


@pytest.mark.usefixtures("workshop")
def test_several_seeds_are_those_runs_one_by_one_and_their_mean_and_deviation(capsys: Any) -> None:
    words = ["--demonstrations", "2", "--samplesize_validation", "7"]
    alone = [told(*words, "--init_seed", seed, capsys=capsys)[0] for seed in ("13", "21", "42")]
    facts, out, _ = told(*words, "--seeds", "13,21,42", capsys=capsys)
    for one, own in zip(facts["seeds"], alone, strict=True):
        assert one == {name: own[name] for name in one}
        assert f"{own['scores']['accuracy']:.4f}" in out
    assert [one["seed"] for one in facts["seeds"]] == [13, 21, 42]
    assert len({json.dumps(one["option_scores"]) for one in facts["seeds"]}) == 3
    assert facts["scores"].keys() == facts["deviations"].keys() == {"accuracy", "loss"}
    for metric in ("loss", "accuracy"):
        values = [one["scores"][metric] for one in alone]
        assert facts["scores"][metric] == pytest.approx(statistics.fmean(values))
        assert facts["deviations"][metric] == pytest.approx(statistics.stdev(values))
    assert f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}" in out
    single, _, _ = told(*words, "--seeds", "13", capsys=capsys)
    assert single == alone[0]


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize(
    ("seeds", "sentence"),
    [
        ("13;21", "--seeds takes whole numbers, such as 13,21,42, not '13;21'."),
        ("13,", "--seeds takes whole numbers, such as 13,21,42, not '13,'."),
        ("-1", "--seeds takes whole numbers, such as 13,21,42, not '-1'."),
        ("1,2,1", "--seeds 1,2,1 names a seed twice; leave one of them out."),
        (str(2**63), "must be below 2**63"),
    ],
)
def test_wrong_seeds_are_named(seeds: str, sentence: str, capsys: Any) -> None:
    _, out, err = told("--seeds", seeds, capsys=capsys, code=2)
    assert out == ""
    assert sentence in err
