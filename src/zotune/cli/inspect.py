"""`zotune inspect`: what a trajectory holds."""

from collections.abc import Sequence

from zotune.cli.console import say, standard_error
from zotune.cli.flags import parse_flags
from zotune.config import INSPECT_FLAGS, ConfigError, inspect_from_text

_ABOUT = (
    "Check every byte of a trajectory and say what it holds: method, parameters, steps, learning rates, losses and"
    " events. Exit code 1 if it is damaged."
)


def main(argv: Sequence[str]) -> int:
    """Run `zotune inspect` with the flags `argv` and return its exit code."""
    console = standard_error()
    try:
        config = inspect_from_text(parse_flags("zotune inspect", _ABOUT, argv, flags=INSPECT_FLAGS, bare="run"))
        config.validate()
    except ConfigError as error:
        say(console, str(error))
        return 2
    from zotune.reports.inspecting import launch

    return launch(config, console)
