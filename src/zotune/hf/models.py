"""Pretrained models and tokenizers through transformers' Auto classes, ready for zeroth-order fine-tuning.

Nothing here looks at the name of a model: what it can do is read from its configuration and its modules, so whatever
the Auto classes accept is accepted.  `load_classifier` adds to them the keyed initial weights of a new head (`heads`),
partial fine-tuning (`partial`) and the prompted form (`prompted`).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as library_logging

from zotune.hf.heads import initialise, order_of, rearrange
from zotune.hf.partial import anatomy, select_trainable
from zotune.hf.prompted import add_label_words, fills_masks, prompt_style, style_of
from zotune.hf.resolve import check_tokenizer_files, explained, resolve
from zotune.tasks.base import Task

__all__ = [
    "class_names",
    "has_head",
    "is_masked",
    "load_classifier",
    "load_language_model",
    "load_tokenizer",
    "position_limit",
    "prompt_style",
    "select_trainable",
    "width_of",
]


def _access(token: str | None, trust_remote_code: bool) -> dict[str, Any]:
    """What the library's ``from_pretrained`` is told in all cases."""
    return {"token": token or os.environ.get("HF_TOKEN"), "trust_remote_code": trust_remote_code}


def load_tokenizer(name: str, *, token: str | None = None, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Tokenizer of the model, padding on the right with a token that exists.

    A missing padding token is replaced by the end token (then the unknown token); padding is masked out, so
    which token it is does not matter.  Classification heads on causal models read the last real token.

    Args:
        name: folder, name on the hub, or "embedded".
        token: access token of the hub for gated models; the environment variable HF_TOKEN when left out.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        ValueError: no such model, no tokenizer in it, no token to pad with.
    """
    place = resolve(name)
    check_tokenizer_files(name, place)
    options = _access(token, trust_remote_code)
    with explained(name, "a tokenizer"), _quiet():
        config = AutoConfig.from_pretrained(place, **options)
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
    if not isinstance(tokenizer.model_max_length, (int, float)):
        raise ValueError(
            f"tokenizer_config.json of {name} has the model_max_length {tokenizer.model_max_length!r}; "
            "make it a whole number."
        )
    tokenizer.padding_side = "right"
    tokenizer.truncation_side = "right"
    if tokenizer.pad_token is None:
        substitute = tokenizer.eos_token or tokenizer.unk_token
        if substitute is None:
            raise ValueError(f"The tokenizer of {name} has no token to pad with; add a pad_token to its configuration.")
        tokenizer.pad_token = substitute
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    return tokenizer


def is_masked(name: str, *, trust_remote_code: bool = False) -> bool:
    """Whether a model is a masked one (an encoder that fills in words).

    Raises:
        ValueError: as `load_tokenizer`.
    """
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    return fills_masks(_configuration(name, trust_remote_code=trust_remote_code), tokenizer)


@functools.cache
def width_of(name: str, *, trust_remote_code: bool = False) -> int | None:
    """Numbers of a hidden state of a model, by its configuration; None where that does not say, or cannot be read."""
    try:
        config = _configuration(name, trust_remote_code=trust_remote_code)
    except ValueError:  # said when the model is loaded
        return None
    width = getattr(config.get_text_config(), "hidden_size", None)
    return width if isinstance(width, int) and width > 0 else None


def class_names(name: str, *, trust_remote_code: bool = False) -> list[str] | None:
    """Names of the classes of a model with a classification head, in its order; None for another model.

    Raises:
        ValueError: there is no such model.
    """
    config = _configuration(name, trust_remote_code=trust_remote_code)
    return _names_of(config) if has_head(config) else None


def _names_of(config: PretrainedConfig) -> list[str]:
    names: Mapping[Any, str] = config.id2label or {}
    return [str(names[number]) for number in sorted(names)]


def has_head(config: PretrainedConfig) -> bool:
    """Whether a checkpoint is one of a classifier, by its configuration."""
    kinds: Any = config.architectures
    kinds = [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else []
    return any("ForSequenceClassification" in kind for kind in kinds if isinstance(kind, str))


def _configuration(name: str, *, trust_remote_code: bool) -> PretrainedConfig:
    with explained(name, "a model"), _quiet():
        config: PretrainedConfig = AutoConfig.from_pretrained(resolve(name), **_access(None, trust_remote_code))
        return config


def load_classifier(
    name: str,
    task: Task,
    *,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    full_parameter: bool = True,
    prompted: bool = False,
    adapted: bool = False,
    new_head: bool = True,
    token: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The pretrained model as a classifier for the task: forward(input_ids, attention_mask) -> logits (rows, labels).

    A head that the checkpoint holds is kept where it has as many classes, which come in the order of the task's labels
    where they have their names.

    Args:
        name: folder, name on the hub, or "embedded".
        task: gives the number of labels, their names, and for the prompted form the label words.
        tokenizer: result of `load_tokenizer(name)`; its `model_max_length` is lowered to what the model can read.
        dtype: torch.float32, torch.bfloat16 or torch.float16, for all weights.
        device: where the weights go.
        seed: of the weights that the checkpoint does not hold; same seed, same bits.
        full_parameter: train everything; otherwise the last sixth of the blocks, final norm and heads.
        adapted: an adapter will be trained in place of the model's own weights, which then may be quantised.
        prompted: answer with label words through the language-model head instead of a new classification head.
        new_head: where the checkpoint has no head for the task's labels, begin a new one.
        token, trust_remote_code: as in `load_tokenizer`.

    Returns:
        The model in evaluation mode; `requires_grad` is set as `full_parameter` says.

    Raises:
        ValueError: no such model, an incomplete checkpoint, a tokenizer that does not belong to it, (prompted) no
            language-model head, or (without ``new_head``) no head for the task.
    """
    place = resolve(name)
    options = _access(token, trust_remote_code)
    with explained(name, "a model"), _quiet():
        told = AutoConfig.from_pretrained(place, **options)
        config = AutoConfig.from_pretrained(
            place,
            num_labels=task.num_labels,
            id2label=dict(enumerate(task.labels)),
            label2id={label: number for number, label in enumerate(task.labels)},
            problem_type="single_label_classification",
            **options,
        )
        _prepare(config, tokenizer)
        style = style_of(config, tokenizer) if prompted else None
        auto: Any = {
            "mask": AutoModelForMaskedLM,
            "last": AutoModelForCausalLM,
            None: AutoModelForSequenceClassification,
        }[style]
        options |= _quantised(config, name, device, full_parameter=full_parameter, adapted=adapted)
        model, info = auto.from_pretrained(
            place, config=config, dtype=dtype, ignore_mismatched_sizes=True, output_loading_info=True, **options
        )
    if not (new_head or prompted) and told.problem_type in ("multi_label_classification", "regression"):
        kind = told.problem_type.replace("_", " ")
        raise ValueError(f"{name} is a model of {kind}, which gives no one class; give a classifier of one class each.")
    new = set(info["missing_keys"]) | {entry[0] for entry in info["mismatched_keys"]}
    _check_complete(model, new, name, prompted)
    if not (new_head or prompted) and new:
        raise ValueError(
            f"{name} has no head for the {task.num_labels} classes of task {task.name}; give the task that it was"
            " trained for, or the folder of a model that was trained for this one."
        )
    _check_vocabulary(model, tokenizer, name)
    initialise(model, new, seed=seed)
    if style is not None:
        add_label_words(model, task, tokenizer, style)
    elif not new and (order := order_of(_names_of(told), task.labels)) is not None:
        rearrange(model, order)
    return _ready(model, tokenizer, device, full_parameter=full_parameter)


def load_language_model(
    name: str,
    *,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    full_parameter: bool = True,
    adapted: bool = False,
    token: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A causal language model with its pretrained head, in evaluation mode.

    Args:
        name, tokenizer, dtype, device, full_parameter, adapted, token, trust_remote_code: as in `load_classifier`.

    Raises:
        ValueError: no such model, an incomplete checkpoint, one without a causal language-model head, or a tokenizer
            that does not belong to it.
    """
    place = resolve(name)
    options = _access(token, trust_remote_code)
    with explained(name, "a model"), _quiet():
        config = AutoConfig.from_pretrained(place, **options)
        masked = style_of(config, tokenizer) != "last"
        classifier = has_head(config)
        _prepare(config, tokenizer)
    if masked:
        raise ValueError(
            f"{name} is a masked model and cannot be asked questions; give --soft_prompt, or a causal one."
        )
    if classifier:
        raise ValueError(
            f"{name} is a classifier with a head of its own and cannot be asked in words; give the model that it was"
            " trained from, or one trained with --objective options."
        )
    with explained(name, "a model"), _quiet():
        auto: Any = AutoModelForCausalLM
        options |= _quantised(config, name, device, full_parameter=full_parameter, adapted=adapted)
        model, info = auto.from_pretrained(place, config=config, dtype=dtype, output_loading_info=True, **options)
    _check_complete(model, set(info["missing_keys"]), name, prompted=True)
    _check_vocabulary(model, tokenizer, name)
    return _ready(model, tokenizer, device, full_parameter=full_parameter)


def _ready(
    model: Any, tokenizer: PreTrainedTokenizerBase, device: torch.device | str, *, full_parameter: bool
) -> PreTrainedModel:
    """The loaded model on its device, in evaluation mode, with `requires_grad` set; the tokenizer knows its limit."""
    tokenizer.model_max_length = min(tokenizer.model_max_length, position_limit(model))
    select_trainable(model, full_parameter=full_parameter)
    if getattr(model, "hf_quantizer", None) is None:  # quantised ones are where they were loaded
        model.to(device)
    model.eval()
    assert isinstance(model, PreTrainedModel), "the Auto classes return models of transformers"
    return model


def position_limit(model: PreTrainedModel) -> int:
    """Longest sequence in tokens that the model has positions for; a very large number when it has no such limit."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return int(1e30)
    for module in model.modules():
        # A position table with a padding row counts its positions from behind that row (RoBERTa and its descendants).
        if isinstance(module, nn.Embedding) and module.num_embeddings == limit and module.padding_idx is not None:
            is_words = module is model.get_input_embeddings()
            limit -= 0 if is_words else module.padding_idx + 1
            break
    return limit


def _quantised(
    config: PretrainedConfig, name: str, device: torch.device | str, *, full_parameter: bool, adapted: bool
) -> dict[str, Any]:
    """What loading a checkpoint of quantised weights takes beside the rest; nothing for others.

    Raises:
        ValueError: its weights would be trained, or there is no GPU for them.
    """
    if getattr(config, "quantization_config", None) is None:
        return {}
    if torch.device(device).type == "cpu":
        raise ValueError(
            f"the weights are quantised, which needs a GPU; give {name} in full precision, or a --device with one"
        )
    if not adapted:
        what = "all" if full_parameter else "some"
        raise ValueError(f"{what} of its quantised weights would be trained, which they cannot be; give --tuning lora")
    return {"device_map": {"": device}}


def _prepare(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Settings of the run in the configuration: the padding token the tokenizer uses, and no key-value cache."""
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        part.pad_token_id = tokenizer.pad_token_id
        # A cache keeps the keys and values of every layer alive until the end of a forward pass that never reads them.
        part.use_cache = False


def _check_complete(model: PreTrainedModel, new: set[str], name: str, prompted: bool) -> None:
    """Refuse a checkpoint that lacks part of the body: new random weights would silently take its place."""
    parts = anatomy(model)
    body = sorted(new & parts.embeddings.union(*parts.blocks))
    head = sorted(new & {parameter for parameter, _ in model.named_parameters()})
    if body:
        raise ValueError(
            f"The weights of {name} lack {len(body)} tensors of {type(model).__name__} or have them in another shape "
            f"({body[0]} is one); use a complete checkpoint of this architecture."
        )
    if prompted and head:
        raise ValueError(
            f"{name} holds no pretrained language-model head ({head[0]} is missing); "
            "leave --soft_prompt out to add a new head instead."
        )


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    table: Any = model.get_input_embeddings()
    rows = table.weight.size(0)
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise ValueError(
            f"The tokenizer numbers its tokens up to {largest} and the embedding of {name} has {rows} rows; "
            "use the tokenizer that belongs to the model."
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's loading report and bars: what is missing is checked here, and a new head is expected."""
    library: Any = library_logging  # its functions carry no types
    level, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    hub.setLevel(logging.ERROR)  # its retries; what comes of them is one sentence
    try:
        yield
    finally:
        hub.setLevel(hub_level)
        library.set_verbosity(level)
        if bars:
            library.enable_progress_bar()
