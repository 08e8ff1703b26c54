"""Makes a small pretrained encoder and data that it can read: `python experiments/encoder.py --out FOLDER`.

A RoBERTa of three layers and the embedded model's width learns to fill in masked words of the package's generated
text (split ``pretrain``; rows of the other splits stay unseen).  FOLDER/model is the model, FOLDER/data holds generated
rows of the eight tasks for ``--data_dir``.  Both are artificial: they are there so that what `zotune` does with
encoders is tuned on an encoder, not to say anything about real text.  Every number is keyed; one thread.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

from zotune.embedded import generate
from zotune.embedded.corpus import documents
from zotune.embedded.draws import philox_key
from zotune.embedded.pretrain import Encoded, batches, draw_matrices, encode, tokenizer_of
from zotune.embedded.vocabulary import MAX_LENGTH

MASK = "[MASK]"
TASKS = {"glue": ("sst2", "cola", "mnli", "qnli"), "super_glue": ("rte", "boolq", "wic", "cb")}
ROWS = {"train": 2048, "validation": 512}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides the bits. `hidden` is the share of words that are masked, `verdict` that of the words which say what
    an input implies."""

    documents: int
    batch: int = 64
    width: int = 96
    inner: int = 256
    layers: int = 3
    heads: int = 4
    rate: float = 2e-3
    warmup: int = 100
    hidden: float = 0.15
    verdict: float = 0.8
    seed: int = 1


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> RobertaForMaskedLM:
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=MAX_LENGTH + 2,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = RobertaForMaskedLM(config)
    draw_matrices(model, recipe.seed)
    return model


def masked_loss(
    model: RobertaForMaskedLM, batch: list[Encoded], tokenizer: PreTrainedTokenizerFast, recipe: Recipe, step: int
) -> torch.Tensor:
    """Mean cross entropy of the words that were hidden."""
    draws = np.random.Generator(np.random.Philox(key=philox_key("masks", recipe.seed, step)))
    length = max(len(item.tokens) for item in batch)
    tokens = torch.full((len(batch), length), int(tokenizer.pad_token_id))  # type: ignore[arg-type]
    hidden = torch.zeros((len(batch), length), dtype=torch.bool)
    for place, item in enumerate(batch):
        size = len(item.tokens)
        tokens[place, :size] = torch.tensor(item.tokens)
        hidden[place, 1 : size - 1] = torch.from_numpy(draws.random(size - 2) < recipe.hidden)
        hidden[place, item.end + 1] = bool(draws.random() < recipe.verdict)
    shown = tokens.masked_fill(hidden, int(tokenizer.mask_token_id))  # type: ignore[arg-type]
    mask = tokens != tokenizer.pad_token_id
    states = model.roberta(input_ids=shown, attention_mask=mask.long()).last_hidden_state
    return functional.cross_entropy(model.lm_head(states[hidden]), tokens[hidden])


def train(recipe: Recipe, out: Path) -> None:
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    items = list(documents(recipe.documents, "pretrain", recipe.seed))
    tokenizer = tokenizer_of(items)
    tokenizer.add_special_tokens({"mask_token": MASK})
    model = new_model(recipe, tokenizer)
    steps = math.ceil(len(items) / recipe.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / recipe.warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    model.train()
    for step, batch in enumerate(batches(encode(tokenizer, items), recipe.batch, recipe.seed)):
        loss = masked_loss(model, batch, tokenizer, recipe, step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step} of {steps}: loss of hidden words {loss.item():.3f}", flush=True)
    model.eval()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def write_data(out: Path) -> None:
    for suite, tasks in TASKS.items():
        for task in tasks:
            folder = out / suite / task
            folder.mkdir(parents=True, exist_ok=True)
            for split, size in ROWS.items():
                lines = [json.dumps(row) for row in generate(task, split, size, seed=0)]
                (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=96_000, help="documents of generated text to train on")
    options = parser.parse_args()
    write_data(options.out / "data")
    train(Recipe(documents=options.documents), options.out / "model")
    return 0


if __name__ == "__main__":
    sys.exit(main())
