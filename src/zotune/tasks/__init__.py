"""The tasks by name, one small file each; `docs/add-a-task.md` says how to add one.

Causal models are asked as in the papers on MeZO (arXiv 2305.17333, the appendix's tables of prompts) and LOZO, where
they have the task; where a table leaves something open (capital letters, bullet points), as in the program that was
released with it.
"""

from __future__ import annotations

import difflib

from zotune.tasks.base import Split, Task
from zotune.tasks.boolq import BOOLQ
from zotune.tasks.cb import CB
from zotune.tasks.cola import COLA
from zotune.tasks.copa import COPA
from zotune.tasks.drop import DROP
from zotune.tasks.metrics import compute_metrics
from zotune.tasks.mnli import MNLI
from zotune.tasks.mrpc import MRPC
from zotune.tasks.multirc import MULTIRC
from zotune.tasks.qnli import QNLI
from zotune.tasks.questions import Row
from zotune.tasks.record import RECORD
from zotune.tasks.rte import RTE
from zotune.tasks.snli import SNLI
from zotune.tasks.squad import SQUAD
from zotune.tasks.sst2 import SST2
from zotune.tasks.sst5 import SST5
from zotune.tasks.trec import TREC
from zotune.tasks.wic import WIC
from zotune.tasks.wsc import WSC

__all__ = ["TASKS", "Row", "Split", "Task", "compute_metrics", "get_task"]

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        MNLI,
        QNLI,
        SST2,
        COLA,
        RTE,
        BOOLQ,
        WIC,
        CB,
        WSC,
        COPA,
        MULTIRC,
        RECORD,
        SQUAD,
        DROP,
        SNLI,
        SST5,
        TREC,
        MRPC,
    )
}


def get_task(name: str) -> Task:
    """The task called `name`; ValueError with the nearest name when there is none."""
    if name in TASKS:
        return TASKS[name]
    nearest = difflib.get_close_matches(name.lower(), TASKS, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"There is no task {name!r}.{hint} The tasks are {', '.join(TASKS)}.")
