"""The command `zotune`: one file a subcommand, no logic; settings and runs live in `zotune.config` and `zotune.run`."""

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Final

import zotune
from zotune.cli.stops import leaving

COMMANDS: Final[dict[str, str]] = {
    "train": "fine-tune a model on a task",
    "evaluate": "ask a model the questions of a task, without or with examples in context",
    "compare": "run several methods on the same data at the same budget, and draw what they did",
    "sweep": "search for the settings of methods at a given budget",
    "bench": "measure or foretell what a step costs for a model",
    "replay": "rebuild the weights of a run from its base model and its trajectory",
    "inspect": "say what a trajectory holds, and check it",
}
"""What each command does; the command `x` is `main` of the module `zotune.cli.x`."""

_USAGE: Final = """usage: zotune COMMAND [FLAGS]

{commands}

zotune COMMAND --help lists the flags; zotune --version says which this is.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: that of the process) and return its exit code.

    0: done; 1: crash (see error.log), or a damaged trajectory; 2: wrong settings; 3: the loss became infinite or NaN;
    130, 143: stopped by Ctrl-C or SIGTERM.
    """
    with leaving():
        return _main(list(sys.argv[1:] if argv is None else argv))


def _main(words: list[str]) -> int:
    usage = _USAGE.format(commands="\n".join(f"  {name:<8} {about}" for name, about in COMMANDS.items()))
    if not words:
        sys.stderr.write(usage)
        return 2
    command, *rest = words
    if command in ("-h", "--help"):
        sys.stdout.write(usage)
        return 0
    if command == "--version":
        sys.stdout.write(f"zotune {zotune.__version__}\n")
        return 0
    if command not in COMMANDS:
        from zotune.cli.console import say, standard_error
        from zotune.config import nearest

        meant = nearest(command, [*COMMANDS, "--version", "--help"])
        known = f"; the commands are {', '.join(COMMANDS)}." if meant == "." else meant
        say(standard_error(), f"There is no command {command!r}{known}")
        return 2
    try:
        os.getcwd()
    except OSError:  # the numerical libraries would end the process in their own way
        sys.stderr.write("The current folder does not exist any more; change to another one.\n")
        return 2
    # What an optional library says about kernels that nobody here asked for.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Only now, because it takes a while, and being stopped meanwhile must not end in a traceback.
    code: int = importlib.import_module(f"zotune.cli.{command}").main(rest)
    return code
