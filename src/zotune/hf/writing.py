"""Training on written answers themselves: batches of prompts, and metrics of what the model writes after them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from zotune.hf.answering import left_padded, written_answers
from zotune.tasks.asking import Asked
from zotune.tasks.metrics import TEXT_METRICS


class WritingCollator:
    """Batches of prompts, padded on the left, where generation goes on; ``gold`` holds the right answers of each row.

    Args:
        pad: id of the padding token.
    """

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """``input_ids`` and ``attention_mask`` of shape (rows, length), and ``gold``, a list of lists of texts."""
        ids, mask = left_padded([row["prompt"] for row in rows], self.pad)
        return {"input_ids": ids, "attention_mask": mask, "gold": [list(row["gold"]) for row in rows]}


class WrittenObjective:
    """1 minus the mean metric of what the model writes, token by token the most likely one.

    A function of (model, batch) for `ZOTrainer(objective=...)`; the batch is one of `WritingCollator`.

    Args:
        tokenizer: of the model.
        metric: a name in `TEXT_METRICS`.
        max_new_tokens: of an answer.
        stop: texts at which an answer ends.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, metric: str, *, max_new_tokens: int, stop: Sequence[str]
    ) -> None:
        self.tokenizer, self.metric = tokenizer, TEXT_METRICS[metric]
        self.max_new_tokens, self.stop = max_new_tokens, tuple(stop)

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> float:
        """The loss of the batch, 0 to 1."""
        ids: Tensor = batch["input_ids"]
        lengths = batch["attention_mask"].sum(1).tolist()
        asked = [Asked(row[len(row) - n :], []) for row, n in zip(ids.tolist(), lengths, strict=True)]
        written = written_answers(
            model,  # type: ignore[arg-type]
            self.tokenizer,
            asked,
            max_new_tokens=self.max_new_tokens,
            stop=self.stop,
            batchsize=len(asked),
        )
        gold = batch["gold"][: len(asked)]  # a rank that does not count all rows of a batch cuts its tensors
        return 1.0 - sum(map(self.metric, written, gold)) / len(asked)
