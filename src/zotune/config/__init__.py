"""Settings of a training run: fields, defaults, checks, and the words of the command line."""

from zotune.config.algorithms import ALGORITHMS, EMBEDDED, METHOD_FLAGS, Algorithm, methods_of
from zotune.config.bench import ALL, BENCH_FLAGS, BenchConfig
from zotune.config.checks import LARGEST, LARGEST_ADAPTER
from zotune.config.compare import COMPARE_FLAGS, CompareConfig
from zotune.config.errors import ConfigError, as_sentence, nearest, shortened
from zotune.config.evaluate import EVALUATE_FLAGS, EvaluateConfig
from zotune.config.flags import Flag, FlagOfField
from zotune.config.inspect import INSPECT_FLAGS, InspectConfig
from zotune.config.replay import REPLAY_FLAGS, TRAJECTORY, ReplayConfig
from zotune.config.sweep import SWEEP_FLAGS, SweepConfig
from zotune.config.text import (
    bench_from_text,
    compare_from_text,
    config_from_text,
    evaluate_from_text,
    inspect_from_text,
    notices,
    replay_from_text,
    sweep_from_text,
)
from zotune.config.train import (
    AUTO,
    FLAGS,
    GUESSED,
    LIBRARIES,
    MEASURED,
    SHARES,
    TrainConfig,
    dump_settings,
    load_settings,
)

__all__ = [
    "ALGORITHMS",
    "ALL",
    "AUTO",
    "BENCH_FLAGS",
    "COMPARE_FLAGS",
    "EMBEDDED",
    "EVALUATE_FLAGS",
    "FLAGS",
    "GUESSED",
    "INSPECT_FLAGS",
    "LARGEST",
    "LARGEST_ADAPTER",
    "LIBRARIES",
    "MEASURED",
    "METHOD_FLAGS",
    "REPLAY_FLAGS",
    "SHARES",
    "SWEEP_FLAGS",
    "TRAJECTORY",
    "Algorithm",
    "BenchConfig",
    "CompareConfig",
    "ConfigError",
    "EvaluateConfig",
    "Flag",
    "FlagOfField",
    "InspectConfig",
    "ReplayConfig",
    "SweepConfig",
    "TrainConfig",
    "as_sentence",
    "bench_from_text",
    "compare_from_text",
    "config_from_text",
    "dump_settings",
    "evaluate_from_text",
    "inspect_from_text",
    "load_settings",
    "methods_of",
    "nearest",
    "notices",
    "replay_from_text",
    "shortened",
    "sweep_from_text",
]
