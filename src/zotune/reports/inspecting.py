"""`zotune inspect` as the command line sees it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console

from zotune.config import ConfigError, InspectConfig, as_sentence
from zotune.config.replay import trajectory_of
from zotune.reports.trajectory import facts, gather
from zotune.reports.trajectory_text import lines, printable
from zotune.trajectory.frames import TrajectoryError
from zotune.trajectory.reader import read


def launch(config: InspectConfig, console: Console) -> int:
    """Say on standard output what the trajectory holds; write the picture and the numbers that were asked for.

    Returns:
        The exit code: 0, 1 if the file is damaged or one could not be written, 2 if it is no trajectory.
    """

    def say(sentence: str) -> None:
        console.print(printable(sentence), markup=False, highlight=False, soft_wrap=True)

    assert config.run is not None
    try:
        trajectory = read(trajectory_of(config.run))
        series = gather(trajectory, config.span)
        told = facts(trajectory, series)
    except (ConfigError, TrajectoryError) as error:
        say(as_sentence(str(error)))
        return 2
    coding = getattr(sys.stdout, "encoding", None) or "utf-8"  # names of files need not be text
    sys.stdout.write("\n".join(lines(told)).encode(coding, "replace").decode(coding) + "\n")
    sys.stdout.flush()
    if config.span is not None and not series.losses:
        say(f"--steps {config.steps} is not in the file, which ends with step {trajectory.end}.")
    written = True
    if config.json is not None:
        written = _write_json(config, told, say) and written
    if config.plot is not None:
        from zotune.reports.trajectory_plot import draw

        try:
            draw(trajectory.header, series, config.plot, config.span)
        except OSError as error:
            say(f"--plot {config.plot} could not be written ({error.strerror or error}); name another file.")
            written = False
    if trajectory.problem is not None:
        say(trajectory.problem)
    return 0 if written and (not trajectory.cut or trajectory.torn) else 1


def _write_json(config: InspectConfig, told: dict[str, Any], say: Callable[[str], None]) -> bool:
    assert config.json is not None
    part = config.json.with_name(config.json.name + ".part")
    try:
        part.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        part.replace(config.json)
    except OSError as error:
        say(f"--json {config.json} could not be written ({error.strerror or error}); name another file.")
        return False
    return True
