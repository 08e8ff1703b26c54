"""Answers of a causal language model without any training: options by their likelihood, and written answers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from zotune.hf.options import OptionCollator, OptionScores, as_language_model
from zotune.tasks.asking import Asked

Tick = Callable[[int], None]
"""Called with the number of rows that are done."""


@torch.no_grad()
def option_scores(
    model: PreTrainedModel, asked: Sequence[Asked], *, pad: int, batchsize: int, tick: Tick | None = None
) -> list[list[float]]:
    """The score of every option of every question, see `OptionScores`.

    Args:
        model: result of `zotune.hf.options.add_option_scores`.
        asked: the questions.
        pad: id of the padding token.
        batchsize: questions of a forward pass.
        tick: told how far it is.
    """
    assert isinstance(model, OptionScores)
    scores: list[list[float]] = [[] for _ in asked]
    # Questions of one length together: padding is computed as well.
    order = sorted(range(len(asked)), key=lambda i: -_length(asked[i]))
    for first in range(0, len(order), batchsize):
        numbers = order[first : first + batchsize]
        width = max(len(asked[i].options) for i in numbers)
        rows = [{"prompt": asked[i].prompt, "options": asked[i].options, "labels": 0} for i in numbers]
        batch = OptionCollator(pad, width)(rows)
        given = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
        for i, row in zip(numbers, model(**given).logits.tolist(), strict=True):
            scores[i] = row[: len(asked[i].options)]
        if tick is not None:
            tick(len(numbers))
    return scores


def _length(asked: Asked) -> int:
    return len(asked.prompt) + max(map(len, asked.options), default=0)


@torch.no_grad()
def written_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Asked],
    *,
    max_new_tokens: int,
    stop: Sequence[str],
    batchsize: int,
    tick: Tick | None = None,
) -> list[str]:
    """What the model writes after every prompt, token by token the most likely one, up to one of the texts ``stop``."""
    answers = [""] * len(asked)
    order = sorted(range(len(asked)), key=lambda i: -len(asked[i].prompt))
    # Behind virtual tokens peft gives no positions, so padding in between would move the text away from them.
    one_length = bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))
    for numbers in _batches(order, [len(one.prompt) for one in asked], batchsize, one_length=one_length):
        ids, mask = left_padded([asked[i].prompt for i in numbers], int(tokenizer.pad_token_id))
        with as_language_model(model) as writer, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Position ids are not supported")
            generate: Any = writer.generate
            written = generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                use_cache=True,
                pad_token_id=tokenizer.pad_token_id,
                stopping_criteria=StoppingCriteriaList([_Stop(tokenizer, ids.shape[1], stop)]),
            )
        for i, row in zip(numbers, written[:, ids.shape[1] :], strict=True):
            answers[i] = ended(str(tokenizer.decode(row, skip_special_tokens=True)), stop)
        if tick is not None:
            tick(len(numbers))
    return answers


def _batches(order: Sequence[int], lengths: Sequence[int], size: int, *, one_length: bool) -> Iterator[list[int]]:
    """The numbers in their order, so many at a time; only those of the same length together if asked for."""
    batch: list[int] = []
    for number in order:
        if len(batch) == size or (batch and one_length and lengths[number] != lengths[batch[0]]):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


class _Stop(StoppingCriteria):
    """Ends a row whose answer has one of the texts; unlike the library's own criterion for any tokenizer, also
    one without a token for them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, begin: int, stop: Sequence[str]) -> None:
        self.tokenizer, self.begin, self.stop = tokenizer, begin, stop

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Any:  # noqa: ARG002
        """Which rows are done, bool (rows,)."""
        texts = [str(self.tokenizer.decode(row)).lstrip() for row in input_ids[:, self.begin :]]
        done = [any(one in text for one in self.stop) for text in texts]
        return torch.tensor(done, device=input_ids.device)


def left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and mask (rows, length) with the prompts at the right end, where generation goes on."""
    length = max(map(len, prompts))
    ids = torch.full((len(prompts), length), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, length - len(prompt) :] = torch.tensor(prompt)
        mask[i, length - len(prompt) :] = 1
    return ids, mask


def ended(text: str, stop: Sequence[str]) -> str:
    """A written answer up to the first text at which it ends; white space at its beginning does not count."""
    text = text.lstrip()
    cuts = [place for place in map(text.find, stop) if place >= 0]
    return text[: min(cuts)].strip() if cuts else text.strip()


def choices(scores: Sequence[Sequence[float]], without: Sequence[Sequence[float]] | None = None) -> list[int]:
    """Number of the best option of every question; ``without`` are scores without the row's text, to be subtracted
    (calibration, Zhao et al., 2021)."""
    return [max(range(len(row)), key=row.__getitem__) for row in _calibrated(scores, without)]


def option_loss(
    scores: Sequence[Sequence[float]], right: Sequence[int], without: Sequence[Sequence[float]] | None = None
) -> float:
    """Mean cross entropy of the options' scores in nats, the loss of ``--objective options``; see `choices`."""
    rows = [torch.tensor(row, dtype=torch.float64) for row in _calibrated(scores, without)]
    return -fmean(float(row.log_softmax(0)[number]) for row, number in zip(rows, right, strict=True))


def _calibrated(
    scores: Sequence[Sequence[float]], without: Sequence[Sequence[float]] | None
) -> Sequence[Sequence[float]]:
    if without is None:
        return scores
    return [[a - b for a, b in zip(row, bare, strict=True)] for row, bare in zip(scores, without, strict=True)]
