"""MNLI (Williams et al., 2018): does the premise entail the hypothesis?  Validation is the matched half."""

from zotune.tasks.base import Task
from zotune.tasks.entailment import FURTHER, MASKED

MNLI = Task(
    name="mnli",
    hub=("nyu-mll/glue", "mnli"),
    validation="validation_matched",
    columns=("premise", "hypothesis"),
    labels=("entailment", "neutral", "contradiction"),
    template="{premise}\nQuestion: {hypothesis} Yes, Maybe or No?\nAnswer: {label}",
    masked=MASKED,
    further=FURTHER,
    words=("Yes", "Maybe", "No"),
    version=2,
)
