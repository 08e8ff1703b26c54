"""Prompts of masked models, in which text may follow the mask: token ids beside ones put together by hand."""

from __future__ import annotations

from typing import Any

import datasets
import pytest
import tiny_models
import torch
from tiny_models import MASK
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast

import zotune
from zotune.hf.adapters import Adapter, add_adapter
from zotune.hf.models import load_classifier, load_tokenizer, prompt_style
from zotune.hf.prompted import label_word_ids
from zotune.tasks import get_task
from zotune.tasks.tokens import tokenise

PAIR = {"premise": "great great bad.", "hypothesis": "The Yes", "label": 0}


def ids_of(name: str, row: dict[str, Any], tokenizer: Any, longest: int = 64) -> list[int]:
    rows = datasets.Dataset.from_list([row])
    return list(tokenise(rows, get_task(name), tokenizer, longest, prompt="mask")[0]["input_ids"])


@pytest.mark.parametrize(
    ("longest", "words"),
    [
        (64, "great great bad ? [MASK] , the Yes"),
        (9, "great great ? [MASK] , the Yes"),
        (8, "great ? [MASK] , the Yes"),
        (7, "great ? [MASK] , the"),
    ],
)
def test_texts_around_the_mask_are_cut_and_the_template_is_not(longest: int, words: str) -> None:
    tokenizer = tiny_models.tokenizer("bert")
    expected = tokenizer.convert_tokens_to_ids(["[CLS]", *words.split(), "[SEP]"])
    assert ids_of("mnli", PAIR, tokenizer, longest) == expected


def test_a_template_that_does_not_fit_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="--max_seq_length 5 is too small for the prompt of task mnli; give"):
        ids_of("mnli", PAIR, tiny_models.tokenizer("bert"), 5)


def test_a_mask_token_of_a_user_after_the_mask_is_taken_out() -> None:
    tokenizer = tiny_models.tokenizer("bert")
    row = {**PAIR, "premise": "great [MASK].", "hypothesis": "the [MASK] Yes"}
    words = ["[CLS]", "great", "[MASK]", "?", "[MASK]", ",", "the", "Yes", "[SEP]"]
    assert ids_of("mnli", row, tokenizer) == tokenizer.convert_tokens_to_ids(words)


# ------------------------------------------------------------------------------------- as RoBERTa reads them

TEXTS = {
    "sst2": {"sentence": "a fine film "},
    "sst5": {"text": "a fine film"},
    "mnli": {"premise": "A dog runs.", "hypothesis": "An animal moves."},
    "snli": {"premise": "A dog runs.", "hypothesis": "An animal moves."},
    "rte": {"premise": "A dog runs.", "hypothesis": "An animal moves."},
    "trec": {"text": "Who ran?"},
}
WORDS = {
    "sst2": "terrible great",
    "sst5": "terrible bad okay good great",
    "mnli": "Yes Maybe No",
    "snli": "Yes Maybe No",
    "rte": "Yes No",
    "trec": "Expression Entity Description Human Location Number",
}


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    """A tokenizer of RoBERTa's kind: bytes, a mask token that takes the space in front of it, label words whole."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    specials = ["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True)]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([f"x {word}" for words in WORDS.values() for word in words.split()] * 3, trainer)
    inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False)
    names = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    mask = AddedToken("<mask>", lstrip=True, special=True)
    return PreTrainedTokenizerFast(tokenizer_object=inner, mask_token=mask, model_max_length=512, **names)


@pytest.mark.parametrize("name", TEXTS)
def test_prompts_are_those_of_the_few_shot_papers(name: str, byte_level: PreTrainedTokenizerFast) -> None:
    """Each part is encoded by itself and without spaces around the mask, as the papers' programs do."""

    def part(text: str) -> list[int]:
        return list(byte_level(text, add_special_tokens=False)["input_ids"])

    mask = [byte_level.mask_token_id]
    parts = {
        "sst2": part("a fine film") + part(" It was") + mask + part("."),
        "sst5": part("a fine film") + part(" It was") + mask + part("."),
        "trec": mask + part(":") + part(" Who ran?"),
    }
    pair = part("A dog runs") + part("?") + mask + part(",") + part(" an animal moves.")
    expected = [byte_level.cls_token_id, *parts.get(name, pair), byte_level.sep_token_id]
    assert ids_of(name, {**TEXTS[name], "label": 0}, byte_level) == expected
    words = [part(f" {word}") for word in WORDS[name].split()]
    assert all(len(word) == 1 for word in words), "the tokenizer of this test holds the label words"
    assert label_word_ids(get_task(name), byte_level, "mask") == [word[0] for word in words]


def test_a_label_word_after_a_line_break_is_a_word_after_a_space(byte_level: PreTrainedTokenizerFast) -> None:
    words = [byte_level(f" {word}", add_special_tokens=False)["input_ids"][0] for word in ("Yes", "No", "Maybe")]
    assert label_word_ids(get_task("cb"), byte_level, "mask") == words
    assert label_word_ids(get_task("mnli"), tiny_models.tokenizer("bert"), "mask") == [
        tiny_models.tokenizer("bert").convert_tokens_to_ids(word) for word in ("Yes", "Maybe", "No")
    ]


# ------------------------------------------------------------------------------------- a model


def test_a_masked_model_answers_at_the_mask_between_two_texts(tmp_path: Any) -> None:
    name = str(tiny_models.save(tmp_path / "model", "roberta"))
    tokenizer, task = load_tokenizer(name), get_task("mnli")
    model = load_classifier(name, task, tokenizer=tokenizer, prompted=True)
    assert prompt_style(model) == "mask"
    rows = datasets.Dataset.from_list([PAIR, {**PAIR, "premise": "No", "label": 2}])
    encoded = tokenise(rows, task, tokenizer, 64, prompt="mask")
    columns = {column: encoded[column][:] for column in ("input_ids", "attention_mask")}
    batch = tokenizer.pad(columns, return_tensors="pt")
    places = [ids.index(MASK) for ids in columns["input_ids"]]
    assert places == [5, 3]
    labels = torch.tensor([0, 2])
    with torch.no_grad():
        output = model(**batch, labels=labels)
        plain = tiny_models.build("roberta", head="lm")(**batch).logits
    words = tokenizer.convert_tokens_to_ids(["Yes", "Maybe", "No"])
    torch.testing.assert_close(output.logits, torch.stack([plain[i, places[i], words] for i in range(2)]))
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits, labels))


def test_lora_of_a_masked_model_begins_as_it_answers_and_trains(tmp_path: Any) -> None:
    """Its adapters are tried on tokens among which there must be a mask."""
    name = str(tiny_models.save(tmp_path / "model", "roberta"))
    tokenizer, task = load_tokenizer(name), get_task("mnli")
    tokenizer.mask_token = "bad"  # not one of the first few
    assert tokenizer.mask_token_id > 4
    model = load_classifier(name, task, tokenizer=tokenizer, prompted=True)
    rows = datasets.Dataset.from_list([PAIR, {**PAIR, "premise": "No", "label": 2}])
    encoded = tokenise(rows, task, tokenizer, 64, prompt="mask")
    batch = tokenizer.pad(
        {column: encoded[column][:] for column in ("input_ids", "attention_mask")}, return_tensors="pt"
    )
    with torch.no_grad():
        before = model(**batch).logits
    adapted = add_adapter(model, Adapter(kind="lora", rank=4), tokenizer=tokenizer, seed=3, name="m")
    with torch.no_grad():
        assert torch.equal(adapted(**batch).logits, before)
    trained = [(name, p) for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name, _ in trained)
    labels = torch.tensor([0, 2])
    optimizer = zotune.MeZO(trained, lr=1e-2, eps=1e-2)
    losses = [optimizer.step(lambda: adapted(**batch, labels=labels).loss) for _ in range(40)]
    assert losses[-1] < losses[0]
