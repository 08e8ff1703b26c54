"""The embedded generator and model: columns, labels that follow from the text, splits, and the committed weights."""

import hashlib
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from zotune.embedded import MODEL_DIR, generate
from zotune.embedded.corpus import documents
from zotune.embedded.draws import Draws
from zotune.embedded.generator import SPLITS, TASKS, split_of
from zotune.embedded.lexicon import KIND_OF, OPPOSITE, a, gerund, participle, past, plural, third
from zotune.embedded.pretrain import Recipe, encode, mean_loss, new_model, pretrain, verdicts_right
from zotune.embedded.senses import SENSES
from zotune.embedded.sentiment import NEGATIVE, POSITIVE

COLUMNS = {
    "mnli": ["premise", "hypothesis", "label", "idx"],
    "qnli": ["question", "sentence", "label", "idx"],
    "sst2": ["sentence", "label", "idx"],
    "cola": ["sentence", "label", "idx"],
    "rte": ["premise", "hypothesis", "label", "idx"],
    "boolq": ["question", "passage", "label", "idx"],
    "wic": ["word", "sentence1", "sentence2", "start1", "end1", "start2", "end2", "label", "idx"],
    "cb": ["premise", "hypothesis", "label", "idx"],
}
LABELS = {"mnli": 3, "cb": 3}


def _texts(row: dict[str, str | int]) -> tuple[str, ...]:
    return tuple(value for value in row.values() if isinstance(value, str))


@pytest.mark.parametrize("task", TASKS)
def test_columns_and_types(task: str) -> None:
    for row in generate(task, "train", 50, 0):
        assert sorted(row) == sorted(COLUMNS[task])
        assert isinstance(row["label"], int)
        assert all(text.strip() == text and text for text in _texts(row))


@pytest.mark.parametrize("task", TASKS)
def test_labels_are_balanced_for_every_size(task: str) -> None:
    labels = [row["label"] for row in generate(task, "train", 301, 3)]
    for size in (1, 10, 100, 301):
        counts = Counter(labels[:size])
        assert sum(counts.values()) == size
        wanted = [counts.get(label, 0) for label in range(LABELS.get(task, 2))]
        assert max(wanted) - min(wanted) <= 1


@pytest.mark.parametrize("task", TASKS)
def test_rows_are_a_pure_function_and_extend_each_other(task: str) -> None:
    rows = generate(task, "train", 120, 5)
    torch.rand(3)
    assert generate(task, "train", 120, 5) == rows
    assert generate(task, "train", 40, 5) == rows[:40]
    assert generate(task, "train", 120, 6) != rows


@pytest.mark.parametrize("task", TASKS)
def test_splits_share_no_text_and_repeat_none(task: str) -> None:
    column = {"mnli": "premise", "rte": "premise", "cb": "premise", "wic": "sentence1", "boolq": "passage"}
    by_split = {}
    for split in SPLITS:
        rows = generate(task, split, 400, 0)
        assert len({_texts(row) for row in rows}) == len(rows)
        by_split[split] = {str(row[column.get(task, "sentence")]) for row in rows}
        assert {split_of(text) for text in by_split[split]} == {split}
    assert not by_split["train"] & by_split["validation"]
    assert not by_split["pretrain"] & (by_split["train"] | by_split["validation"])


@pytest.mark.parametrize("task", TASKS)
def test_the_generator_has_much_to_say(task: str) -> None:
    # Of 2,000 keyed rows that know nothing of each other nearly all differ, so there are far more than 2,000 to come.
    rows = [row for seed in range(20) for row in generate(task, "train", 100, seed)]
    assert len({_texts(row) for row in rows}) > 0.9 * len(rows)


def test_mnli_understands_the_name_of_the_matched_split() -> None:
    assert generate("mnli", "validation_matched", 5, 0) == generate("mnli", "validation", 5, 0)


def test_mistakes_get_a_sentence() -> None:
    with pytest.raises(ValueError, match="did you mean 'sst2'"):
        generate("sst-2", "train", 1, 0)
    with pytest.raises(ValueError, match="did you mean 'train'"):
        generate("sst2", "trian", 1, 0)
    with pytest.raises(ValueError, match="size must be 0 or more"):
        generate("sst2", "train", -1, 0)
    assert generate("sst2", "train", 0, 0) == []


def test_plain_reviews_hold_only_words_of_their_verdict() -> None:
    turned = re.compile(r"never|anything but|nothing|not |far from|although|may be|despite|at first|turns")
    plain = [row for row in generate("sst2", "train", 400, 1) if not turned.search(str(row["sentence"]))]
    assert len(plain) > 150
    for row in plain:
        found = set(re.findall(r"\w+", str(row["sentence"])))
        wrong = NEGATIVE if row["label"] == 1 else POSITIVE
        # "moving" and the like are whole words of the lists, so a hit is a contradiction of the label.
        assert not found & set(wrong), row


def test_contrasts_are_judged_by_their_main_clause() -> None:
    pattern = re.compile(r"although the \w+ is (\w+), the \w+ is (?:\w+ )?(\w+)\.")
    hits = [(row, m) for row in generate("sst2", "train", 2_000, 2) if (m := pattern.match(str(row["sentence"])))]
    assert len(hits) > 10
    for row, match in hits:
        assert (match[2] in POSITIVE) == (row["label"] == 1)
        assert (match[1] in POSITIVE) == (row["label"] == 0)


def test_cola_errors_of_agreement_and_reflexives_are_errors() -> None:
    checked = 0
    for row in generate("cola", "train", 2_000, 4):
        text = str(row["sentence"])
        if match := re.search(r"^The (?:\w+ )?(\w+) (is|are) ", text):
            many = match[1].endswith("s") or match[1] in ("children", "men", "women")
            assert (many == (match[2] == "are")) == (row["label"] == 1), text
            checked += 1
        if match := re.search(r"^(Anna|Maria|Peter|Paul) \w+ (himself|herself)", text):
            assert ((match[1] in ("Anna", "Maria")) == (match[2] == "herself")) == (row["label"] == 1), text
            checked += 1
    assert checked > 50


def test_mnli_states_follow_from_opposites() -> None:
    checked = 0
    for row in generate("mnli", "train", 1_500, 0):
        premise = re.search(r"(the \w+'s \w+) is (?:(\w+) and )?(\w+)\.$", str(row["premise"]), re.IGNORECASE)
        hypothesis = re.search(r"^(The \w+'s \w+) is (not )?(\w+)\.$", str(row["hypothesis"]))
        if premise is None or hypothesis is None:
            continue
        told = {premise[2], premise[3]}
        same = hypothesis[3] in told
        opposite = OPPOSITE[hypothesis[3]] in told
        denied = hypothesis[2] is not None
        expected = 1 if not same and not opposite else 0 if same != denied else 2
        assert row["label"] == expected, row
        checked += 1
    assert checked > 100


def test_cb_labels_follow_from_the_verb() -> None:
    verbs = {"knew": 0, "noticed": 0, "hoped": 2, "thought": 2, "wrongly thought": 1, "pretended": 1, "failed to": 1}
    checked = 0
    for row in generate("cb", "train", 600, 0):
        for verb, kind in verbs.items():
            if re.search(rf"(?<!wrongly ){verb} (that|\w+ a)", str(row["premise"])):
                denied = "did not" in str(row["hypothesis"])
                assert row["label"] == (1 - kind if denied and kind != 2 else kind), row
                checked += 1
    assert checked > 100


def test_rte_hypotheses_that_follow_name_what_was_said() -> None:
    for row in generate("rte", "train", 400, 0):
        if row["label"] == 0 and (match := re.search(r" (?:a|an) (\w+)\.$", str(row["hypothesis"]))):
            thing = match[1]
            kinds = {kind for word, kind in KIND_OF.items() if re.search(rf"\b{word}\b", str(row["premise"]))}
            assert re.search(rf"\b{thing}\b", str(row["premise"])) or thing in kinds, row


def test_qnli_answers_name_the_one_asked_about_or_miss_the_fact() -> None:
    checked = 0
    for row in generate("qnli", "train", 600, 0):
        if match := re.search(r"^When did (.*) die", str(row["question"])):
            told = str(row["sentence"]).startswith(match[1]) and re.search(r"died in|lived until", str(row["sentence"]))
            assert (row["label"] == 0) == bool(told), row
            checked += 1
    assert checked > 10


def test_boolq_answers_follow_from_the_passage() -> None:
    checked = 0
    for row in generate("boolq", "train", 600, 0):
        if str(row["question"]).startswith("are dogs allowed"):
            refused = re.search(r"not allowed|may not bring", str(row["passage"]))
            assert (row["label"] == 0) == bool(refused), row
            checked += 1
    assert checked > 30


def test_wic_offsets_and_senses() -> None:
    for row in generate("wic", "train", 300, 0):
        for number in "12":
            start, end = int(row[f"start{number}"]), int(row[f"end{number}"])
            assert str(row[f"sentence{number}"])[start:end].lower() == row["word"]
    for word, ((gloss, first), (other_gloss, second)) in SENSES.items():
        assert gloss != other_gloss
        assert not set(first) & set(second)
        assert all(re.search(rf"\b{word}\b", frame) for frame in first + second)


def test_inflection() -> None:
    assert [plural(noun) for noun in ("child", "box", "lady", "boy")] == ["children", "boxes", "ladies", "boys"]
    assert [third(verb) for verb in ("watch", "carry", "buy")] == ["watches", "carries", "buys"]
    assert [past(verb) for verb in ("carry", "like", "see", "paint")] == ["carried", "liked", "saw", "painted"]
    assert [participle("see"), gerund("dance"), gerund("run")] == ["seen", "dancing", "running"]
    assert [a("old car"), a("car")] == ["an old car", "a car"]


def test_draws_depend_on_their_key_alone() -> None:
    first = [Draws("x", 1).below(1_000) for _ in range(3)]
    assert len(set(first)) == 1
    assert Draws("x", 2).shuffled(range(50)) != Draws("x", 1).shuffled(range(50))
    assert sorted(Draws("x", 3).sample(range(50), 50)) == list(range(50))
    assert {Draws("y", i).below(7) for i in range(200)} == set(range(7))


def test_the_weights_are_those_of_the_model_card() -> None:
    digest = hashlib.sha256((MODEL_DIR / "model.safetensors").read_bytes()).hexdigest()
    assert digest in (MODEL_DIR / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert sum(file.stat().st_size for file in MODEL_DIR.iterdir()) <= 4 * 2**20


def test_the_model_has_learned_the_generated_language() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR).eval()
    held_out = encode(tokenizer, list(documents(300, "validation", 1_234)))
    untrained = new_model(Recipe(), tokenizer).eval()
    assert mean_loss(model, held_out, tokenizer.pad_token_id) < 0.3 * mean_loss(
        untrained, held_out, tokenizer.pad_token_id
    )
    shares = verdicts_right(model, tokenizer, held_out)
    assert shares["sst2"] > 0.85
    assert shares["mnli"] > 0.7


def test_the_classifier_reads_the_end_of_the_input_whatever_the_padding() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = AutoModelForSequenceClassification.from_pretrained(MODEL_DIR, num_labels=2).eval()
    short = tokenizer("the plot is dull.", return_tensors="pt")
    both = tokenizer(["the plot is dull.", "a fine film with a very long and tender ending."], padding=True)
    assert set(short) == {"input_ids", "attention_mask"}
    with torch.no_grad():
        alone = model(**short).logits
        padded = model(**both.convert_to_tensors("pt")).logits
    assert alone.shape == (1, 2)
    torch.testing.assert_close(padded[:1], alone, rtol=1e-4, atol=1e-5)


def test_the_tokenizer_reads_any_ascii_text_and_marks_pairs() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    ids = tokenizer("Xylophones (3 of them), #unheard-of!")["input_ids"]
    assert tokenizer.unk_token_id not in ids
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("a film", "a plot")["input_ids"])
    assert tokens == ["[BOS]", "a", "film", "[SEP]", "a", "plot", "[EOS]"]
    assert len(tokenizer) <= 2_000


def test_pretraining_gives_the_same_bits_again(tmp_path: Path) -> None:
    recipe = Recipe(
        documents=300, held_out=50, batch=16, width=16, inner=32, layers=1, heads=2, threads=torch.get_num_threads()
    )
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        for name in ("first", "second"):
            pretrain(recipe, tmp_path / name)
    finally:
        torch.use_deterministic_algorithms(deterministic)
    files = [file.name for file in (tmp_path / "first").iterdir()]
    assert {"config.json", "model.safetensors", "tokenizer.json", "MODEL_CARD.md"} <= set(files)
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file
