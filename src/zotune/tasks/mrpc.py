"""MRPC (Dolan and Brockett, 2005): do two sentences mean the same?"""

from zotune.tasks.base import Task

MRPC = Task(
    name="mrpc",
    hub=("nyu-mll/glue", "mrpc"),
    columns=("sentence1", "sentence2"),
    labels=("not_equivalent", "equivalent"),
    template="{sentence1}\n{sentence2}\nDo both sentences mean the same? Yes or No?\nAnswer: {label}",
    words=("No", "Yes"),
    metrics=("accuracy", "positive_f1"),
)
