"""TREC (Li and Roth, 2002): what kind of thing does a question ask for?"""

from zotune.tasks.base import Task

TREC = Task(
    name="trec",
    hub=("CogComp/trec", "default"),
    columns=("text",),
    aliases={"question": "text"},
    labels=("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"),
    template="{text}\nThis question asks for a {label}",
    words=("expression", "thing", "description", "person", "place", "number"),
    masked="{label}: {text}",
    masked_words=("Expression", "Entity", "Description", "Human", "Location", "Number"),
    version=2,
)
