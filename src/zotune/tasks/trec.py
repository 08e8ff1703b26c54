"""TREC (Li and Roth, 2002): what kind of thing does a question ask for?

The hub has the six coarse classes beside fifty fine ones, and no development split: its test split is the validation
split here.
"""

from zotune.tasks.base import Task

TREC = Task(
    name="trec",
    hub=("CogComp/trec", "default"),
    columns=("text",),
    aliases={"question": "text", "coarse_label": "label"},
    validation="test",
    labels=("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"),
    template="{text}\nThis question asks for a {label}",
    words=("expression", "thing", "description", "person", "place", "number"),
    masked="{label}: {text}",
    masked_words=("Expression", "Entity", "Description", "Human", "Location", "Number"),
    version=2,
)
