"""From the words of a command line to settings, and what to say about those that change nothing."""

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, Final

from zotune.config.algorithms import METHOD_FLAGS, methods_of
from zotune.config.bench import BENCH_FLAGS, BenchConfig
from zotune.config.compare import COMPARE_FLAGS, OF_THE_RUNS, CompareConfig, Given
from zotune.config.errors import ConfigError, shortened
from zotune.config.evaluate import EVALUATE_FLAGS, EvaluateConfig
from zotune.config.flags import FlagOfField
from zotune.config.inspect import INSPECT_FLAGS, InspectConfig
from zotune.config.replay import REPLAY_FLAGS, ReplayConfig
from zotune.config.resume import resumed_config
from zotune.config.sweep import SWEEP_FLAGS, SweepConfig
from zotune.config.train import FLAGS, TrainConfig

_NEEDS: Final = {"patience": "early_stopping", "save_every": "save_ckpt", "momentum_bits": "momentum"}
"""Flags that change nothing unless another one is given."""


_IN_PLACE_OF: Final = {"budget_queries": "epochs", "shots": "samplesize", "evaluations": "eval_every"}
"""Flags that, given, are taken in place of another one."""


def config_from_text(given: Mapping[str, str | bool]) -> TrainConfig:
    """The settings of the flags in `given` (name to text, or to True for a switch), defaults for the others.

    With `resume` among them, the settings of that run.  Raises `ConfigError` for a text that is not of the flag's
    kind, and what `resumed_config` raises.
    """
    values = {name: _value(name, FLAGS[name], text) for name, text in given.items()}
    return resumed_config(values) if "resume" in values else TrainConfig(**values)


def bench_from_text(given: Mapping[str, str | bool]) -> BenchConfig:
    """The settings of `zotune bench` for the flags in `given`, defaults for the others.

    Raises `ConfigError` for a text that is not of the flag's kind.
    """
    return BenchConfig(**{name: _value(name, BENCH_FLAGS[name], text) for name, text in given.items()})


def replay_from_text(given: Mapping[str, str | bool]) -> ReplayConfig:
    """The settings of `zotune replay`, as `bench_from_text`."""
    return ReplayConfig(**{name: _value(name, REPLAY_FLAGS[name], text) for name, text in given.items()})


def evaluate_from_text(given: Mapping[str, str | bool]) -> EvaluateConfig:
    """The settings of `zotune evaluate`, as `bench_from_text`."""
    return EvaluateConfig(**{name: _value(name, EVALUATE_FLAGS[name], text) for name, text in given.items()})


def compare_from_text(given: Mapping[str, str | bool]) -> tuple[CompareConfig, Given]:
    """The settings of `zotune compare`, as `bench_from_text`, and the flags that go to its runs."""
    own = {name: _value(name, COMPARE_FLAGS[name], text) for name, text in given.items() if name not in OF_THE_RUNS}
    return CompareConfig(**own), {name: text for name, text in given.items() if name in OF_THE_RUNS}


def sweep_from_text(given: Mapping[str, str | bool]) -> tuple[SweepConfig, Given]:
    """The settings of `zotune sweep`, as `compare_from_text`."""
    own = {name: _value(name, SWEEP_FLAGS[name], text) for name, text in given.items() if name not in OF_THE_RUNS}
    return SweepConfig(**own), {name: text for name, text in given.items() if name in OF_THE_RUNS}


def inspect_from_text(given: Mapping[str, str | bool]) -> InspectConfig:
    """The settings of `zotune inspect`, as `bench_from_text`."""
    return InspectConfig(**{name: _value(name, INSPECT_FLAGS[name], text) for name, text in given.items()})


_OF_TUNING: Final = {("lora",): ("lora_rank", "lora_alpha"), ("prefix", "prompt"): ("virtual_tokens",)}
"""Flags that belong to a kind of adapter."""


def notices(config: TrainConfig, given: Set[str]) -> list[str]:
    """One line for each reason why flags in `given` change nothing in a run of `config`."""
    lines = []
    other = [name for name in FLAGS if name in given & METHOD_FLAGS and config.algorithm not in methods_of(name)]
    if other:
        lines.append(f"no effect with {config.algorithm}: {_flags(other)}")
    for name, needed in _NEEDS.items():
        if name in given and name not in other and not getattr(config, needed):
            lines.append(f"no effect without --{needed}: {_flags([name])}")
    for name, other_name in _IN_PLACE_OF.items():
        if getattr(config, name) is not None and other_name in given:
            lines.append(f"no effect with --{name}: {_flags([other_name])}")
    for tuning, names in _OF_TUNING.items():
        beside = [name for name in names if name in given and config.tuning not in tuning]
        if beside:
            lines.append(f"no effect without --tuning {' or '.join(tuning)}: {_flags(beside)}")
    return lines


def _value(name: str, described: FlagOfField, text: str | bool) -> Any:
    if isinstance(text, bool):
        return text
    kind = described.kind
    if kind == "path":
        if not text:
            raise ConfigError(f"--{name} must name a {(described.flag.metavar or 'folder').lower()}, but is empty.")
        try:
            return Path(text).expanduser()
        except RuntimeError:
            raise ConfigError(f"--{name} {shortened(text)} names the home folder of nobody; check the name.") from None
    if kind == "text" or text in described.flag.words:
        return text
    convert, what = (int, "a whole number") if kind == "whole" else (float, "a number")
    what = " or ".join([what, *described.flag.words])
    try:
        return convert(text)
    except ValueError:
        raise ConfigError(f"--{name} takes {what}, not {shortened(text)!r}.") from None


def _flags(names: list[str]) -> str:
    return " ".join(f"--{name}" for name in names)
