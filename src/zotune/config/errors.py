"""The error of a wrong setting, and the sentence that names the nearest right one."""

import difflib
from collections.abc import Iterable
from typing import Final

SYNONYMS: Final[dict[str, tuple[str, ...]]] = {
    "adam": ("FOAdam",),
    "adamw": ("FOAdam",),
    "mezo": ("ZO",),
    "mezo-adam": ("ZOAdam",),
    "mezo-svrg": ("ZOSVRG",),
    "sgd": ("FOSGD",),
    "zo-sgd": ("ZO",),
    "batch_size": ("batchsize",),
    "learning_rate": ("lr",),
    "load_bfloat16": ("bf16",),
    "load_float16": ("fp16",),
    "lora": ("tuning",),
    "max_length": ("max_seq_length",),
    "max_steps": ("budget_queries",),
    "method": ("algorithm", "algorithms"),
    "methods": ("algorithms", "algorithm"),
    "model": ("model_name",),
    "model_name_or_path": ("model_name",),
    "num_dev": ("samplesize_dev",),
    "num_eval": ("samplesize_validation",),
    "num_train": ("samplesize",),
    "num_train_epochs": ("epochs",),
    "output_dir": ("out", "results"),
    "per_device_train_batch_size": ("batchsize",),
    "prefix_tuning": ("tuning",),
    "seed": ("trial", "trials"),
    "seeds": ("trials", "trial"),
    "steps": ("budget_queries",),
    "task_name": ("task",),
    "zo_eps": ("perturbation_scale",),
}
"""What papers, other programs and the library underneath call things that have another name here; the first one that
can be chosen is meant."""


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one sentence for the person who gave it."""


def nearest(name: str, choices: Iterable[str], *, prefix: str = "") -> str:
    """The end of a sentence about a wrong name: `"; did you mean x?"`, or `"."` when no choice is like it.

    `prefix` is put before the choice, such as the dashes of a flag.
    """
    by_lower = {choice.lower(): choice for choice in choices}
    known = [meant for meant in SYNONYMS.get(name.lower(), ()) if meant in by_lower.values()]
    found = known or [by_lower[like] for like in difflib.get_close_matches(name.lower(), by_lower, n=1)]
    return f"; did you mean {prefix}{found[0]}?" if found else "."


def missing_package(what: str, package: str, extra: str) -> str:
    """The sentence for a feature whose package is not installed; ``extra`` is that of zotune which brings it."""
    return (
        f"{what} needs the package {package}: pip install -e '.[{extra}]' in a clone of zotune, elsewhere"
        f" pip install 'zotune[{extra}]'."
    )


def shortened(text: object) -> str:
    """`text` as a sentence can hold it: the middle of a very long one is left out."""
    whole = str(text)
    return whole if len(whole) <= 200 else f"{whole[:100]}...{whole[-50:]}"


def as_sentence(text: str) -> str:
    """An error's message with a capital letter, unless it begins with a name, and a full stop."""
    if text.split(" ", 1)[0] in ("it", "its", "step", "the"):
        text = text[0].upper() + text[1:]
    return text if text.endswith((".", "?")) else f"{text}."
