"""What is known without reading a text: how frequent the classes are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable


def class_shares(train: Iterable[int], validation: Iterable[int]) -> dict[str, float]:
    """Loss and accuracy of predicting the shares that the classes have among the training rows, whatever the text.

    Args:
        train: classes of the training rows.
        validation: classes of the rows that are predicted.

    Returns:
        "accuracy", that of always saying the most frequent class (of equally frequent ones the first), and "loss", the
        mean cross entropy in nats, if the training rows have every class that is asked for; nothing without rows.
    """
    counts, asked = Counter(train), list(validation)
    if not counts or not asked:
        return {}
    most = min(counts, key=lambda label: (-counts[label], label))
    found = {"accuracy": asked.count(most) / len(asked)}
    if counts.keys() >= set(asked):
        found["loss"] = math.fsum(math.log(counts.total() / counts[label]) for label in asked) / len(asked)
    return found
