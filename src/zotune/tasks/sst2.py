"""SST-2 (Socher et al., 2013): is the sentence of a film review positive?

Sentences of GLUE end with a space, which the prompt leaves out.
"""

from zotune.tasks.base import Task

SST2 = Task(
    name="sst2",
    hub=("nyu-mll/glue", "sst2"),
    columns=("sentence",),
    labels=("negative", "positive"),
    template="{sentence} It was {label}.",
    further={"sentence": lambda row: row["sentence"].strip()},
    words=("terrible", "great"),
    version=2,
)
