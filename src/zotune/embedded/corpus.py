"""The text the embedded model is pretrained on: generated rows, each followed by sentences that say what it implies."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from zotune.embedded.draws import Draws
from zotune.embedded.generator import Row, generate, split_of
from zotune.embedded.senses import use_with_gloss

# How often each task's rows are read, by relative weight; what needs a comparison of two texts is read more often.
SHARES = {"sst2": 3, "cola": 10, "mnli": 22, "rte": 14, "cb": 6, "qnli": 24, "boolq": 8, "wic": 10}
# The weight of single sentences with a word of several senses, followed by the sense it has there.
GLOSSES = 4

# What may follow a row, by task and label: the first word carries the verdict, the rest words it differently.
_TRUE = ("yes, that is true.", "true, it follows.", "yes, it must be so.", "true, we know that.")
_OPEN = ("maybe, nobody can tell.", "perhaps, it is not said.", "maybe, that stays open.")
_FALSE = ("no, that is false.", "false, it cannot be.", "no, it was not so.", "false, we know better.")
_NOT_SAID = ("no, it does not follow.", "false, it is not said.", "no, nobody said so.")
VERDICTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "sst2": (
        ("bad, i hated it.", "awful, it was a waste.", "bad, do not see it.", "awful, a failure."),
        ("good, i loved it.", "great, it was a joy.", "good, go and see it.", "great, a success."),
    ),
    "cola": (
        ("wrong, nobody says it like that.", "incorrect, there is an error.", "wrong, that is bad english."),
        ("right, people say it like that.", "correct, there is no error.", "right, that is good english."),
    ),
    "mnli": (_TRUE, _OPEN, _FALSE),
    "rte": (_TRUE, _NOT_SAID),
    "cb": (_TRUE, _FALSE, _OPEN),
    "qnli": (
        ("answered, now we know it.", "told, that is the answer.", "answered, it says so."),
        ("unanswered, we still do not know.", "untold, that is no answer.", "unanswered, it does not say so."),
    ),
    "boolq": (
        ("no, it is not so.", "false, the text denies it.", "no, that is not the case."),
        ("yes, it is so.", "true, the text says it.", "yes, that is the case."),
    ),
    "wic": (
        ("different, two things are meant.", "unlike, the word has two senses."),
        ("same, one thing is meant.", "alike, the word has one sense."),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text or a pair as the tasks show it, and the sentences that follow it."""

    task: str
    label: int
    first: str
    second: str | None
    after: str


def documents(size: int, split: str, seed: int) -> Iterator[Document]:
    """Yield about `size` documents in keyed random order from rows of one split; training takes "pretrain" only."""
    total = sum(SHARES.values()) + GLOSSES
    items = [
        _document(Draws("document", task, split, seed, row["idx"]), task, row)
        for task, share in SHARES.items()
        for row in generate(task, split, size * share // total, seed)
    ]
    items += _glosses(size * GLOSSES // total, split, seed)
    yield from Draws("order", split, seed).shuffled(items)


def _glosses(size: int, split: str, seed: int) -> Iterator[Document]:
    """Yield uses of words, each followed by what the word means there."""
    keys = count()
    for _ in range(size):
        while True:
            word, text, gloss = use_with_gloss(Draws("gloss", split, seed, next(keys)))
            if split_of(text) == split:
                break
        after = f"{gloss}, that is what {word} means here."
        yield Document(task="gloss", label=0, first=f"{word}: {text}", second=None, after=after)


def _document(draws: Draws, task: str, row: Row) -> Document:
    text = {column: value for column, value in row.items() if isinstance(value, str)}
    if task in ("sst2", "cola"):
        first, second = text["sentence"], None
    elif task == "qnli":
        first, second = text["question"], text["sentence"]
    elif task == "boolq":
        first, second = text["question"], text["passage"]
    elif task == "wic":
        first, second = f"{text['word']}: {text['sentence1']}", text["sentence2"]
    else:
        first, second = text["premise"], text["hypothesis"]
    after = draws.pick(VERDICTS[task][int(row["label"])])
    return Document(task=task, label=int(row["label"]), first=first, second=second, after=after)
