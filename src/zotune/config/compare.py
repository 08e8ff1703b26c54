"""All settings of `zotune compare`: its own flags in one frozen dataclass, those of the runs as they are given."""

import dataclasses
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

from zotune.config.algorithms import ALGORITHMS
from zotune.config.checks import LARGEST_BUDGET
from zotune.config.errors import ConfigError, nearest, shortened
from zotune.config.flags import Flag, FlagOfField, flags_of
from zotune.config.train import FLAGS

Given = dict[str, str | bool]
"""Flags of a run as a command line gives them: name to text, or to True for a switch."""

DERIVED: Final[dict[str, tuple[str, Given]]] = {"LOZO-M": ("LOZO", {"momentum": "0.9"})}
"""Methods that are another one with a flag."""

NOT_OF_A_RUN: Final = frozenset(
    {"algorithm", "trial", "resume", "epochs", "budget_queries", "eval_every", "evaluations", "results", "logging"}
    | {"early_stopping", "patience"}
)
"""Flags of `zotune train` that a comparison or a search sets itself; all runs go to the end of their budget."""

LARGEST_TRIALS: Final = 1000
LARGEST_JOBS: Final = 256
TARGETS: Final = ("accuracy", "loss")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Settings of `zotune compare` beside the flags of its runs."""

    algorithms: Annotated[
        str,
        Flag(
            "compare",
            "methods, separated by commas, each with flags of its own if it shall have some: 'ZO, LOZO --rank 4'",
            metavar="LIST",
        ),
    ] = "ZO,LOZO,LOREN"
    settings: Annotated[
        Path | None,
        Flag(
            "compare",
            "JSON file of zotune sweep, or {METHOD: {FLAG: value}}, with flags of the methods",
            default_text="the defaults of zotune train",
            metavar="FILE",
        ),
    ] = None
    budget_queries: Annotated[
        int, Flag("compare", "forward passes of one example that each run may spend; a backward pass costs two")
    ] = 16_000
    trials: Annotated[int, Flag("compare", "runs of each method, which differ in order, directions and head")] = 3
    evaluations: Annotated[int, Flag("compare", "evaluations of each run after the one before its first step")] = 10
    reference: Annotated[
        str | None,
        Flag("compare", "method that the others are compared with", default_text="ZO, or else the first"),
    ] = None
    target: Annotated[
        str | None,
        Flag(
            "compare",
            "what the runs shall reach: accuracy=0.9 or loss=0.3",
            default_text="both, as the worst run of the reference has them at its end",
            metavar="METRIC=VALUE",
        ),
    ] = None
    jobs: Annotated[int, Flag("compare", "runs at once, which then share the machine's time")] = 1
    out: Annotated[
        Path | None,
        Flag(
            "results",
            "folder of the comparison; one that has some of its runs is completed",
            default_text="results/compare/MODEL/TASK, TASK-tuned with --settings",
        ),
    ] = None

    def validate(self) -> None:
        """Raise `ConfigError` with one sentence for the first setting that cannot be used."""
        bounds = {
            "budget_queries": LARGEST_BUDGET,
            "trials": LARGEST_TRIALS,
            "evaluations": 10**6,
            "jobs": LARGEST_JOBS,
        }
        check_counts(self, bounds)
        _ = self.aim
        labels = [entry.label for entry in self.entries()]
        if self.reference is not None and self.reference not in labels:
            raise ConfigError(
                f"--reference {shortened(self.reference)} is none of the methods {', '.join(labels)}"
                f"{nearest(self.reference, labels)}"
            )

    @property
    def aim(self) -> tuple[str, float] | None:
        """Metric and value of `target`.

        Raises:
            ConfigError: it is not of that form.
        """
        if self.target is None:
            return None
        found = re.fullmatch(r"\s*(\w+)\s*=\s*(\S+)\s*", self.target)
        try:
            if found is None or found[1] not in TARGETS:
                raise ValueError
            value = float(found[2])
            if not math.isfinite(value):
                raise ValueError
        except ValueError:
            raise ConfigError(f"--target is accuracy=VALUE or loss=VALUE, not {shortened(self.target)!r}.") from None
        if found[1] == "accuracy" and not 0.0 < value <= 1.0:
            raise ConfigError(
                f"--target {shortened(self.target)} is never reached or always, because an accuracy is between 0 and 1;"
                " give 0.9 for 90 %."
            )
        if found[1] == "loss" and value < 0.0:
            raise ConfigError(
                f"--target {shortened(self.target)} is never reached, because the loss of an evaluation is not below 0;"
                " give a value above it."
            )
        return found[1], value

    def entries(self) -> list["Entry"]:
        """The methods with their own flags, in order.

        Raises:
            ConfigError: an unknown method or flag, one that belongs to the comparison, or the same twice.
        """
        return labelled(self.algorithms, read_settings(self.settings))

    @property
    def chosen_reference(self) -> str:
        """Label of the method that the others are compared with."""
        labels = [entry.label for entry in self.entries()]
        return self.reference or ("ZO" if "ZO" in labels else labels[0])


@dataclasses.dataclass(frozen=True)
class Entry:
    """A method of a comparison: what it is called there, its name, the algorithm that it is, and flags of its own."""

    label: str
    method: str
    algorithm: str
    given: Given


def labelled(text: str, settings: Mapping[str, Given]) -> list[Entry]:
    """The entries of a list of methods; flags in the list count more than those of ``settings``.

    Raises:
        ConfigError: see `CompareConfig.entries`.
    """
    parsed = [_parsed(part) for part in text.split(",") if part.strip()]
    if not parsed:
        raise ConfigError("--algorithms names no method; give some, such as ZO,LOZO,LOREN.")
    entries = []
    for name, own in parsed:
        algorithm, implied = DERIVED.get(name, (name, {}))
        label = f"{name} {written(own)}" if own else name
        entries.append(Entry(label, name, algorithm, {**implied, **settings_of(settings, label, name), **own}))
    labels = [entry.label for entry in entries]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(
                f"--algorithms names {shortened(label)} twice; leave one out or give it flags of its own."
            )
    return entries


def settings_of(settings: Mapping[str, Given], label: str, method: str) -> Given:
    """What a file has for an entry, or else for its method."""
    return settings.get(label, settings.get(method, {}))


def _parsed(text: str) -> tuple[str, Given]:
    try:
        name, *words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(
            f"--algorithms has a quotation mark without its pair in {shortened(text.strip())!r}."
        ) from error
    check_method(name)
    own: Given = {}
    while words:
        flag, given, value = words.pop(0).removeprefix("--").partition("=")
        check_own_flag(name, flag)
        if FLAGS[flag].kind == "switch":
            if given:
                raise ConfigError(f"--{flag} of {name} in --algorithms is a switch, so it takes no value.")
            own[flag] = True
        elif given:
            own[flag] = value
        elif words:
            own[flag] = words.pop(0)
        else:
            raise ConfigError(f"--{flag} of {name} in --algorithms needs a value.")
    return name, own


def check_method(name: str) -> None:
    """Raise `ConfigError`, with the nearest name, unless ``name`` is a method."""
    known = [*ALGORITHMS, *DERIVED]
    if name not in known:
        raise ConfigError(f"There is no method {shortened(name)!r}{nearest(name, known)}")


def check_own_flag(method: str, flag: str) -> None:
    """Raise `ConfigError` unless a method of a comparison may have a flag of that name."""
    if flag not in FLAGS:
        raise ConfigError(f"There is no flag --{shortened(flag)} for {method}{nearest(flag, OF_A_METHOD, prefix='--')}")
    if flag not in OF_A_METHOD:
        raise ConfigError(f"--{flag} is the same for all methods, so {method} cannot have its own; leave it out.")


def written(given: Mapping[str, str | bool]) -> str:
    """Flags as a command line has them."""
    return shlex.join(as_words(given))


def as_words(given: Mapping[str, str | bool]) -> list[str]:
    """Flags as the words of a command line."""
    return [
        word
        for name, value in given.items()
        for word in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
    ]


def read_methods(flag: str, path: Path, *, values: str, hint: str = "") -> dict[str, dict[str, Any]]:
    """The object of a JSON file that has one object for each method.

    Args:
        flag: that named the file.
        path: of the file.
        values: what stands for a flag's value in the sentence about the form.
        hint: end of the sentence about a file that is no JSON.

    Raises:
        ConfigError: it cannot be read, or is not of that form.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--{flag} {shortened(path)} cannot be read ({error.strerror}); check the path.") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--{flag} {shortened(path)} is no JSON{hint}.") from error
    if not isinstance(content, dict) or not all(isinstance(flags, dict) for flags in content.values()):
        raise ConfigError(f"--{flag} {shortened(path)} is not of the form {{METHOD: {{FLAG: {values}}}}}.")
    return content


def read_settings(path: Path | None) -> dict[str, Given]:
    """Flags of methods from a JSON file, {} for None.

    Raises:
        ConfigError: the file cannot be read, or names a method or a flag that there is not.
    """
    if path is None:
        return {}
    content = read_methods("settings", path, values="value", hint="; give a file that zotune sweep wrote")
    return {name: _own(name, flags) for name, flags in content.items()}


def _own(label: str, flags: Mapping[str, Any]) -> Given:
    method = (label.split() or [""])[0]  # a search of several entries of one method names them with their flags
    check_method(method)
    own: Given = {}
    for flag, value in flags.items():
        check_own_flag(method, flag)
        if value is False or value is None:
            continue
        if not isinstance(value, (str, int, float)):
            raise ConfigError(f"--settings gives {method} the {flag} {shortened(repr(value))}, which is no value.")
        own[flag] = value if value is True else str(value)
    return own


def check_counts(config: object, largest: Mapping[str, int]) -> None:
    """Raise `ConfigError` unless the named settings are from 1 to their bounds."""
    for name, bound in largest.items():
        value = getattr(config, name)
        if value is not None and not 1 <= value <= bound:
            raise ConfigError(f"--{name} must be from 1 to {bound:,}, not {shortened(value)}.")


OF_A_METHOD: Final = frozenset(
    name for name, flag in FLAGS.items() if flag.flag.group in ("optimizer", "queries", "methods", "model")
) - {"device", "trust_remote_code"} | {"batchsize", "batchsize_limit"}
"""Flags that a method of a comparison may have of its own: the data stay the same for all."""


def refuse_set(command: str, words: Sequence[str]) -> None:
    """Raise `ConfigError` for flags of `zotune train` that ``command`` sets itself."""
    for word in words:
        name = word.removeprefix("--").split("=")[0]
        if word.startswith("--") and name in NOT_OF_A_RUN - {"budget_queries", "evaluations"}:
            if name == "algorithm":
                raise ConfigError(f"zotune {command} takes several methods: give --algorithms in place of --algorithm.")
            instead = _INSTEAD.get(name, "because all runs go to the end of --budget_queries; leave it out")
            raise ConfigError(f"zotune {command} sets --{name} itself, {instead}.")


_INSTEAD: Final = {
    "results": "for every run; give --out in its place",
    "resume": "because the same command goes on with what was stopped; leave it out",
    "trial": "for every run; --init_seed gives other ones",
    "logging": "because it reads metrics.csv; leave it out",
}
"""Why some flags are set, and what to give in their place."""

OF_THE_RUNS: Final[dict[str, FlagOfField]] = {name: flag for name, flag in FLAGS.items() if name not in NOT_OF_A_RUN}
"""Flags of `zotune train` that go to every run."""

COMPARE_FLAGS: Final[dict[str, FlagOfField]] = {**flags_of(CompareConfig), **OF_THE_RUNS}
"""Every flag of `zotune compare` by name, in the order of the help."""
