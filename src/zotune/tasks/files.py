"""Local data files: which file holds a split of a task, and its rows as plain dictionaries.

Files are read straight into memory: no cache is written, neither beside the data nor elsewhere, so a read-only folder
works and an edited file is never answered from an older copy.
"""

from __future__ import annotations

import csv
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet

from zotune.tasks.base import Split, Task

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
STEMS: Mapping[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "validation_matched", "dev", "dev_matched", "val", "valid"),
}
_SHARD = re.compile(r"-\d+-of-\d+$")


def find_files(task: Task, split: Split, folder: Path) -> list[Path]:
    """The file of the split, or its shards `<split>-00000-of-00002.*` in order.

    Looked for in `folder/<group>/<task>`, `folder/*/<task>`, `folder/<task>` and `folder` itself, in this order; the
    first of these folders that holds any split of the task decides.  Names of the files: the hub's name of the split,
    then train; validation, validation_matched, dev, val.

    Raises:
        ValueError: no folder, no file of the split, or two that could be meant.
    """
    if not folder.exists():
        raise ValueError(f"There is no folder {folder}; give --data_dir the folder that holds the data files.")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; give --data_dir the folder that holds it.")
    place = _task_folder(task, folder)
    own = task.train if split == "train" else task.validation
    for stem in dict.fromkeys((own, *STEMS[split])):
        found = _files_of(place, stem)
        if found:
            kinds = {path.suffix for path in found}
            if len(kinds) > 1 or (len(found) > 1 and not all(_SHARD.search(path.stem) for path in found)):
                names = " and ".join(path.name for path in found[:2])
                raise ValueError(f"{place} holds both {names}; keep the one that is meant for {split}.")
            return found
    there = ", ".join(sorted(path.name for path in place.iterdir())[:6]) or "nothing"
    raise ValueError(
        f"No {split} file for task {task.name} in {place} (found: {there}); "
        f"name it {own} with one of {' '.join(SUFFIXES)}."
    )


def _files_of(place: Path, stem: str) -> list[Path]:
    paths = (path for path in place.iterdir() if path.suffix in SUFFIXES and path.is_file())
    return sorted(path for path in paths if _SHARD.sub("", path.stem) == stem)


def _task_folder(task: Task, folder: Path) -> Path:
    """The folder that holds the task's files; `folder` itself when nothing more particular does."""
    stems = {task.train, task.validation, *STEMS["train"], *STEMS["validation"]}

    def holds_data(place: Path) -> bool:
        return place.is_dir() and any(_files_of(place, stem) for stem in stems)

    preferred = folder / task.group / task.name
    if holds_data(preferred):
        return preferred
    others = [path for path in sorted(folder.glob(f"*/{task.name}")) if holds_data(path)]
    if len(others) > 1:
        raise ValueError(
            f"Task {task.name} is in {others[0]} and in {others[1]}; give --data_dir the folder that is meant."
        )
    own = folder / task.name
    return others[0] if others else own if holds_data(own) else folder


def read_file(path: Path) -> tuple[list[dict[str, Any]], tuple[str, ...] | None]:
    """Rows of one parquet, jsonl, json or csv file, and the class names of `label` if the file carries them.

    csv gives every value as text.  A json file holds a list of objects or one object a line.

    Raises:
        ValueError: a file that is empty or cannot be read as its ending says, with the line where that is known.
    """
    readers = {".parquet": _read_parquet, ".csv": _read_csv, ".jsonl": _read_json, ".json": _read_json}
    try:
        rows, names = readers[path.suffix](path)
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply; give rows of plain values.") from error
    except (OSError, UnicodeDecodeError, csv.Error, ArithmeticError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as {path.suffix[1:]}: {_first_line(error)}.") from error
    if not rows:
        raise ValueError(f"{path} has no rows; give a file with at least one example.")
    return rows, names


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _read_parquet(path: Path) -> tuple[list[dict[str, Any]], tuple[str, ...] | None]:
    try:
        table = parquet.read_table(path, partitioning=None)
    except ValueError as error:  # pyarrow's ArrowInvalid
        raise ValueError(f"{path} cannot be read as parquet: {_first_line(error)}.") from error
    names = None
    stored = (table.schema.metadata or {}).get(b"huggingface")
    if stored is not None:
        names = _class_names(stored, path)
    return table.to_pylist(), names


def _class_names(stored: bytes, path: Path) -> tuple[str, ...] | None:
    """Class names in the metadata that the library `datasets` puts into parquet files."""
    try:
        feature = json.loads(stored).get("info", {}).get("features", {}).get("label", {})
        if feature.get("_type") != "ClassLabel":
            return None
        names = feature["names"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"The metadata of {path} cannot be read, so it is unknown which class a label is; write the file anew."
        ) from error
    return tuple(names)


_CSV_LIMIT = threading.Lock()


@contextmanager
def _long_fields() -> Iterator[None]:
    """Without the csv module's limit of 131,072 characters a field, which is one for the whole process."""
    with _CSV_LIMIT:
        before = csv.field_size_limit(2**31 - 1)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _read_csv(path: Path) -> tuple[list[dict[str, Any]], None]:
    # utf-8-sig: spreadsheets put a byte-order mark in front, which would become part of the first column's name.
    with _long_fields(), path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        columns = reader.fieldnames or ()
        twice = sorted({name for name in columns if list(columns).count(name) > 1})
        if twice:
            raise ValueError(f"{path} has the column {twice[0]!r} twice; name every column once.")
        rows = []
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"Line {reader.line_num} of {path} has not the {len(columns)} fields of its header; "
                    "put texts with commas in double quotes."
                )
            rows.append(dict(row))
    return rows, None


def _read_json(path: Path) -> tuple[list[dict[str, Any]], None]:
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error.msg} in line {error.lineno}.") from error
    else:
        rows = []
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise ValueError(f"Line {number} of {path} is not a JSON object: {error.msg}.") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(
                f"Row {number} of {path} is not a JSON object; give one object with named columns per row."
            )
    return rows, None
