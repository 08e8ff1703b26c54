"""How a causal model is asked: the text of a row, and the options among which it chooses or the answers it may give."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Row: TypeAlias = Mapping[str, Any]

LABEL_FIELD = "label"
"""The slot of a template where the label word, an option or an answer goes."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """How the rows of a task are put to a causal model.

    Attributes:
        template: text with column names, and names of `fields`, in braces.  It ends with ``{label}``; a space in front
            of it belongs to the answer, as tokenizers of causal models want it.
        options: row -> the texts among which the model chooses by their likelihood; None where it writes its answer
            itself.
        right: row -> numbers of the right options, the first one being the one that is trained on.
        names: row -> what metrics of texts call each option; the options themselves when left out.
        answers: row -> texts that count as right where the model writes; the first one is trained on.
        trained: row -> the text that is trained on, in place of the first right answer.
        formatted: the prompt has its special tokens already, as chat templates make it; what is too long loses its
            beginning.
        fields: row -> further texts that the template names.
        constant: names of `fields` that belong to the question, not to the row's content: calibration leaves them.
        cut: the text that is shortened when the whole is too long; the longest one when left out.
        stop: texts at which a written answer ends.
        per_token: options are compared by their mean log-likelihood per token, not by the sum: for options that differ
            in length for reasons of their own (names, whole sentences).
    """

    template: str
    options: Callable[[Row], Sequence[str]] | None = None
    right: Callable[[Row], Sequence[int]] = lambda row: (row["label"],)
    names: Callable[[Row], Sequence[str]] | None = None
    answers: Callable[[Row], Sequence[str]] | None = None
    trained: Callable[[Row], str] | None = None
    formatted: bool = False
    fields: Callable[[Row], Mapping[str, str]] = field(default=lambda row: {})  # noqa: ARG005
    constant: tuple[str, ...] = ()
    cut: str | None = None
    stop: tuple[str, ...] = ("\n",)
    per_token: bool = False

    def __post_init__(self) -> None:
        assert (self.options is None) != (self.answers is None), "a question has options or answers"
        names = [name for _, name in self.pieces() if name is not None]
        assert names[-1:] == [LABEL_FIELD], "the template must end with {label}"
        assert self.template.endswith("{label}"), "nothing follows the answer"
        assert LABEL_FIELD not in names[:-1], "{label} must be in the template once"

    def pieces(self) -> Iterator[tuple[str, str | None]]:
        """The template as (fixed text, name of the field that follows or None)."""
        for literal, name, _, _ in string.Formatter().parse(self.template):
            yield literal, name

    @property
    def joint(self) -> str:
        """The white space between the prompt and the answer: it belongs to the answer."""
        literal = list(self.pieces())[-1][0]
        return literal[len(literal.rstrip(" ")) :]

    def texts(self, row: Row) -> dict[str, str]:
        """The texts of the row that the template names."""
        values = {**row, **self.fields(row)}
        return {name: str(values[name]) for _, name in self.pieces() if name not in (None, LABEL_FIELD)}

    def prompt(self, texts: Mapping[str, str]) -> str:
        """The text before the answer, without the white space that belongs to it."""
        parts = [literal + ("" if name in (None, LABEL_FIELD) else texts[name]) for literal, name in self.pieces()]
        return "".join(parts).removesuffix(self.joint) if self.joint else "".join(parts)

    def gold(self, row: Row) -> Sequence[str]:
        """The texts that count as right answers."""
        if self.answers is not None:
            return self.answers(row)
        assert self.options is not None
        names = (self.names or self.options)(row)
        return [names[number] for number in self.right(row)]

    def solved(self, row: Row) -> str:
        """The prompt with its answer: a demonstration in context."""
        if self.options is not None:
            answer = self.options(row)[self.right(row)[0]]
        else:
            assert self.answers is not None
            answer = self.answers(row)[0]
        return self.prompt(self.texts(row)) + self.joint + answer
