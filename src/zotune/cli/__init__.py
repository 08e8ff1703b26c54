"""The command `zotune`: one file a subcommand, no logic; settings and runs live in `zotune.config` and `zotune.run`."""

import sys
from collections.abc import Callable, Sequence
from typing import Final

import zotune
from zotune.cli import train
from zotune.cli.console import say, standard_error
from zotune.config import nearest

COMMANDS: Final[dict[str, tuple[Callable[[Sequence[str]], int], str]]] = {
    "train": (train.main, "fine-tune a model on a task"),
}

_USAGE: Final = """usage: zotune COMMAND [FLAGS]

{commands}

zotune COMMAND --help lists the flags; zotune --version says which this is.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: that of the process) and return its exit code.

    0: done; 1: crash (see error.log); 2: wrong settings; 3: the loss became infinite or NaN; 130, 143: stopped by
    Ctrl-C or SIGTERM.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    usage = _USAGE.format(commands="\n".join(f"  {name:<8} {about}" for name, (_, about) in COMMANDS.items()))
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
        say(standard_error(), f"There is no command {command!r}{nearest(command, [*COMMANDS, '--version', '--help'])}")
        return 2
    return COMMANDS[command][0](rest)
