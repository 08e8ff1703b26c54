"""Settings of a training run: fields, defaults, checks, and the words of the command line."""

from zotune.config.algorithms import ALGORITHMS, EMBEDDED, METHOD_FLAGS, Algorithm, methods_of
from zotune.config.bench import ALL, BENCH_FLAGS, BenchConfig
from zotune.config.checks import LARGEST
from zotune.config.errors import ConfigError, nearest, shortened
from zotune.config.flags import Flag, FlagOfField
from zotune.config.text import bench_from_text, config_from_text, notices
from zotune.config.train import FLAGS, TrainConfig, dump_settings, load_settings

__all__ = [
    "ALGORITHMS",
    "ALL",
    "BENCH_FLAGS",
    "EMBEDDED",
    "FLAGS",
    "LARGEST",
    "METHOD_FLAGS",
    "Algorithm",
    "BenchConfig",
    "ConfigError",
    "Flag",
    "FlagOfField",
    "TrainConfig",
    "bench_from_text",
    "config_from_text",
    "dump_settings",
    "load_settings",
    "methods_of",
    "nearest",
    "notices",
    "shortened",
]
