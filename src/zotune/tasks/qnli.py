"""QNLI (Wang et al., 2018): does the sentence answer the question?"""

from zotune.tasks.base import Task

QNLI = Task(
    name="qnli",
    hub=("nyu-mll/glue", "qnli"),
    columns=("question", "sentence"),
    labels=("entailment", "not_entailment"),
    template="{sentence}\nDoes this answer the question: {question} Yes or No?\nAnswer: {label}",
    words=("Yes", "No"),
)
