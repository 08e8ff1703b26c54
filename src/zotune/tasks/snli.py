"""SNLI (Bowman et al., 2015): does the premise entail the hypothesis?

Every split has pairs on which the annotators did not agree; they have the label -1.
"""

from zotune.tasks.base import Task
from zotune.tasks.entailment import FURTHER, MASKED

SNLI = Task(
    name="snli",
    hub=("stanfordnlp/snli", "plain_text"),
    columns=("premise", "hypothesis"),
    labels=("entailment", "neutral", "contradiction"),
    template="{premise}\nQuestion: {hypothesis} Yes, Maybe or No?\nAnswer: {label}",
    masked=MASKED,
    further=FURTHER,
    unlabelled=-1,
    words=("Yes", "Maybe", "No"),
    version=2,
)
