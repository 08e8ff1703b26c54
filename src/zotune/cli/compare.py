"""`zotune compare`: several methods on the same data at the same budget."""

from collections.abc import Sequence

from zotune.cli.console import say, standard_error
from zotune.cli.flags import parse_flags
from zotune.config import COMPARE_FLAGS, ConfigError, compare_from_text
from zotune.config.compare import refuse_set

_ABOUT = (
    "Train with several methods on the same examples in the same order, each at the same budget of forward passes, some"
    " times each, and write one report with figures and tables. Flags of zotune train go to every run. The path of the"
    " page is the last line on standard output; a comparison that was stopped is completed by the same command."
)


def main(argv: Sequence[str]) -> int:
    """Run `zotune compare` with the flags `argv` and return its exit code."""
    console = standard_error()
    try:
        refuse_set("compare", argv)
        config, shared = compare_from_text(parse_flags("zotune compare", _ABOUT, argv, flags=COMPARE_FLAGS))
        config.validate()
    except ConfigError as error:
        say(console, str(error))
        return 2
    from zotune.compare.launch import launch

    return launch(config, shared, console)
