"""A causal language model that chooses among options by their log-likelihood after a prompt.

The class of the loaded model gets `OptionScores` in front, as `zotune.hf.prompted` does it for label words; parameter
names and `save_pretrained` stay those of the language model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from zotune.hf.adapters import own_model
from zotune.hf.mixins import behind, put_in_front
from zotune.hf.prompted import keeps_some
from zotune.tasks.metrics import METRICS

ABSENT = -1e9
"""Score of an option that a row does not have."""


class OptionScores:
    """Mixin in front of a causal language model: `forward` returns a score for each option, shape (rows, options).

    The score is ``sum_t log p(option_t | prompt, option_<t)`` in float32, or its mean over the option's tokens.
    """

    per_token: bool

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        option_mask: Tensor,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,  # noqa: ARG002 (the library gives it to models of peft)
    ) -> SequenceClassifierOutput:
        """Scores, and given labels (rows,) their cross entropy.

        Args:
            input_ids: (rows, options, length), padded on the right.
            attention_mask: the same shape.
            option_mask: the same shape; 1 at the tokens of the option.  Options of which a row has fewer are all 0.
            labels: number of the right option.
        """
        there = option_mask.any(-1)  # (rows, options)
        ids, mask, own = input_ids[there], attention_mask[there], option_mask[there].bool()
        kept = own[:, 1:].any(0).nonzero()[:, 0]  # positions before a token of an option
        language_model: Any = super()
        places = kept + int(getattr(self, "virtual_tokens", 0))  # of a learned prompt, which stand in front
        if keeps_some(self):  # type: ignore[arg-type]
            # A vocabulary of logits at every position would be the largest tensor of the pass by far.
            logits = language_model.forward(input_ids=ids, attention_mask=mask, logits_to_keep=places).logits
        else:
            logits = language_model.forward(input_ids=ids, attention_mask=mask).logits[:, places]
        targets, own = ids[:, kept + 1], own[:, kept + 1]
        losses = nn.functional.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
        scores = -(losses * own).sum(-1)
        if self.per_token:
            scores = scores / own.sum(-1)
        # Each place takes the score of its option, and places without one the last entry.
        spread = torch.where(there, there.flatten().cumsum(0).view(there.shape) - 1, len(ids))
        scores = torch.cat((scores, scores.new_full((1,), ABSENT)))[spread]
        loss = None if labels is None else nn.functional.cross_entropy(scores, labels)
        return SequenceClassifierOutput(loss=loss, logits=scores)


def add_option_scores(model: PreTrainedModel, *, per_token: bool) -> PreTrainedModel:
    """Make a causal language model score options, in place."""
    put_in_front(OptionScores, model)
    assert isinstance(model, OptionScores)
    model.per_token = per_token
    own_model(model).loss_type = "ForSequenceClassification"  # type: ignore[assignment]
    return model


@contextmanager
def as_language_model(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The language model behind the mixin, which writes."""
    kind = type(model)
    if isinstance(model, OptionScores):
        model.__class__ = behind(kind)
    try:
        yield model
    finally:
        model.__class__ = kind


def option_likelihood(outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None) -> Tensor:  # noqa: ARG001
    """Language modelling on the right option: minus its mean score over the rows, float32.

    Raises:
        ValueError: there are no labels.
    """
    if labels is None:
        raise ValueError("The batch has no 'labels'.")
    scores: Tensor = outputs["logits"]
    return -scores.gather(1, labels[:, None]).mean()


def error_rate(outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None) -> Tensor:  # noqa: ARG001
    """Share of rows whose largest score is not the right one, float32: accuracy as a loss, which has no gradient.

    Raises:
        ValueError: there are no labels.
    """
    if labels is None:
        raise ValueError("The batch has no 'labels'.")
    scores: Tensor = outputs["logits"]
    return (scores.argmax(1) != labels).float().mean()


class BatchF1:
    """1 - F1 of a batch's classes, float32: a loss without gradient, which is no mean over rows.

    Args:
        metric: name in `zotune.tasks.metrics.METRICS`.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric

    def __call__(self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None) -> Tensor:  # noqa: ARG002
        """The loss of scores (rows, classes) and labels (rows,).

        Raises:
            ValueError: there are no labels.
        """
        if labels is None:
            raise ValueError("The batch has no 'labels'.")
        scores: Tensor = outputs["logits"]
        value = METRICS[self.metric](scores.argmax(1).cpu().numpy(), labels.cpu().numpy())
        return torch.tensor(1.0 - value, dtype=torch.float32, device=scores.device)


class OptionCollator:
    """Batches of questions, padded on the right.

    Args:
        pad: id of the padding token.
        width: options of every batch, so that scores of all batches have one shape; the most of the data set.
    """

    def __init__(self, pad: int, width: int) -> None:
        self.pad, self.width = pad, width

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask``, ``option_mask`` of shape (rows, options, length), and ``labels``."""
        length = max(len(row["prompt"]) + len(option) for row in rows for option in row["options"])
        ids = torch.full((len(rows), self.width, length), self.pad, dtype=torch.int64)
        mask, own = torch.zeros_like(ids), torch.zeros_like(ids)
        for i, row in enumerate(rows):
            begin = len(row["prompt"])
            for j, option in enumerate(row["options"]):
                end = begin + len(option)
                ids[i, j, :end] = torch.tensor([*row["prompt"], *option])
                mask[i, j, :end] = 1
                own[i, j, begin:end] = 1
        labels = torch.tensor([row["labels"] for row in rows])
        return {"input_ids": ids, "attention_mask": mask, "option_mask": own, "labels": labels}
