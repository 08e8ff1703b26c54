"""`zotune bench`: what a step of each method costs for a model."""

from collections.abc import Sequence

from zotune.cli.console import say, standard_error
from zotune.cli.flags import parse_flags
from zotune.config import BENCH_FLAGS, ConfigError, bench_from_text

_ABOUT = (
    "Measure the time and the memory of a training step of each method for a model, or foretell them with --plan,"
    " and say what fits into this machine. The table is on standard output."
)


def main(argv: Sequence[str]) -> int:
    """Run `zotune bench` with the flags `argv` and return its exit code."""
    console = standard_error()
    try:
        config = bench_from_text(parse_flags("zotune bench", _ABOUT, argv, flags=BENCH_FLAGS, bare="model_name"))
        config.validate()
    except ConfigError as error:
        say(console, str(error))
        return 2
    from zotune.bench.launch import launch

    return launch(config, console)
