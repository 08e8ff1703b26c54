"""WSC (Levesque et al., 2012): does the second span, a pronoun, refer to the first?

text_a is the text with the noun as *noun* and the pronoun as _pronoun_, text_b names both ("him" refers to "anyone"),
so that the question survives when a long text is cut.  Span indices count words between spaces; public releases
have some that are off by a few words, and then the occurrence nearest to the index is marked.  The prompt has the text
without marks.
"""

from zotune.tasks.base import Task, Texts
from zotune.tasks.questions import Row

_PUNCTUATION = ".,;:!?\"'()"


def _nearest(words: list[str], span: str, index: int) -> int | None:
    """First word of the occurrence of `span` nearest to word `index`; punctuation and case do not count."""
    wanted = [_bare(word) for word in span.split()]
    bare = [_bare(word) for word in words]
    starts = [i for i in range(len(words)) if bare[i : i + len(wanted)] == wanted]
    return min(starts, key=lambda start: (abs(start - index), start), default=None)


def _bare(word: str) -> str:
    return word.strip(_PUNCTUATION).lower()


def _mark(words: list[str], span: str, index: int, sign: str) -> None:
    """Put `sign` around the span, in place; a text without the span is left alone, as text_b names it anyway."""
    start = _nearest(words, span, index)
    if start is not None:
        stop = start + len(span.split()) - 1
        opening = len(words[start]) - len(words[start].lstrip(_PUNCTUATION))
        words[start] = words[start][:opening] + sign + words[start][opening:]
        closing = len(words[stop].rstrip(_PUNCTUATION))
        words[stop] = words[stop][:closing] + sign + words[stop][closing:]


def _encode(row: Row) -> Texts:
    words = row["text"].split()
    # The pronoun goes first: the signs of the noun must not hide it, and a span never contains the other one.
    _mark(words, row["span2_text"], row["span2_index"], "_")
    _mark(words, row["span1_text"], row["span1_index"], "*")
    return " ".join(words), f'"{row["span2_text"]}" refers to "{row["span1_text"]}"'


WSC = Task(
    name="wsc",
    hub=("aps/super_glue", "wsc.fixed"),
    columns=("text", "span1_text", "span1_index", "span2_text", "span2_index"),
    integers=("span1_index", "span2_index"),
    encode=_encode,
    labels=("False", "True"),
    template=(
        '{text}\nIn the previous sentence, does the pronoun "{pronoun}" refer to {span1_text}? Yes or No?\n{label}'
    ),
    further={"pronoun": lambda row: row["span2_text"].lower()},
    words=("No", "Yes"),
    version=2,
)
