"""Tasks with classes: their texts, label names, prompts and metrics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from zotune.tasks import TASKS, compute_metrics, get_task
from zotune.tasks.metrics import METRICS, accuracy, macro_f1, matthews
from zotune.tasks.sources import load_rows

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
# Tasks whose texts have changed since the first version.
VERSIONS = dict.fromkeys(
    (
        "sst2",
        "rte",
        "cb",
        "boolq",
        "wsc",
        "wic",
        "multirc",
        "copa",
        "record",
        "squad",
        "drop",
        "mnli",
        "snli",
        "sst5",
        "trec",
    ),
    2,
)
NAMES = (
    "mnli", "qnli", "sst2", "cola", "rte", "boolq", "wic", "cb", "wsc", "copa",
    "multirc", "snli", "sst5", "trec", "mrpc",
)  # fmt: skip

# One made-up row per task and the texts a model reads; a change here needs a higher Task.version.
GOLDEN = {
    "mnli": (
        {"premise": "A dog runs.", "hypothesis": "An animal moves."},
        ("A dog runs.", "An animal moves."),
        "A dog runs.\nQuestion: An animal moves. Yes, Maybe or No?\nAnswer: ",
    ),
    "qnli": (
        {"question": "Who ran?", "sentence": "The dog ran."},
        ("Who ran?", "The dog ran."),
        "The dog ran.\nDoes this answer the question: Who ran? Yes or No?\nAnswer: ",
    ),
    "sst2": ({"sentence": "a fine film "}, ("a fine film ", None), "a fine film It was "),
    "cola": ({"sentence": "He go."}, ("He go.", None), "He go. This sentence is "),
    "rte": (
        {"premise": "It rains.", "hypothesis": "It is wet."},
        ("It rains.", "It is wet."),
        'It rains.\nDoes this mean that "It is wet." is true? Yes or No?\n',
    ),
    "boolq": (
        {"question": "is ice cold", "passage": "Ice is cold."},
        ("is ice cold", "Ice is cold."),
        "Ice is cold. Is ice cold?\n",
    ),
    "wic": (
        {"word": "bank", "sentence1": "The river bank.", "sentence2": "A bank lends."},
        ("bank: The river bank.", "A bank lends."),
        'Does the word "bank" have the same meaning in these two sentences? Yes, No?\nThe river bank.\nA bank lends.\n',
    ),
    "cb": (
        {"premise": "She said so.", "hypothesis": "it is so"},
        ("She said so.", "it is so"),
        'Suppose She said so. Can we infer that "it is so"? Yes, No, or Maybe?\n',
    ),
    "wsc": (
        {
            "text": "Mark told Pete: 'He helped you.'",
            "span1_text": "Mark",
            "span1_index": 0,
            "span2_text": "He",
            "span2_index": 3,
        },
        ("*Mark* told Pete: '_He_ helped you.'", '"He" refers to "Mark"'),
        "Mark told Pete: 'He helped you.'\n"
        'In the previous sentence, does the pronoun "he" refer to Mark? Yes or No?\n',
    ),
    "copa": (
        {"premise": "I fell.", "choice1": "It was icy.", "choice2": "I slept.", "question": "cause"},
        ("It was icy. So: I fell.", "I slept. So: I fell."),
        "A: It was icy. So: I fell.\nB: I slept. So: I fell.\nIs A or B more plausible?\nAnswer: ",
    ),
    "multirc": (
        {"paragraph": "Tom ate.", "question": "Who ate?", "answer": "Tom"},
        ("Who ate? Tom", "Tom ate."),
        'Tom ate.\nQuestion: Who ate?\nI found this answer "Tom". Is that correct? Yes or No?\n',
    ),
    "snli": (
        {"premise": "A dog runs.", "hypothesis": "An animal moves."},
        ("A dog runs.", "An animal moves."),
        "A dog runs.\nQuestion: An animal moves. Yes, Maybe or No?\nAnswer: ",
    ),
    "sst5": ({"text": "a fine film"}, ("a fine film", None), "a fine film It was "),
    "trec": ({"text": "Who ran?"}, ("Who ran?", None), "Who ran?\nThis question asks for a "),
    "mrpc": (
        {"sentence1": "A ran.", "sentence2": "It was A who ran."},
        ("A ran.", "It was A who ran."),
        "A ran.\nIt was A who ran.\nDo both sentences mean the same? Yes or No?\nAnswer: ",
    ),
}

# The same rows as masked models read them (before and after the mask), and the label words; the others have the same
# template as causal models.
MASKED = {
    "mnli": ("A dog runs? ", ", an animal moves.", ("Yes", "Maybe", "No")),
    "snli": ("A dog runs? ", ", an animal moves.", ("Yes", "Maybe", "No")),
    "rte": ("It rains? ", ", it is wet.", ("Yes", "No")),
    "sst2": ("a fine film It was ", ".", ("terrible", "great")),
    "sst5": ("a fine film It was ", ".", ("terrible", "bad", "okay", "good", "great")),
    "trec": ("", ": Who ran?", ("Expression", "Entity", "Description", "Human", "Location", "Number")),
}

LABELS = {
    "mnli": ("entailment", "neutral", "contradiction"),
    "qnli": ("entailment", "not_entailment"),
    "sst2": ("negative", "positive"),
    "cola": ("unacceptable", "acceptable"),
    "rte": ("entailment", "not_entailment"),
    "boolq": ("False", "True"),
    "wic": ("False", "True"),
    "cb": ("entailment", "contradiction", "neutral"),
    "wsc": ("False", "True"),
    "copa": ("choice1", "choice2"),
    "multirc": ("False", "True"),
    "snli": ("entailment", "neutral", "contradiction"),
    "sst5": ("very negative", "negative", "neutral", "positive", "very positive"),
    "trec": ("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"),
    "mrpc": ("not_equivalent", "equivalent"),
}

# Rows of the files (README of the data folder), and the texts of validation row 0 in the file's order.
COUNTS = {
    "mnli": (4000, 1500),
    "qnli": (4000, 1500),
    "sst2": (4000, 872),
    "cola": (4000, 543),
    "rte": (1845, 277),
    "boolq": (1489, 1500),
    "wic": (4000, 638),
    "cb": (200, 56),
    "wsc": (436, 101),
    "copa": (300, 100),
    "multirc": (4000, 1500),
    "snli": (4000, 1500),
    "sst5": (4000, 1100),
    "trec": (4000, 500),
    "mrpc": (3265, 408),
}
REAL = {
    "mnli": ("'You burned down my house.'", "'You used matches and gasoline to commit arson.'"),
    "sst2": ("it 's a charming and often affecting journey .", None),
    "cola": ("She didn't talk to one student.", None),
    "wic": (
        "class: An emerging professional class.",
        "Apologizing for losing your temper, even though you were badly provoked, showed real class.",
    ),
    "copa": (
        "The toilet filled with water. Because: The man turned on the faucet.",
        "Water flowed from the spout. Because: The man turned on the faucet.",
    ),
}


def test_the_table_holds_the_tasks() -> None:
    assert {name for name, task in TASKS.items() if task.labels} == set(NAMES)
    assert all(TASKS[name].name == name for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_golden_texts_and_prompts(name: str) -> None:
    row, texts, prompt = GOLDEN[name]
    task = get_task(name)
    assert task.version == VERSIONS.get(name, 1)
    assert task.texts(row) == texts
    assert task.prompt(task.fields(row))[0] == prompt


@pytest.mark.parametrize("name", NAMES)
def test_golden_prompts_of_masked_models(name: str) -> None:
    row, _, prompt = GOLDEN[name]
    task = get_task(name)
    before, after, words = MASKED.get(name, (prompt, task.prompt(task.fields(row))[1], task.words))
    assert task.prompt(task.fields(row, "mask"), "mask") == (before, after)
    assert task.label_words("mask") == words


def test_a_premise_loses_one_mark_at_most() -> None:
    task = get_task("snli")
    for premise, opened in (("A dog", "A dog"), ("Ran?! ", "Ran?"), ("?", "?")):
        row = {"premise": premise, "hypothesis": "I ran."}
        assert task.prompt(task.fields(row, "mask"), "mask") == (f"{opened}? ", ", i ran.")


@pytest.mark.parametrize("name", NAMES)
def test_label_names_are_those_of_the_hub(name: str) -> None:
    assert get_task(name).labels == LABELS[name]


@pytest.mark.parametrize("name", NAMES)
def test_every_task_loads_from_real_files(name: str) -> None:
    if not DATA.exists():
        pytest.skip("The evaluation data is not beside this checkout.")
    if name not in COUNTS:
        pytest.skip("The evaluation data has no rows of this task.")
    task = get_task(name)
    sizes = tuple(len(load_rows(task, split, source=DATA)) for split in ("train", "validation"))
    assert sizes == COUNTS[name]
    rows = load_rows(task, "validation", source=DATA).to_list()
    assert {row["label"] for row in rows} == set(range(task.num_labels))
    if name in REAL:
        assert REAL[name] in {task.texts(row) for row in rows}


def test_both_copies_of_rte_give_the_same_texts() -> None:
    if not DATA.exists():
        pytest.skip("The evaluation data is not beside this checkout.")
    task = get_task("rte")
    glue = load_rows(task, "validation", source=DATA / "glue", seed=3)
    super_glue = load_rows(task, "validation", source=DATA / "super_glue", seed=3)
    assert [task.texts(row) for row in glue] == [task.texts(row) for row in super_glue]
    assert glue["label"] == super_glue["label"]


def test_wsc_marks_both_spans_in_nearly_every_real_row() -> None:
    if not DATA.exists():
        pytest.skip("The evaluation data is not beside this checkout.")
    task = get_task("wsc")
    texts = [task.texts(row)[0] for row in load_rows(task, "train", source=DATA)]
    marked = [text.count("*") == 2 and text.count("_") == 2 for text in texts]
    assert sum(marked) / len(marked) > 0.97


def test_wsc_marks_the_occurrence_nearest_to_the_index_inside_punctuation() -> None:
    row = {"text": 'He saw "him", then him.', "span2_text": "him", "span1_text": "He", "span1_index": 0}
    task = get_task("wsc")
    assert task.texts({**row, "span2_index": 1})[0] == '*He* saw "_him_", then him.'
    assert task.texts({**row, "span2_index": 4})[0] == '*He* saw "him", then _him_.'
    assert task.texts({**row, "span2_index": 4, "span1_text": "Anna"})[0] == 'He saw "him", then _him_.'


def test_copa_tells_cause_from_effect_and_refuses_others() -> None:
    row = GOLDEN["copa"][0]
    task = get_task("copa")
    assert task.texts({**row, "question": "effect"})[0] == "It was icy. Because: I fell."
    with pytest.raises(ValueError, match='"cause" or "effect"'):
        task.texts({**row, "question": "why"})


@pytest.mark.parametrize(("wrong", "near"), [("sst-2", "sst2"), ("SST2", "sst2"), ("bolq", "boolq"), ("mnly", "mnli")])
def test_an_unknown_task_names_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"Did you mean '{near}'"):
        get_task(wrong)


def test_a_template_with_text_of_the_row_after_the_label_is_refused() -> None:
    for template in ("{label} {sentence}", "{sentence}", "{sentense} {label}", "{label} {label}"):
        with pytest.raises(AssertionError):
            replace(get_task("sst2"), template=template)
    assert replace(get_task("sst2"), masked="{label} {sentence}").prompt({"sentence": "a"}, "mask") == ("", " a")
    for masked in ("{sentence}", "{sentense} {label}", "{label} {label}"):
        with pytest.raises(AssertionError):
            replace(get_task("sst2"), masked=masked)
    with pytest.raises(AssertionError):
        replace(get_task("sst2"), masked_words=("good",))


def test_braces_in_a_text_are_only_text() -> None:
    task = get_task("sst2")
    assert task.prompt(task.fields({"sentence": "{label} {0} {x"})) == ("{label} {0} {x It was ", ".")


def test_matthews_is_the_textbook_value() -> None:
    # TP 6, TN 3, FP 1, FN 2: (18 - 2) / sqrt(7 * 8 * 4 * 5)
    labels = np.array([1] * 8 + [0] * 4)
    predictions = np.array([1] * 6 + [0] * 2 + [1] + [0] * 3)
    assert matthews(predictions, labels) == pytest.approx(16 / np.sqrt(1120), rel=1e-12)
    assert matthews(labels, labels) == pytest.approx(1.0)
    assert matthews(1 - labels, labels) == pytest.approx(-1.0)
    assert matthews(np.ones(12, dtype=int), labels) == 0.0


def test_macro_f1_is_the_mean_over_classes() -> None:
    labels = np.array([0, 0, 1, 1, 2])
    predictions = np.array([0, 1, 1, 1, 0])
    assert macro_f1(predictions, labels) == pytest.approx((1 / 2 + 4 / 5 + 0) / 3, rel=1e-12)
    assert accuracy(predictions, labels) == 0.6


@pytest.mark.parametrize("name", NAMES)
def test_compute_metrics_begins_with_accuracy(name: str) -> None:
    task = get_task(name)
    assert set(task.metrics) <= set(METRICS)
    labels = np.arange(12) % task.num_labels
    logits = np.eye(task.num_labels)[labels]
    compute = compute_metrics(task)
    for predictions in (logits, (logits, "hidden states")):
        results = compute(SimpleNamespace(predictions=predictions, label_ids=labels))
        assert next(iter(results)) == "accuracy"
        assert results == dict.fromkeys(task.metrics, pytest.approx(1.0))
    with pytest.raises(ValueError, match="no row to evaluate"):
        compute(SimpleNamespace(predictions=logits[:0], label_ids=labels[:0]))


def test_the_example_of_the_documentation_is_the_file_itself() -> None:
    root = Path(__file__).resolve().parents[1]
    page = (root / "docs" / "add-a-task.md").read_text(encoding="utf-8")
    example = page.split("```python\n")[1].split("```")[0]
    assert example == (root / "src" / "zotune" / "tasks" / "cb.py").read_text(encoding="utf-8")
    assert len(example.splitlines()) < 40
