"""The prompted form: a language model that classifies by the logits of a few label words, without any new weight.

The class of the loaded model gets `LabelWords` in front, so parameter names, checkpoints and `save_pretrained` stay
those of the language model, and what is saved opens again as one.
"""

from __future__ import annotations

import functools
import inspect
import logging
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from zotune.hf.adapters import own_model
from zotune.hf.mixins import behind, put_in_front
from zotune.hf.prefixes import read_behind
from zotune.tasks.base import PromptStyle, Task
from zotune.tasks.questions import LABEL_FIELD

_WITHOUT = "leave --soft_prompt out to add a new head instead"

logger = logging.getLogger(__name__)


class LabelWords:
    """Mixin in front of a language model: `forward` returns one logit per label, shape (rows, labels).

    The logits are those of the label words at the last mask token (masked models; what follows it in a template has no
    other one, so a mask token inside a row's text is never taken) or after the last token (causal models, right
    padding).
    """

    label_word_ids: torch.Tensor
    mask_token_id: int | None
    prompt_style: PromptStyle

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: None = None,
        output_attentions: None = None,
        output_hidden_states: None = None,
        return_dict: bool | None = None,  # noqa: ARG002 (it is one always)
    ) -> SequenceClassifierOutput:
        """Logits (rows, labels) and, given labels (rows,), their cross entropy in float32.

        Args:
            input_ids: (rows, length).
            attention_mask: (rows, length), behind a prefix of n keys and values (rows, n + length).
            labels: (rows,).
            past_key_values: the prefix, as peft hands it over.
            inputs_embeds: None, as the next two, which peft gives beside a prefix.
            output_attentions: None.
            output_hidden_states: None.
            return_dict: of no meaning.

        Raises:
            TypeError: one of those that have to be None is not.
            ValueError: a row of a masked model without a mask token (it was not tokenised for the prompted form).
        """
        if any(given is not None for given in (inputs_embeds, output_attentions, output_hidden_states)):
            raise TypeError("A model that answers with label words reads input_ids, and returns logits alone.")
        if self.prompt_style == "mask":
            marks = torch.eq(input_ids, self.mask_token_id or 0)
            if not bool(marks.any(dim=1).all()):
                raise ValueError("A row has no mask token; tokenise the rows with prompt='mask'.")
        else:
            marks = torch.ones_like(input_ids) if attention_mask is None else attention_mask[:, -input_ids.size(1) :]
        numbers = torch.arange(input_ids.size(1), device=input_ids.device)
        positions = (marks.long() * numbers).argmax(dim=1)
        rows = torch.arange(input_ids.size(0), device=input_ids.device)
        language_model: Any = super()
        given: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if keeps_some(self):  # type: ignore[arg-type]
            # A vocabulary of logits at every position would be the largest tensor of the pass by far.
            given["logits_to_keep"], positions = torch.unique(positions, return_inverse=True)
        with read_behind(self, language_model.forward, past_key_values) as prefix:  # type: ignore[arg-type]
            output = language_model.forward(**given, **prefix)
        logits = output.logits[rows, positions][:, self.label_word_ids]
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def keeps_some(model: nn.Module) -> bool:
    """Whether the language model behind a mixin can leave out logits of positions that nobody asks for."""
    return _takes_positions(behind(type(own_model(model))))


@functools.cache
def _takes_positions(language_model: Any) -> bool:
    return "logits_to_keep" in inspect.signature(language_model.forward).parameters


def fills_masks(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a model of this configuration is a masked one."""
    return type(config) in MODEL_FOR_MASKED_LM_MAPPING and tokenizer.mask_token is not None


def style_of(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> PromptStyle:
    """How a model of this configuration is prompted, by the auto classes that take it.

    Raises:
        ValueError: neither a masked model with a mask token nor a causal one.
    """
    if fills_masks(config, tokenizer):
        return "mask"
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "last"
    raise ValueError(f"A {config.model_type} model has no language-model head to prompt; {_WITHOUT}.")


def prompt_style(model: nn.Module) -> PromptStyle | None:
    """What `tokenise` needs as `prompt`: the style of a prompted model, None for one with a classification head."""
    inner = own_model(model)
    return inner.prompt_style if isinstance(inner, LabelWords) else None


def add_label_words(
    model: PreTrainedModel, task: Task, tokenizer: PreTrainedTokenizerBase, style: PromptStyle
) -> PreTrainedModel:
    """Make the language model answer with the task's label words, in place; `ValueError` from `label_word_ids`."""
    ids = torch.tensor(label_word_ids(task, tokenizer, style), device=model.device)
    put_in_front(LabelWords, model)
    model.register_buffer("label_word_ids", ids, persistent=False)
    assert isinstance(model, LabelWords)
    model.prompt_style = style
    model.mask_token_id = tokenizer.mask_token_id if style == "mask" else None
    # Whoever asks transformers what this model computes: it classifies.
    model.loss_type = "ForSequenceClassification"
    return model


def label_word_ids(task: Task, tokenizer: PreTrainedTokenizerBase, style: PromptStyle = "last") -> list[int]:
    """The token of each label word as it continues the template (with the space in front where there is one).

    Masked models have learned whole words at their mask, so there a word at the beginning or after a line break is
    taken as one after a space.

    Raises:
        ValueError: two words that begin with the same token, or a word the tokenizer does not know.
    """
    literal = next(text for text, name in task.pieces(style) if name == LABEL_FIELD)
    if style == "mask" and not literal[-1:].strip():
        literal = literal.rstrip() + " "
    context = literal.rstrip(" ")
    before = tokenizer(context, add_special_tokens=False)["input_ids"]
    ids: list[int] = []
    words = task.label_words(style)
    for word in words:
        whole = tokenizer(context + literal[len(context) :] + word, add_special_tokens=False)["input_ids"]
        common = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
        own = whole[common:]
        if not own or own[0] == tokenizer.unk_token_id:
            raise ValueError(f"The tokenizer does not know the label word {word!r} of task {task.name}; {_WITHOUT}.")
        if len(own) > 1:
            first = tokenizer.convert_ids_to_tokens(own[0])
            logger.warning("The label word %r is %d tokens; its first one, %r, stands for it.", word, len(own), first)
        if own[0] in ids:
            other = words[ids.index(own[0])]
            raise ValueError(
                f"The label words {other!r} and {word!r} of task {task.name} begin with the same token; {_WITHOUT}."
            )
        ids.append(own[0])
    return ids
