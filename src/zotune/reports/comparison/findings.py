"""What a comparison has found, and how its tables and sentences write it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Final

from zotune.compare.curves import Numbers, Result
from zotune.compare.statistics import Mean, mean_of, target_of
from zotune.config import ALGORITHMS, AUTO, GUESSED, MEASURED, SHARES
from zotune.run.objectives import COUNTED
from zotune.run.outcome import learnt

METRICS: Final = ("loss", "accuracy", "f1", "macro_f1", "positive_f1", "matthews")
"""Validation metrics that have a column, in this order, where the runs have them."""

NONE: Final = "\N{EN DASH}"
TIMES: Final = "\N{MULTIPLICATION SIGN}"
UNTAUGHT: Final = "shares of the classes"
"""What the prediction of nothing but how frequent the classes are is called."""

FEWEST: Final = 3
"""Trials from which on methods are told apart in a sentence."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Title, names of the columns, rows of texts, and what has to be said about it."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Findings:
    """Results by method, the reference, and the target if one was set.

    Attributes:
        by_label: results of each method of the comparison, in its order.
        reference: one of its labels.
        aim: metric and value to be reached; None takes what the reference has at its end.
        trials: runs that were asked for of each method.
    """

    by_label: dict[str, list[Result]]
    reference: str
    aim: tuple[str, float] | None
    trials: int

    @property
    def results(self) -> list[Result]:
        """Those of all methods."""
        return [result for results in self.by_label.values() for result in results]

    @property
    def metrics(self) -> list[str]:
        """Those of `METRICS` that any evaluation has."""
        present = {name for result in self.results for name in result.evaluations.values}
        return [name for name in METRICS if name in present]

    @property
    def base(self) -> list[Result]:
        """Results of the reference."""
        return self.by_label.get(self.reference, [])

    def finals(self, label: str, metric: str) -> Mean:
        """Mean of a method's final metric."""
        return mean_of([result.final(metric) for result in self.by_label[label]])

    def diverged(self, label: str) -> bool:
        """Whether a run of a method did."""
        return any(result.diverged for result in self.by_label[label])

    @property
    def counted(self) -> bool:
        """Whether the loss says no more than the accuracy."""
        return any(result.settings.get("objective") in COUNTED for result in self.results)

    @property
    def most(self) -> int:
        """Trials of the method that has the most."""
        return max((len(results) for results in self.by_label.values()), default=0)

    def has_learnt(self, label: str) -> bool:
        """Whether the runs of a method that did not diverge end, in the mean, better than they began and than is known
        without reading, as `zotune.run.outcome.learnt` says it of one run."""
        kept = [r for r in self.by_label[label] if not r.diverged]

        def means(number: int) -> dict[str, float | None]:
            """Of the evaluation of that number, None for what the runs do not have."""
            values = {
                name: [float(r.evaluations.values[name][number]) for r in kept if name in r.evaluations.values]
                for name in ("loss", "accuracy")
            }
            return {name: found.mean if (found := mean_of(given)).count else None for name, given in values.items()}

        facts = {
            "validation_examples": kept[0].settings.get("validation_examples"),
            SHARES: {name: value for name in ("loss", "accuracy") if math.isfinite(value := untaught(kept, name))},
        }
        return learnt(means(0), means(-1), facts, counted=self.counted)

    def targets(self) -> list[tuple[str, float]]:
        """Metrics and values to be reached."""
        if self.aim is not None:
            return [self.aim]
        found = [(metric, target_of(self.base, metric)) for metric in self.metrics if metric in ("loss", "accuracy")]
        return [(metric, value) for metric, value in found if math.isfinite(value) and self._learnt(metric, value)]

    def untaught(self, metric: str) -> float:
        """See `untaught`."""
        return untaught(self.results, metric)

    def _learnt(self, metric: str, value: float) -> bool:
        """Whether a value is better than what any run of the reference began with, and than the shares of the classes:
        that would be no target."""
        curves = [r.evaluations.values[metric] for r in self.base if metric in r.evaluations.values]
        if rank(value, metric) >= rank(self.untaught(metric), metric):
            return False
        return all(rank(value, metric) < rank(float(values[0]), metric) for values in curves if len(values))


TENTH: Final = 0.1
"""Share of a budget from which on what measuring takes is told."""


def untaught(results: Sequence[Result], metric: str) -> float:
    """The loss or accuracy of predicting the shares of the classes, mean over the runs; nan where it is not known."""
    every = [result.settings.get(SHARES) for result in results]
    given = [shares.get(metric) for shares in every if isinstance(shares, dict)]
    known = [float(value) for value in given if isinstance(value, int | float)]
    return math.fsum(known) / len(known) if known else math.nan


def has_own_rate(results: Sequence[Result]) -> bool:
    """Whether the command of a method's runs gives the rate."""
    words = results[0].command
    return "--lr" in words and words[words.index("--lr") + 1] != AUTO


def with_own_rate(findings: Findings) -> list[str]:
    """Methods whose rates were given."""
    return [label for label, found in findings.by_label.items() if found and has_own_rate(found)]


def untuned(findings: Findings) -> list[str]:
    """First-order methods that ran with their default rate, which follows from the width of the model alone."""
    return [
        label
        for label, found in findings.by_label.items()
        if found and not ALGORITHMS[found[0].algorithm].zeroth_order and not has_own_rate(found)
    ]


def guessed(results: Sequence[Result]) -> list[Result]:
    """Runs whose loss showed no curvature, so that their rate is a cautious constant."""
    return [r for r in results if isinstance(facts := r.settings.get(MEASURED), dict) and facts.get(GUESSED)]


def shares_taken(results: Sequence[Result]) -> list[float]:
    """What measuring the rate took of the budgets; a run's own budget is what it left."""
    return [
        facts["forwards"] / (facts["forwards"] + result.settings["budget_queries"])
        for result in results
        if isinstance(facts := result.settings.get(MEASURED), dict) and result.settings.get("budget_queries")
    ]


def rank(value: float, metric: str) -> float:
    """The smaller the better."""
    return value if metric == "loss" else -value


def shown(metric: str) -> str:
    """A metric as people write it."""
    names = {"f1": "F1", "macro_f1": "macro F1", "positive_f1": "F1", "matthews": "Matthews correlation"}
    return names.get(metric, metric)


def mean_text(value: Mean) -> str:
    """A mean with its deviation."""
    if not value.count:
        return NONE
    return f"{value.mean:.4f}" + (f" ± {value.deviation:.4f}" if value.count > 1 else "")


def last(series: Numbers) -> float:
    """The last number of a series; nan if there is none."""
    return float(series[-1]) if len(series) else math.nan


def or_none(value: float, written: Callable[[float], str]) -> str:
    """A number as text, a dash where it is not finite."""
    return written(value) if math.isfinite(value) else NONE


def setting(value: object) -> str:
    """A setting as text."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def listed(names: Sequence[str]) -> str:
    """Names as a list in a sentence."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
