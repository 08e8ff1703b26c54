"""SST-5 (Socher et al., 2013): how positive is a sentence of a film review, on five levels?"""

from zotune.tasks.base import Task

SST5 = Task(
    name="sst5",
    hub=("SetFit/sst5", "default"),
    columns=("text",),
    labels=("very negative", "negative", "neutral", "positive", "very positive"),
    template="{text} It was {label}.",
    words=("terrible", "bad", "okay", "good", "great"),
    version=2,
)
