"""COPA (Roemmele et al., 2011): which of two alternatives is the cause or the effect of the premise?

A head with two labels needs both alternatives in one input, so the pair is the two stories: text_a joins the first
choice and the premise, text_b the second choice and the premise, by "So:" when the choice is a cause and by "Because:"
when it is an effect.  Each choice comes before the premise, so that truncation, which cuts ends, takes the words that
both have in common.  As a question to a causal model the premise goes on with "because" or "so" and a choice.
"""

from zotune.tasks.base import Task, Texts
from zotune.tasks.questions import Question, Row

_JOINTS = {"cause": "So:", "effect": "Because:"}


def _encode(row: Row) -> Texts:
    joint = _JOINTS.get(row["question"])
    if joint is None:
        raise ValueError(f'the column "question" is {row["question"]!r}; give "cause" or "effect"')
    return f"{row['choice1']} {joint} {row['premise']}", f"{row['choice2']} {joint} {row['premise']}"


def _continued(choice: str) -> str:
    """The choice as the rest of a sentence: its first word in small letters, but for "I"."""
    first, *rest = choice.split(" ")
    return " ".join([first if first == "I" else first.lower(), *rest])


def _stem(row: Row) -> dict[str, str]:
    _encode(row)  # refuses another question
    joint = "because" if row["question"] == "cause" else "so"
    return {"stem": row["premise"].strip().removesuffix("."), "joint": joint}


COPA = Task(
    name="copa",
    hub=("aps/super_glue", "copa"),
    columns=("premise", "choice1", "choice2", "question"),
    encode=_encode,
    labels=("choice1", "choice2"),
    template="A: {text_a}\nB: {text_b}\nIs A or B more plausible?\nAnswer: {label}",
    words=("A", "B"),
    question=Question(
        template="{stem} {joint} {label}",
        options=lambda row: (_continued(row["choice1"]), _continued(row["choice2"])),
        fields=_stem,
        cut="stem",
        constant=("joint",),
        per_token=True,
    ),
    version=2,
)
