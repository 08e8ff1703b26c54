"""What a task is: where its rows come from, what text a model reads, which labels and metrics belong to it."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from zotune.tasks.questions import LABEL_FIELD, Question, Row

Texts = tuple[str, str | None]
Split = Literal["train", "validation"]

VALIDATION_ROWS: Final = 256
"""Rows of an evaluation where nobody says how many."""
PromptStyle: TypeAlias = Literal["mask", "last"]
"""Where a prompted model is read: at the mask token (masked models) or after the last token (causal models)."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task.  Instances are values: no files are touched before `sources.load_rows`.

    A task with classes (`labels`) may be read in three ways: (text_a, text_b) through a new classification head;
    `template` filled with the row through the language-model head, which chooses among `words` by their first tokens;
    or as a `question` to a causal model, which chooses among options by their likelihood.  Tasks whose options differ
    between rows, or whose answers the model writes, are questions alone.

    Attributes:
        name: key in `TASKS` and value of `--task`.
        hub: repository and configuration on the Hugging Face hub; the repository's last part is also the name of
            the group folder in `DIR/<group>/<task>/<split>.parquet`.
        columns: columns every row must have besides `label`.
        labels: class names; the label of a row is an index into them.  None: the task is a `question` alone.
        template: prompt of the prompted form: column names, `{text_a}`, `{text_b}` and names of `further` in braces,
            and `{label}` exactly once, with nothing but fixed text after it (a causal model reads up to there).
        words: label words, one per label; a space in front of `{label}` in the template belongs to the word.
        masked: `template` of masked models where it is another one; any text may follow `{label}`.
        masked_words: `words` of masked models where they are others.
        question: how a causal model is asked; `template` and `words` when left out.
        further: more texts that the template names, or others in the place of columns: name -> function of the row.
        integers: those of `columns` that hold whole numbers, not text.
        lists: those of `columns` that hold lists of texts.
        optional: further columns of text, empty where the data has none.
        encode: row to (text_a, text_b); without it the one or two `columns` as they are.
        aliases: other column names found in public releases, each with the name used here (`label` among them).
        unlabelled: the label of rows that have none, which are left out; None where every row must have one.
        train, validation: names of the two splits on the hub.
        metrics: names in `metrics.METRICS`; "accuracy" comes first.
        version: raised by whatever changes the texts or labels, so that results stay comparable.
    """

    name: str
    hub: tuple[str, str]
    columns: tuple[str, ...]
    labels: tuple[str, ...] = ()
    template: str = ""
    words: tuple[str, ...] = ()
    masked: str = ""
    masked_words: tuple[str, ...] = ()
    question: Question | None = None
    further: Mapping[str, Callable[[Row], str]] = field(default_factory=dict, hash=False)
    integers: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    encode: Callable[[Row], Texts] | None = None
    aliases: Mapping[str, str] = field(default_factory=dict, hash=False)
    unlabelled: int | None = None
    train: str = "train"
    validation: str = "validation"
    metrics: tuple[str, ...] = ("accuracy",)
    version: int = 1

    def __post_init__(self) -> None:
        assert set(self.integers) | set(self.lists) <= set(self.columns), f"{self.name}: kinds of unknown columns"
        assert set(self.aliases.values()) <= {*self.columns, LABEL_FIELD}, (
            f"{self.name}: an alias must stand for a column"
        )
        if self.labels:
            self._check_classes()
        else:
            assert self.question is not None, f"{self.name}: a task has labels, or a question"
            assert self.words == () == tuple(self.template), f"{self.name}: words and a template belong to labels"

    def _check_classes(self) -> None:
        assert len(self.labels) == len(set(self.labels)) >= 2, f"{self.name}: labels must be two or more distinct names"
        assert len(self.words) == len(self.labels), f"{self.name}: one label word per label"
        assert self.encode is not None or 1 <= len(self.columns) <= 2, f"{self.name}: three columns need an encode"
        assert self.metrics[0] == "accuracy", f"{self.name}: accuracy is the first metric"
        assert len(self.masked_words) in (0, len(self.labels)), (
            f"{self.name}: one label word of masked models per label"
        )
        self._check_template("mask")
        names = self._check_template("last")
        assert names[-1:] == [LABEL_FIELD], f"{self.name}: the template must end with {{label}}, fixed text aside"

    def _check_template(self, style: PromptStyle) -> list[str]:
        names = [name for _, name in self.pieces(style) if name is not None]
        assert names.count(LABEL_FIELD) == 1, f"{self.name}: {{label}} must be in a template once"
        unknown = set(names) - {*self.columns, *self.further, "text_a", "text_b", LABEL_FIELD}
        assert not unknown, f"{self.name}: a template names unknown columns {sorted(unknown)}"
        return names

    @property
    def asked(self) -> Question:
        """How a causal model is asked; of a task without a question, its template and words."""
        if self.question is not None:
            return self.question
        slot = f"{{{LABEL_FIELD}}}"
        return Question(
            template=self.template[: self.template.index(slot)] + slot,
            options=lambda row: self.words,  # noqa: ARG005
            fields=self.fields,
        )

    @property
    def writes(self) -> bool:
        """Whether the model writes its answer itself."""
        return self.question is not None and self.question.answers is not None

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return len(self.labels)

    @property
    def group(self) -> str:
        """Name of the folder that holds the task in a local copy, such as "glue"."""
        return self.hub[0].rsplit("/", 1)[-1]

    def texts(self, row: Row) -> Texts:
        """(text_a, text_b) for a classification head; text_b is None in single-sentence tasks.

        Raises:
            ValueError: the row does not fit the task, or the task has no classes.
        """
        if not self.labels:
            raise ValueError(f"task {self.name} has no classes for a classification head")
        if self.encode is not None:
            return self.encode(row)
        first, *second = self.columns
        return row[first], row[second[0]] if second else None

    def label_words(self, style: PromptStyle) -> tuple[str, ...]:
        """The label words for models of this style."""
        return (style == "mask" and self.masked_words) or self.words

    def pieces(self, style: PromptStyle = "last") -> Iterator[tuple[str, str | None]]:
        """The template for models of this style as (fixed text, name of the field that follows or None)."""
        template = (style == "mask" and self.masked) or self.template
        for literal, name, _, _ in string.Formatter().parse(template):
            yield literal, name

    def fields(self, row: Row, style: PromptStyle = "last") -> dict[str, str]:
        """The texts of the row that the template names."""
        text_a, text_b = self.texts(row)
        own = {column: row[column] for column in self.columns}
        values = {**own, "text_a": text_a, "text_b": text_b, **{name: make(row) for name, make in self.further.items()}}
        return {name: str(values[name]) for _, name in self.pieces(style) if name not in (None, LABEL_FIELD)}

    def prompt(self, fields: Mapping[str, str], style: PromptStyle = "last") -> tuple[str, str]:
        """The prompt around the label word: (text before it, text after it), the former ending as the template does."""
        before, after, seen = "", "", False
        for literal, name in self.pieces(style):
            text = literal + ("" if name in (None, LABEL_FIELD) else fields[name])
            before, after = (before, after + text) if seen else (before + text, after)
            seen = seen or name == LABEL_FIELD
        return before, after
