"""What a trajectory's header says about the run, as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from zotune.reports.words import BEHIND, LAST_BLOCKS

_LONGEST: Final = 120

_TOLD: Final = frozenset(
    {
        *("model_name", "revision", "dtype", "task", "algorithm", "max_seq_length", "full_parameter", "adapter"),
        *("head_seed", "prompted", "question", "own_words", "frozen_digest"),
    }
)
"""Facts of the command line, which have lines of their own; or that only a replay needs."""


def about_lines(about: Mapping[str, Any], method: str) -> Iterator[tuple[str, str]]:
    """A label and a text for each; facts that another program has recorded are told as they are.

    Args:
        about: of the header.
        method: class of the optimizer, of which the command line's name is told where it is another.
    """
    known = {name: value for name, value in about.items() if value is not None}
    if "model_name" in known:
        revision = f", revision {value_text(known['revision'])}" if "revision" in known else ""
        yield "model", value_text(known["model_name"]) + revision
    if "task" in known:
        length = f", texts of up to {value_text(known['max_seq_length'])} tokens" if "max_seq_length" in known else ""
        yield "task", value_text(known["task"]) + length
    if known.get("algorithm", method) != method:
        yield "algorithm", value_text(known["algorithm"])
    if "full_parameter" in known or "adapter" in known:
        yield "trained", _trained(known)
    if (head := _head(known)) is not None:
        yield "head", head
    rest = {name: value for name, value in known.items() if name not in _TOLD}
    if rest:
        yield "about", ", ".join(f"{name}={value_text(value)}" for name, value in rest.items())


def _trained(about: Mapping[str, Any]) -> str:
    """Which weights, or what in their place."""
    adapter = about.get("adapter")
    if not isinstance(adapter, Mapping):
        if about.get("full_parameter"):
            return "all weights"
        # The head of a language model is trained unless it is the table of the embeddings.
        return BEHIND if about.get("prompted") is True or about.get("question") is True else LAST_BLOCKS
    kind = value_text(adapter.get("kind"))
    if kind == "lora":
        return f"lora of rank {value_text(adapter.get('rank'))}, alpha {value_text(adapter.get('alpha'))}"
    if kind in ("prefix", "prompt"):
        return f"a {kind} of {value_text(adapter.get('tokens'))} tokens"
    return {"head": "the head", "file": "an adapter of a configuration file of peft"}.get(kind, kind)


def _head(about: Mapping[str, Any]) -> str | None:
    """What answers, and from which seed the weights are that the model's files do not have."""
    if about.get("question") is True:
        return "none, the model is asked for an option or an answer"
    if about.get("prompted") is True:
        words = about.get("own_words")
        listed = f": {', '.join(map(value_text, words[1:]))}" if isinstance(words, list) and words[1:] else ""
        return f"none, the model's own label words{listed}"
    return f"new unless the model has one, from seed {value_text(about['head_seed'])}" if "head_seed" in about else None


def value_text(value: Any) -> str:
    """A value in a line; a long one is cut."""
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:100]}..."
