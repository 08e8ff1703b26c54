"""WiC (Pilehvar and Camacho-Collados, 2019): does the word mean the same in both sentences?

The word is named in front of the first sentence and both sentences stay as they are: text_a is "word: sentence1",
text_b is sentence2.  The offsets of the word are not used, so no marker can split it into other tokens.
"""

from zotune.tasks.base import Task, Texts
from zotune.tasks.questions import Row


def _encode(row: Row) -> Texts:
    return f"{row['word']}: {row['sentence1']}", row["sentence2"]


WIC = Task(
    name="wic",
    hub=("aps/super_glue", "wic"),
    columns=("word", "sentence1", "sentence2"),
    encode=_encode,
    labels=("False", "True"),
    template=(
        'Does the word "{word}" have the same meaning in these two sentences? Yes, No?\n'
        "{sentence1}\n{sentence2}\n{label}"
    ),
    words=("No", "Yes"),
    version=2,
)
