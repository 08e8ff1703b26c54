"""`zotune sweep`: search for the settings of methods at a given budget."""

from collections.abc import Sequence

from zotune.cli.console import say, standard_error
from zotune.cli.flags import parse_flags
from zotune.config import SWEEP_FLAGS, ConfigError, sweep_from_text
from zotune.config.compare import refuse_set

_ABOUT = (
    "Search for the settings of methods, each run at the same budget of forward passes, with Optuna. Flags of zotune"
    " train go to every run. The best settings are printed as commands and kept in best.json, which zotune compare"
    " reads; its path is the last line on standard output. A search that was stopped goes on by the same command."
)


def main(argv: Sequence[str]) -> int:
    """Run `zotune sweep` with the flags `argv` and return its exit code."""
    console = standard_error()
    try:
        refuse_set("sweep", argv)
        config, shared = sweep_from_text(parse_flags("zotune sweep", _ABOUT, argv, flags=SWEEP_FLAGS))
        config.validate()
    except ConfigError as error:
        say(console, str(error))
        return 2
    from zotune.sweep.launch import launch

    return launch(config, shared, console)
