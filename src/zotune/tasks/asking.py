"""Questions as token ids: the prompt, demonstrations before it, and each option as it goes on from there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from zotune.tasks.base import Task
from zotune.tasks.questions import Question, Row
from zotune.tasks.tokens import _shorter

BETWEEN = "\n\n"
"""What separates demonstrations from each other and from the question."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question of one row.

    Attributes:
        prompt: token ids before the answer, special tokens in front included.
        options: token ids of each option after the prompt; empty where the model writes.
        cut: whether a text of the row was shortened.
    """

    prompt: list[int]
    options: list[list[int]]
    cut: bool = field(default=False, compare=False)


def ask(
    row: Row,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    demonstrations: Sequence[str] = (),
    texts: Mapping[str, str] | None = None,
    options: Callable[[Row], Sequence[str]] | None = None,
    reserve: int = 0,
) -> Asked:
    """The ids of a row's question.

    What is too long loses its first demonstrations, then the end of the text that the task names (the longest one where
    it names none); the question, its options and the template always stay.

    Args:
        row: with the task's columns.
        task: gives the question.
        tokenizer: of the model.
        max_length: most tokens of the prompt and its longest option.
        demonstrations: solved questions in front, see `Question.solved`.
        texts: in place of those of the row that the template names.
        options: row -> texts in place of the row's options.
        reserve: tokens to be left for an answer that the model writes.

    Raises:
        ValueError: the template alone is too long, or an option adds no token.
    """
    asked, kept, cut = task.asked, list(demonstrations), False
    texts = asked.texts(row) if texts is None else texts
    of_row = options or asked.options
    continued = of_row(row) if of_row is not None else ()
    while True:
        context = BETWEEN.join([*kept, asked.prompt(texts)])
        result = _encode(context, asked, continued, tokenizer)
        excess = len(result.prompt) + max([reserve, *map(len, result.options)]) - max_length
        if excess <= 0:
            return replace(result, cut=cut)
        if kept:
            del kept[0]
            continue
        texts, cut = _shortened(texts, asked, excess, task, max_length), True


def _encode(context: str, asked: Question, options: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Asked:
    """An option's tokens are those that the whole has more than the context: it is read as it would be in running
    text."""
    special = not asked.formatted
    prompt = _ids(context, tokenizer, special=special)
    continued = []
    for option in options:
        # The end token of a chat template belongs to its answer.
        whole = _ids(context + asked.joint + option, tokenizer, special=special)
        if len(whole) <= len(prompt):
            raise ValueError(f"the option {option!r} adds no token to its prompt; give a longer one")
        continued.append(whole[len(prompt) :])
    return Asked(prompt, continued)


def _ids(text: str, tokenizer: PreTrainedTokenizerBase, *, special: bool) -> list[int]:
    """Token ids without an end token, which some tokenizers close every text with."""
    ids = list(tokenizer(text, verbose=False, add_special_tokens=special)["input_ids"])
    ends = set(tokenizer.all_special_ids) if special else set()
    while len(ids) > 1 and ids[-1] in ends:
        ids.pop()
    return ids


def _shortened(texts: Mapping[str, str], asked: Question, excess: int, task: Task, max_length: int) -> dict[str, str]:
    name = asked.cut or max(texts, key=lambda field: len(texts[field]), default="")
    if len(texts.get(name, "")) <= 1:
        raise ValueError(
            f"--max_seq_length {max_length} is too small for the question of task {task.name}; give {excess} more."
        )
    shorter = _shorter(texts[name], excess)
    if asked.formatted:
        shorter = texts[name][-len(shorter) :]
    return {**texts, name: shorter}


def as_columns(asked: Sequence[Asked], labels: Sequence[int], *, right_alone: bool = False) -> dict[str, list[Any]]:
    """Columns of a data set for `zotune.hf.options.OptionCollator`.

    Args:
        asked: the questions.
        labels: number of the right option of each.
        right_alone: keep the right option only (language modelling on it).
    """
    kept = [[q.options[label]] if right_alone else q.options for q, label in zip(asked, labels, strict=True)]
    return {
        "prompt": [question.prompt for question in asked],
        "options": kept,
        "labels": [0] * len(asked) if right_alone else list(labels),
    }
