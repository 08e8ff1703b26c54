"""Rows of generated English for the eight tasks, in the columns and label integers of the Hugging Face data sets."""

import difflib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from zotune.embedded.acceptability import judgement
from zotune.embedded.draws import Draws
from zotune.embedded.inference import commitment, natural_inference, textual_entailment
from zotune.embedded.questions import answering, yes_or_no
from zotune.embedded.senses import same_sense
from zotune.embedded.sentiment import review

Row = dict[str, str | int]

# The share of texts, in percent, that belongs to each split; "pretrain" is what the embedded model may have seen.
_SHARES = {"train": 40, "validation": 20, "pretrain": 40}
SPLITS = tuple(_SHARES)
# So many draws in a row without a new text of the split mean that the texts are used up.
_PATIENCE = 5_000


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """How the rows of one task are made: the text that decides the split, the number of labels, the maker."""

    split_by: str
    labels: int
    make: Callable[[Draws, int], Row]


_KINDS = {
    "mnli": _Kind(split_by="premise", labels=3, make=natural_inference),
    "qnli": _Kind(split_by="sentence", labels=2, make=answering),
    "sst2": _Kind(split_by="sentence", labels=2, make=review),
    "cola": _Kind(split_by="sentence", labels=2, make=judgement),
    "rte": _Kind(split_by="premise", labels=2, make=textual_entailment),
    "boolq": _Kind(split_by="passage", labels=2, make=yes_or_no),
    "wic": _Kind(split_by="sentence1", labels=2, make=same_sense),
    "cb": _Kind(split_by="premise", labels=3, make=commitment),
}
TASKS = tuple(_KINDS)


def split_of(text: str) -> str:
    """Return the split a text belongs to, decided by its SHA-256, so that no text can be in two splits."""
    place = int.from_bytes(hashlib.sha256(text.lower().encode("utf-8")).digest()[:8], "little") % 100
    for name, share in _SHARES.items():
        if place < share:
            return name
        place -= share
    raise AssertionError("the shares must add up to 100")


def generate(task: str, split: str, size: int, seed: int) -> list[Row]:
    """Return `size` rows of generated English for a task, a pure function of the arguments.

    The rows carry the columns of the Hugging Face data set of that name (`glue` for mnli, qnli, sst2 and cola,
    `super_glue` for rte, boolq, wic and cb) and a running `idx`. Labels are balanced: their counts differ by at most
    one. No row occurs twice, and the split of a row is decided by its text (of pairs, the premise, passage, answering
    sentence or first sentence), so no such text is ever in two splits, whatever the seeds. A shorter list is the
    beginning of a longer one.

    Args:
        task: mnli, qnli, sst2, cola, rte, boolq, wic or cb.
        split: "train" or "validation" ("validation_matched" is understood), or "pretrain", from which the embedded
            model was trained.
        size: number of rows, at least 0.
        seed: any integer.

    Raises:
        ValueError: the task or split is unknown, the size negative, or larger than what the grammar can say.
    """
    kind = _KINDS[_known(task, TASKS, "task")]
    split = _known(split.removesuffix("_matched"), SPLITS, "split")
    if size < 0:
        raise ValueError(f"size must be 0 or more, not {size}; give the number of rows wanted.")
    rows: list[Row] = []
    seen: set[tuple[str, ...]] = set()
    # Each candidate has its own key, so none depends on how many numbers another one used.
    keys = count()
    for index in range(size):
        label = _label(kind, task, split, seed, index)
        for _ in range(_PATIENCE):
            row = kind.make(Draws("row", task, split, seed, next(keys)), label)
            texts = tuple(text for text in row.values() if isinstance(text, str))
            if split_of(str(row[kind.split_by])) == split and texts not in seen:
                break
        else:
            raise ValueError(f"the generator has too few distinct rows of {task} for size {size}; ask for fewer.")
        seen.add(texts)
        rows.append({**row, "idx": index})
    return rows


def _known(name: str, names: Sequence[str], what: str) -> str:
    if name in names:
        return name
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"choose one of {', '.join(names)}."
    raise ValueError(f"the generator knows no {what} {name!r}; {hint}")


def _label(kind: _Kind, task: str, split: str, seed: int, index: int) -> int:
    """Return the label of a row: each run of as many rows as there are labels holds every label once."""
    block, place = divmod(index, kind.labels)
    return Draws("labels", task, split, seed, block).shuffled(range(kind.labels))[place]
