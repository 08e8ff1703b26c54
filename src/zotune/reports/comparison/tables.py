"""The tables of a comparison, and its conclusion in sentences."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Final

from zotune.compare.curves import LAST, Numbers, Result
from zotune.compare.running import BLOWN
from zotune.compare.statistics import Mean, difference, mean_of, reaching, target_of
from zotune.config import ALGORITHMS, MEASURED

METRICS: Final = ("loss", "accuracy", "f1", "macro_f1")
"""Validation metrics that have a column, in this order, where the runs have them."""

NONE: Final = "\N{EN DASH}"
TIMES: Final = "\N{MULTIPLICATION SIGN}"
INTERVALS: Final = "(paired differences; 95 % for all of them together, Bonferroni)"
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
    def metrics(self) -> list[str]:
        """Those of `METRICS` that any evaluation has."""
        present = {name for results in self.by_label.values() for r in results for name in r.evaluations.values}
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

    def targets(self) -> list[tuple[str, float]]:
        """Metrics and values to be reached."""
        if self.aim is not None:
            return [self.aim]
        found = [(metric, target_of(self.base, metric)) for metric in self.metrics if metric in ("loss", "accuracy")]
        return [(metric, value) for metric, value in found if math.isfinite(value) and self._learnt(metric, value)]

    def _learnt(self, metric: str, value: float) -> bool:
        """Whether the reference ends better than it began: what is there before the first step is no target."""
        curves = [r.evaluations.values[metric] for r in self.base if metric in r.evaluations.values]
        began = mean_of([float(values[0]) for values in curves if len(values)])
        return not began.count or _rank(value, metric) < _rank(began.mean, metric)


def tables_of(findings: Findings) -> list[Table]:
    """Every table, in the order of the report."""
    targets = [_to_target(findings, metric, value) for metric, value in findings.targets()]
    return [_final(findings), _differences(findings), *targets, _cost(findings), _settings(findings)]


def _final(findings: Findings) -> Table:
    rows = []
    for label, results in findings.by_label.items():
        diverged = sum(result.diverged for result in results)
        runs = f"{len(results)}" + (f", {diverged} diverged" if diverged else "")
        if len(results) < findings.trials:
            runs += f" of {findings.trials}"
        training = mean_of([result.training_loss for result in results])
        finals = [findings.finals(label, metric) for metric in findings.metrics]
        rows.append((label, *map(_mean, [*finals, training]), runs))
    note = (
        "Validation rows after the last step: mean ± standard deviation over the runs that did not diverge. Training"
        f" loss: mean over the batches of the last {LAST:.0%} of the budget."
    )
    head = ("method", *map(_shown, findings.metrics), "training loss", "runs")
    return Table("At the end of the budget", head, tuple(rows), note)


def _differences(findings: Findings) -> Table:
    rows = []
    for label, results in findings.by_label.items():
        if label == findings.reference:
            continue
        cells = []
        for metric in findings.metrics:
            found = difference(results, findings.base, metric)
            text = NONE if not found.count else f"{found.mean:+.4f}"
            if found.count > 1:
                text += f" [{found.low:+.4f}, {found.high:+.4f}]" + (
                    " *" if found.clear and found.count >= FEWEST else ""
                )
            cells.append(text)
        rows.append((label, *cells))
    note = (
        f"Final metric minus that of {findings.reference} in the same trial: mean and 95 % confidence interval"
        f" (Student's t). An asterisk: the interval leaves zero out, from {FEWEST} trials on; each"
        " interval by itself, no correction for many."
    )
    return Table(f"Difference from {findings.reference}", ("method", *map(_shown, findings.metrics)), tuple(rows), note)


def _to_target(findings: Findings, metric: str, value: float) -> Table:
    base = reaching(findings.base, metric, value)
    rows = []
    for label, results in findings.by_label.items():
        found = reaching(results, metric, value)
        share = base.cost / found.cost
        rows.append(
            (
                label,
                _or_none(found.cost, lambda x: f"{x:,.0f}"),
                _or_none(found.seconds, lambda x: f"{x:.1f}"),
                _or_none(share, lambda x: f"{x:.2f}{TIMES}"),
                f"{found.reached} of {found.runs}",
            )
        )
    comparison = "at least" if metric == "accuracy" else "at most"
    source = "" if findings.aim is not None else f", which no run of {findings.reference} misses in the end"
    note = (
        f"First evaluation with a validation {_shown(metric)} of {comparison} {value:.4g}{source}; medians over all"
        f" runs, those that did not get there or diverged later last. Speed-up: forward passes of {findings.reference}"
        " divided by those of the method; both are known to one evaluation."
    )
    head = ("method", "forward passes", "seconds of training", "speed-up", "runs that got there")
    return Table(f"To a validation {_shown(metric)} of {value:.4g}", head, tuple(rows), note)


def _cost(findings: Findings) -> Table:
    against = "ZO" if "ZO" in findings.by_label else findings.reference
    base = _memory(findings.by_label.get(against, []))
    rows = []
    for label, results in findings.by_label.items():
        memory = _memory(results)
        passes = mean_of([1e3 * _last(r.training.seconds) / _last(r.training.cost) for r in results if not r.diverged])
        rows.append(
            (
                label,
                _or_none(memory, lambda x: f"{x:,.0f}"),
                _or_none(memory / base, lambda x: f"{x:.2f}{TIMES}"),
                _or_none(mean_of([_last(r.training.cost) for r in results]).mean, lambda x: f"{x:,.0f}"),
                _or_none(mean_of([_last(r.training.step) for r in results]).mean, lambda x: f"{x:,.0f}"),
                _or_none(mean_of([_last(r.training.seconds) for r in results]).mean, lambda x: f"{x:.1f}"),
                _or_none(passes.mean, lambda x: f"{x:.3f}"),
            )
        )
    note = (
        "Largest peak of the runs; on a GPU what torch allocated there, on a CPU the whole process with its libraries"
        " (zotune bench measures without them). Seconds are of training, without evaluations; runs at once share the"
        " machine."
    )
    head = (
        "method",
        "peak memory (MB)",
        f"ratio to {against}",
        "forward passes",
        "steps",
        "seconds",
        "seconds per 1,000 passes",
    )
    return Table("Memory and time", head, tuple(rows), note)


def _settings(findings: Findings) -> Table:
    rows = []
    for label, results in findings.by_label.items():
        if not results:
            continue
        settings = {**results[0].settings, "lr": _rates(results)}
        algorithm = ALGORITHMS[results[0].algorithm]
        named = ("perturbation_scale", "num_queries") if algorithm.zeroth_order else ()
        first = ("lr", "lr_scheduler_type", *named, "batchsize")
        hidden = {"backend", "noise", "clipping", "anchor"} | (set() if settings.get("momentum") else {"momentum_bits"})
        others = sorted(algorithm.flags - set(first) - hidden)
        rest = ", ".join(
            f"{name} {_setting(settings[name])}" for name in others if settings.get(name) not in (None, False)
        )
        rows.append(
            (
                label,
                *(_setting(settings[name]) if name in settings and name in first else NONE for name in _FIRST),
                rest,
            )
        )
    taken = [share for found in findings.by_label.values() for share in _shares_taken(found)]
    cost = f" and took up to {max(taken):.0%} of the budget" if taken else ""
    note = (
        f"Measured rates are those of --lr auto, each trial its own{cost}. First-order methods have constants unless"
        " --lr gives one; zotune sweep finds better ones."
    )
    return Table("Settings", ("method", *_FIRST, "others of the method"), tuple(rows), note)


_FIRST: Final = ("lr", "lr_scheduler_type", "perturbation_scale", "num_queries", "batchsize")


def _rates(results: Sequence[Result]) -> str:
    """The rate of the runs of a method, or from what to what it goes where each has measured its own."""
    rates = sorted(float(result.settings["lr"]) for result in results)
    ends = dict.fromkeys(_setting(rate) for rate in (rates[0], rates[-1]))
    return " to ".join(ends) + (", measured" if _shares_taken(results) else "")


def _shares_taken(results: Sequence[Result]) -> list[float]:
    """What measuring the rate took of the budgets; a run's own budget is what it left."""
    return [
        facts["forwards"] / (facts["forwards"] + result.settings["budget_queries"])
        for result in results
        if isinstance(facts := result.settings.get(MEASURED), dict) and result.settings.get("budget_queries")
    ]


def conclusion(findings: Findings, budget: int) -> list[str]:
    """What the comparison says, in sentences; which methods cannot be told apart as well."""
    said = []
    for metric in findings.metrics[:2]:
        means = {label: findings.finals(label, metric) for label in findings.by_label}
        ranked = sorted(  # a mean of those that were lucky does not win
            (label for label in means if means[label].count),
            key=lambda label: (findings.diverged(label), _rank(means[label].mean, metric)),
        )
        if not ranked:
            continue
        best = ranked[0]
        equal = [label for label in ranked if f"{means[label].mean:.4f}" == f"{means[best].mean:.4f}"]
        superlative = "highest" if metric == "accuracy" else "lowest"
        sentence = (
            f"At a budget of {budget:,} forward passes {_listed(equal)} {'has' if len(equal) == 1 else 'have'} the"
            f" {superlative} mean validation {_shown(metric)}, {_mean(means[best])}"
        )
        others = [label for label in ranked if label not in equal]
        said.append(f"{sentence}{_told_apart(findings, best, others, metric)}.")
    said += _of_diverged(findings)
    trials = max((len(results) for results in findings.by_label.values()), default=0)
    if 0 < trials < 5:
        if trials == 1:
            said.append("There is 1 trial of each method, which cannot tell methods apart; --trials 5 begins to.")
        else:
            what = (
                "cannot tell methods apart; --trials 5 begins to"
                if trials < FEWEST
                else "small differences mean little"
            )
            joined = ", which " if trials < FEWEST else ", so "
            said.append(f"There are {trials} trials of each method{joined}{what}.")
    return said


def _of_diverged(findings: Findings) -> list[str]:
    """Which methods have runs that diverged, and what that leaves."""
    diverged = [label for label in findings.by_label if findings.diverged(label)]
    if not diverged:
        return []
    whole = [label for label in diverged if all(result.diverged for result in findings.by_label[label])]
    how = (
        f"With the settings used, the loss of {_listed(diverged)} became infinite or NaN, or rose above {BLOWN:g} times"
        " what it was before the first step,"
    )
    if all(result.diverged for results in findings.by_label.values() for result in results):
        return [f"{how} in every run, so there is nothing to compare; give lower rates, or leave --lr out."]
    some = f"{how} in some runs; they are left out of means and figures."
    said = [some if not whole else f"{some} Of {_listed(whole)} no run is left."]
    if findings.reference in whole:
        said.append(f"So there are no differences from {findings.reference}; give another --reference.")
    return said


def _told_apart(findings: Findings, best: str, others: Sequence[str], metric: str) -> str:
    if not others or len(findings.by_label[best]) < FEWEST:
        return ""
    differences = {
        o: difference(findings.by_label[o], findings.by_label[best], metric, comparisons=len(others)) for o in others
    }
    clear = [other for other, found in differences.items() if found.clear and found.count >= FEWEST]
    unclear = [other for other in others if other not in clear]
    if not unclear:
        return f", clearly apart from {'the other' if len(others) == 1 else 'all others'} {INTERVALS}"
    if not clear:
        rest = "the other cannot be" if len(others) == 1 else "no other method can be"
        return f", but {rest} told apart from it {INTERVALS}"
    return f", clearly apart from {_listed(clear)} but not from {_listed(unclear)} {INTERVALS}"


def _rank(value: float, metric: str) -> float:
    return value if metric == "loss" else -value


def _shown(metric: str) -> str:
    return {"f1": "F1", "macro_f1": "macro F1"}.get(metric, metric)


def _mean(value: Mean) -> str:
    if not value.count:
        return NONE
    return f"{value.mean:.4f}" + (f" ± {value.deviation:.4f}" if value.count > 1 else "")


def _memory(results: Sequence[Result]) -> float:
    return max((result.memory_mb for result in results), default=math.nan)


def _last(series: Numbers) -> float:
    return float(series[-1]) if len(series) else math.nan


def _or_none(value: float, written: Callable[[float], str]) -> str:
    return written(value) if math.isfinite(value) else NONE


def _setting(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _listed(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
