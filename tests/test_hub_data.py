"""Data sets of the hub as data of one's own, without the hub: folders that the library `datasets` opens by name, and
the errors that it raises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from command_runs import shelf as shelf
from command_runs import workshop
from datasets.exceptions import DatasetNotFoundError

from zotune.cli import main
from zotune.tasks.own import OwnData

__all__ = ["workshop"]

TEMPLATE = "{review} {stars}"
CONFIGURATIONS = """---
configs:
- config_name: films
  data_files:
  - {split: train, path: films.jsonl}
- config_name: books
  data_files:
  - {split: train, path: books.jsonl}
  - {split: validation, path: more.jsonl}
---
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def reviews(path: Path, count: int, word: str = "film") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"review": f"{word} {n}", "stars": "good" if n % 2 else "bad"} for n in range(count)]
    path.write_text("\n".join(map(json.dumps, rows)))


def rows(data: OwnData, split: Any, *, limit: int = 100, held_back: int = 3) -> list[dict[str, Any]]:
    return data.rows(split, limit=limit, held_back=held_back, seed=0, tokenizer=None).to_list()  # type: ignore[arg-type]


def test_a_data_set_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reviews(Path("me/reviews/train.jsonl"), 10)
    reviews(Path("me/reviews/validation.jsonl"), 4, "book")
    data = OwnData(train="me/reviews", template=TEMPLATE, options=("bad", "good"))
    taught, held = rows(data, "train"), rows(data, "validation")
    assert {row["review"] for row in taught} == {f"film {n}" for n in range(10)}
    assert {row["review"] for row in held} == {f"book {n}" for n in range(4)}
    assert all(row["label"] == int(row["review"].split()[1]) % 2 for row in taught)


def test_configurations_and_a_data_set_without_validation_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, count in (("films", 10), ("books", 5), ("more", 2)):
        reviews(Path(f"me/both/{name}.jsonl"), count, name)
    Path("me/both/README.md").write_text(CONFIGURATIONS)
    films = OwnData(train="me/both:films", template=TEMPLATE)
    taught, held = rows(films, "train"), rows(films, "validation")
    assert (len(taught), len(held)) == (7, 3)
    assert not {row["review"] for row in taught} & {row["review"] for row in held}
    books = OwnData(train="me/both:books", template=TEMPLATE)
    assert {row["review"] for row in rows(books, "validation")} == {"more 0", "more 1"}
    other = OwnData(train="me/both:films", validation="me/both:books", template=TEMPLATE)
    assert (len(rows(other, "train")), len(rows(other, "validation"))) == (10, 2)
    for name, said in (("me/both", "(default)"), ("me/both:plays", "(plays)")):
        with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
            rows(OwnData(train=name, template=TEMPLATE), "train")
        wanted = f"me/both {said} is no configuration of me/both; give one of films, books as me/both:CONFIGURATION."
        assert str(caught.value) == wanted


def give(monkeypatch: pytest.MonkeyPatch, names: list[str], numbers: list[int]) -> None:
    features = {"review": datasets.Value("string"), "stars": datasets.ClassLabel(names=names)}
    columns = {"review": [f"film {n}" for n in numbers], "stars": numbers}
    data = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(train=data, validation=data))


@pytest.mark.parametrize(
    ("options", "labels"),
    [(("bad", "good"), [0, 1, 1]), (("good", "bad"), [1, 0, 0]), (("terrible", "great"), [0, 1, 1])],
)
def test_classes_are_options_by_name_or_by_number(
    options: tuple[str, ...], labels: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, ["bad", "good"], [0, 1, 1])
    found = rows(OwnData(train="me/x", template=TEMPLATE, options=options), "train")
    assert sorted(row["label"] for row in found) == sorted(labels)
    assert {row["label"] for row in found if row["review"] == "film 0"} == {labels[0]}


def test_classes_that_are_written_are_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, ["bad", "good"], [0, 1])
    found = rows(OwnData(train="me/x", template=TEMPLATE), "train")
    assert sorted(row["right_answers"] for row in found) == [["bad"], ["good"]]


ERRORS: dict[str, tuple[Exception, str]] = {
    "no such name": (DatasetNotFoundError("Dataset 'me/x' doesn't exist"), "There is no data set me/x on the Hugging"),
    "gated": (
        DatasetNotFoundError("Dataset 'me/x' is a gated dataset on the Hub. You must be authenticated."),
        "me/x is a gated data set; ask for access on its page and set the environment variable HF_TOKEN.",
    ),
    "offline": (
        ConnectionError("Couldn't reach 'me/x'\nfor many reasons"),
        "me/x (default) could not be loaded from the Hugging Face hub (ConnectionError); connect to the network, or",
    ),
    "a script": (
        RuntimeError("Dataset scripts are no longer supported, but found x.py"),
        "me/x (default) could not be loaded (Dataset scripts are no longer supported, but found x.py); give files.",
    ),
}


@pytest.mark.parametrize(("error", "sentence"), ERRORS.values(), ids=ERRORS)
def test_what_the_hub_says_is_one_sentence_and_code_2(
    error: Exception, sentence: str, capsys: Any, monkeypatch: pytest.MonkeyPatch, workshop: Any
) -> None:
    del workshop

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    words = ["--model_name", "../model", "--train_file", "me/x", "--template", TEMPLATE, "--device", "cpu"]
    for command in ("train", "evaluate"):
        assert main([command, *words]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert sentence in err
        assert len(err.strip().splitlines()) == 1


def test_a_column_that_the_data_set_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, ["bad", "good"], [0, 1])
    with pytest.raises(ValueError, match=r"^me/x \(train\) has no column 'star', .*did you mean 'stars'\?$"):
        rows(OwnData(train="me/x", template="{review} {star}"), "train")
    with pytest.raises(ValueError, match=r"^me/x \(train\) has no column 'text', .*it has review, stars\.$"):
        rows(OwnData(train="me/x", template="{text} {stars}"), "train")


def test_a_run_on_a_data_set_by_name(capsys: Any, workshop: Any) -> None:
    del workshop
    reviews(Path("me/reviews/train.jsonl"), 10)
    own = ["--train_file", "me/reviews", "--template", TEMPLATE, "--options", "bad,good"]
    few = ["--samplesize_validation", "2", "--device", "cpu", "--model_name", "../model"]
    assert main(["train", *few, *own, "--samplesize", "4", "--epochs", "1", "--algorithm", "ZO"]) == 0
    assert Path(capsys.readouterr().out.strip()).parts[:3] == ("results", "model", "own")
    assert main(["evaluate", *few, *own]) == 0
