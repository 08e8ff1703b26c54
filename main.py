"""The command of a checkout: `python main.py --flag value ...` is `zotune train --flag value ...`."""

import os
import signal
import sys


def stopped(number, _frame):
    # Inside an import an exception would come out as a traceback, and there is nothing yet that needs finishing.
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write("Stopped before anything was trained.\n")
        sys.stderr.flush()
    os._exit(128 + number)


def start():
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stopped)
    from zotune.cli import main

    return main(["train", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(start())
