"""Data of a user's own: a file or a data set of the hub, and a template, or conversations, as a task.

The last column that a template names is the answer: ``"Review: {review}\nRating: {stars}"`` asks for ``stars``.  With
options the model chooses among them, without it writes.  Rows with a column ``messages`` are conversations (lists of
``{"role": ..., "content": ...}``): the tokenizer's chat template makes the prompt, and the last message is the answer.
"""

from __future__ import annotations

import difflib
import logging
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from zotune.tasks import hub
from zotune.tasks.base import VALIDATION_ROWS, Split, Task
from zotune.tasks.files import STEMS, SUFFIXES, read_file
from zotune.tasks.questions import LABEL_FIELD, Question
from zotune.tasks.sources import checked_rows, ordered

logger = logging.getLogger(__name__)

NAME = "own"
MESSAGES = "messages"
_ANSWERS, _PROMPT, _TARGET = "right_answers", "chat_prompt", "chat_target"


@dataclass(frozen=True, kw_only=True)
class OwnData:
    """Where rows are and how they are asked.

    Attributes:
        train: file, or name of a data set on the hub, with ``:CONFIGURATION`` after it if it has several.
        validation: the same; None takes the validation split of the hub, or holds rows of ``train`` back where there is
            none.
        template: None for conversations.
        options: texts among which the model chooses; none where it writes.
        in_words: label words are compared (`--soft_prompt`): text may follow the answer, which is the column
            ``label`` where the template names that.
    """

    train: str
    validation: str | None = None
    template: str | None = None
    options: tuple[str, ...] = ()
    in_words: bool = False

    def task(self) -> Task:
        """The task.

        Raises:
            ValueError: the template does not end with a column in braces, or there are options without a template.
        """
        if self.template is None:
            if self.options:
                raise ValueError("--options need a --template that ends with the column of the answer.")
            return _chat_task()
        if self.in_words:
            return _task_in_words(self.template, self.options)
        *others, answer = _columns(self.template)
        begin = self.template[: self.template.rindex("{" + answer)]
        if self.options:
            return Task(
                name=NAME,
                hub=(NAME, NAME),
                columns=tuple(dict.fromkeys(others)),
                encode=lambda row: (begin.format(**row).rstrip(), None),
                labels=self.options,
                words=self.options,
                template=begin + f"{{{LABEL_FIELD}}}",
            )
        return Task(
            name=NAME,
            hub=(NAME, NAME),
            columns=(*dict.fromkeys(others), _ANSWERS),
            lists=(_ANSWERS,),
            question=Question(template=begin + f"{{{LABEL_FIELD}}}", answers=lambda row: row[_ANSWERS]),
            metrics=("accuracy", "f1"),
        )

    def rows(
        self, split: Split, *, limit: int | None, held_back: int | None, seed: int, tokenizer: PreTrainedTokenizerBase
    ) -> datasets.Dataset:
        """At most ``limit`` checked rows of one split, in the keyed order.

        Args:
            split: "train" or "validation".
            limit: of the split; None for all of it.
            held_back: validation rows that ``train`` gives where ``validation`` is None; they are the first ones of its
                keyed order; None: a fifth, `VALIDATION_ROWS` at most.
            seed: of the order.
            tokenizer: makes the prompts of conversations.

        Raises:
            ValueError: one sentence naming file, row or column, and what to do.
        """
        task = self.task()
        place = self.train if split == "train" or self.validation is None else self.validation
        found = _read(place, split)
        shared = self.validation is None and not found.has_validation
        if self.template is None:
            made = [
                _chat_row(row, tokenizer, f"Row {number} of {found.where}")
                for number, row in enumerate(found.rows, start=1)
            ]
        else:
            columns = [*task.columns, _answer(self.template)] if self.in_words else _columns(self.template)
            made = _asked_rows(found, columns, task)
        where = found.where
        rows = checked_rows(task, made, where)
        if not shared:
            return ordered(task, rows, split, limit=limit, seed=seed)
        held_back = self._held_back(where, len(rows), held_back, say=split == "validation")
        many = len(rows) if limit is None else limit
        first, last = (held_back, held_back + many) if split == "train" else (0, min(many, held_back))
        return ordered(task, rows, "train", limit=None, seed=seed).select(range(first, min(last, len(rows))))

    def _held_back(self, where: str, there: int, wanted: int | None, *, say: bool) -> int:
        """Validation rows of a file that has rows to train on as well.

        Raises:
            ValueError: no row would be left.
        """
        if wanted is not None and wanted < there:
            return wanted
        if there < 2 or wanted is not None:
            one = f"{there} rows" if there > 1 else "one row"
            raise ValueError(
                f"{where} has {one}, and {wanted or 1} would be held back for validation; give more rows,"
                " --validation_file, or fewer as --samplesize_validation."
            )
        held = min(VALIDATION_ROWS, max(1, there // 5))
        if say:  # of the two splits that are made of these rows, one says it
            logger.warning(
                "%s has %d rows, of which %d are held back for validation; --samplesize_validation or --validation_file"
                " sets that.",
                *(where, there, held),
            )
        return held


def _task_in_words(template: str, options: tuple[str, ...]) -> Task:
    """Label words at the place of the answer; what follows it is for masked models alone."""
    parts, answer = _parts(template), _answer(template)
    places = [i for i, (_, name, _, _) in enumerate(parts) if name == answer]
    if len(places) > 1:
        raise ValueError(f"--template names the answer {answer!r} twice; give it one place.")
    others = tuple(dict.fromkeys(name for _, name, _, _ in parts if name not in (None, answer)))
    if not others:
        raise ValueError("--template must name a column of the question beside that of the answer.")
    begin, end = (
        "".join(_escaped(text) + (f"{{{name}}}" if name else "") for text, name, _, _ in some)
        for some in (parts[: places[0]], parts[places[0] + 1 :])
    )
    begin += _escaped(parts[places[0]][0])
    return Task(
        name=NAME,
        hub=(NAME, NAME),
        columns=others,
        encode=lambda row: (begin.format(**row).rstrip(), None),
        labels=options,
        words=options,
        template=begin + f"{{{LABEL_FIELD}}}",
        masked=begin + f"{{{LABEL_FIELD}}}" + end,
    )


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _answer(template: str) -> str:
    """The column of the answer in a template of label words: `label`, or else the last one."""
    names = [name for _, name, _, _ in _parts(template) if name is not None]
    if not names:
        raise ValueError("--template must name the column of the answer in braces, such as 'It was {label}.'.")
    return LABEL_FIELD if LABEL_FIELD in names else names[-1]


def _parts(template: str) -> list[tuple[str, str | None, str | None, str | None]]:
    """A template as (text, column that follows, ...).

    Raises:
        ValueError: its braces do not hold plain column names.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"--template cannot be read ({error}); put columns in braces, such as {{text}}.") from error
    if any(not name.isidentifier() or form or how for _, name, form, how in parts if name is not None):
        raise ValueError("--template takes plain column names in braces, such as {text}.")
    return parts


def _columns(template: str) -> list[str]:
    """Columns that a template names, the answer's last."""
    parts = _parts(template)
    names = [name for _, name, _, _ in parts if name is not None]
    if not names or parts[-1][1] is None:
        raise ValueError("--template must end with the column of the answer in braces, such as 'Answer: {answer}'.")
    if names[-1] in names[:-1]:
        raise ValueError(f"--template names the answer {names[-1]!r} twice; it may stand at the end only.")
    if len(names) < 2:
        raise ValueError("--template must name a column of the question beside that of the answer.")
    return names


# ------------------------------------------------------------------------------------- rows


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Rows as they were read, where they are, the class names of columns that hold numbers, and whether there is a
    validation split beside them."""

    rows: Sequence[dict[str, Any]]
    where: str
    classes: Mapping[str, Sequence[str]]
    has_validation: bool


def _read(place: str, split: Split) -> _Found:
    path = Path(place).expanduser()
    if path.suffix in SUFFIXES:
        if not path.is_file():
            raise ValueError(f"There is no file {place}; give a csv, jsonl, json or parquet file.")
        rows, names = read_file(path)
        return _Found(rows=rows, where=str(path), classes={"label": names} if names else {}, has_validation=False)
    if path.is_file():
        raise ValueError(f"{place} is no csv, jsonl, json or parquet file, which its name has to end with.")
    repository, _, configuration = place.partition(":")
    splits = hub.load(repository, configuration or None, None, files="give files")
    wanted = next((name for name in STEMS[split] if name in splits), "train")
    if wanted not in splits:
        raise ValueError(f"{repository} has the splits {', '.join(splits)} and no train; give files.")
    data = splits[wanted]
    kinds = {name: kind.names for name, kind in data.features.items() if isinstance(kind, datasets.ClassLabel)}
    has_validation = any(name in splits for name in STEMS["validation"])
    return _Found(rows=data.to_list(), where=f"{place} ({wanted})", classes=kinds, has_validation=has_validation)


def _asked_rows(found: _Found, columns: Sequence[str], task: Task) -> list[dict[str, Any]]:
    """The rows with their answers where the task looks for them.

    Raises:
        ValueError: a column of the template is missing, or an answer is none of the options.
    """
    first, answer = found.rows[0], columns[-1]
    for column in columns:
        if column not in first:
            like = difflib.get_close_matches(column, first, 1)
            hint = f"did you mean {like[0]!r}?" if like else f"it has {', '.join(first)}."
            raise ValueError(f"{found.where} has no column {column!r}, which --template names; {hint}")
    names = found.classes.get(answer)
    made = []
    for number, row in enumerate(found.rows, start=1):
        at, value = f"Row {number} of {found.where}", row.get(answer)
        if value is None or value == "" or value != value:  # NaN, as tables say "missing"
            raise ValueError(f"{at} has nothing in the column {answer!r}; fill it in or remove the row.")
        if names is not None and isinstance(value, int) and 0 <= value < len(names):
            value = _by_name(names, value, task.labels)
        if task.labels:
            said = f"{at} has {value!r} in the column {answer!r}"
            made.append({**row, "label": _option(value, task.labels, said)})
        else:
            made.append({**row, _ANSWERS: value if isinstance(value, (list, dict)) else str(value)})
    return made


def _by_name(names: Sequence[str], number: int, options: Sequence[str]) -> str:
    """A class as the option of its name, or, where options are other words than the classes' names, of its number."""
    if options and len(options) == len(names) and {n.casefold() for n in names} != {o.casefold() for o in options}:
        return options[number]
    return names[number]


def _option(value: Any, options: Sequence[str], what: str) -> str:
    """The option that an answer is: by its text, or, where no option is a number, by its number from 0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # as data frames write the whole numbers of a column with gaps
    text = str(value).strip()
    for same in (text.__eq__, lambda name: name.casefold() == text.casefold(), lambda name: name == _whole(text)):
        matches = [name for name in options if same(name)]
        if len(matches) == 1:
            return matches[0]
    number = _whole(text)
    if number is not None and int(number) in range(len(options)) and not any(_whole(name) for name in options):
        return options[int(number)]
    like = difflib.get_close_matches(text, options, 1)
    hint = f"did you mean {like[0]!r}?" if like else "change the file or --options."
    raise ValueError(f"{what}, which is none of the options {', '.join(options)}; {hint}")


def _whole(text: str) -> str | None:
    """A whole number as it is usually written, from "3" or "3.0"."""
    found = re.fullmatch(r"(\d{1,9})(\.0*)?", text)
    return str(int(found[1])) if found else None


# ------------------------------------------------------------------------------------- conversations


def _chat_task() -> Task:
    return Task(
        name=NAME,
        hub=(NAME, NAME),
        columns=(_PROMPT, _ANSWERS, _TARGET),
        lists=(_ANSWERS,),
        question=Question(
            template=f"{{{_PROMPT}}}{{{LABEL_FIELD}}}",
            answers=lambda row: row[_ANSWERS],
            trained=lambda row: row[_TARGET],
            formatted=True,
            stop=(),
        ),
        metrics=("accuracy", "f1"),
    )


def _chat_row(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, at: str) -> dict[str, Any]:
    messages = row.get(MESSAGES)
    if messages is None:
        raise ValueError(f"{at} has no column {MESSAGES!r}; give --template for other columns.")
    good = isinstance(messages, list) and len(messages) > 1
    if not good or not all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages):
        raise ValueError(f"{at} has no conversation: give a list of two or more {{'role': ..., 'content': ...}}.")
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"The conversation in {at[0].lower() + at[1:]} must end with the role 'assistant'.")
    if not tokenizer.chat_template:
        raise ValueError("The tokenizer has no chat template; use that of a chat model, or give --template.")
    try:
        prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception as error:  # of the template, which is a program
        raise ValueError(f"{at} does not fit the chat template: {str(error).splitlines()[0]}.") from error
    if not str(whole).startswith(str(prompt)):
        raise ValueError("The chat template does not go on where its generation prompt ends; give --template.")
    target = str(whole)[len(str(prompt)) :]
    return {_PROMPT: prompt, _ANSWERS: [messages[-1]["content"]], _TARGET: target}
