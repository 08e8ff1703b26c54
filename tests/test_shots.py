"""--shots: so many examples of each class to train on, as many to choose the model by, and the validation split in the
end."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import command_runs
import pytest
import torch
from command_runs import rows_of, train, workshop
from command_runs import shelf as shelf
from transformers import AutoModelForSequenceClassification

from zotune.cli import main
from zotune.hf.models import load_tokenizer
from zotune.run import training
from zotune.tasks import get_task
from zotune.tasks.demonstrations import of_each_class

__all__ = ["workshop"]

FEW = ["--shots", "3", "--batchsize", "3", "--algorithm", "ZO"]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The sets of rows of each run."""
    sets_of_runs: list[tuple[Any, ...]] = []
    real = training.rows_digest

    def seen(*sets: Any) -> str:
        sets_of_runs.append(sets)
        return real(*sets)

    monkeypatch.setattr(training, "rows_digest", seen)
    return sets_of_runs


def test_classes_are_counted_in_the_order_of_the_rows() -> None:
    task = get_task("cb")
    assert of_each_class(task, [0, 0, 1, 2, 0, 1, 2, 2, 1, 0], 1) == ([0, 2, 3], [1, 5, 6])


def test_classes_with_fewer_rows_give_what_they_have(caplog: pytest.LogCaptureFixture) -> None:
    task = get_task("cb")
    assert of_each_class(task, [0, 1, 2, 0, 1, 0, 0, 0], 2) == ([0, 1, 2, 3, 4], [5, 6])
    assert [record.getMessage() for record in caplog.records] == [
        "There are fewer than 4 training rows of some classes (2 of contradiction, 1 of neutral); all of them are"
        " taken, at most 2 of a class to train on and the others to choose the model by."
    ]
    with pytest.raises(ValueError, match=r"^There is no training row of the class contradiction, neutral, so --shots"):
        of_each_class(task, [0, 0], 1)
    with pytest.raises(
        ValueError, match=r"^No class has more than 2 training rows, so --shots 2 leaves none to choose"
    ):
        of_each_class(task, [0, 1, 2, 0], 2)


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize("source", ["folder", "embedded", "own"])
def test_so_many_examples_of_each_class(source: str, capsys: Any, monkeypatch: Any, taken: list[Any]) -> None:
    words = {
        "folder": [],
        "embedded": ["--model_name", "embedded"],
        "own": ["--train_file", "../data/train.csv", "--template", "{sentence} It was {label}", "--options", "0,1"],
    }[source]
    if source != "folder":
        without = tuple(word for word in command_runs.TINY if word not in ("--data_dir", "../data"))
        monkeypatch.setattr("command_runs.TINY", without)
    for seed in (13, 13, 21):
        train(capsys, *words, *FEW, "--init_seed", str(seed))
    column = "prompt" if source == "own" else "input_ids"
    read = []
    for taught, held, test in taken:
        assert sorted(taught["labels"]) == sorted(held["labels"]) == [0, 0, 0, 1, 1, 1]
        assert len(test) == 8
        ids = [[tuple(row) for row in rows[column]] for rows in (taught, held, test)]
        assert not set(ids[0]) & set(ids[1])
        if source == "own":  # whose validation rows are of the same file
            assert not set(ids[2]) & {*ids[0], *ids[1]}
        read.append(ids)
    assert read[0] == read[1]
    assert read[0][0] != read[2][0]
    assert read[0][1] != read[2][1]


@pytest.mark.usefixtures("workshop")
def test_too_few_examples_of_a_class(capsys: Any) -> None:
    _, said = train(capsys, "--shots", "12", code=2)
    sentence = "No class has more than 12 training rows, so --shots 12 leaves none to choose the model by;"
    assert f"{sentence} give fewer --shots or more data." in said
    run, said = train(capsys, "--shots", "10", "--algorithm", "ZO", "--epochs", "1")
    assert "fewer than 20 training rows of some classes (12 of negative, 12 of positive); all of them are taken" in said
    facts = json.loads((run / "config.json").read_text())
    assert (facts["train_examples"], facts["validation_examples"], facts["test_examples"]) == (20, 4, 8)
    _, said = train(capsys, "--shots", "0", code=2)
    assert "--shots must be at least 1, not 0." in said
    _, said = train(capsys, "--shots", "2", "--task", "squad", code=2)
    assert "there are no classes here; give --samplesize." in said


def sentences(folder: Path) -> None:
    """Rows of which a random model gets some right: the words of a class are not those of the other."""
    folder.mkdir()
    for split, rows in (("train", 40), ("validation", 30)):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            lines = [[f"{'good' if n % 2 else 'bad'} {n * 37 % 101} the was", n % 2] for n in range(rows)]
            csv.writer(file).writerows([["sentence", "label"], *lines])


def summary_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def accuracy_in_words(folder: Path) -> float:
    words = ["--task", "sst2", "--data_dir", "rows", "--samplesize_validation", "30", "--device", "cpu"]
    assert main(["evaluate", str(folder), *words, "--init_seed", "42", "--output", "scores.json"]) == 0
    return float(json.loads(Path("scores.json").read_text())["scores"]["accuracy"])


def accuracy_of_head(folder: Path) -> float:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = load_tokenizer(str(folder))
    with Path("rows/validation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with torch.no_grad():
        chosen = [int(model(**tokenizer(row["sentence"], return_tensors="pt")).logits.argmax()) for row in rows]
    return sum(str(number) == row["label"] for number, row in zip(chosen, rows, strict=True)) / len(rows)


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize("objective", ["classes", "options"])
def test_the_best_model_is_scored_in_the_end(objective: str, capsys: Any) -> None:
    sentences(Path("rows"))
    words = ["--data_dir", "rows", "--samplesize_validation", "30", "--objective", objective, "--full_parameter"]
    run, said = train(capsys, *words, *FEW, "--lr", "0.03", "--epochs", "12", "--save_ckpt")
    summary = summary_of(run)
    test = summary["test"]
    scored = accuracy_of_head if objective == "classes" else accuracy_in_words
    expected = {name: scored(run / name) for name in ("best", "last")}
    assert expected["best"] != expected["last"], "a run in which the choice of the model is seen"
    assert test["accuracy"] == pytest.approx(expected["best"])
    assert (test["weights"], test["step"], test["examples"]) == ("best", summary["best"]["step"], 30)
    assert test["step"] < summary["final"]["step"]
    assert test["loss"] > 0
    assert f"test accuracy {test['accuracy']:.4f} on 30 rows, best weights" in said
    assert len(rows_of(run, "eval")) == 13, "the test rows are no evaluation of the run"


@pytest.mark.usefixtures("workshop")
def test_the_last_model_is_scored_where_none_is_kept(capsys: Any) -> None:
    run, said = train(capsys, *FEW)
    summary = summary_of(run)
    assert summary["test"]["weights"] == "last"
    assert summary["test"]["step"] == summary["final"]["step"] == summary["steps"]
    assert summary["test"]["examples"] == 8
    assert "last weights" in said
    assert summary["settings"]["validation_examples"] == 6
    assert summary["settings"]["test_examples"] == 8
    run, said = train(capsys, "--algorithm", "ZO")
    assert "test" not in summary_of(run)
    assert "test accuracy" not in said


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize("more", [["--algorithm", "FOAdam"], ["--tuning", "lora", "--lora_rank", "2"]], ids=str)
def test_other_ways_to_train_end_with_the_test_too(more: list[str], capsys: Any) -> None:
    run, _ = train(capsys, *FEW, *more, "--save_ckpt")
    first = summary_of(run)["test"]
    assert first["weights"] == "best"
    (run / "summary.json").unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert summary_of(run)["test"] == first


@pytest.mark.usefixtures("workshop")
def test_a_run_that_does_not_end_has_no_test_score(capsys: Any) -> None:
    run, _ = train(capsys, *FEW, "--lr", "1e30", code=3)
    summary = summary_of(run)
    assert summary["status"] != "finished"
    assert summary["test"] is None


# ------------------------------------------------------------------------------------- --samplesize_dev


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize("source", ["folder", "embedded", "own", "written"])
def test_rows_are_held_back_without_counting_classes(source: str, capsys: Any, monkeypatch: Any, taken: Any) -> None:
    own = ["--train_file", "../data/train.csv", "--template", "{sentence} It was {label}", "--max_new_tokens", "2"]
    words = {
        "folder": [],
        "embedded": ["--model_name", "embedded"],
        "own": [*own, "--options", "0,1"],
        "written": own,
    }[source]
    if source != "folder":
        without = tuple(word for word in command_runs.TINY if word not in ("--data_dir", "../data"))
        monkeypatch.setattr("command_runs.TINY", without)
    runs = [
        train(capsys, *words, "--samplesize", "7", *more, "--algorithm", "ZO", "--epochs", "1")[0]
        for more in (["--samplesize_dev", "5"], ["--samplesize_dev", "5"], [])
    ]
    column = "prompt" if source in ("own", "written") else "input_ids"
    ids = [[[tuple(row) for row in rows[column]] for rows in sets] for sets in taken]
    taught, held, test = ids[0]
    assert (len(taught), len(held), len(test)) == (7, 5, 8)
    assert not set(taught) & set(held)
    if column == "prompt":  # whose validation rows are of the same file
        assert not set(test) & {*taught, *held}
    assert ids[0] == ids[1]
    assert ids[2] == [taught, test], "the flag changes neither the training nor the validation rows"
    facts = [json.loads((run / "config.json").read_text()) for run in runs]
    assert facts[0]["test_examples"] == summary_of(runs[0])["test"]["examples"] == 8
    assert "test" not in summary_of(runs[2])


@pytest.mark.usefixtures("workshop")
def test_the_model_that_the_held_back_rows_chose_is_scored_in_the_end(capsys: Any) -> None:
    sentences(Path("rows"))
    words = ["--data_dir", "rows", "--samplesize", "8", "--samplesize_dev", "6", "--samplesize_validation", "30"]
    run, _ = train(
        capsys, *words, "--full_parameter", "--algorithm", "ZO", "--lr", "0.03", "--epochs", "12", "--save_ckpt"
    )
    test = summary_of(run)["test"]
    assert test["weights"] == "best"
    chosen = {int(row["step"]): float(row["accuracy"]) for row in rows_of(run, "eval")}[test["step"]]
    assert chosen == pytest.approx(summary_of(run)["best"]["accuracy"])
    assert test["accuracy"] == pytest.approx(accuracy_of_head(run / "best"))
    (run / "summary.json").unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert summary_of(run)["test"] == test


@pytest.mark.usefixtures("workshop")
def test_a_small_training_split_keeps_the_held_back_rows(capsys: Any) -> None:
    run, said = train(capsys, "--samplesize_dev", "10", "--algorithm", "ZO")
    assert "Task sst2 has 24 train rows, not 34" in said
    facts = json.loads((run / "config.json").read_text())
    assert (facts["train_examples"], facts["validation_examples"]) == (14, 10)
    _, said = train(capsys, "--samplesize_dev", "24", code=2)
    assert "There are 24 training rows, of which --samplesize_dev holds 24 back; give fewer." in said
