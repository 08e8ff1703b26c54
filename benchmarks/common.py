"""What the benchmarks share: the shapes of the models, files of results, and the arguments of the command line."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, LlamaConfig, OPTConfig

from zotune.bench.machine import describe
from zotune.bench.workload import Workload, random_workload

RESULTS = Path(__file__).parent / "results"

_HEADS = {"class": AutoModelForSequenceClassification, "vocabulary": AutoModelForCausalLM}


@dataclasses.dataclass(frozen=True)
class Shape:
    """A published model's sizes; the weights are random.

    `config` makes the configuration; nothing is downloaded.
    """

    name: str
    config: Any
    fields: dict[str, Any]


def _opt(name: str, width: int, layers: int, heads: int) -> Shape:
    fields = {"vocab_size": 50272, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return Shape(name, OPTConfig, {**fields, "ffn_dim": 4 * width, "word_embed_proj_dim": width})


SHAPES = {
    shape.name: shape
    for shape in (
        _opt("OPT-125M", 768, 12, 12),
        _opt("OPT-13B", 5120, 40, 40),
        Shape("GPT-2-XL", GPT2Config, {"n_embd": 1600, "n_layer": 48, "n_head": 25}),
        Shape(
            "Llama-3-8B",
            LlamaConfig,
            {
                "vocab_size": 128256,
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "max_position_embeddings": 8192,
                "rope_theta": 500000.0,
            },
        ),
        Shape(
            "tiny",
            OPTConfig,
            {
                "vocab_size": 200,
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "ffn_dim": 32,
                "word_embed_proj_dim": 16,
                "max_position_embeddings": 128,
            },
        ),
    )
}
"""OPT, GPT-2-XL and Llama 3 as published, and one of a few thousand weights to try the scripts with."""


def build(
    shape: str, *, rows: int, length: int, head: str = "class", dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Workload:
    """A model with random weights, made on the device, in evaluation mode; and a batch of random tokens.

    `head`: "class" is a classification head with two labels, "vocabulary" the language-model head at every position.
    """
    sizes = SHAPES[shape]
    config = sizes.config(**sizes.fields, num_labels=2, use_cache=False, pad_token_id=1)
    torch.manual_seed(0)
    with torch.device(device):
        model = _HEADS[head].from_config(config, dtype=dtype).eval()
    vocabulary = config.vocab_size
    return random_workload(model, rows=rows, length=length, vocabulary=vocabulary, labels=2)


def save(name: str, head: dict[str, Any], rows: list[dict[str, Any]], keys: tuple[str, ...], folder: Path) -> Path:
    """Write rows to a file of results, beside those that are there already; rows with the same `keys` are replaced.

    Rows that stay from another machine say so.
    """
    path = folder / f"{name}.json"
    fresh = {tuple(row.get(key) for key in keys) for row in rows}
    if path.exists():
        content = json.loads(path.read_text())
        kept = [row for row in content.get("rows", []) if tuple(row.get(key) for key in keys) not in fresh]
        if content.get("machine") != head.get("machine"):
            kept = [{"machine": content.get("machine"), **row} for row in kept]
        rows = kept + [{**row} for row in rows]
    # Sorted, so that it does not matter in which order the parts of a benchmark were run.
    rows = sorted(rows, key=lambda row: [str(row.get(key)) for key in keys])
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")
    return path


def head(unit: str, device: str = "cpu") -> dict[str, Any]:
    """The beginning of a file of results."""
    return {"unit": unit, "machine": describe(torch.device(device))}


def arguments(about: str) -> argparse.ArgumentParser:
    """A parser with what all benchmarks take."""
    parser = argparse.ArgumentParser(description=about.strip().splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a model of a few thousand weights: does the script work?")
    parser.add_argument("--results", type=Path, help="folder for the JSON files")
    return parser


def parse(parser: argparse.ArgumentParser, words: list[str] | None) -> argparse.Namespace:
    """The options; what `--quick` measures goes to a folder apart."""
    options = parser.parse_args(words)
    if options.results is None:
        options.results = RESULTS / "quick" if options.quick else RESULTS
    return options


def verdict(value: float | None, target: float | None) -> str:
    """`met` or `missed`, or nothing without a target."""
    if target is None or value is None:
        return ""
    return "met" if value <= target else "missed"
