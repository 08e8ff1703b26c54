"""DROP (Dua et al., 2019): the model writes the answer to a question that needs counting and comparing."""

from zotune.tasks.base import Task
from zotune.tasks.questions import Question

DROP = Task(
    name="drop",
    hub=("ucinlp/drop", "default"),
    columns=("passage", "question", "answers"),
    aliases={"answers_spans": "answers"},
    lists=("answers",),
    question=Question(
        template="Passage: {passage}\nQuestion: {question}\nAnswer: {label}",
        fields=lambda row: {"question": row["question"].strip()},
        answers=lambda row: row["answers"],
        trained=lambda row: f"{row['answers'][0]}\n",
        cut="passage",
    ),
    metrics=("accuracy", "f1"),
    version=2,
)
