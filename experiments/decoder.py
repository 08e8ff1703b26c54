"""Makes a small pretrained GPT-2 that no choice was tuned on: `python experiments/decoder.py --out FOLDER`.

Four layers of width 128 learn the next words of the package's generated text (split ``pretrain``; rows of the other
splits stay unseen), other documents than those of the embedded model.  FOLDER/model is the model, FOLDER/data holds
generated rows of the eight tasks for ``--data_dir``.  It is there to try what `zotune` does by itself on a model of
another family and size than those that its rules were found with.  Every number is keyed; one thread.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch
from encoder import write_data
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from zotune.embedded.corpus import documents
from zotune.embedded.pretrain import Recipe, draw_matrices, encode, tokenizer_of, train
from zotune.embedded.vocabulary import MAX_LENGTH

WIDTH, LAYERS, HEADS = 128, 4, 4


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=MAX_LENGTH,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = GPT2LMHeadModel(config)
    draw_matrices(model, recipe.seed)
    return model


def pretrain(recipe: Recipe, out: Path) -> None:
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    items = list(documents(recipe.documents, "pretrain", recipe.seed))
    tokenizer = tokenizer_of(items)
    model = new_model(recipe, tokenizer)
    train(model, encode(tokenizer, items), recipe, int(tokenizer.pad_token_id))  # type: ignore[arg-type]
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=96_000, help="documents of generated text to train on")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write_data(options.out / "data")
    pretrain(Recipe(documents=options.documents, peak_rate=2e-3, seed=2), options.out / "model")
    return 0


if __name__ == "__main__":
    sys.exit(main())
