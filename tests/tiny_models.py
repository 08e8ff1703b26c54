"""Random instances of the model families under test, a few thousand parameters each, built without any file or network.

`build("gpt2", 2)` gives a classifier, `build("gpt2", 2, head="lm")` the language model of the same size, and
`save(folder, "gpt2")` writes a complete model folder (weights and tokenizer) as a user would have it.
Same arguments, same bits; the global random state is left as it was.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

ENCODERS = ("distilbert", "roberta", "bert")
DECODERS = ("gpt2", "opt", "llama")
FAMILIES = ENCODERS + DECODERS

PAD, CLS, SEP, MASK, UNK = range(5)
SPECIALS = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]")
WORDS = ("great", "terrible", "Yes", "No", "Maybe", "yes", "no", "maybe", "good", "bad", "True", "False", "the", "was")
_CHARACTERS = string.digits + string.ascii_letters + string.punctuation
VOCABULARY = 208  # 5 special tokens, 94 characters twice (first in a word, inside a word), the words, rounded up

_WIDTH, _LAYERS, _HEADS, _POSITIONS = 16, 3, 2, 64


def config(family: str, num_labels: int = 2, **changes: Any) -> PretrainedConfig:
    """Configuration of a random instance: width 16, three blocks, two heads, 64 positions, no dropout."""
    common = {"num_labels": num_labels, "vocab_size": VOCABULARY, "pad_token_id": PAD}
    bert = {
        "hidden_size": _WIDTH,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "intermediate_size": 2 * _WIDTH,
    }
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    positions = {"max_position_embeddings": _POSITIONS}
    table: dict[str, tuple[str, dict[str, Any]]] = {
        "distilbert": (
            "DistilBertConfig",
            {"dim": _WIDTH, "n_layers": _LAYERS, "n_heads": _HEADS, "hidden_dim": 2 * _WIDTH, "dropout": 0.0}
            | {"attention_dropout": 0.0, "seq_classif_dropout": 0.0}
            | positions,
        ),
        # RoBERTa counts positions from pad_token_id + 1, so it has one row more than it can use.
        "roberta": ("RobertaConfig", bert | no_dropout | {"max_position_embeddings": _POSITIONS + 1}),
        "bert": ("BertConfig", bert | no_dropout | positions),
        "gpt2": (
            "GPT2Config",
            {"n_embd": _WIDTH, "n_layer": _LAYERS, "n_head": _HEADS, "n_positions": _POSITIONS}
            | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": SEP, "eos_token_id": SEP},
        ),
        "opt": (
            "OPTConfig",
            {"hidden_size": _WIDTH, "num_hidden_layers": _LAYERS, "num_attention_heads": _HEADS}
            | {"ffn_dim": 2 * _WIDTH, "word_embed_proj_dim": _WIDTH, "dropout": 0.0}
            | {"bos_token_id": CLS, "eos_token_id": SEP}
            | positions,
        ),
        "llama": (
            "LlamaConfig",
            bert | positions | {"num_key_value_heads": 1, "bos_token_id": CLS, "eos_token_id": SEP},
        ),
    }
    name, fields = table[family]
    return getattr(transformers, name)(**(common | fields | changes))


def build(
    family: str,
    num_labels: int = 2,
    *,
    seed: int = 0,
    head: Literal["classifier", "lm"] = "classifier",
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> PreTrainedModel:
    """Random model of `family` in evaluation mode; `changes` go to its configuration (tie_word_embeddings=..., ...)."""
    if head == "classifier":
        auto = transformers.AutoModelForSequenceClassification
    else:
        auto = transformers.AutoModelForMaskedLM if family in ENCODERS else transformers.AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config(family, num_labels, **changes))
    return model.to(dtype).eval()


def batch(rows: int = 4, length: int = 12, num_labels: int = 2, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random right-padded batch: input_ids and attention_mask (rows, length), labels (rows,)."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(len(SPECIALS), VOCABULARY - 1, (rows, length), generator=generator)
    lengths = torch.randint(length // 2, length + 1, (rows, 1), generator=generator)
    mask = (torch.arange(length)[None, :] < lengths).long()
    ids = torch.where(mask.bool(), ids, torch.full_like(ids, PAD))
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(rows) % num_labels}


def tokenizer(family: str = "bert", *, pad: bool = True) -> PreTrainedTokenizerFast:
    """Tokenizer over the tiny vocabulary: whole known words, single characters otherwise; ASCII text never gives [UNK].

    Encoder families wrap texts in [CLS] .. [SEP] (.. [SEP]); decoder families add nothing, as GPT-2 does.
    `pad=False` leaves the padding token out, as published GPT-2 and Llama tokenizers do.
    """
    pieces = [*SPECIALS, *_CHARACTERS, *("##" + c for c in _CHARACTERS)]
    pieces += [word for word in WORDS if word not in pieces]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    assert len(vocabulary) <= VOCABULARY, "the vocabulary of the tiny models is too small for their tokenizer"
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    if family in ENCODERS:
        inner.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    else:
        names = {"bos_token": "[CLS]", "eos_token": "[SEP]"}
    if pad:
        names["pad_token"] = "[PAD]"
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", model_max_length=_POSITIONS, **names)


def save(
    folder: Path, family: str, *, head: Literal["classifier", "lm"] = "lm", pad: bool = True, seed: int = 0
) -> Path:
    """Write a model folder (config, safetensors, tokenizer) and return it."""
    build(family, seed=seed, head=head).save_pretrained(folder)
    tokenizer(family, pad=pad).save_pretrained(folder)
    return folder
