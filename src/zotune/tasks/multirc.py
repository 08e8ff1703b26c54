"""MultiRC (Khashabi et al., 2018): is this answer to a question about a paragraph right?  One row an answer."""

from zotune.tasks.base import Task, Texts
from zotune.tasks.questions import Row


def _encode(row: Row) -> Texts:
    return f"{row['question']} {row['answer']}", row["paragraph"]


MULTIRC = Task(
    name="multirc",
    hub=("aps/super_glue", "multirc"),
    columns=("paragraph", "question", "answer"),
    encode=_encode,
    labels=("False", "True"),
    template=(
        '{paragraph}\nQuestion: {question}\nI found this answer "{answer}". Is that correct? Yes or No?\n{label}'
    ),
    words=("No", "Yes"),
    metrics=("accuracy", "positive_f1"),
    version=2,
)
