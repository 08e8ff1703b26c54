"""Data of a user's own: files, templates, options, conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from command_runs import rows_of, train, workshop
from command_runs import shelf as shelf
from safetensors.torch import load_file

from zotune.cli import main
from zotune.config import ConfigError, TrainConfig
from zotune.tasks.own import OwnData

__all__ = ["workshop"]

TEMPLATE = "Review: {review}\nStars: {stars}"
CHAT_TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
CHAT_TEMPLATE += "{% if add_generation_prompt %}<assistant>{% endif %}"


def reviews(folder: Path, kind: str, count: int = 12) -> str:
    rows = [{"review": f"film {i}", "stars": "good" if i % 2 else "bad"} for i in range(count)]
    path = folder / f"reviews.{kind}"
    if kind == "csv":
        path.write_text("review,stars\n" + "".join(f"{row['review']},{row['stars']}\n" for row in rows))
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def rows(
    data: OwnData, split: Any, limit: int = 4, held_back: int | None = 4, tokenizer: Any = None
) -> list[dict[str, Any]]:
    return data.rows(split, limit=limit, held_back=held_back, seed=0, tokenizer=tokenizer).to_list()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("options", [(), ("bad", "good")])
def test_files_and_a_template_make_a_task(kind: str, options: tuple[str, ...], tmp_path: Path) -> None:
    data = OwnData(train=reviews(tmp_path, kind), template=TEMPLATE, options=options)
    asked, found = data.task().asked, rows(data, "train")
    for row in found:
        stars = "good" if int(row["review"].split()[1]) % 2 else "bad"
        assert asked.solved(row) == f"Review: {row['review']}\nStars: {stars}"
        assert asked.prompt(asked.texts(row)) == f"Review: {row['review']}\nStars:"
        if options:
            assert options[row["label"]] == stars


def test_rows_are_held_back_for_validation(tmp_path: Path) -> None:
    data = OwnData(train=reviews(tmp_path, "csv"), template=TEMPLATE)
    held, taught = rows(data, "validation"), rows(data, "train", limit=100)
    assert (len(held), len(taught)) == (4, 8)
    assert not {row["review"] for row in held} & {row["review"] for row in taught}
    assert rows(data, "train", limit=3) == taught[:3]
    (tmp_path / "more").mkdir()
    other = OwnData(train=data.train, validation=reviews(tmp_path / "more", "jsonl", 3), template=TEMPLATE)
    assert len(rows(other, "train", limit=100)) == 12
    assert len(rows(other, "validation", limit=100)) == 3


@pytest.mark.parametrize(("count", "held_back"), [(12, 2), (3, 1), (300, 60), (1400, 256)])
def test_a_fifth_is_held_back_where_nobody_says_how_many(
    count: int, held_back: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = OwnData(train=reviews(tmp_path, "csv", count), template=TEMPLATE)
    held, taught = (rows(data, split, limit=2000, held_back=None) for split in ("validation", "train"))
    assert (len(held), len(taught)) == (held_back, count - held_back)
    assert not {row["review"] for row in held} & {row["review"] for row in taught}
    assert f"has {count} rows, of which {held_back} are held back for validation; --samples" in caplog.messages[0]
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(("count", "held_back"), [(1, None), (1, 4), (12, 12), (12, 13)])
def test_where_no_row_is_left_to_train_on_it_is_said(count: int, held_back: int | None, tmp_path: Path) -> None:
    data = OwnData(train=reviews(tmp_path, "csv", count), template=TEMPLATE)
    for split in ("train", "validation"):
        with pytest.raises(ValueError, match=r"has (one row|12 rows), and 1?[1234] would be held back for validation;"):
            rows(data, split, held_back=held_back)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"template": "no columns"}, "must end with the column of the answer"),
        ({"template": "{review} then {stars}."}, "must end with the column of the answer"),
        ({"template": "{review} {stars"}, "cannot be read"),
        ({"template": "{review!r} {stars}"}, "plain column names"),
        ({"template": "{review.text} {stars}"}, "plain column names"),
        ({"template": "{stars} {review} {stars}"}, "names the answer 'stars' twice"),
        ({"template": "{stars}"}, "a column of the question"),
        ({"template": None, "options": ("a", "b")}, "--options need a --template"),
        ({"template": "{review} {star}"}, "has no column 'star', which --template names; did you mean 'stars'?"),
        ({"template": "{review} {star}", "options": ("bad", "good")}, "has no column 'star', which --template names"),
        ({"template": "{text} {stars}"}, "has no column 'text'"),
        ({"train": "none.csv"}, "There is no file none.csv"),
        ({"train": __file__}, "is no csv, jsonl, json or parquet file"),
        ({"template": None}, "has no column 'messages'"),
        ({"options": ("poor", "fine")}, "in the column 'stars', which is none of the options poor, fine; change"),
        ({"options": ("bads", "fine")}, "did you mean 'bads'?"),
    ],
)
def test_wrong_data_is_named(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        rows(OwnData(**{"train": reviews(tmp_path, "csv"), "template": TEMPLATE, **change}), "train")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("value", "options", "right"),
    [
        ("2", ("1", "2", "3"), 1),
        (2, ("1", "2", "3"), 1),
        (2.0, ("1", "2", "3"), 1),
        ("2.0", ("1", "2", "3"), 1),
        ("Good", ("bad", "good"), 1),
        (1, ("bad", "good"), 1),
        ("1.0", ("bad", "good"), 1),
        (True, ("false", "true"), 1),
        (0, ("1", "2", "3"), None),
        (2, ("bad", "good"), None),
        (float("inf"), ("bad", "good"), None),
    ],
)
def test_an_answer_is_an_option_by_its_text_or_where_none_is_a_number_by_its_place(
    value: Any, options: tuple[str, ...], right: int | None, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"review": "a", "stars": value}))
    data = OwnData(train=str(tmp_path / "a.jsonl"), template=TEMPLATE, options=options)
    if right is None:
        with pytest.raises(ValueError, match=r"Row 1 of .* in the column 'stars', which is none of the options"):
            rows(data, "train", held_back=0)
    else:
        assert rows(data, "train", held_back=0)[0]["label"] == right


def test_a_row_without_an_answer_is_named(tmp_path: Path) -> None:
    for options in ((), ("bad", "good")):
        (tmp_path / "a.csv").write_text("review,stars\na,good\nb,\n")
        with pytest.raises(ValueError, match=r"Row 2 of .* has nothing in the column 'stars'"):
            rows(OwnData(train=str(tmp_path / "a.csv"), template=TEMPLATE, options=options), "train", held_back=0)


# ------------------------------------------------------------------------------------- conversations


def talks(folder: Path, *, last: str = "assistant") -> str:
    talk = [[{"role": "user", "content": f"say {i}"}, {"role": last, "content": f"{i}!"}] for i in range(6)]
    path = folder / "talks.jsonl"
    path.write_text("\n".join(json.dumps({"messages": messages}) for messages in talk))
    return str(path)


def chatting() -> Any:
    tokenizer = tiny_models.tokenizer("llama")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def test_conversations_become_prompts_by_the_chat_template(tmp_path: Path) -> None:
    data = OwnData(train=talks(tmp_path))
    (row,) = rows(data, "validation", limit=1, held_back=1, tokenizer=chatting())
    asked, number = data.task().asked, row["right_answers"][0][:-1]
    assert asked.prompt(asked.texts(row)) == f"<user>say {number}</><assistant>"
    assert asked.trained is not None
    assert asked.trained(row) == f"{number}!</>"
    assert list(asked.gold(row)) == [f"{number}!"]


def test_wrong_conversations_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must end with the role 'assistant'"):
        rows(OwnData(train=talks(tmp_path, last="user")), "train", tokenizer=chatting())
    with pytest.raises(ValueError, match="has no chat template"):
        rows(OwnData(train=talks(tmp_path)), "train", tokenizer=tiny_models.tokenizer("llama"))
    (tmp_path / "bad.jsonl").write_text('{"messages": "hello"}')
    with pytest.raises(ValueError, match="has no conversation"):
        rows(OwnData(train=str(tmp_path / "bad.jsonl")), "train", held_back=0, tokenizer=chatting())


# ------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("words", [["--options", "bad,good"], [], ["--objective", "f1"]])
def test_a_run_on_data_of_ones_own(words: list[str], capsys: Any, workshop: Any) -> None:
    del workshop
    own = ["--train_file", reviews(Path(), "csv"), "--template", TEMPLATE, "--samplesize_validation", "4"]
    given = [
        "train",
        "--model_name",
        "../model",
        "--device",
        "cpu",
        "--batchsize",
        "4",
        "--epochs",
        "1",
        "--lr",
        "1e-3",
    ]
    given += ["--max_seq_length", "40", "--max_new_tokens", "3", "--algorithm", "LOZO"]
    assert main([*given, *own, *words]) == 0
    run = Path(capsys.readouterr().out.strip())
    assert run.parts[:3] == ("results", "model", "own")
    assert len(rows_of(run, "train")) == 2
    assert main(["evaluate", "../model", *own, "--device", "cpu", *(words if "--options" in words else [])]) == 0
    assert "own" in capsys.readouterr().out


def test_a_new_head_learns_the_options_of_own_data(capsys: Any, workshop: Any) -> None:
    del workshop
    rows = ["--train_file", reviews(Path(), "csv"), "--template", TEMPLATE, "--samplesize_validation", "4"]
    asked = [*rows, "--options", "bad,good", "--max_seq_length", "24", "--device", "cpu"]
    given = ["train", "--model_name", "../model", "--batchsize", "4", "--lr", "1e-3", "--algorithm", "ZO"]
    assert main([*given, *asked, "--objective", "classes", "--epochs", "1", "--save_ckpt"]) == 0
    run = Path(capsys.readouterr().out.strip())
    assert list(json.loads((run / "last/config.json").read_text())["id2label"].values()) == ["bad", "good"]
    assert main(["evaluate", str(run / "last"), *asked, "--output", "told.json"]) == 0
    told = json.loads(Path("told.json").read_text())
    assert told["way"] == "own head"
    assert told["scores"]["loss"] == pytest.approx(float(rows_of(run, "eval")[-1]["loss"]), abs=1e-6)
    assert main(["replay", "../model", str(run), "--out", "again", "--device", "cpu"]) == 0
    assert "the weights have the digest" in capsys.readouterr().err
    assert main([*given, *rows, "--device", "cpu", "--objective", "classes"]) == 2
    assert "Without --options the answers of --train_file are written" in capsys.readouterr().err


def test_rows_to_be_asked_are_enough_for_evaluate(capsys: Any, workshop: Any) -> None:
    del workshop
    asked = ["--template", TEMPLATE, "--options", "bad,good", "--device", "cpu", "--samplesize_validation", "100"]
    rows = ["--validation_file", reviews(Path(), "csv")]
    assert main(["evaluate", "../model", *rows, *asked, "--output", "alone.json"]) == 0
    assert main(["evaluate", "../model", *rows, "--train_file", rows[1], *asked, "--output", "both.json"]) == 0
    alone, both = (json.loads(Path(name).read_text()) for name in ("alone.json", "both.json"))
    assert alone == both
    capsys.readouterr()
    assert main(["evaluate", "../model", *rows, *asked[:-2]]) == 0
    assert "not 256" not in capsys.readouterr().err  # which nobody asked for
    assert main(["evaluate", "../model", *rows, *asked, "--demonstrations", "1"]) == 2
    assert "--demonstrations are rows of --train_file; give it too" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--template", "{a} {b}"], "--template belongs to --train_file"),
        (["--train_file", "x.csv", "--template", "{a} {b}"], "--data_dir belongs to --task"),
    ],
)
def test_wrong_combinations_are_named(words: list[str], sentence: str, capsys: Any, workshop: Any) -> None:
    del workshop
    _, said = train(capsys, *words, code=2)
    assert sentence in said


@pytest.mark.parametrize("options", ["1", "1,1", "1,,2", ",", ""])
def test_options_are_two_or_more_different_texts(options: str) -> None:
    with pytest.raises(
        ConfigError, match=r"^--options takes two or more different answers, such as no,yes, not '.*'\.$"
    ):
        TrainConfig(train_file="x.csv", template="{a} {b}", options=options).validate()


def test_label_words_of_own_data_need_a_template_and_options() -> None:
    with pytest.raises(ConfigError, match="needs --template and --options with it"):
        TrainConfig(train_file="x.csv", template="{a} {b}", soft_prompt=True).validate()


WORDS = ["--options", "bad,good", "--soft_prompt", "--train_file", "pairs.csv", "--algorithm", "ZO"]


def few_shot_rows(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    lines = [f"the {n},was {n},{'good' if n % 2 else 'bad'}" for n in range(20)]
    Path("pairs.csv").write_text("\n".join(["first,second,label", *lines]))
    tiny_models.save(Path("masked"), family)
    few = ("--model_name", "masked", "--samplesize_validation", "6", "--batchsize", "4", "--device", "cpu")
    monkeypatch.setattr("command_runs.TINY", (*few, "--epochs", "1", "--lr", "1e-3"))


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{first} It was {label}.", "[CLS] the 1 It was [MASK] . [SEP]"),
        ("{first}? {label}, {second}", "[CLS] the 1 ? [MASK] , was 1 [SEP]"),
        ("{label}: {first}", "[CLS] [MASK] : the 1 [SEP]"),
    ],
)
def test_a_masked_model_is_trained_on_own_data_in_words(
    template: str, words: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_shot_rows(monkeypatch, "roberta")
    run, _ = train(capsys, *WORDS, "--template", template, "--shots", "3", "--save_ckpt")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["test"]["examples"] == 6
    task = TrainConfig(train_file="pairs.csv", template=template, options="bad,good", soft_prompt=True).chosen_task()
    row = {"first": "the 1", "second": "was 1"}
    before, after = task.prompt(task.fields(row, "mask"), "mask")
    tokenizer = tiny_models.tokenizer("roberta")
    assert tokenizer(f"{before}[MASK]{after}")["input_ids"] == tokenizer(words, add_special_tokens=False)["input_ids"]
    assert main(["replay", "masked", str(run / "trajectory.zo"), "--out", "again", "--device", "cpu"]) == 0
    first, second = load_file(run / "last" / "model.safetensors"), load_file("again/model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("workshop")
def test_own_label_words_of_a_causal_model_end_the_template(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    few_shot_rows(monkeypatch, "gpt2")
    train(capsys, *WORDS, "--template", "{first} It was {label}.", "--samplesize", "8")
    _, said = train(capsys, *WORDS, "--template", "{first}? {label}, {second}", "--samplesize", "8", code=2)
    assert "A causal model reads --template up to the answer; end it with that, or leave --soft_prompt out." in said
