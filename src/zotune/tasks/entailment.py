"""How masked models are asked about a premise and a hypothesis, as in LM-BFF (Gao et al., 2021), MeZO and LOZO.

The premise becomes the beginning of a question, without its last mark, and the hypothesis the end of the answer, with a
small first letter: ``A dog runs? [MASK], an animal moves.``
"""

import string
from collections.abc import Callable, Mapping
from typing import Final

from zotune.tasks.questions import Row

MASKED: Final = "{opened}? {label}, {lowered}"


def _opened(row: Row) -> str:
    premise: str = row["premise"].strip()
    return premise[:-1] if len(premise) > 1 and premise[-1] in string.punctuation else premise


def _lowered(row: Row) -> str:
    hypothesis: str = row["hypothesis"]
    return hypothesis[:1].lower() + hypothesis[1:]


FURTHER: Final[Mapping[str, Callable[[Row], str]]] = {"opened": _opened, "lowered": _lowered}
