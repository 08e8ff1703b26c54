"""Which models can read the generated text: the embedded one, and those that were trained from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_MODEL = Path(__file__).parent / "model"


def reads_generated_text(name: str) -> bool:
    """Whether a model is the embedded one, or a folder with its vocabulary, word for word, as training leaves it."""
    if name == "embedded":
        return True
    try:
        folder = Path(name).expanduser()
        size = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("vocab_size")
        return size == len(_vocabulary(_MODEL)) and bool(_vocabulary(folder) == _vocabulary(_MODEL))
    except (OSError, RuntimeError, ValueError, LookupError, AttributeError, TypeError):
        return False  # no folder, or one that the loading of the model will speak about


def _vocabulary(folder: Path) -> Any:
    return json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
