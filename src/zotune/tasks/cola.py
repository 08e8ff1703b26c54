"""CoLA (Warstadt et al., 2019): is the sentence acceptable English?  Reported by Matthews correlation."""

from zotune.tasks.base import Task

COLA = Task(
    name="cola",
    hub=("nyu-mll/glue", "cola"),
    columns=("sentence",),
    labels=("unacceptable", "acceptable"),
    template="{sentence} This sentence is {label}.",
    words=("wrong", "correct"),
    metrics=("accuracy", "matthews"),
)
