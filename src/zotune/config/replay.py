"""All settings of `zotune replay`: one frozen dataclass, one field a flag."""

import dataclasses
from pathlib import Path
from typing import Annotated, Final

from zotune.config.checks import LARGEST, check_device
from zotune.config.errors import ConfigError, shortened
from zotune.config.flags import Flag, FlagOfField, flags_of
from zotune.hf.resolve import resolve

TRAJECTORY: Final = "trajectory.zo"
"""Name of the trajectory in a run folder."""

_USAGE: Final = "zotune replay BASE RUN.zo --out DIR"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Settings of `zotune replay`."""

    base: Annotated[
        str,
        Flag(
            "run",
            "what to begin with: the base model of the run ('embedded', a folder, or a name on the Hugging Face hub)"
            " or one of its checkpoints",
            default_text="must be given",
            metavar="MODEL",
        ),
    ] = ""
    run: Annotated[
        Path | None,
        Flag("run", "the trajectory, or the run folder that has it", default_text="must be given", metavar="FILE"),
    ] = None
    step: Annotated[int | None, Flag("run", "number of steps to end with", default_text="all")] = None
    device: Annotated[
        str | None,
        Flag("model", "number of a GPU, cuda:NUMBER or cpu", default_text="the first GPU, otherwise the CPU"),
    ] = None
    trust_remote_code: Annotated[bool, Flag("model", "let a model of the hub run its own code")] = False
    out: Annotated[
        Path | None, Flag("results", "folder for the model; a new one or an empty one", default_text="must be given")
    ] = None

    def validate(self) -> None:
        """Raise `ConfigError` with one sentence for the first setting that cannot be used."""
        if not self.base.strip():
            raise ConfigError(f"Say which base model and which run: {_USAGE}.")
        if self.run is None:
            raise ConfigError(f"Say which run, after the base model: {_USAGE}.")
        if self.out is None:
            raise ConfigError(f"Say where the model goes with --out: {_USAGE}.")
        if self.step is not None and not 0 <= self.step <= LARGEST:
            raise ConfigError(f"--step must be from 0 to {LARGEST:,}, not {shortened(self.step)}.")
        check_device(self.device)
        self._check_base()
        trajectory_of(self.run)
        _check_out(self.out)

    def _check_base(self) -> None:
        base = self.base
        if base.endswith(".zo") and Path(base).expanduser().is_file():
            raise ConfigError(f"{shortened(base)} is a trajectory, and the base model comes first: {_USAGE}.")
        if (Path(base).expanduser() / TRAJECTORY).is_file():
            raise ConfigError(
                f"{shortened(base)} is the folder of a run, and the base model comes first: give the model that the run"
                " began with, or one of its checkpoints, then the run."
            )
        try:
            resolve(base, flag="--base")
        except ValueError as error:
            raise ConfigError(str(error)) from error


def trajectory_of(run: Path) -> Path:
    """The trajectory that `run` is, or, for a folder, holds.

    Raises `ConfigError` when there is none.
    """
    try:
        if run.is_dir():
            if (run / TRAJECTORY).is_file():
                return run / TRAJECTORY
            raise ConfigError(
                f"{shortened(run)} holds no {TRAJECTORY}; give the folder of a zeroth-order run, or a .zo file."
            )
        if run.is_file():
            return run
    except OSError as error:
        raise ConfigError(f"{shortened(run)} cannot be read ({error.strerror}); check the path.") from error
    raise ConfigError(f"There is no file {shortened(run)}; give the .zo file of a run, or its folder.")


def _check_out(out: Path) -> None:
    try:
        if out.is_dir():
            if any(out.iterdir()):
                raise ConfigError(f"--out {shortened(out)} is not empty; name a new folder, so that nothing is lost.")
        elif out.exists() or out.is_symlink():
            raise ConfigError(f"--out {shortened(out)} is no folder; name a new one.")
    except OSError as error:
        raise ConfigError(f"--out {shortened(out)} cannot be used ({error.strerror}); name another folder.") from error


REPLAY_FLAGS: Final[dict[str, FlagOfField]] = flags_of(ReplayConfig)
"""Every flag of `zotune replay` by name, in the order of the help."""
