"""What a search may choose: ranges for TPE around the default rate, and the lists of the papers.

Rates depend on the model above all, so their range goes two decades down and up from the default, or from a measured
rate one and a half down and one up.  The lists of MeZO (arXiv 2305.17333) are the paper's, for OPT-13B and, where the
model is a masked one, for RoBERTa-large; those of LOZO (arXiv 2410.07698) the paper's for OPT-13B and, for masked
models, the rate of its released commands for RoBERTa-large and a decade above.  A rate of LOZO here is that of its
released code times the rank.  For the other methods the papers' constants with MeZO's rates, a decade more for those
with a preconditioner.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from optuna import Trial

from zotune.config import ALGORITHMS, FLAGS, ConfigError, TrainConfig, config_from_text, methods_of, nearest, shortened
from zotune.config.compare import DERIVED, OF_A_METHOD, Entry, Given, check_method, read_methods
from zotune.config.flags import Kind

DECADES: Final = 2.0
MEASURED: Final = (1.5, 1.0)


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, equally likely on a logarithmic scale; ``whole`` ones if so said."""

    low: float
    high: float
    whole: bool = False

    def suggest(self, trial: Trial, name: str) -> float | int:
        """A number for a trial."""
        if self.whole:
            return trial.suggest_int(name, round(self.low), round(self.high), log=True)
        return trial.suggest_float(name, self.low, self.high, log=True)

    def __str__(self) -> str:
        return f"from {self.low:.3g} to {self.high:.3g}"

    def beginning(self, default: Any) -> float | int:
        """The default where it is one of these, or else their middle."""
        inside = isinstance(default, (int, float)) and self.low <= default <= self.high
        number = default if inside else math.sqrt(self.low * self.high)
        return round(number) if self.whole else float(number)


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    def suggest(self, trial: Trial, name: str) -> Any:
        """A value for a trial."""
        return trial.suggest_categorical(name, self.values)

    def __str__(self) -> str:
        return "of " + " ".join(map(str, self.values))

    def beginning(self, default: Any) -> Any:
        """The default where it is one of these, or else the first."""
        return default if default in self.values else self.values[0]


RATES: Final = ("lr", "lr_mezosvrg_mb")

Space = dict[str, Range | Choice]
"""By the name of the flag."""

_OTHERS: Final[dict[str, Space]] = {
    "ZOSVRG": {"q": Choice((2, 5, 10))},
    "LOZO": {"rank": Choice((1, 2, 4, 8)), "step_interval": Choice((10, 50, 100))},
    "HiZOO": {"hessian_smooth_type": Choice(("constant0", "constant1e-9", "constant1e-8", "constant1e-7"))},
    "LOREN": {"lr_cov": Range(1e-4, 1e-1), "damping": Range(1e-2, 1.0)},
}
"""Besides the rate, by algorithm."""

_SCALES: Final[dict[bool, dict[str, float]]] = {
    False: {"full": 1e-3, "lora": 1e-2, "prefix": 1e-1},
    True: {"full": 1e-3, "lora": 1e-3, "prefix": 1e-1},
}
_RATES: Final[dict[bool, dict[str, tuple[float, ...]]]] = {
    False: {"full": (1e-6, 1e-7), "lora": (1e-4, 5e-5), "prefix": (1e-2, 1e-3)},
    True: {"full": (1e-5, 1e-6, 1e-7), "lora": (1e-4, 5e-5, 1e-5), "prefix": (1e-2, 5e-3, 1e-3)},
}
_RANKS: Final[dict[bool, tuple[int, ...]]] = {False: (1, 2, 4), True: (4, 8)}
_FIRST_ORDER: Final[dict[bool, dict[str, tuple[float, ...]]]] = {
    False: {"full": (8e-5, 5e-5, 1e-5), "lora": (1e-3, 1e-4), "prefix": (1e-2, 1e-3)},
    True: {"full": (5e-5, 3e-5, 1e-5), "lora": (5e-4, 3e-4, 1e-4), "prefix": (5e-2, 3e-2, 1e-2)},
}
"""Whether the model is a masked one; what is trained."""


def space_of(entry: Entry, config: TrainConfig, measured: float | None = None) -> Space:
    """Ranges for TPE, without what the entry has fixed.

    Args:
        entry: the method.
        config: its settings, defaults included (resolved).
        measured: rate of ``--lr auto`` where that is the default.
    """
    rate = config.lr if measured is None else measured
    if "lr" in entry.given:
        rate = 1.0  # not searched
    assert isinstance(rate, float)
    if rate == 0.0:
        raise ConfigError("A search around --lr 0 is none; leave --lr out or give --space.")
    down, up = (DECADES, DECADES) if measured is None else MEASURED
    space: Space = {"lr": Range(rate * 10**-down, rate * 10**up)}
    if config.algorithm == "ZOSVRG":
        other = config.lr_mezosvrg_mb if measured is None else measured
        assert other is not None
        space["lr_mezosvrg_mb"] = Range(other * 10**-down, other * 10**up)
    if config.trained != "full" and config.zeroth_order:
        space["perturbation_scale"] = Choice((1e-3, 1e-2, 1e-1))
    space |= _OTHERS.get(config.algorithm, {})
    return {name: choice for name, choice in space.items() if name not in entry.given}


def grid_of(entry: Entry, config: TrainConfig, *, masked: bool, fixed: Collection[str] = ()) -> list[dict[str, Any]]:
    """The points for ``--search grid``: all combinations of the papers' lists, without what is fixed.

    Args:
        entry: the method.
        config: its settings (resolved).
        masked: whether the model is a masked one.
        fixed: flags that are given for all methods, besides those of the entry.
    """
    fixed = {*fixed, *entry.given}
    kind = config.trained
    rates: tuple[float, ...] = _RATES[masked][kind]
    if config.algorithm in ("ZOAdam", "LOREN", "HiZOO"):
        rates = (float(f"{10 * rates[0]:.6g}"), *rates)
    grid: dict[str, tuple[Any, ...]] = {"lr": rates, "perturbation_scale": (_SCALES[masked][kind],)}
    match config.algorithm:
        case "LOZO":
            grid |= {"rank": _RANKS[masked], "step_interval": (50, 100)}
            grid["lr"] = (1e-6, 1e-7) if kind == "full" else rates
        case "ZOSVRG":
            grid |= {"lr": (1e-3, 1e-4), "lr_mezosvrg_mb": rates, "q": (2, 5, 10)}
        case "HiZOO":
            grid |= {"hessian_smooth_type": ("constant1e-8",)}
        case "LOREN":
            grid |= {"lr_cov": (1e-3,), "damping": (0.1,)}
        case "FZOO":
            grid["lr"] = tuple(rate / 10 for rate in rates)
        case "FOAdam":
            grid = {"lr": _FIRST_ORDER[masked][kind]}
        case "FOSGD":
            # MeZO's lists are those of Adam, whose rates are far too small here.
            default = config.lr if isinstance(config.lr, float) else ALGORITHMS["FOSGD"].lr
            grid = {"lr": tuple(float(f"{default * times:.6g}") for times in (10.0, 1.0, 0.1))}
    if config.algorithm == "LOZO" and "rank" in fixed:
        grid["rank"] = (config.rank,)
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if config.algorithm == "LOZO":
        points = [{**point, "lr": float(f"{point['lr'] * point['rank']:.6g}")} for point in points]
    left = [{name: value for name, value in point.items() if name not in fixed} for point in points]
    return [point for number, point in enumerate(left) if point and point not in left[:number]]


def space_holding(points: Sequence[Mapping[str, Any]]) -> Space:
    """The space of all values of some points."""
    names = points[0] if points else {}
    return {name: Choice(tuple(dict.fromkeys(point[name] for point in points))) for name in names}


def points_of(space: Space) -> list[dict[str, Any]]:
    """Every combination of the values of a space of choices.

    Raises:
        ConfigError: it has a range.
    """
    for name, choice in space.items():
        if isinstance(choice, Range):
            raise ConfigError(f"--space gives {name} a range, and --search grid needs a list of values.")
    lists = [choice.values for choice in space.values() if isinstance(choice, Choice)]
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*lists)]


def read_space(path: Path | None) -> dict[str, Space]:
    """Spaces by method from a JSON file, {} for None.

    Raises:
        ConfigError: it cannot be read or used.
    """
    if path is None:
        return {}
    content = read_methods("space", path, values="values")
    return {method: _read_method(method, flags) for method, flags in content.items()}


def _read_method(method: str, flags: Mapping[str, Any]) -> Space:
    check_method(method)
    algorithm = DERIVED.get(method, (method, {}))[0]
    return {flag: _read_choice(flag, value, algorithm) for flag, value in flags.items()}


def checked_space(space: Space, entry: Entry, base: Mapping[str, str | bool]) -> Space:
    """A space of the user's whose every corner makes settings that can be used.

    Raises:
        ConfigError: one does not, or the space is for a flag that the entry has fixed.
    """
    for flag, choice in space.items():
        if flag in entry.given:
            raise ConfigError(f"--space searches {flag}, which --algorithms fixes for {entry.label}; leave one out.")
        values = choice.values if isinstance(choice, Choice) else (choice.low, choice.high)
        for value in values:
            whole = round(value) if isinstance(choice, Range) and choice.whole else value
            config_from_text({**base, **as_given({flag: whole})}).resolved().validate()
    return space


def as_given(chosen: Mapping[str, Any]) -> Given:
    """Chosen values as a command line gives them; a switch that is off is left out."""
    words = {name: repr(v) if isinstance(v, float) else v if v is True else str(v) for name, v in chosen.items()}
    return {name: word for name, word in words.items() if chosen[name] is not False}


def _read_choice(flag: str, value: Any, algorithm: str) -> Range | Choice:
    if flag not in OF_A_METHOD:
        raise ConfigError(f"--space names {shortened(flag)}, which no method can search{nearest(flag, OF_A_METHOD)}")
    if algorithm not in methods_of(flag):
        raise ConfigError(f"--space names {flag}, which has no effect with {algorithm}; leave it out.")
    kind = FLAGS[flag].kind
    if isinstance(value, list) and value and all(_fits(one, kind) for one in value):
        return Choice(tuple(float(one) if kind == "number" else one for one in value))
    if isinstance(value, dict) and value.keys() == {"low", "high"} and kind in ("number", "whole"):
        low, high = value["low"], value["high"]
        if _fits(low, kind) and _fits(high, kind) and 0 < low < high:
            return Range(float(low), float(high), whole=kind == "whole")
    raise ConfigError(
        f'--space gives {flag} {shortened(json.dumps(value))}; give a list of values or {{"low": A, "high": B}} with'
        " 0 < A < B."
    )


def _fits(value: Any, kind: Kind) -> bool:
    """Whether a value of a JSON file is of a flag's kind."""
    if kind == "switch" or isinstance(value, bool):
        return kind == "switch" and isinstance(value, bool)
    if kind == "number":
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, int if kind == "whole" else str)
