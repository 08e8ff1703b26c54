"""SQuAD 1.1 (Rajpurkar et al., 2016): the model writes the answer to a question about a paragraph."""

from zotune.tasks.base import Task
from zotune.tasks.questions import Question

SQUAD = Task(
    name="squad",
    hub=("rajpurkar/squad", "plain_text"),
    columns=("context", "question", "answers"),
    lists=("answers",),
    question=Question(
        template="Context: {context}\nQuestion: {question}\nAnswer: {label}",
        answers=lambda row: row["answers"],
        cut="context",
    ),
    metrics=("accuracy", "f1"),
)
