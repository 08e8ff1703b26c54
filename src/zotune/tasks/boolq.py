"""BoolQ (Clark et al., 2019): a yes/no question about a passage.

The question comes first in a pair: the passage is often longer than the model reads, and it is the one to be cut at
its end.
"""

from zotune.tasks.base import Task
from zotune.tasks.questions import Row


def _asked(row: Row) -> str:
    """The question as a sentence; the data has it in small letters and without its mark."""
    question: str = row["question"].strip()
    return question[:1].upper() + question[1:].rstrip("?") + "?"


BOOLQ = Task(
    name="boolq",
    hub=("aps/super_glue", "boolq"),
    columns=("question", "passage"),
    labels=("False", "True"),
    template="{passage} {asked}\n{label}",
    further={"asked": _asked},
    words=("No", "Yes"),
    version=2,
)
