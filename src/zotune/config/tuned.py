"""What the settings that a search found were tuned for, beside them: rates are good for one model and one tuning."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from zotune.config.errors import shortened
from zotune.config.train import TrainConfig, dump_settings

TUNED_FOR: Final = "tuned-for.json"
"""File beside the settings: circumstances by method."""

_NAMES: Final = (
    "model_name",
    "task",
    "train_file",
    "tuning",
    "full_parameter",
    "budget_queries",
    "samplesize",
    "batchsize",
    "lr_scheduler_type",
    "objective",
    "soft_prompt",
    "max_seq_length",
    "bf16",
    "fp16",
)
_SEED: Final = "init_seed"


def circumstances(config: TrainConfig) -> dict[str, Any]:
    """What a rate depends on most."""
    settings = dump_settings(config)
    return {name: settings[name] for name in (*_NAMES, _SEED)}


def other_than_tuned(path: Path, methods: Iterable[str], config: TrainConfig) -> list[str]:
    """A sentence for every circumstance in which runs differ from those of a search, and one if their heads, directions
    and order are the same; none where there is no word of it.

    Args:
        path: of the settings.
        methods: names by which those that count may be known there.
        config: of a run.
    """
    try:
        known = json.loads(path.with_name(TUNED_FOR).read_text(encoding="utf-8"))
        before = [known[name] for name in methods if isinstance(known.get(name), dict)]
    except (OSError, ValueError, AttributeError):
        return []
    said: dict[str, None] = {}  # an ordered set
    now = circumstances(config)
    if any(own.get(_SEED) == now[_SEED] for own in before):
        said[
            f"{shortened(path)} was tuned with --init_seed {now[_SEED]} too, on the heads, directions and order of"
            " these trials, which flatters it: give another --init_seed."
        ] = None
    for name, here in ((name, now[name]) for name in _NAMES):
        for there in (own[name] for own in before if name in own and own[name] != here):
            said[f"{shortened(path)} was tuned {_with(name, there)}, and this is {_with(name, here)}."] = None
    return list(said)


def _with(name: str, value: Any) -> str:
    if value is None or isinstance(value, bool):
        return f"{'with' if value else 'without'} --{name}"
    return f"with --{name} {shortened(value)}"
