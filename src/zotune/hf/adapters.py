"""Training a few weights beside or inside a frozen model: adapters of peft, or the head alone.

What an adapter begins with follows from a seed and the base model, never from the state of the program, so that a
run can be repeated, resumed and replayed from its settings alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from zotune.config.errors import missing_package, nearest
from zotune.hf.prefixes import begin_with_activations, take_prefix
from zotune.hf.randomness import lent

KINDS: Final = ("lora", "prefix", "prompt", "head")
"""What `--tuning` knows beside full, partial and files; "file" is a configuration of peft."""


_ROOM: Final = 8  # tokens of a text, at least


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What is trained in place of the model's own weights.

    Attributes:
        kind: one of `KINDS`, or "file".
        rank: of LoRA.
        alpha: of LoRA, whose scale is alpha / rank.
        tokens: virtual tokens of a prefix or prompt.
        settings: of "file": the content of a configuration file of peft.
    """

    kind: str
    rank: int = 8
    alpha: int = 16
    tokens: int = 5
    settings: Mapping[str, Any] | None = None


def read_settings(path: Path) -> dict[str, Any]:
    """The content of a configuration file of peft, or of the adapter_config.json in a folder.

    Raises:
        ValueError: it cannot be read, is no configuration of peft, or asks for code to be run.
    """
    place = path / "adapter_config.json" if path.is_dir() else path
    try:
        settings = json.loads(place.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{place} cannot be read ({error.strerror}); give a configuration file of peft.") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{place} is not JSON; give a configuration file of peft.") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("peft_type"), str):
        raise ValueError(
            f"{place} names no peft_type; give a configuration file of peft, as its save_pretrained makes."
        )
    check_settings(settings)
    return settings


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a configuration that would have code of somebody else run."""
    if "trust_remote_code" in json.dumps(settings):
        raise ValueError("The configuration of the adapter asks for trust_remote_code; take that out of it.")


def add_adapter(
    model: PreTrainedModel, adapter: Adapter, *, tokenizer: PreTrainedTokenizerBase, seed: int, name: str
) -> PreTrainedModel:
    """Freeze a model but for what is trained.

    Args:
        model: a classifier, or a causal language model, in evaluation mode.
        adapter: what is trained; of a classifier, its new head too.
        tokenizer: of the model; its ``model_max_length`` is lowered by the virtual tokens.
        seed: of the first values of the adapter.
        name: what messages call the model.

    Returns:
        A `peft.PeftModel` around it, or for the head the model itself.

    Raises:
        ValueError: peft is not installed, or cannot adapt this model.
    """
    if adapter.kind == "head":
        return _head_alone(model, name)
    peft = _peft()
    with _refusals(adapter, name), lent("adapter", seed):
        config = _configuration(model, adapter)
        _check_virtual_tokens(model, config)
        if config.peft_type == "PREFIX_TUNING":
            take_prefix(model)
        adapted: Any = peft.get_peft_model(model, config)
    if config.task_type == "SEQ_CLS" and not _classifies(model):
        config.modules_to_save = None  # peft names heads that a model with label words does not have
    adapted.eval()
    if not any(p.requires_grad for p in adapted.parameters()):
        raise ValueError(f"An adapter of the kind {config.peft_type.value} trains nothing of {name}; use another one.")
    if config.is_prompt_learning:
        tokenizer.model_max_length -= config.num_virtual_tokens
        if tokenizer.model_max_length < _ROOM:
            raise ValueError(
                f"{config.num_virtual_tokens} virtual tokens leave no room for a text in {name}; give fewer of them."
            )
    with _refusals(adapter, name):
        if adapter.kind == "prefix":
            begin_with_activations(adapted, adapter.tokens, seed)
        if config.is_prompt_learning:
            _check_reaches(adapted, name)
        adapted.virtual_tokens = _positions_in_front(adapted)
    return adapted  # type: ignore[no-any-return]


def load_adapter(model: PreTrainedModel, folder: Path, *, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model with the adapter that a run has kept in a folder, frozen and in evaluation mode.

    Args:
        model: what the adapter was trained on.
        folder: as `peft.PeftModel.save_pretrained` makes it.
        tokenizer: of the model; its ``model_max_length`` is lowered by the virtual tokens.

    Raises:
        ValueError: peft is not installed, or the folder holds no adapter of this model.
    """
    read_settings(folder)
    peft = _peft()
    weights = folder / "adapter_model.safetensors"
    try:
        stored = load_file(weights)
    except (OSError, SafetensorError):
        raise ValueError(f"{weights} cannot be read; give a folder with an adapter in safetensors.") from None
    if not all(bool(x.isfinite().all()) for x in stored.values()):
        raise ValueError(f"{weights} holds NaN or infinite numbers; give another adapter.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted: Any = peft.PeftModel.from_pretrained(model, str(folder))
            places = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
            adapted.eval()
            adapted.virtual_tokens = _positions_in_front(adapted)
    except Exception as error:
        raise ValueError(
            f"The adapter in {folder} does not fit this model ({_reason(error)}); give the model and the --task that it"
            " was trained for."
        ) from error
    odd = sorted(stored.keys() ^ places.keys())
    if odd:
        kind = "has no place for" if odd[0] in stored else "wants"
        raise ValueError(
            f"The adapter in {folder} does not fit this model, which {kind} {odd[0]}: it belongs to another model, or "
            "to another way of answering (a new head, label words with --soft_prompt, or words)."
        )
    tokenizer.model_max_length -= int(getattr(adapted.active_peft_config, "num_virtual_tokens", None) or 0)
    return adapted  # type: ignore[no-any-return]


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise ValueError(missing_package("An adapter", "peft", "adapters")) from None
    return peft


def own_model(model: nn.Module) -> nn.Module:
    """The model of transformers inside a wrapper of peft, or the model itself."""
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its adapter's weights added to its own, for good.

    Raises:
        ValueError: there is no adapter, or one that is no change of weights (a prefix or prompt).
    """
    adapted: Any = model
    try:
        inner: Any = adapted.merge_and_unload()
    except (AttributeError, NotImplementedError) as error:
        raise ValueError("Only adapters that change weights (lora) can be merged into the model.") from error
    return inner  # type: ignore[no-any-return]


def _classifies(model: nn.Module) -> bool:
    """Whether it is a classifier with a head of its own."""
    return "ForSequenceClassification" in type(model).__name__


def _check_virtual_tokens(model: nn.Module, config: Any) -> None:
    """Raise `ValueError` for virtual tokens in front of a model that would read a wrong position because of them."""
    if not config.is_prompt_learning or config.peft_type == "PREFIX_TUNING":
        return
    style = getattr(model, "prompt_style", None)
    if style == "mask":
        raise ValueError("label words are read without it at a mask; use --tuning prefix, lora or full")
    if style is not None:
        raise ValueError("label words are read without it; use prefix, or --objective options for --soft_prompt")
    body = getattr(model, "base_model", model)
    if _classifies(model) and type(body.config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError("its classifier would read padding behind a prompt; use prefix, or --objective options")


def _task_type(model: nn.Module, adapter: Adapter) -> str | None:
    """What peft is told that the model does."""
    prefixed = adapter.kind == "prefix" or (adapter.settings or {}).get("peft_type") == "PREFIX_TUNING"
    style = getattr(model, "prompt_style", None)
    if style is not None:  # peft puts a prefix in front of what it knows only; a causal one also has to write with it
        return None if not prefixed else "CAUSAL_LM" if style == "last" else "SEQ_CLS"
    return "SEQ_CLS" if _classifies(model) else "CAUSAL_LM"


def _configuration(model: PreTrainedModel, adapter: Adapter) -> Any:
    """The configuration of peft."""
    import peft

    kind = _task_type(model, adapter)
    if adapter.kind == "file":
        assert adapter.settings is not None
        check_settings(adapter.settings)
        settings = {k: v for k, v in adapter.settings.items() if k not in ("inference_mode", "auto_mapping")}
        make: Any = peft.PeftConfig.from_peft_type
        config = make(**{**settings, "task_type": kind, "inference_mode": False})
        known = {field.name for field in dataclasses.fields(config)}
        if unknown := sorted(settings.keys() - known - {"peft_version"}):
            raise ValueError(
                f"its file has the key {unknown[0]!r}, which peft does not know{nearest(unknown[0], known)}"
            )
    elif adapter.kind == "lora":
        config = peft.LoraConfig(
            r=adapter.rank, lora_alpha=adapter.alpha, target_modules=_query_and_value(model), task_type=kind
        )
    elif adapter.kind == "prefix":
        config = peft.PrefixTuningConfig(num_virtual_tokens=adapter.tokens, task_type=kind)
    else:
        config = peft.PromptTuningConfig(num_virtual_tokens=adapter.tokens, task_type=kind)
    if _classifies(model) and hasattr(config, "modules_to_save"):
        config.modules_to_save = sorted({*(config.modules_to_save or ()), *_head_modules(model)})
    return config


_QUERY_VALUE: Final = (
    ("q_proj", "v_proj"),  # OPT, Llama, Mistral, Qwen, Gemma, ...
    ("query", "value"),  # BERT, RoBERTa, ...
    ("q_lin", "v_lin"),  # DistilBERT
    ("query_key_value",),  # GPT-NeoX, Bloom, Falcon
    ("qkv_proj",),  # Phi-3
    ("c_attn",),  # GPT-2
    ("query_proj", "value_proj"),  # DeBERTa
    ("Wqkv",),  # ModernBERT, MPT
)


def _query_and_value(model: nn.Module) -> list[str]:
    """Names of the matrices that make queries and values, which LoRA changes (Hu et al., 2021, section 4.2)."""
    last = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    found = next((names for names in _QUERY_VALUE if last.issuperset(names)), None)
    if found is None:
        raise ValueError("its attention has no matrices of a known name; give a configuration file of peft")
    return list(found)


def _head_modules(model: nn.Module) -> list[str]:
    """Names of the modules with weights beside the body."""
    body = getattr(model, "base_model_prefix", "")
    return [name for name, child in model.named_children() if name != body and any(True for _ in child.parameters())]


def _head_alone(model: PreTrainedModel, name: str) -> PreTrainedModel:
    head = _head_modules(model)
    inside = {id(p) for module in head for p in model.get_submodule(module).parameters()}
    table: Any = model.get_input_embeddings()
    if id(table.weight) in inside:
        raise ValueError(
            f"The head of {name} is its embedding table; use another --tuning, or a new head (--objective classes)."
        )
    for p in model.parameters():
        p.requires_grad_(id(p) in inside)
    if not inside:
        raise ValueError(f"{name} has no head beside its body to train; use another --tuning.")
    return model


def _check_reaches(adapted: Any, name: str) -> None:
    """Raise `ValueError` if the model's output does not depend on the virtual tokens."""
    encoder = next(iter(adapted.prompt_encoder.values()))
    weight = next(encoder.parameters())
    with torch.no_grad():
        outputs = []
        kept = weight.clone()
        for scale in (1.0, -1.0):
            weight.copy_(kept * scale)
            outputs.append(_probe(adapted).float())
        weight.copy_(kept)
    if torch.equal(*outputs):
        raise ValueError(f"the output of {name} does not depend on it")


@contextlib.contextmanager
def _refusals(adapter: Adapter, name: str) -> Iterator[None]:
    """What peft and models raise for a pair that does not fit, as one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what peft asks of transformers, and sets right by itself
            yield
    except Exception as error:
        kind = "adapter of the file" if adapter.kind == "file" else adapter.kind
        raise ValueError(f"{name} cannot be trained with the tuning {kind}: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    """The first sentence of what a library says, or what stands for it."""
    said = (str(error).strip().splitlines() or [""])[0].split(". ")[0].rstrip(".: ?")
    if isinstance(error, KeyError):
        return f"{said} is missing, or peft does not know it"
    return said if isinstance(error, ValueError) and said else f"peft says {said or type(error).__name__!r}"


def _positions_in_front(adapted: Any) -> int:
    """How many positions of the output stand before the first token's; the model is asked."""
    logits = _probe(adapted)
    return logits.shape[1] - _PROBED if logits.dim() == 3 else 0


_PROBED: Final = 4  # tokens


def _probe(adapted: Any) -> torch.Tensor:
    """The model's logits for a few tokens."""
    ids = torch.arange(_PROBED, device=adapted.device)[None]
    if getattr(adapted, "prompt_style", None) == "mask":  # it is read at the mask
        ids[:, -1] = adapted.mask_token_id
    with torch.no_grad():
        logits: torch.Tensor = adapted(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits
