"""Files in every layout and format, bad files by the dozen, row order, the other two sources, and token ids."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import tiny_models
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from zotune.tasks import TASKS, get_task
from zotune.tasks.sources import keyed_order, load_rows, tokenise

ROWS = [{"sentence": f'sentence number {i}, "quoted"', "label": i % 2, "idx": i} for i in range(7)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def load(folder: Path, name: str = "sst2", **options: Any) -> datasets.Dataset:
    return load_rows(get_task(name), options.pop("split", "train"), source=folder, **options)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json", ".csv"])
@pytest.mark.parametrize("place", ["glue/sst2", "my_copies/sst2", "sst2", "."])
def test_every_format_in_every_layout_gives_the_same_rows(tmp_path: Path, suffix: str, place: str) -> None:
    write(tmp_path / place / f"train{suffix}", ROWS)
    rows = load(tmp_path, seed=5)
    assert rows.column_names == ["sentence", "label"]
    order = keyed_order(len(ROWS), 5, "train")
    assert rows["sentence"][:] == [ROWS[i]["sentence"] for i in order]
    assert rows["label"][:] == [ROWS[i]["label"] for i in order]
    assert rows.features["label"].names == ["negative", "positive"]


@pytest.mark.parametrize("stem", ["validation", "validation_matched", "dev", "val", "dev_matched"])
def test_names_of_the_validation_file(tmp_path: Path, stem: str) -> None:
    rows = [{"premise": "a", "hypothesis": "b", "label": 2}]
    write(tmp_path / "mnli" / f"{stem}.jsonl", rows)
    assert load(tmp_path, "mnli", split="validation")["label"][:] == [2]


def test_the_hubs_name_of_the_split_wins_over_another_name(tmp_path: Path) -> None:
    for stem, label in (("validation", 0), ("validation_matched", 1), ("validation_mismatched", 2)):
        write(tmp_path / f"{stem}.jsonl", [{"premise": "a", "hypothesis": "b", "label": label}])
    assert load(tmp_path, "mnli", split="validation")["label"][:] == [1]


def test_shards_are_read_in_order(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / "sst2" / f"train-0000{number}-of-00003.parquet", ROWS[2 * number : 2 * number + 2])
    rows = load(tmp_path, seed=1)
    assert rows["sentence"][:] == [ROWS[i]["sentence"] for i in keyed_order(6, 1, "train")]


def test_the_groups_own_folder_wins_and_two_others_are_refused(tmp_path: Path) -> None:
    row = {"premise": "a", "hypothesis": "b", "label": 0}
    for group in ("one", "two"):
        write(tmp_path / group / "rte" / "train.jsonl", [row])
    with pytest.raises(ValueError, match=r"Task rte is in .*one/rte and in .*two/rte"):
        load(tmp_path, "rte")
    write(tmp_path / "super_glue" / "rte" / "train.jsonl", [{**row, "label": 1}])
    assert load(tmp_path, "rte")["label"][:] == [1]


def test_class_names_and_truth_values_are_labels(tmp_path: Path) -> None:
    write(
        tmp_path / "train.jsonl", [{"sentence": "a", "label": name} for name in ("negative", "Positive", "1", 0, 1.0)]
    )
    rows = {row["label"] for row in load(tmp_path)}
    assert rows == {0, 1}
    texts = [{"question": str(i), "passage": "p", "label": label} for i, label in enumerate((True, False, "True", 0))]
    write(tmp_path / "boolq" / "train.jsonl", texts)
    labels = {row["question"]: row["label"] for row in load(tmp_path, "boolq")}
    assert labels == {"0": 1, "1": 0, "2": 1, "3": 0}


def test_class_names_stored_in_another_order_are_followed(tmp_path: Path) -> None:
    (tmp_path / "sst2").mkdir()
    data = datasets.Dataset.from_dict(
        {"sentence": ["good", "bad"], "label": [0, 1]},
        features=datasets.Features(
            {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["positive", "negative"])}
        ),
    )
    data.to_parquet(tmp_path / "sst2" / "train.parquet")
    assert {row["sentence"]: row["label"] for row in load(tmp_path)} == {"good": 1, "bad": 0}


def test_whole_numbers_of_csv_files_become_integers(tmp_path: Path) -> None:
    row = {
        "text": "He saw him.",
        "span1_text": "He",
        "span1_index": 0,
        "span2_text": "him",
        "span2_index": 2,
        "label": 1,
    }
    write(tmp_path / "wsc" / "train.csv", [row])
    assert load(tmp_path, "wsc")["span2_index"][:] == [2]
    write(tmp_path / "wsc" / "train.csv", [{**row, "span2_index": "two"}])
    with pytest.raises(
        ValueError, match=r"Row 1 of .*wsc/train.csv has 'two' in the column 'span2_index'; give a whole"
    ):
        load(tmp_path, "wsc")


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes("\ufeffsentence,label\nnaïve,1\n".encode())
    assert load(tmp_path)["sentence"][:] == ["naïve"]


def jsonl(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


GOOD = {"sentence": "a", "label": 1}
BAD_FILES = {
    "label -1": ("train.jsonl", jsonl(GOOD, {**GOOD, "label": -1}), "Row 2 of .*train.jsonl has the label -1"),
    "label missing": ("train.jsonl", jsonl(GOOD, {"sentence": "a"}), "Row 2 of .* has no label"),
    "label null": ("train.jsonl", jsonl({**GOOD, "label": None}), "Row 1 of .* has no label"),
    "label NaN": ("train.jsonl", b'{"sentence": "a", "label": NaN}\n', "Row 1 of .* has no label"),
    "label empty": ("train.csv", b"sentence,label\na,\n", "Row 1 of .* has no label"),
    "label too large": ("train.jsonl", jsonl({**GOOD, "label": 2}), "the label 2, which is out of range; give 0 to 1"),
    "label too small": ("train.jsonl", jsonl({**GOOD, "label": -2}), "the label -2, which is out of range"),
    "label not whole": ("train.jsonl", jsonl({**GOOD, "label": 0.5}), "the label 0.5, which is neither"),
    "label infinite": ("train.jsonl", b'{"sentence": "a", "label": Infinity}\n', "the label inf, which is neither"),
    "label true": ("train.jsonl", jsonl({**GOOD, "label": True}), "the label True, which is neither"),
    "label list": ("train.jsonl", jsonl({**GOOD, "label": [1]}), r"the label \[1\], which is neither"),
    "label misspelt": ("train.jsonl", jsonl({**GOOD, "label": "positiv"}), "did you mean 'positive'"),
    "no label column": ("train.csv", b"sentence,labels\na,1\n", r"no column 'label' \(rename 'labels'\?\)"),
    "no text column": (
        "train.csv",
        b"sentense,label\na,1\n",
        r"no column 'sentence' \(rename 'sentense'\?\).* has sens?",
    ),
    "unrelated columns": ("train.csv", b"x,y\na,1\n", "needs sentence, label and the file has x, y"),
    "column twice": ("train.csv", b"sentence,label,label\na,1,1\n", "the column 'label' twice"),
    "too many fields": ("train.csv", b"sentence,label\na,b,1\n", "Line 2 of .* has not the 2 fields of its header"),
    "too few fields": ("train.csv", b"sentence,label\na,1\nb\n", "Line 3 of .* has not the 2 fields"),
    "open quote": ("train.csv", b'sentence,label\n"a,1\n', "cannot be read as csv"),
    "text empty": ("train.csv", b"sentence,label\na,1\n ,1\n", "Row 2 of .* has no text in the column 'sentence'"),
    "text null": ("train.jsonl", jsonl({**GOOD, "sentence": None}), "Row 1 of .* has no text"),
    "text number": ("train.jsonl", jsonl({**GOOD, "sentence": 3}), "has 3 in the column 'sentence'; give text"),
    "empty csv": ("train.csv", b"", "has no rows"),
    "header only": ("train.csv", b"sentence,label\n", "has no rows"),
    "empty jsonl": ("train.jsonl", b"\n\n", "has no rows"),
    "empty list": ("train.json", b"[]", "has no rows"),
    "broken line": ("train.jsonl", jsonl(GOOD) + b'{"sentence": \n', "Line 2 of .* is not a JSON object"),
    "broken json": ("train.json", b'[{"sentence": "a"},\n]', "is not JSON: .* in line 2"),
    "json of lists": ("train.jsonl", b'["a", 1]\n', "Row 1 of .* is not a JSON object"),
    "not utf-8": ("train.csv", b"sentence,label\n\xff\xfe,1\n", "cannot be read as csv"),
    "json nested": ("train.jsonl", b"[" * 100_000 + b"\n", "nested too deeply"),
    "json row nested": ("train.jsonl", b'{"a": ' * 100_000 + b"\n", "nested too deeply"),
    "csv label decimal": (
        "train.csv",
        b"sentence,label\na,1.0\nb,0.5\n",
        "the label '0.5', which is neither",
    ),
    "csv label nan": ("train.csv", b"sentence,label\na,nan\n", "the label 'nan', which is neither"),
    "not parquet": ("train.parquet", b"sentence,label\na,1\n", "cannot be read as parquet"),
    "empty parquet": ("train.parquet", b"", "cannot be read as parquet"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    file, content, sentence = BAD_FILES[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert file in message, "the sentence names the file"
    assert "\n" not in message
    assert message.endswith(".")


def test_a_parquet_file_without_rows_or_of_other_classes_is_refused(tmp_path: Path) -> None:
    parquet.write_table(
        pa.table({"sentence": pa.array([], pa.string()), "label": pa.array([], pa.int64())}), tmp_path / "train.parquet"
    )
    with pytest.raises(ValueError, match="has no rows"):
        load(tmp_path)
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "so-so", "good"])}
    )
    data = datasets.Dataset.from_dict({"sentence": ["a"], "label": [2]}, features=features)
    data.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="has the classes bad, so-so, good and task sst2 has negative, positive"):
        load(tmp_path)


@pytest.mark.parametrize(
    "stored",
    [
        b"{",
        b"\xff",
        b"[]",
        b"null",
        b'{"info": {"features": {"label": [1]}}}',
        b'{"info": {"features": {"label": {"_type": "ClassLabel"}}}}',
        b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": [0, "a"]}}}}',
    ],
)
def test_a_parquet_file_with_damaged_metadata_is_refused(tmp_path: Path, stored: bytes) -> None:
    table = pa.Table.from_pylist(ROWS).replace_schema_metadata({b"huggingface": stored})
    parquet.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"The metadata of .*train\.parquet cannot be read"):
        load(tmp_path)


def test_missing_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no folder .*nowhere; give --data_dir"):
        load(tmp_path / "nowhere")
    write(tmp_path / "sst2" / "train.csv", ROWS)
    with pytest.raises(ValueError, match=r"train\.csv is a file; give --data_dir the folder"):
        load(tmp_path / "sst2" / "train.csv")
    with pytest.raises(ValueError, match=r"No validation file for task sst2 in .*sst2 \(found: train.csv\)"):
        load(tmp_path, split="validation")
    with pytest.raises(ValueError, match=r"No train file for task cb in .*\(found: sst2\); name it train"):
        load(tmp_path, "cb")
    write(tmp_path / "sst2" / "train.jsonl", ROWS)
    with pytest.raises(ValueError, match=r"holds both train\.csv and train\.jsonl; keep the one"):
        load(tmp_path)
    with pytest.raises(ValueError, match="There is no split 'test'"):
        load_rows(get_task("sst2"), "test", source=tmp_path)  # type: ignore[arg-type]


def test_a_larger_limit_warns_and_gives_everything(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    with caplog.at_level(logging.WARNING, "zotune"):
        assert len(load(tmp_path, limit=7)) == 7
        assert not caplog.records
        assert len(load(tmp_path, limit=8)) == 7
    assert caplog.messages == ["Task sst2 has 7 train rows, not 8; using all of them."]
    with pytest.raises(ValueError, match="give at least 1"):
        load(tmp_path, limit=0)


def test_the_order_is_a_pure_function_of_seed_and_split() -> None:
    order = keyed_order(1000, 42, "train")
    assert sorted(order) == list(range(1000))
    assert keyed_order(6, 42, "train").tolist() == [5, 3, 4, 0, 2, 1]
    np.random.seed(1)  # noqa: NPY002 - the point: global state has no influence
    assert np.array_equal(order, keyed_order(1000, 42, "train"))
    for other in (keyed_order(1000, 43, "train"), keyed_order(1000, 42, "validation")):
        assert np.mean(order == other) < 0.02


def test_a_smaller_limit_takes_the_first_rows_of_a_larger(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    everything = load(tmp_path, seed=9)["sentence"][:]
    assert load(tmp_path, seed=9, limit=3)["sentence"][:] == everything[:3]
    assert load(tmp_path, seed=10)["sentence"][:] != everything


def test_nothing_is_written_and_an_edited_file_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = write(tmp_path / "data" / "train.parquet", ROWS)
    os.utime(path, (1, 1))
    path.parent.chmod(0o555)
    try:
        before = load(path.parent)
        tokenise(before, get_task("sst2"), tiny_models.tokenizer(), 32)
        assert [entry.name for entry in path.parent.iterdir()] == ["train.parquet"]
        assert before.cache_files == []
        path.chmod(0o644)
        parquet.write_table(pa.Table.from_pylist([{**row, "label": 1} for row in ROWS]), path)
        os.utime(path, (1, 1))
        assert set(load(path.parent)["label"]) == {1}
        assert not (tmp_path / "cache").exists()
    finally:
        path.parent.chmod(0o755)


def test_the_embedded_generator_is_a_source() -> None:
    for name in ("sst2", "rte", "mnli"):
        task = get_task(name)
        rows = load_rows(task, "train", source="embedded", limit=20, seed=1)
        assert rows.column_names == [*task.columns, "label"]
        assert set(rows["label"]) == set(range(task.num_labels))
        assert rows.to_list() == load_rows(task, "train", source="embedded", limit=20, seed=1).to_list()
    with pytest.raises(ValueError, match="give --samplesize a number"):
        load_rows(get_task("sst2"), "train", source="embedded")


def test_without_the_hub_one_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the hub\nwith many details")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ValueError, match=r"nyu-mll/glue \(sst2, train\) could not be loaded .*--data_dir\.$") as caught:
        load_rows(get_task("sst2"), "train", source="hub")
    assert "\n" not in str(caught.value)


def test_the_hub_is_asked_for_its_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(repository: str, configuration: str, split: str) -> datasets.Dataset:
        asked.append((repository, configuration, split))
        names = ["entailment", "neutral", "contradiction"]
        features = {"premise": datasets.Value("string"), "hypothesis": datasets.Value("string")}
        columns = {"premise": ["a"], "hypothesis": ["b"], "label": [2]}
        return datasets.Dataset.from_dict(
            columns, features=datasets.Features({**features, "label": datasets.ClassLabel(names=names)})
        )

    monkeypatch.setattr(datasets, "load_dataset", answer)
    assert load_rows(get_task("mnli"), "validation", source="hub")["label"][:] == [2]
    assert asked == [("nyu-mll/glue", "mnli", "validation_matched")]


# Token ids


def pair_rows(first: str, second: str) -> datasets.Dataset:
    return datasets.Dataset.from_list([{"premise": first, "hypothesis": second, "label": 1}])


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("lengths", [(40, 3), (3, 40), (40, 40), (1, 40), (40, 1)])
def test_a_long_pair_keeps_both_texts(family: str, lengths: tuple[int, int]) -> None:
    tokenizer = tiny_models.tokenizer(family)
    rows = pair_rows(" ".join(["great"] * lengths[0]), " ".join(["bad"] * lengths[1]))
    great, bad = tokenizer.convert_tokens_to_ids(["great", "bad"])
    special = 3 if family == "bert" else 0
    for longest in (special + 2, special + 3, 16):
        encoded = tokenise(rows, get_task("rte"), tokenizer, longest)
        ids = encoded[0]["input_ids"]
        assert len(ids) <= longest
        first, second = ids.count(great), ids.count(bad)
        # What fits is shared: the shorter text is whole, or both have half of the room.
        room = longest - special
        assert min(first, second) >= min(room // 2, *lengths)
        assert first + second == min(room, sum(lengths))
        assert encoded[0]["attention_mask"] == [1] * len(ids)
        assert encoded[0]["labels"] == 1
    with pytest.raises(ValueError, match=f"leaves no room for the text; give at least {special + 2}"):
        tokenise(rows, get_task("rte"), tokenizer, special + 1)


def test_a_pair_without_separator_gets_a_space() -> None:
    pieces = {character: number for number, character in enumerate("Ġabcdefghijklmnopqrstuvwxyz")}
    inner = Tokenizer(models.BPE(pieces, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    ids = tokenise(pair_rows("one", "two"), get_task("rte"), tokenizer, 16)[0]["input_ids"]
    assert tokenizer.decode(ids) == "one two"


def test_what_the_model_cannot_read_is_cut_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    rows = pair_rows("great " * 200, "bad")
    with caplog.at_level(logging.WARNING, "zotune"):
        encoded = tokenise(rows, get_task("rte"), tiny_models.tokenizer(), 128)
    assert len(encoded[0]["input_ids"]) == 64
    assert caplog.messages == ["The model reads at most 64 tokens; --max_seq_length 128 is lowered to it."]


@pytest.mark.parametrize("name", ["sst2", "rte", "copa", "wsc", "mnli", "trec"])
@pytest.mark.parametrize("style", ["mask", "last"])
def test_a_prompt_loses_words_of_its_texts_only(name: str, style: str) -> None:
    task = TASKS[name]
    tokenizer = tiny_models.tokenizer("bert" if style == "mask" else "gpt2")
    tokenizer.model_max_length = 10_000
    long = " ".join(["great"] * 150)
    row = {column: "cause" if column == "question" else long for column in task.columns}
    row |= {column: 0 for column in task.integers} | {"label": 1}
    rows = datasets.Dataset.from_list([row])
    whole = tokenise(rows, task, tokenizer, 10_000, prompt=style)[0]["input_ids"]
    words = len(whole) - whole.count(tokenizer.convert_tokens_to_ids("great"))
    longest = words + 40
    ids = tokenise(rows, task, tokenizer, longest, prompt=style)[0]["input_ids"]
    assert longest - 8 <= len(ids) <= longest
    if style == "mask":
        assert ids.count(tokenizer.mask_token_id) == 1
    else:
        end = tokenizer(next(text for text, field in task.pieces() if field == "label").rstrip())["input_ids"]
        assert ids[-len(end) :] == end
    with pytest.raises(ValueError, match=re.escape("--max_seq_length 3 is too small for the prompt")):
        tokenise(rows, task, tokenizer, 3, prompt=style)
