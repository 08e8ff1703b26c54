"""From rows to token ids: the pair form for a classification head and the prompted form for a language-model head."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from zotune.tasks.base import PromptStyle, Task

logger = logging.getLogger(__name__)


@dataclass
class Cut:
    """How many of how many rows were longer than the model may read."""

    rows: int = 0
    of: int = 0

    def add(self, rows: int, of: int) -> None:
        """Count more rows."""
        self.rows += rows
        self.of += of

    def say(self, length: int) -> None:
        """One sentence, if there were any."""
        if self.rows:
            logger.warning(
                "%d of %d rows are longer than %d tokens and were cut; --max_seq_length sets that.",
                self.rows,
                self.of,
                length,
            )


def tokenise(
    rows: datasets.Dataset,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    *,
    prompt: PromptStyle | None = None,
    cut: Cut | None = None,
) -> datasets.Dataset:
    """Token ids of every row, unpadded, at most `max_seq_length` each.

    Pairs are joined by the tokenizer's own rule, with a space where it has none.  A text that is too long is cut at its
    end, the longer of a pair first, so neither vanishes; in the prompted form only texts are cut, never the template.

    Args:
        rows: result of `load_rows`.
        task: the task of these rows.
        tokenizer: result of `load_tokenizer`.
        max_seq_length: in tokens, special tokens included; more than the tokenizer's model reads gives a warning.
        prompt: None for a classification head; otherwise `zotune.hf.models.prompt_style(model)`.
        cut: counts the rows that were cut.

    Returns:
        Dataset with input_ids, attention_mask and labels (and token_type_ids where the tokenizer's model has them).

    Raises:
        ValueError: `max_seq_length` too small to hold a token of each text, or the template.
    """
    if max_seq_length > tokenizer.model_max_length:
        longest = tokenizer.model_max_length
        logger.warning(
            "The model reads at most %d tokens; --max_seq_length %d is lowered to it.", longest, max_seq_length
        )
        max_seq_length = longest
    listed = rows.to_list()
    cut = Cut() if cut is None else cut
    if prompt is None:
        columns = _pairs(listed, task, tokenizer, max_seq_length, cut)
    else:
        ids = [_prompt_ids(task.fields(row, prompt), task, tokenizer, max_seq_length, prompt, cut) for row in listed]
        columns = {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}
    return datasets.Dataset.from_dict({**columns, "labels": [row["label"] for row in listed]})


def _pairs(
    rows: list[dict[str, Any]], task: Task, tokenizer: PreTrainedTokenizerBase, max_seq_length: int, cut: Cut
) -> dict[str, list[list[int]]]:
    texts = [task.texts(row) for row in rows]
    first = [text_a for text_a, _ in texts]
    second = [text_b for _, text_b in texts if text_b is not None]
    assert len(second) in (0, len(first)), f"{task.name}: some rows have a second text and others have none"
    least = tokenizer.num_special_tokens_to_add(pair=bool(second)) + (2 if second else 1)
    if max_seq_length < least:
        raise ValueError(f"--max_seq_length {max_seq_length} leaves no room for the text; give at least {least}.")
    if second and _runs_together(tokenizer):
        second = [" " + text_b for text_b in second]
    encoded = tokenizer(first, second or None, verbose=False)
    too_long = sum(len(ids) > max_seq_length for ids in encoded["input_ids"])
    cut.add(too_long, len(rows))
    if too_long:
        encoded = tokenizer(first, second or None, truncation="longest_first", max_length=max_seq_length)
    return {name: list(encoded[name]) for name in tokenizer.model_input_names if name in encoded}


def _runs_together(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a pair comes out as "onetwo": neither a special token nor a space between (GPT-2's byte-level rule)."""
    ids = tokenizer("one", "two")["input_ids"]
    return "onetwo" in tokenizer.decode(ids, skip_special_tokens=False)


def _prompt_ids(
    fields: dict[str, str],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    style: PromptStyle,
    cut: Cut,
) -> list[int]:
    """Ids of the filled template, the longest text losing its last words until they fit."""
    whole = fields
    while True:
        before, after = task.prompt(fields, style)
        if style == "mask":
            # The model answers at the last mask token, which must be the template's.
            after = after.replace(str(tokenizer.mask_token), " ")
            ids = list(tokenizer(f"{before}{tokenizer.mask_token}{after}", verbose=False)["input_ids"])
        else:
            ids = list(tokenizer(before.rstrip(" "), verbose=False)["input_ids"])
            # Some tokenizers close every text with an end token; the label word must follow the prompt itself.
            while ids and ids[-1] in tokenizer.all_special_ids:
                ids.pop()
        excess = len(ids) - max_seq_length
        if excess <= 0:
            cut.add(fields is not whole, 1)
            return ids
        name = max(fields, key=lambda field: len(fields[field]))
        if len(fields[name]) <= 1:
            raise ValueError(
                f"--max_seq_length {max_seq_length} is too small for the prompt of task {task.name}; "
                f"give {excess} more or leave --soft_prompt out."
            )
        fields = {**fields, name: _shorter(fields[name], excess)}


def _shorter(text: str, excess: int) -> str:
    """`text` shorter by at least a character; by a quarter of the excess in words, so that little more than it goes."""
    words = text.split(" ")
    if len(words) == 1:
        return text[: len(text) // 2]
    return " ".join(words[: max(1, len(words) - max(1, excess // 4))])
