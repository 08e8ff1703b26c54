"""The embedded default: a small language model made by this project, and a generator of English rows for eight tasks.

Both are here so that the first run works offline. The text is generated and the model has read nothing else, so an
accuracy reached with them says that the fine-tuning works, not how good a model is at English.
"""

from pathlib import Path

from zotune.embedded.generator import generate

MODEL_DIR = Path(__file__).parent / "model"

__all__ = ["MODEL_DIR", "generate"]
