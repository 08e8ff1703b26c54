"""RTE (Dagan et al., 2005): does the premise entail the hypothesis?

Columns of SuperGLUE (premise, hypothesis); those of GLUE (sentence1, sentence2) are read as the same.
"""

from zotune.tasks.base import Task
from zotune.tasks.entailment import FURTHER, MASKED

RTE = Task(
    name="rte",
    hub=("aps/super_glue", "rte"),
    columns=("premise", "hypothesis"),
    aliases={"sentence1": "premise", "sentence2": "hypothesis"},
    labels=("entailment", "not_entailment"),
    template='{premise}\nDoes this mean that "{hypothesis}" is true? Yes or No?\n{label}',
    masked=MASKED,
    further=FURTHER,
    words=("Yes", "No"),
    version=2,
)
