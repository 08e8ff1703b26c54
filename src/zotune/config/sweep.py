"""All settings of `zotune sweep`: its own flags in one frozen dataclass, those of the runs as they are given."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Annotated, Final

from zotune.config.checks import LARGEST_BUDGET, check_choices
from zotune.config.compare import (
    LARGEST_JOBS,
    OF_THE_RUNS,
    Entry,
    check_counts,
    labelled,
)
from zotune.config.errors import ConfigError, missing_package
from zotune.config.flags import Flag, FlagOfField, flags_of

RUNS: Final = 16
"""Of each method with TPE, if nothing else is said."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Settings of `zotune sweep` beside the flags of its runs."""

    algorithms: Annotated[
        str,
        Flag(
            "sweep",
            "methods to be tuned, separated by commas, each with fixed flags of its own if it shall have some",
            metavar="LIST",
        ),
    ] = "LOREN"
    search: Annotated[
        str,
        Flag(
            "sweep",
            "tpe proposes settings after what it has seen, grid tries the lists of the papers",
            choices=("tpe", "grid"),
        ),
    ] = "tpe"
    space: Annotated[
        Path | None,
        Flag(
            "sweep",
            'JSON file: {METHOD: {FLAG: [values] or {"low": A, "high": B}}}, the latter on a logarithmic scale',
            default_text="built in, by method and --tuning",
            metavar="FILE",
        ),
    ] = None
    runs: Annotated[int | None, Flag("sweep", "runs of each method with --search tpe", default_text=str(RUNS))] = None
    budget_queries: Annotated[
        int, Flag("sweep", "forward passes of one example that each run may spend; a backward pass costs two")
    ] = 16_000
    total_queries: Annotated[
        int | None,
        Flag("sweep", "forward passes of one example for all runs of a method", default_text="as many as --runs take"),
    ] = None
    evaluations: Annotated[int, Flag("sweep", "evaluations of each run, at which it may be broken off")] = 8
    metric: Annotated[str, Flag("sweep", "what of the last evaluation is to be good", choices=("loss", "accuracy"))] = (
        "loss"
    )
    confirmations: Annotated[
        int,
        Flag(
            "sweep", "runs of each of the three best settings on other draws (trials 1, 2, ...); the best mean counts"
        ),
    ] = 1
    prune: Annotated[
        str,
        Flag(
            "sweep",
            "break off runs that are worse than the median of the others at the same evaluation, or none",
            choices=("median", "none"),
        ),
    ] = "median"
    storage: Annotated[
        str | None,
        Flag(
            "sweep",
            "URL of a database of Optuna, which processes on several machines can share",
            default_text="sqlite:///OUT/sweep.db",
            metavar="URL",
        ),
    ] = None
    jobs: Annotated[int, Flag("sweep", "runs at once, which then share the machine's time")] = 1
    out: Annotated[
        Path | None,
        Flag(
            "results",
            "folder of the search; one that has some of its runs is gone on with",
            default_text="results/sweep/MODEL/TASK",
        ),
    ] = None

    def validate(self) -> None:
        """Raise `ConfigError` with one sentence for the first setting that cannot be used."""
        check_choices(self)
        bounds = {
            "runs": 10**5,
            "budget_queries": LARGEST_BUDGET,
            "total_queries": LARGEST_BUDGET,
            "evaluations": 10**6,
            "jobs": LARGEST_JOBS,
        }
        check_counts(self, bounds)
        if self.search == "grid" and self.runs is not None:
            raise ConfigError(f"--runs {self.runs} has no effect with --search grid, which tries every point once.")
        if not 0 <= self.confirmations <= 1000:
            raise ConfigError(f"--confirmations must be from 0 to 1000, not {self.confirmations}.")
        if self.total_queries is not None and self.total_queries < self.budget_queries:
            raise ConfigError(
                f"--total_queries {self.total_queries:,} is less than the --budget_queries {self.budget_queries:,} of"
                " one run; give several times as many."
            )
        if self.storage is not None and not self.storage.strip():
            raise ConfigError("--storage must not be empty; give a URL such as sqlite:///FILE, or leave it out.")
        self.entries()
        if importlib.util.find_spec("optuna") is None:
            raise ConfigError(missing_package("zotune sweep", "optuna", "sweep"))

    @property
    def chosen_runs(self) -> int:
        """Runs of each method with TPE."""
        return RUNS if self.runs is None else self.runs

    def entries(self) -> list[Entry]:
        """The methods with their fixed flags, in order; raises `ConfigError`, see `CompareConfig.entries`."""
        return labelled(self.algorithms, {})


SWEEP_FLAGS: Final[dict[str, FlagOfField]] = {**flags_of(SweepConfig), **OF_THE_RUNS}
"""Every flag of `zotune sweep` by name, in the order of the help."""
