"""ReCoRD (Zhang et al., 2018): which entity of a news passage stands at the placeholder of a sentence about it?

Each option is the sentence with an entity in the place of @placeholder; the passage comes first.  Lines of the passage
after @highlight are its bullet points, and the option is one more.
"""

from __future__ import annotations

from collections.abc import Sequence

from zotune.tasks.base import Task
from zotune.tasks.questions import Question, Row

_PLACEHOLDER = "@placeholder"


def _entities(row: Row) -> list[str]:
    return list(dict.fromkeys(row["entities"]))


def _options(row: Row) -> list[str]:
    return [row["query"].replace(_PLACEHOLDER, entity) for entity in _entities(row)]


def _right(row: Row) -> Sequence[int]:
    entities = _entities(row)
    found = [entities.index(answer) for answer in dict.fromkeys(row["answers"]) if answer in entities]
    if not found:
        raise ValueError("none of the answers is among the entities")
    return found


def _fields(row: Row) -> dict[str, str]:
    if _PLACEHOLDER not in row["query"]:
        raise ValueError(f'the column "query" has no {_PLACEHOLDER}')
    return {"article": row["passage"].replace("@highlight\n", "- ")}


RECORD = Task(
    name="record",
    hub=("aps/super_glue", "record"),
    columns=("passage", "query", "entities", "answers"),
    lists=("entities", "answers"),
    question=Question(
        template="{article}\n- {label}",
        options=_options,
        names=_entities,
        right=_right,
        fields=_fields,
        cut="article",
        per_token=True,
    ),
    metrics=("accuracy", "f1"),
    version=2,
)
