"""All settings of `zotune inspect`: one frozen dataclass, one field a flag."""

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Final

from zotune.config.checks import check_output
from zotune.config.errors import ConfigError, shortened
from zotune.config.flags import Flag, FlagOfField, flags_of
from zotune.config.replay import trajectory_of

_PICTURES: Final = (".png", ".svg", ".pdf")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Settings of `zotune inspect`."""

    run: Annotated[
        Path | None,
        Flag("run", "the trajectory, or the run folder that has it", default_text="must be given", metavar="FILE"),
    ] = None
    steps: Annotated[
        str | None,
        Flag(
            "run",
            "list these steps, from A up to but without B, and draw only them; either may be left out",
            default_text="draw all, list none",
            metavar="A:B",
        ),
    ] = None
    plot: Annotated[
        Path | None,
        Flag("results", "picture of the losses (.png, .svg or .pdf)", default_text="none", metavar="FILE"),
    ] = None
    json: Annotated[Path | None, Flag("results", "JSON file for what is told", default_text="none", metavar="FILE")] = (
        None
    )

    def validate(self) -> None:
        """Raise `ConfigError` with one sentence for the first setting that cannot be used."""
        if self.run is None:
            raise ConfigError("Say which run: zotune inspect RUN.zo, with the .zo file of a run or its folder.")
        _ = self.span
        source = trajectory_of(self.run)
        if self.plot is not None and self.plot.suffix.lower() not in _PICTURES:
            raise ConfigError(f"--plot {shortened(self.plot)} must end in {', '.join(_PICTURES[:-1])} or .pdf.")
        for name, path in (("plot", self.plot), ("json", self.json)):
            if path is not None:
                check_output(name, path)
                if path.exists() and path.samefile(source):
                    raise ConfigError(f"--{name} {shortened(path)} is the trajectory itself; name another file.")
        if self.plot is not None and self.json is not None and self.plot.resolve() == self.json.resolve():
            raise ConfigError("--plot and --json name the same file; give them different ones.")

    @property
    def span(self) -> tuple[int, int | None] | None:
        """First step of `steps` and the one after the last, None for no end; None when left out.

        Raises `ConfigError` for a text of another form.
        """
        if self.steps is None:
            return None
        found = re.fullmatch(r"(\d{0,10}):(\d{0,10})", self.steps)
        if found is None:
            raise ConfigError(f"--steps takes two whole numbers A:B, such as 0:10, not {shortened(self.steps)!r}.")
        first, end = int(found[1] or 0), int(found[2]) if found[2] else None
        if end is not None and end <= first:
            raise ConfigError(f"--steps {self.steps} names no step; the second number must be above the first.")
        return first, end


INSPECT_FLAGS: Final[dict[str, FlagOfField]] = flags_of(InspectConfig)
"""Every flag of `zotune inspect` by name, in the order of the help."""
