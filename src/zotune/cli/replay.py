"""`zotune replay`: the weights of a run, rebuilt from its base model and its losses."""

from collections.abc import Sequence

from zotune.cli.console import say, standard_error
from zotune.cli.flags import parse_flags
from zotune.config import REPLAY_FLAGS, ConfigError, replay_from_text

_ABOUT = (
    "Rebuild the weights of a run bit for bit, without data and without a forward pass: from the model that it began"
    " with (or one of its checkpoints) and its trajectory. The folder of the model is the last line on standard output."
)


def main(argv: Sequence[str]) -> int:
    """Run `zotune replay` with the flags `argv` and return its exit code."""
    console = standard_error()
    try:
        config = replay_from_text(parse_flags("zotune replay", _ABOUT, argv, flags=REPLAY_FLAGS, bare=("base", "run")))
        config.validate()
    except ConfigError as error:
        say(console, str(error))
        return 2
    from zotune.run.replaying import launch

    return launch(config, console)
