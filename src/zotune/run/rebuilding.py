"""The model and the optimizer that a replay begins with: of the base model, or of a checkpoint of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from zotune.config import ConfigError, ReplayConfig, shortened
from zotune.hf.models import load_tokenizer
from zotune.hf.resolve import EMBEDDED, check_tokenizer_files, explained, resolve
from zotune.optimizer import ZerothOrder
from zotune.run.base import DTYPES, base_model, facts_of, frozen_fits
from zotune.trajectory import Header, Trajectory, TrajectoryError, build

STATE = "optimizer.pt"


def begin(
    trajectory: Trajectory, config: ReplayConfig, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None, ZerothOrder]:
    """Model, tokenizer (None where the base has none) and optimizer before the first step that is to be made.

    Raises:
        ConfigError: the base cannot be loaded, or is a checkpoint of another run.
        TrajectoryError: it is another model than the run's.
    """
    header = trajectory.header
    try:
        model, tokenizer = _load(header, config, device)
    except TrajectoryError as error:
        raise TrajectoryError(f"{trajectory.path} cannot be used: {error}") from error
    except ConfigError:
        raise
    except ValueError as error:  # the loaders' sentences
        raise ConfigError(str(error)) from error
    _check_frozen(model, header, config.base)
    state = None if config.base == EMBEDDED else Path(config.base).expanduser() / STATE
    begun = state is not None and state.is_file()
    try:
        optimizer = build(header, model.named_parameters(), begun=begun)
    except TrajectoryError as error:
        raise TrajectoryError(f"{config.base} does not fit: {error}{_revision(header)}") from error
    if begun and state is not None:
        _restore(optimizer, state)
    return model, tokenizer, optimizer


def _load(
    header: Header, config: ReplayConfig, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    facts = facts_of(header.about)
    if facts is None:
        return _load_plain(header, config, device)
    tokenizer = load_tokenizer(config.base, trust_remote_code=config.trust_remote_code)
    model = base_model(
        facts,
        name=config.base,
        tokenizer=tokenizer,
        device=device,
        trust_remote_code=config.trust_remote_code,
    )
    return model, tokenizer


def _load_plain(
    header: Header, config: ReplayConfig, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """The model as its files describe it: the program that recorded the run has not said how it made one of them."""
    place = resolve(config.base, flag="--base")
    trust: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    with explained(config.base, "a model"):
        description = AutoConfig.from_pretrained(place, **trust)
    kind = _architecture(description, config.base)
    types = {DTYPES.get(p.dtype) for p in header.parameters}
    dtype: Any = types.pop() if len(types) == 1 else "auto"
    if dtype is None:
        dtype = "auto"
    with explained(config.base, "a model"):
        model, info = kind.from_pretrained(place, dtype=dtype, output_loading_info=True)
    if missing := sorted({*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])}):
        raise ConfigError(
            f"{config.base} does not hold {missing[0]} of {kind.__name__}, so nobody knows what the run began with; "
            "give a folder with all weights, or use zotune.trajectory.replay on your own model."
        )
    tokenizer = None
    try:
        check_tokenizer_files(config.base, place)
        with explained(config.base, "a tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(place, **trust)
    except ValueError:
        pass  # a model without one can be rebuilt all the same
    model.to(device).eval()
    return model, tokenizer


def _architecture(description: Any, base: str) -> Any:
    """The class of transformers that a model's configuration names."""
    names = getattr(description, "architectures", None) or [None]
    kind = getattr(transformers, str(names[0]), None)
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        raise ConfigError(
            f"The configuration of {base} names the architecture {shortened(names[0])}, which transformers does not "
            "have; use zotune.trajectory.replay on your own model."
        )
    return kind


def _check_frozen(model: PreTrainedModel, header: Header, base: str) -> None:
    """Raise TrajectoryError if a parameter that was not trained is another one than in the run."""
    trained = {p.name for p in header.parameters}
    if not frozen_fits((p for name, p in model.named_parameters() if name not in trained), header.about):
        raise TrajectoryError(
            f"{base} does not fit: the weights that were not trained are not those of the run; give the base model, "
            f"bit for bit{_revision(header)}"
        )


def _revision(header: Header) -> str:
    """Which version of a model on the hub the run began with, where that is known."""
    revision = header.about.get("revision")
    return f" (revision {revision[:40]} on the hub)" if isinstance(revision, str) and revision else ""


def _restore(optimizer: ZerothOrder, state: Path) -> None:
    """Give the optimizer the state of a checkpoint."""
    checkpoint = state.parent
    try:
        content = torch.load(state, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make it raise whatever its code runs into
        raise ConfigError(f"{state} cannot be read; take another checkpoint, or the base model.") from error
    try:
        optimizer.load_state_dict(content)
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ConfigError(f"{checkpoint} is no checkpoint of this run: {reason}.") from error
    told = checkpoint / "trainer_state.json"
    if not told.is_file():
        return
    try:
        step = json.loads(told.read_text(encoding="utf-8"))["global_step"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{told} cannot be read; take another checkpoint, or the base model.") from error
    if step != optimizer.t:
        raise ConfigError(
            f"{checkpoint} has an optimizer after step {optimizer.t} and a trainer after step {step}; take another "
            "checkpoint, or the base model."
        )
