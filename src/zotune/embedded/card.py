"""The model card of the embedded model: what it is, as measured when it was made."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

CARD = "MODEL_CARD.md"
WEIGHTS = "model.safetensors"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_card(
    folder: Path,
    *,
    recipe: Mapping[str, object],
    steps: int,
    parameters: int,
    untrained_loss: float,
    loss: float,
    verdicts: Mapping[str, float],
) -> None:
    """Write `MODEL_CARD.md` next to the weights it describes.

    Losses are means in nats per token over held-out generated documents; `verdicts` gives by task the share of
    held-out inputs after which the model says a word of the right label.
    """
    lines = [
        "# The embedded model",
        "",
        "A small Llama decoder made by this project with `python -m zotune.embedded.pretrain`. It exists so that the",
        "first run of zotune works offline. It was trained by next-token cross-entropy (AdamW) on generated English",
        "alone: rows of the eight embedded tasks from the generator's split `pretrain`, each followed by a sentence",
        "that says what the row implies, in several wordings. No text of any data set was used.",
        "",
        "It knows some thousand words and the grammar of the generator, and nothing else. Accuracies on the embedded",
        "tasks show that a fine-tuning method works; they say nothing about real text.",
        "",
        "| fact | value |",
        "| --- | --- |",
        f"| parameters (embeddings tied) | {parameters:,} |",
        f"| steps | {steps:,} |",
        f"| loss before training, nats per token, held out | {untrained_loss:.3f} |",
        f"| loss after training, nats per token, held out | {loss:.3f} |",
        *(f"| recipe: {name} | {value} |" for name, value in recipe.items()),
        f"| sha256 of {WEIGHTS} | {sha256_of(folder / WEIGHTS)} |",
        "",
        "How often the first word said after a held-out input is one of the right label:",
        "",
        "| task | share |",
        "| --- | --- |",
        *(f"| {task} | {share:.3f} |" for task, share in verdicts.items()),
        "",
    ]
    (folder / CARD).write_text("\n".join(lines), encoding="utf-8")
