"""Makes the embedded model: `python -m zotune.embedded.pretrain --out DIR`.

A small Llama is trained by next-token cross-entropy on generated text alone. Every number is keyed (weights, rows,
order of the batches) and the number of threads is fixed, so the same machine gives the same bits each time.
"""

import argparse
import logging
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from zotune.embedded.card import write_card
from zotune.embedded.corpus import VERDICTS, Document, documents
from zotune.embedded.draws import Draws, philox_key
from zotune.embedded.vocabulary import MAX_LENGTH, build_tokenizer

logger = logging.getLogger(__name__)

# So many batches are sorted by length together, which saves most of the padding.
_POOL = 32


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides the bits of the model, together with the machine and the versions of the libraries.

    `held_out` documents of the validation split measure the outcome. `verdict_weight` is the weight in the loss of the
    first word after the end of an input; all other words weigh 1.
    """

    documents: int = 128_000
    held_out: int = 4_000
    batch: int = 64
    width: int = 96
    inner: int = 256
    layers: int = 3
    heads: int = 4
    peak_rate: float = 3e-3
    weight_decay: float = 0.02
    warmup: int = 100
    verdict_weight: float = 8.0
    threads: int = 1
    seed: int = 1


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """The tokens of a document, and the position of the token that ends its input."""

    document: Document
    tokens: list[int]
    end: int


def tokenizer_of(items: list[Document]) -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows the words of the documents."""
    return build_tokenizer(text for item in items for text in (item.first, item.second or "", item.after))


def encode(tokenizer: PreTrainedTokenizerFast, items: list[Document]) -> list[Encoded]:
    """Return the documents as tokens: the input as the tasks encode it, then what follows it, then the end again."""
    pairs = [(item.first, item.second) for item in items]
    encoded = []
    for item, (first, second) in zip(items, pairs, strict=True):
        head = tokenizer(first, second)["input_ids"] if second is not None else tokenizer(first)["input_ids"]
        tail = tokenizer(item.after, add_special_tokens=False)["input_ids"]
        encoded.append(Encoded(document=item, tokens=[*head, *tail, head[-1]], end=len(head) - 1))
    return encoded


def batches(encoded: list[Encoded], size: int, seed: int) -> Iterator[list[Encoded]]:
    """Yield batches of documents of like length, in keyed random order."""
    for start in range(0, len(encoded), size * _POOL):
        pool = sorted(encoded[start : start + size * _POOL], key=lambda item: len(item.tokens))
        groups = [pool[at : at + size] for at in range(0, len(pool), size)]
        yield from Draws("batches", seed, start).shuffled(groups)


def next_token_loss(model: LlamaForCausalLM, batch: list[Encoded], pad: int, verdict_weight: float) -> torch.Tensor:
    """Return the weighted mean cross-entropy in nats per token, a scalar."""
    length = max(len(item.tokens) for item in batch)
    tokens = torch.full((len(batch), length), pad)
    weights = torch.zeros((len(batch), length))
    for place, item in enumerate(batch):
        tokens[place, : len(item.tokens)] = torch.tensor(item.tokens)
        weights[place, 1 : len(item.tokens)] = 1.0
        weights[place, item.end + 1] = verdict_weight
    # No attention mask: the padding is on the right, where a causal model cannot look.
    logits = model(input_ids=tokens[:, :-1]).logits
    losses = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    wanted = weights[:, 1:].flatten()
    return (losses * wanted).sum() / wanted.sum()


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return an untrained model in float32 whose weights depend on the recipe's seed alone."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        initializer_range=0.02,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    draw_matrices(model, recipe.seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.fill_(1.0)
    return model


@torch.no_grad()
def draw_matrices(model: nn.Module, seed: int) -> None:
    """Give every matrix of a model weights that depend on the seed and its name alone."""
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            normal = np.random.Generator(np.random.Philox(key=philox_key("weights", seed, name)))
            scale = 0.05 if "embed" in name else weight.shape[1] ** -0.5
            weight.copy_(torch.from_numpy(normal.standard_normal(tuple(weight.shape), dtype=np.float32)) * scale)


def train(model: LlamaForCausalLM, encoded: list[Encoded], recipe: Recipe, pad: int) -> int:
    """Train the model by AdamW, linear warm-up and cosine decay; return the number of steps."""
    steps = math.ceil(len(encoded) / recipe.batch)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.peak_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, foreach=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / recipe.warmup, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))),
    )
    model.train()
    for step, batch in enumerate(batches(encoded, recipe.batch, recipe.seed)):
        loss = next_token_loss(model, batch, pad, recipe.verdict_weight)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0:
            logger.info("step %d of %d: loss %.3f", step, steps, loss.item())
    model.eval()  # type: ignore[no-untyped-call]
    return steps


@torch.no_grad()
def mean_loss(model: LlamaForCausalLM, encoded: list[Encoded], pad: int) -> float:
    """Return the mean cross-entropy of all tokens, in nats, every token weighing the same."""
    total, count = 0.0, 0
    for start in range(0, len(encoded), 64):
        batch = encoded[start : start + 64]
        tokens = sum(len(item.tokens) - 1 for item in batch)
        total += tokens * next_token_loss(model, batch, pad, 1.0).item()
        count += tokens
    return total / count


@torch.no_grad()
def verdicts_right(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, encoded: list[Encoded]
) -> dict[str, float]:
    """Return by task the share of inputs after which a word of the right label is the likeliest of all such words."""
    words = {
        task: [
            tokenizer.convert_tokens_to_ids(sorted({after.split(",")[0] for after in afters})) for afters in by_label
        ]
        for task, by_label in VERDICTS.items()
    }
    right: dict[str, list[bool]] = defaultdict(list)
    for item in encoded:
        if item.document.task not in words:
            continue
        logits = model(input_ids=torch.tensor([item.tokens[: item.end + 1]])).logits[0, -1]
        scores = [logits[ids].max().item() for ids in words[item.document.task]]
        right[item.document.task].append(scores.index(max(scores)) == item.document.label)
    return {task: sum(hits) / len(hits) for task, hits in sorted(right.items())}


def pretrain(recipe: Recipe, out: Path) -> None:
    """Make the tokenizer and the model and write them with their card to `out`."""
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(recipe.threads)
    items = list(documents(recipe.documents, "pretrain", recipe.seed))
    tokenizer = tokenizer_of(items)
    assert tokenizer.pad_token_id is not None, "the tokenizer was built with a padding token"
    pad = int(tokenizer.pad_token_id)
    held_out = encode(tokenizer, list(documents(recipe.held_out, "validation", recipe.seed)))
    model = new_model(recipe, tokenizer)
    untrained = mean_loss(model, held_out, pad)
    steps = train(model, encode(tokenizer, items), recipe, pad)
    model.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
    write_card(
        out,
        recipe=asdict(recipe),
        steps=steps,
        parameters=model.num_parameters(),
        untrained_loss=untrained,
        loss=mean_loss(model, held_out, pad),
        verdicts=verdicts_right(model, tokenizer, held_out),
    )


def main(argv: list[str] | None = None) -> int:
    """Read the command line and make the model; return the exit code."""
    parser = argparse.ArgumentParser(description="Make the embedded model from generated text.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--documents", type=int, default=Recipe.documents, help="documents to train on")
    parser.add_argument("--threads", type=int, default=Recipe.threads, help="threads; the bits depend on it")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    pretrain(Recipe(documents=arguments.documents, threads=arguments.threads), arguments.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
