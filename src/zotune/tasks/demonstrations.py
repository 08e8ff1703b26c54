"""Demonstrations in context: solved questions of the training split, drawn by a key."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from zotune.tasks.base import Task
from zotune.tasks.questions import Row

logger = logging.getLogger(__name__)


def demonstrations(task: Task, rows: Sequence[Row], count: int) -> list[str]:
    """``count`` solved questions, as many of each class as possible.

    Args:
        task: the task of these rows.
        rows: training rows in the keyed order of `load_rows`, whose seed selects the demonstrations.
        count: 0 or more.

    Raises:
        ValueError: there are fewer rows.
    """
    if count > len(rows):
        raise ValueError(f"There are {len(rows)} training rows for {count} demonstrations; give fewer or more data.")
    return [task.asked.solved(row) for row in few_shot(task, rows, count)]


def of_each_class(task: Task, labels: Sequence[int], count: int) -> tuple[list[int], list[int]]:
    """Numbers of the first ``count`` rows of each class and of the next ``count``, in their order.

    A class with fewer rows gives what it has, to the first ones before the next; a sentence names such classes.

    Raises:
        ValueError: a class has no row, or there is none beyond the first ones.
    """
    seen = [0] * len(task.labels)
    taught: list[int] = []
    held: list[int] = []
    for number, label in enumerate(labels):
        if seen[label] < 2 * count:
            (taught if seen[label] < count else held).append(number)
        seen[label] += 1
    there = dict(zip(task.labels, seen, strict=True))
    if missing := [name for name, rows in there.items() if rows == 0]:
        raise ValueError(
            f"There is no training row of the class {', '.join(missing)}, so --shots has nothing to take; give"
            " --samplesize, or more data."
        )
    if not held:
        raise ValueError(
            f"No class has more than {max(seen)} training rows, so --shots {count} leaves none to choose the model by;"
            " give fewer --shots or more data."
        )
    if few := [f"{rows} of {name}" for name, rows in there.items() if rows < 2 * count]:
        logger.warning(
            "There are fewer than %d training rows of some classes (%s); all of them are taken, at most %d of a class"
            " to train on and the others to choose the model by.",
            2 * count,
            ", ".join(few),
            count,
        )
    return taught, held


def few_shot(task: Task, rows: Sequence[Row], count: int) -> list[Row]:
    """``count`` rows in their order, taking from each class in turn; the first ones where there are no classes."""
    if not task.labels:
        return list(rows[:count]) if isinstance(rows, list) else [rows[i] for i in range(count)]
    by_class: list[list[int]] = [[] for _ in task.labels]
    for number, row in enumerate(rows):
        by_class[row["label"]].append(number)
    chosen: list[int] = []
    while len(chosen) < count:
        for numbers in by_class:
            if numbers and len(chosen) < count:
                chosen.append(numbers.pop(0))
    return [rows[number] for number in sorted(chosen)]
