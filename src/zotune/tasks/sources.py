"""Rows of a task from the hub, from a folder or from the embedded generator, behind one function.

Whatever the source, the result is a `datasets.Dataset` in memory with the task's text columns under their names in
`Task.columns` and `Task.optional` and integer labels, every row checked, in an order that is a pure function of (seed,
split).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt

from zotune.tasks import hub
from zotune.tasks.base import Split, Task
from zotune.tasks.files import find_files, read_file
from zotune.tasks.questions import LABEL_FIELD
from zotune.tasks.tokens import tokenise

__all__ = ["EMBEDDED", "HUB", "keyed_order", "load_rows", "tokenise"]

HUB = "hub"
EMBEDDED = "embedded"

logger = logging.getLogger(__name__)


def load_rows(
    task: Task, split: Split, *, source: str | Path, limit: int | None = None, seed: int = 0
) -> datasets.Dataset:
    """At most `limit` checked rows of one split, in the keyed order.

    Args:
        task: an entry of `TASKS`.
        split: "train" or "validation"; each source's own names for them are found.
        source: "hub", "embedded", or a folder (see `files.find_files` for its layouts).
        limit: number of rows; more than there are gives a warning and all of them, None gives all.
            The embedded generator makes exactly this many, so it needs a number.
        seed: selects and orders the rows; the rows for a smaller limit are the first ones of those for a larger.

    Returns:
        Dataset with the columns `task.columns` and `label` (0 .. num_labels - 1).

    Raises:
        ValueError: one sentence naming file, row (from 1, in the file's order) or column, and what to do.
    """
    if split not in ("train", "validation"):
        raise ValueError(f"There is no split {split!r}; give 'train' or 'validation'.")
    if limit is not None and limit < 1:
        raise ValueError(f"The number of {split} rows is {limit}; give at least 1.")
    if source == EMBEDDED:
        return _embedded(task, split, limit, seed)
    if source == HUB:
        parts = [_hub(task, split)]
    else:
        parts = [_file(task, path) for path in find_files(task, split, Path(source).expanduser())]
    return ordered(task, [row for part in parts for row in part], split, limit=limit, seed=seed)


def ordered(
    task: Task, rows: Sequence[dict[str, Any]], split: Split, *, limit: int | None, seed: int
) -> datasets.Dataset:
    """At most ``limit`` of checked rows, in the keyed order."""
    _warn_short(task, split, limit, len(rows))
    order = keyed_order(len(rows), seed, split)[:limit]
    return _dataset(task, [rows[i] for i in order])


def checked_rows(task: Task, rows: Sequence[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """Rows with exactly the task's columns.

    Raises:
        ValueError: at the first bad one; ``where`` says in which file.
    """
    return _checked(task, rows, where, None)


def _warn_short(task: Task, split: Split, limit: int | None, size: int) -> None:
    if limit is not None and limit > size:
        logger.warning("Task %s has %d %s rows, not %d; using all of them.", task.name, size, split, limit)


def keyed_order(size: int, seed: int, split: str) -> npt.NDArray[np.int64]:
    """Permutation of `size` rows, int64 (size,), from (seed, split) alone.

    Row i gets the i-th word of a Philox stream and rows are sorted by their words.  The raw words of Philox are fixed
    by its definition, unlike numpy's shuffles, so the order does not change with numpy's version.
    """
    digest = hashlib.blake2b(f"zotune rows {split} {seed}".encode(), digest_size=16).digest()
    words = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(size)
    return np.argsort(words, kind="stable").astype(np.int64)


def _embedded(task: Task, split: Split, limit: int | None, seed: int) -> datasets.Dataset:
    from zotune import embedded

    if limit is None:
        raise ValueError("The embedded generator makes as many rows as it is asked for; give --samplesize a number.")
    rows = embedded.generate(task.name, split, limit, seed)
    _warn_short(task, split, limit, len(rows))
    return _dataset(task, _checked(task, rows, f"the generated {split} rows of {task.name}", None))


def _hub(task: Task, split: Split) -> list[dict[str, Any]]:
    """Rows of the hub's copy; `datasets` keeps its download in its own cache folder."""
    repository, configuration = task.hub
    name = task.train if split == "train" else task.validation
    where = f"{repository} ({configuration}, {name})"
    data = hub.load(repository, configuration, name, files="give the data as files with --data_dir")
    feature = next((data.features[name] for name in _names(task, LABEL_FIELD) if name in data.features), None)
    names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    return _checked(task, data.to_list(), where, names)


def _file(task: Task, path: Path) -> list[dict[str, Any]]:
    rows, names = read_file(path)
    return _checked(task, rows, str(path), names)


def _checked(
    task: Task, rows: Sequence[dict[str, Any]], where: str, names: Sequence[str] | None
) -> list[dict[str, Any]]:
    """Rows with exactly the task's columns and integer labels; ValueError at the first bad one."""
    columns = _columns(task, rows[0], where)
    label = _found(task, LABEL_FIELD, rows[0], where) if task.labels else LABEL_FIELD
    own = _label_names(task, names, where)
    to_task = [task.labels.index(name) for name in own]
    checked = []
    for number, row in _labelled(task, rows, label, where):
        at = f"Row {number} of {where}"
        clean: dict[str, Any] = {}
        for column, found in columns.items():
            value = row.get(found)
            if value is None or (isinstance(value, str) and not value.strip()):
                raise ValueError(f"{at} has no text in the column {found!r}; fill it in or remove the row.")
            clean[column] = _value(task, column, value, at)
        for column in task.optional:
            clean[column] = _value(task, column, row.get(column) or "", at)
        if task.labels:
            clean["label"] = to_task[_label(row.get(label), own, at)]
        try:
            _fits(task, clean)
        except ValueError as error:
            raise ValueError(f"{at} does not fit task {task.name}: {error}.") from error
        checked.append(clean)
    return checked


def _labelled(task: Task, rows: Sequence[dict[str, Any]], label: str, where: str) -> list[tuple[int, dict[str, Any]]]:
    """The rows with their numbers from 1, without those that the task's source marks as unlabelled.

    Raises:
        ValueError: none is left.
    """
    numbered = list(enumerate(rows, start=1))
    if task.unlabelled is None:
        return numbered
    mark = str(task.unlabelled)
    kept = [(number, row) for number, row in numbered if str(row.get(label)).strip() != mark]
    if not kept:
        raise ValueError(f"Every row of {where} has the label {mark}, which stands for none; use a labelled split.")
    if len(kept) < len(rows):
        left_out = len(rows) - len(kept)
        logger.warning("%d of %d rows of %s have no label (%s); they are left out.", left_out, len(rows), where, mark)
    return kept


def _fits(task: Task, row: dict[str, Any]) -> None:
    """Make the texts of a row once; notes the number of the right option of a task without classes.

    Raises:
        ValueError: that is not possible.
    """
    if task.labels:
        task.texts(row)
    if task.question is not None:
        if not task.labels:
            row["label"] = task.asked.right(row)[0] if task.asked.options is not None else 0
        task.asked.solved(row)


def _columns(task: Task, row: dict[str, Any], where: str) -> dict[str, str]:
    """Column of the task -> its name in the file."""
    return {column: _found(task, column, row, where) for column in task.columns}


def _found(task: Task, column: str, row: dict[str, Any], where: str) -> str:
    """The name that a column has in the file."""
    present = next((name for name in _names(task, column) if name in row), None)
    if present is None:
        raise ValueError(_missing(column, task, row, where))
    return present


def _names(task: Task, column: str) -> list[str]:
    """The names that a column of the task, or the label, may have: its own one first."""
    return [column, *(alias for alias, meant in task.aliases.items() if meant == column)]


def _missing(column: str, task: Task, row: dict[str, Any], where: str) -> str:
    nearest = difflib.get_close_matches(column, [str(name) for name in row], n=1)
    hint = f" (rename {nearest[0]!r}?)" if nearest else ""
    return (
        f"{where} has no column {column!r}{hint}; task {task.name} needs "
        f"{', '.join((*task.columns, 'label') if task.labels else task.columns)} "
        f"and the file has {', '.join(str(name) for name in row)}."
    )


def _label_names(task: Task, names: Sequence[str] | None, where: str) -> tuple[str, ...]:
    """Class names in the order of the file's integers, which need not be the task's order."""
    if names is None or tuple(names) == task.labels:
        return task.labels
    if sorted(names) == sorted(task.labels):
        return tuple(names)
    if len(names) != task.num_labels:
        raise ValueError(
            f"{where} has the classes {', '.join(names)} and task {task.name} has {', '.join(task.labels)}; "
            "choose the task that fits the data."
        )
    logger.warning("%s calls the classes %s; they are taken as %s.", where, ", ".join(names), ", ".join(task.labels))
    return task.labels


def _value(task: Task, column: str, value: Any, at: str) -> str | int | list[str]:
    """Text as it is, whole numbers as int (csv gives them as text), lists of texts; ValueError for anything else."""
    if column in task.lists:
        return _list(value, column, at)
    if column in task.integers:
        try:
            return int(value)
        except (TypeError, ValueError):
            raise ValueError(f"{at} has {value!r} in the column {column!r}; give a whole number.") from None
    if not isinstance(value, str):
        raise ValueError(f"{at} has {value!r} in the column {column!r}; give text.")
    return value


def _list(value: Any, column: str, at: str) -> list[str]:
    """Texts from a list, from the lists of texts in public releases (``text`` of SQuAD, ``spans`` of DROP), or from
    JSON in a csv field."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"{at} has {value!r} in the column {column!r}; give a JSON list of texts.") from None
    if isinstance(value, dict):
        value = next((value[name] for name in ("text", "spans") if name in value), value)
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not value or not all(isinstance(one, str) and one.strip() for one in value):
        raise ValueError(f"{at} has {value!r} in the column {column!r}; give a list of one or more texts.")
    return list(value)


def _label(value: Any, names: tuple[str, ...], at: str) -> int:
    """Index of the label in `names`, from a whole number, a class name, or a truth value where classes are so named."""
    wanted = f"give 0 to {len(names) - 1} or one of {', '.join(names)}"
    if value is None or value == "" or value != value:  # NaN, as tables say "missing"
        raise ValueError(f"{at} has no label; {wanted}, or remove the row.")
    text = str(value).strip()
    for same in (text.__eq__, lambda name: name.casefold() == text.casefold()):
        matches = [i for i, name in enumerate(names) if same(name)]
        if len(matches) == 1:
            return matches[0]
    try:
        # Spreadsheets and data frames write the whole numbers of a column with gaps as 0.0 and 1.0.
        exact = float(text) if isinstance(value, str) else value
        number = int(exact)
        whole = not isinstance(value, bool) and number == exact
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        nearest = difflib.get_close_matches(text, names, n=1)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        raise ValueError(f"{at} has the label {value!r}, which is neither a whole number nor a class{hint}; {wanted}.")
    if number == -1:
        raise ValueError(f"{at} has the label -1, which stands for an unknown label; use a labelled split or {wanted}.")
    if not 0 <= number < len(names):
        raise ValueError(f"{at} has the label {number}, which is out of range; {wanted}.")
    return number


def _dataset(task: Task, rows: Sequence[dict[str, Any]]) -> datasets.Dataset:
    text, number = datasets.Value("string"), datasets.Value("int64")
    every = (*task.columns, *task.optional)
    kinds: dict[str, Any] = {column: number if column in task.integers else text for column in every}
    kinds.update((column, datasets.List(text)) for column in task.lists)
    label = datasets.ClassLabel(names=list(task.labels)) if task.labels else number
    features = datasets.Features({**kinds, "label": label})
    return datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features)
