"""`zotune train`: fine-tune a model on a task."""

from collections.abc import Sequence

from zotune.cli.console import say, standard_error
from zotune.cli.flags import parse_flags
from zotune.config import ConfigError, config_from_text, notices

_ABOUT = (
    "Fine-tune a language model on a classification task. Flags of other methods than the chosen one are accepted and"
    " named in one line. The folder with the results is the last line on standard output."
)


def main(argv: Sequence[str]) -> int:
    """Run `zotune train` with the flags `argv` and return its exit code."""
    console = standard_error()
    try:
        given = parse_flags("zotune train", _ABOUT, argv)
        config = config_from_text(given)
    except ConfigError as error:
        say(console, str(error))
        return 2
    for line in notices(config, given.keys()):
        say(console, line)
    # Only now, because it brings the large libraries, which neither --help nor a misspelt flag should wait for.
    from zotune.run import launch

    return launch(config, console)
