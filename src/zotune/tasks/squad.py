"""SQuAD 1.1 (Rajpurkar et al., 2016): the model writes the answer to a question about a paragraph."""

from zotune.tasks.base import Task
from zotune.tasks.questions import Question, Row


def _texts(row: Row) -> dict[str, str]:
    title = row.get("title")
    return {"heading": f"Title: {title}\n" if title else "", "asked": row["question"].strip()}


SQUAD = Task(
    name="squad",
    hub=("rajpurkar/squad", "plain_text"),
    columns=("context", "question", "answers"),
    lists=("answers",),
    optional=("title",),
    question=Question(
        template="{heading}Context: {context}\nQuestion: {asked}\nAnswer: {label}",
        fields=_texts,
        answers=lambda row: row["answers"],
        trained=lambda row: f"{row['answers'][0]}\n",
        cut="context",
    ),
    metrics=("accuracy", "f1"),
    version=2,
)
