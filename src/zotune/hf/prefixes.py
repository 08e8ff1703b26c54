"""Prefixes of keys and values in every layer: what they begin with, and models that take them only in their body.

peft hands a prefix to a model as ``past_key_values``.  Causal language models take it; the heads of BERT's family
(`RobertaForSequenceClassification`, `RobertaForMaskedLM`, ...) do not, though the bodies behind them do.  These get a
class with a `forward` that hands it on; names of parameters and `save_pretrained` stay those of the model.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from zotune.hf.mixins import behind, derived

_ARGUMENT = "past_key_values"


@contextmanager
def read_behind(model: nn.Module, forward: Callable[..., Any], prefix: Any) -> Iterator[dict[str, Any]]:
    """Arguments with which ``forward``, of a class of ``model``, reads a prefix; or its body is handed it meanwhile.

    Args:
        model: one of transformers.
        forward: that will be called inside.
        prefix: a `transformers.Cache`; or None, and nothing happens.
    """
    if prefix is None:
        yield {}
        return
    if _takes(forward):
        yield {_ARGUMENT: prefix}
        return

    def hand_over(_: nn.Module, own: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return own, {**named, _ARGUMENT: prefix}

    handle = _body(model).register_forward_pre_hook(hand_over, with_kwargs=True)
    try:
        yield {}
    finally:
        handle.remove()


def take_prefix(model: PreTrainedModel) -> PreTrainedModel:
    """Let a model take a prefix if its body does, in place; nothing changes for one that takes it already.

    An adapter that was trained on such a model loads with
    ``peft.PeftModel.from_pretrained(take_prefix(model), folder)``.

    Raises:
        ValueError: its body takes no keys and values either.
    """
    if _takes(behind(type(model)).forward):
        return model
    if _body(model) is model or not _takes(_body(model).forward):
        raise ValueError("its attention takes no keys and values from outside")
    if not _takes(model.forward):
        kind: Any = type(model)
        model.__class__ = _prefixed_class(kind)
    return model


def _takes(forward: Callable[..., Any]) -> bool:
    """Whether it has the argument by which peft hands a prefix over."""
    return _ARGUMENT in inspect.signature(forward).parameters


def _body(model: Any) -> nn.Module:
    body: nn.Module = model.base_model
    return body


@functools.cache
def _prefixed_class(kind: Any) -> type[PreTrainedModel]:
    """The class with a `forward` that takes a prefix; what is None, as much of what peft gives, is left out."""

    @functools.wraps(kind.forward)
    def forward(self: Any, *args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        given = {name: value for name, value in kwargs.items() if value is not None}
        with read_behind(self, kind.forward, past_key_values):
            return kind.forward(self, *args, **given)

    # peft and transformers.Trainer ask the signature, so it has to be the model's own and the one argument more.
    own = inspect.signature(kind.forward)
    named = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    rest = [p for p in own.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD]
    more = inspect.Parameter(_ARGUMENT, inspect.Parameter.KEYWORD_ONLY, default=None)
    forward.__signature__ = own.replace(parameters=[*named, more, *rest])  # type: ignore[attr-defined]
    return derived(kind, forward=forward)


def begin_with_activations(adapted: Any, tokens: int, seed: int) -> None:
    """Let a prefix of peft begin with the keys and values that the model has for drawn tokens (as in MeZO).

    Raises:
        RuntimeError: peft expects others.
        ValueError: the model keeps no keys and values.
    """
    base = adapted.get_base_model()
    vocabulary = base.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocabulary, (1, tokens), generator=generator).to(base.device)
    body = base.base_model  # without a head, which a classifier would want a padding token for
    cache: Any = DynamicCache(config=body.config)  # an encoder fills one that it is given, and makes none
    with torch.no_grad():
        body(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True)
    pairs = [(layer.keys, layer.values) for layer in cache.layers]
    if not pairs or any(own is None for pair in pairs for own in pair):
        raise ValueError("it keeps no keys and values of earlier tokens")
    encoder = next(iter(adapted.prompt_encoder.values()))
    values = torch.stack([own[0] for pair in pairs for own in pair])  # (2 layers, heads, tokens, width)
    flat = values.permute(2, 0, 1, 3).reshape(tokens, -1)
    with torch.no_grad():
        encoder.embedding.weight.copy_(flat)
