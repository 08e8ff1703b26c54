"""Every task read from the hub, without the hub: features, split names and rows as the public releases have them.

The releases are written down here from their data set cards and loading scripts, not downloaded.
"""

from __future__ import annotations

import logging
from typing import Any

import datasets
import pyarrow.parquet as parquet
import pytest
from datasets import ClassLabel, Features, List, Value
from datasets.exceptions import DatasetNotFoundError

from zotune.tasks import TASKS, get_task
from zotune.tasks.base import Task
from zotune.tasks.sources import load_rows

TEXT, NUMBER = Value("string"), Value("int32")
USUAL = ("train", "validation", "test")
ENTAILMENT = ["entailment", "neutral", "contradiction"]
TRUTH = ClassLabel(names=["False", "True"])
FINE = ["ABBR:abb", "ABBR:exp", "ENTY:animal", "HUM:ind"]

GLUE: dict[str, tuple[str, ...]] = {
    "sst2": ("negative", "positive"),
    "cola": ("unacceptable", "acceptable"),
    "mrpc": ("not_equivalent", "equivalent"),
    "qnli": ("entailment", "not_entailment"),
    "mnli": tuple(ENTAILMENT),
}


def glue(name: str, *columns: str) -> dict[str, Any]:
    return {**dict.fromkeys(columns, TEXT), "label": ClassLabel(names=list(GLUE[name])), "idx": NUMBER}


SPANS = List({"text": TEXT, "start": NUMBER, "end": NUMBER})

# task -> repository, configuration, features, a row (label and idx are put in), names of the splits
HUB: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "sst2": ("nyu-mll/glue", "sst2", glue("sst2", "sentence"), {"sentence": "a fine film "}, USUAL),
    "cola": ("nyu-mll/glue", "cola", glue("cola", "sentence"), {"sentence": "She slept."}, USUAL),
    "mrpc": (
        "nyu-mll/glue",
        "mrpc",
        glue("mrpc", "sentence1", "sentence2"),
        {"sentence1": "He ran .", "sentence2": "He has run ."},
        USUAL,
    ),
    "qnli": (
        "nyu-mll/glue",
        "qnli",
        glue("qnli", "question", "sentence"),
        {"question": "Who ran?", "sentence": "He ran."},
        USUAL,
    ),
    "mnli": (
        "nyu-mll/glue",
        "mnli",
        glue("mnli", "premise", "hypothesis"),
        {"premise": "He ran.", "hypothesis": "He moved."},
        ("train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched"),
    ),
    "rte": (
        "aps/super_glue",
        "rte",
        {
            "premise": TEXT,
            "hypothesis": TEXT,
            "idx": NUMBER,
            "label": ClassLabel(names=["entailment", "not_entailment"]),
        },
        {"premise": "He ran.", "hypothesis": "He moved."},
        USUAL,
    ),
    "cb": (
        "aps/super_glue",
        "cb",
        {
            "premise": TEXT,
            "hypothesis": TEXT,
            "idx": NUMBER,
            "label": ClassLabel(names=["entailment", "contradiction", "neutral"]),
        },
        {"premise": "He ran.", "hypothesis": "He moved."},
        USUAL,
    ),
    "boolq": (
        "aps/super_glue",
        "boolq",
        {"question": TEXT, "passage": TEXT, "idx": NUMBER, "label": TRUTH},
        {"question": "did he run", "passage": "He ran."},
        USUAL,
    ),
    "wic": (
        "aps/super_glue",
        "wic",
        {
            **dict.fromkeys(("word", "sentence1", "sentence2"), TEXT),
            **dict.fromkeys(("start1", "start2", "end1", "end2", "idx"), NUMBER),
            "label": TRUTH,
        },
        {
            "word": "place",
            "sentence1": "Do you want to come to my place?",
            "sentence2": "A place.",
            "start1": 26,
            "start2": 2,
            "end1": 31,
            "end2": 7,
        },
        USUAL,
    ),
    "wsc": (
        "aps/super_glue",
        "wsc.fixed",
        {
            "text": TEXT,
            "span1_index": NUMBER,
            "span2_index": NUMBER,
            "span1_text": TEXT,
            "span2_text": TEXT,
            "idx": NUMBER,
            "label": TRUTH,
        },
        {
            "text": "Mark said that he ran.",
            "span1_index": 0,
            "span2_index": 3,
            "span1_text": "Mark",
            "span2_text": "he",
        },
        USUAL,
    ),
    "copa": (
        "aps/super_glue",
        "copa",
        {
            **dict.fromkeys(("premise", "choice1", "choice2", "question"), TEXT),
            "idx": NUMBER,
            "label": ClassLabel(names=["choice1", "choice2"]),
        },
        {"premise": "He ran.", "choice1": "He was late.", "choice2": "It was dark.", "question": "cause"},
        USUAL,
    ),
    "multirc": (
        "aps/super_glue",
        "multirc",
        {
            **dict.fromkeys(("paragraph", "question", "answer"), TEXT),
            "idx": {"paragraph": NUMBER, "question": NUMBER, "answer": NUMBER},
            "label": TRUTH,
        },
        {
            "paragraph": "He ran.",
            "question": "Who ran?",
            "answer": "He",
            "idx": {"paragraph": 0, "question": 1, "answer": 2},
        },
        USUAL,
    ),
    "record": (
        "aps/super_glue",
        "record",
        {
            "passage": TEXT,
            "query": TEXT,
            "entities": List(TEXT),
            "entity_spans": SPANS,
            "answers": List(TEXT),
            "idx": {"passage": NUMBER, "query": NUMBER},
        },
        {
            "passage": "Ann saw Bob.\n@highlight\nBob ran",
            "query": "@placeholder saw him.",
            "entities": ["Ann", "Bob"],
            "entity_spans": [{"text": "Ann", "start": 0, "end": 3}, {"text": "Bob", "start": 8, "end": 11}],
            "answers": ["Ann"],
            "idx": {"passage": 0, "query": 1},
        },
        USUAL,
    ),
    "squad": (
        "rajpurkar/squad",
        "plain_text",
        {
            **dict.fromkeys(("id", "title", "context", "question"), TEXT),
            "answers": {"text": List(TEXT), "answer_start": List(NUMBER)},
        },
        {
            "id": "a1",
            "title": "Running",
            "context": "He ran.",
            "question": " Who ran?",
            "answers": {"text": ["He", "he"], "answer_start": [0, 0]},
        },
        ("train", "validation"),
    ),
    "drop": (
        "ucinlp/drop",
        "default",
        {
            **dict.fromkeys(("section_id", "query_id", "passage", "question"), TEXT),
            "answers_spans": {"spans": List(TEXT), "types": List(TEXT)},
        },
        {
            "section_id": "s",
            "query_id": "q",
            "passage": "He ran 3 miles.",
            "question": "How many miles?",
            "answers_spans": {"spans": ["3"], "types": ["number"]},
        },
        ("train", "validation"),
    ),
    "snli": (
        "stanfordnlp/snli",
        "plain_text",
        {"premise": TEXT, "hypothesis": TEXT, "label": ClassLabel(names=ENTAILMENT)},
        {"premise": "He ran.", "hypothesis": "He moved."},
        ("test", "validation", "train"),
    ),
    "sst5": (
        "SetFit/sst5",
        "default",
        {"text": TEXT, "label": Value("int64"), "label_text": TEXT},
        {"text": "a fine film", "label_text": "very positive"},
        USUAL,
    ),
    "trec": (
        "CogComp/trec",
        "default",
        {
            "text": TEXT,
            "coarse_label": ClassLabel(names=["ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"]),
            "fine_label": ClassLabel(names=FINE),
        },
        {"text": "Who ran ?", "fine_label": 3},
        ("train", "test"),
    ),
}
LABEL = {"trec": "coarse_label"}
ROWS = 8


def split_of(name: str) -> datasets.Dataset:
    _, _, features, row, _ = HUB[name]
    task, label = get_task(name), LABEL.get(name, "label")
    rows = []
    for number in range(ROWS):
        made = {**row, **({label: number % task.num_labels} if task.labels else {})}
        if features.get("idx") == NUMBER:
            made["idx"] = number
        if name == "snli" and number in (2, 5):
            made["label"] = -1
        rows.append(made)
    return datasets.Dataset.from_list(rows, features=Features(features))


class Hub:
    """`datasets.load_dataset` of one release; scripts are refused unless they are asked for as converted."""

    def __init__(self, name: str, *, script: bool = False, configurations: tuple[str, ...] | None = None) -> None:
        self.name, self.script = name, script
        self.configurations = (HUB[name][1],) if configurations is None else configurations
        self.asked: list[tuple[Any, ...]] = []

    def __call__(
        self, repository: str, configuration: str | None = None, *, split: str | None = None, revision: Any = None
    ) -> Any:
        self.asked.append((repository, configuration, split, revision))
        if repository != HUB[self.name][0]:
            raise DatasetNotFoundError(f"Dataset '{repository}' doesn't exist on the Hub or cannot be accessed.")
        if self.script and revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found trec.py")
        if revision not in (None, "refs/convert/parquet"):
            raise DatasetNotFoundError(f"Revision '{revision}' doesn't exist for dataset '{repository}' on the Hub.")
        if configuration not in self.configurations:
            raise ValueError(f"BuilderConfig '{configuration}' not found. Available: {list(self.configurations)}")
        if split not in HUB[self.name][4]:
            raise ValueError(f'Unknown split "{split}". Should be one of {list(HUB[self.name][4])}.')
        return split_of(self.name)


def test_every_task_is_here() -> None:
    assert set(HUB) == set(TASKS)


@pytest.mark.parametrize("name", HUB)
def test_a_task_agrees_with_its_release(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", Hub(name))
    task = get_task(name)
    for split in ("train", "validation"):
        rows = load_rows(task, split, source="hub", seed=0)  # type: ignore[arg-type]
        assert rows.column_names == [*task.columns, *task.optional, "label"]
        assert len(rows) == (ROWS - 2 if name == "snli" else ROWS)
        if task.labels:
            expected = [n % task.num_labels for n in range(ROWS) if name != "snli" or n not in (2, 5)]
            assert sorted(rows["label"]) == sorted(expected)
        for row in rows:
            assert all(isinstance(text, str) and text for text in task.asked.texts(row).values())
            assert task.asked.gold(row)
            if task.labels:
                task.texts(row)


def test_answers_of_the_releases_are_lists_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, answers in (("squad", ["He", "he"]), ("drop", ["3"]), ("record", ["Ann"])):
        monkeypatch.setattr(datasets, "load_dataset", Hub(name))
        row = load_rows(get_task(name), "train", source="hub")[0]
        assert row["answers"] == answers
    assert row["entities"] == ["Ann", "Bob"]


# ------------------------------------------------------------------------------------- scripts


def test_a_release_that_is_a_program_is_read_as_the_hub_has_converted_it(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub("trec", script=True)
    monkeypatch.setattr(datasets, "load_dataset", hub)
    rows = load_rows(get_task("trec"), "validation", source="hub")
    assert rows.column_names == ["text", "label"]
    assert hub.asked == [
        ("CogComp/trec", "default", "test", None),
        ("CogComp/trec", "default", "test", "refs/convert/parquet"),
    ]


def test_a_single_configuration_may_have_another_name_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", Hub("snli", script=True, configurations=("default",)))
    assert len(load_rows(get_task("snli"), "train", source="hub")) == ROWS - 2
    monkeypatch.setattr(datasets, "load_dataset", Hub("snli", script=True, configurations=("a", "b")))
    with pytest.raises(ValueError, match=r"is no configuration of stanfordnlp/snli; give one of a, b as"):
        load_rows(get_task("snli"), "train", source="hub")


def test_a_program_that_the_hub_has_not_converted_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(repository: str, *_: Any, revision: str | None = None, **__: Any) -> None:
        if revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found trec.py")
        raise DatasetNotFoundError(f"Revision '{revision}' doesn't exist for dataset '{repository}' on the Hub.")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    sentence = (
        r"^CogComp/trec \(default, train\) could not be loaded \(Dataset scripts are no longer supported, but found "
        r"trec\.py\); give the data as files with --data_dir\.$"
    )
    with pytest.raises(ValueError, match=sentence):
        load_rows(get_task("trec"), "train", source="hub")


# ------------------------------------------------------------------------------------- labels


def test_how_many_rows_have_no_label_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", Hub("snli"))
    with caplog.at_level(logging.WARNING):
        load_rows(get_task("snli"), "train", source="hub")
    said = ["2 of 8 rows of stanfordnlp/snli (plain_text, train) have no label (-1); they are left out."]
    assert [record.getMessage() for record in caplog.records] == said


def test_unlabelled_rows_of_a_file_are_left_out_where_the_task_says_so(tmp_path: Any) -> None:
    for name in ("snli", "mnli"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.csv").write_text("premise,hypothesis,label\na,b,1\nc,d,-1\ne,f,\n")
    with pytest.raises(ValueError, match=r"Row 3 of .*snli.train\.csv has no label"):
        load_rows(get_task("snli"), "train", source=tmp_path)
    with pytest.raises(ValueError, match=r"Row 2 of .*mnli.train\.csv has the label -1"):
        load_rows(get_task("mnli"), "train", source=tmp_path)
    (tmp_path / "snli" / "train.csv").write_text("premise,hypothesis,label\na,b,-1\n")
    with pytest.raises(ValueError, match=r"^Every row of .*snli.train\.csv has the label -1, .*labelled split\.$"):
        load_rows(get_task("snli"), "train", source=tmp_path)


def test_a_label_of_trec_s_own_name_comes_before_the_release_s(tmp_path: Any) -> None:
    (tmp_path / "train.jsonl").write_text(
        '{"text": "Who ran ?", "label": "HUM", "coarse_label": 0, "fine_label": "HUM:ind"}\n'
    )
    (tmp_path / "test.csv").write_text("text,coarse_label,fine_label\nWho ran ?,3,HUM:ind\n")
    assert load_rows(get_task("trec"), "train", source=tmp_path)["label"][:] == [3]
    assert load_rows(get_task("trec"), "validation", source=tmp_path)["label"][:] == [3]
    (tmp_path / "test.csv").write_text("text,fine_label\nWho ran ?,HUM:ind\n")
    with pytest.raises(ValueError, match=r"test\.csv has no column 'label'"):
        load_rows(get_task("trec"), "validation", source=tmp_path)


def test_a_converted_file_of_trec_in_a_folder(tmp_path: Any) -> None:
    split_of("trec").to_parquet(tmp_path / "train-00000-of-00001.parquet")
    assert "coarse_label" in parquet.read_schema(tmp_path / "train-00000-of-00001.parquet").names
    assert sorted(load_rows(get_task("trec"), "train", source=tmp_path)["label"]) == [0, 0, 1, 1, 2, 3, 4, 5]


def test_an_alias_stands_for_a_column_or_the_label() -> None:
    given: dict[str, Any] = {"name": "x", "hub": ("a", "b"), "columns": ("text",), "labels": ("no", "yes")}
    given |= {"template": "{text} {label}", "words": ("no", "yes")}
    Task(**given, aliases={"kind": "label", "t": "text"})
    with pytest.raises(AssertionError, match="an alias must stand for a column"):
        Task(**given, aliases={"kind": "labels"})
