"""BoolQ (Clark et al., 2019): a yes/no question about a passage.

The question comes first: the passage is often longer than the model reads, and it is the one to be cut at its end.
"""

from zotune.tasks.base import Task

BOOLQ = Task(
    name="boolq",
    hub=("aps/super_glue", "boolq"),
    columns=("question", "passage"),
    labels=("False", "True"),
    template="{passage}\nQuestion: {question}? Yes or No?\nAnswer: {label}",
    words=("No", "Yes"),
)
