"""What a comparison says, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from zotune.compare.running import BLOWN
from zotune.compare.statistics import band, difference
from zotune.reports.comparison.findings import (
    FEWEST,
    Findings,
    listed,
    mean_text,
    rank,
    shares_taken,
    shown,
    untuned,
    with_own_rate,
)

EARLIER: Final = 0.9
"""Share of its last validation loss below which an earlier one is worth a sentence."""

INTERVALS: Final = "(paired differences; 95 % for all of them together, Bonferroni)"


def conclusion(findings: Findings, budget: int) -> list[str]:
    """What the comparison says, in sentences; which methods cannot be told apart as well."""
    said = [sentence for metric in findings.metrics[:2] if (sentence := _of_metric(findings, metric, budget))]
    said += [*_of_unlearnt(findings), *_of_earlier(findings), *_of_diverged(findings)]
    if names := untuned(findings):
        one = len(names) == 1
        said.append(
            f"{listed(names)} ran at {'its default rate, a constant' if one else 'their default rates, constants'} that"
            " nobody tuned for these data and this budget; zotune sweep finds better ones."
        )
    given = with_own_rate(findings)
    measured = [label for label, found in findings.by_label.items() if shares_taken(found)]
    if given and measured:
        rates = "rate of {} was" if len(given) == 1 else "rates of {} were"
        own = "its own" if len(measured) == 1 else "their own"
        said.append(
            f"The {rates.format(listed(given))} given, {listed(measured)} measured {own}:"
            " tune all before you rank them."
        )
    trials = max((len(results) for results in findings.by_label.values()), default=0)
    if len(findings.by_label) > 1:
        if trials in range(1, FEWEST):
            said.append(f"{_trials(trials)} cannot tell methods apart; --trials 5 begins to.")
        elif trials in range(FEWEST, 5):
            said.append(f"There are {trials} trials of each method, so small differences mean little.")
    return said


def _of_metric(findings: Findings, metric: str, budget: int) -> str:
    """Which method has the best mean in the end; "" where none has one."""
    means = {label: findings.finals(label, metric) for label in findings.by_label}
    there = [label for label in means if means[label].count]
    whole = [label for label in there if not findings.diverged(label)]
    # A mean of those runs that were lucky does not win.
    ranked = sorted(whole or there, key=lambda label: rank(means[label].mean, metric))
    if not ranked:
        return ""
    best = ranked[0]
    place, named = f"At a budget of {budget:,} forward passes", f"mean validation {shown(metric)}"
    if len(findings.by_label) == 1:
        return f"{place} {best} has a {named} of {mean_text(means[best])}."
    few = len(findings.by_label[best]) < FEWEST
    hedge = f", by {_trials(len(findings.by_label[best])).lower()} only" if few else ""
    if len(ranked) < len(findings.by_label):
        if len(ranked) == 1:
            return f"{place} {best} alone has no run that diverged, and a {named} of {mean_text(means[best])}{hedge}."
        place += f", of the {len(ranked)} methods without a run that diverged," if whole else ","
    equal = [label for label in ranked if f"{means[label].mean:.4f}" == f"{means[best].mean:.4f}"]
    superlative = "lowest" if metric == "loss" else "highest"
    others = [label for label in ranked if label not in equal]
    apart = _told_apart(findings, best, others, metric) if whole else ", of the runs that are left"
    return (
        f"{place} {listed(equal)} {'has' if len(equal) == 1 else 'have'} the {superlative} {named},"
        f" {mean_text(means[best])}{hedge}{apart}."
    )


def _trials(count: int) -> str:
    return "One trial" if count == 1 else "Two trials" if count == 2 else f"{count} trials"


def _of_unlearnt(findings: Findings) -> list[str]:
    """Which methods end no better than what is known without reading."""
    bar, share = findings.untaught("loss"), findings.untaught("accuracy")
    finals = {label: findings.finals(label, "loss") for label in findings.by_label}
    above = [
        label
        for label, final in finals.items()
        if final.count
        and final.mean >= bar
        and not findings.finals(label, "accuracy").mean > share  # only too sure of itself
    ]
    if not above:
        return []
    every = len(above) == sum(final.count > 0 for final in finals.values()) > 1
    return [
        f"{'No method' if every else listed(above)} {'ends' if every or len(above) == 1 else 'end'}"
        f" {'below' if every else 'above'} the validation loss of predicting how frequent each class is, {bar:.4f}:"
        " nothing but that may have been learnt."
    ]


def _of_earlier(findings: Findings) -> list[str]:
    """Which methods were better before the end, in the mean: they fit the training rows too closely, or rose again."""
    said = []
    for label, results in findings.by_label.items():
        line = band([r.evaluations for r in results if not r.diverged], "loss", "cost")
        if line is None or not len(line.mean):
            continue
        lowest = int(line.mean.argmin())
        if line.mean[lowest] < EARLIER * line.mean[-1]:
            said.append(
                f"{label} had a lower validation loss before the end: {line.mean[lowest]:.4f} after"
                f" {line.x[lowest]:,.0f} forward passes, {line.mean[-1]:.4f} in the end."
            )
    return said


def _of_diverged(findings: Findings) -> list[str]:
    """Which methods have runs that diverged, and what that leaves."""
    diverged = [label for label in findings.by_label if findings.diverged(label)]
    if not diverged:
        return []
    whole = [label for label in diverged if all(result.diverged for result in findings.by_label[label])]
    how = (
        f"With the settings used, the loss of {listed(diverged)} became infinite or NaN, or rose above {BLOWN:g} times"
        " what it was before the first step,"
    )
    if all(result.diverged for result in findings.results):
        return [f"{how} in every run, so there is nothing to compare; give lower rates, or leave --lr out."]
    some = f"{how} in some runs; they are left out of means and figures."
    said = [some if not whole else f"{some} Of {listed(whole)} no run is left."]
    if findings.reference in whole:
        said.append(f"So there are no differences from {findings.reference}; give another --reference.")
    return said


def _told_apart(findings: Findings, best: str, others: Sequence[str], metric: str) -> str:
    if not others or len(findings.by_label[best]) < FEWEST:
        return ""
    differences = {
        o: difference(findings.by_label[o], findings.by_label[best], metric, comparisons=len(others)) for o in others
    }
    clear = [
        other
        for other, found in differences.items()
        if found.clear and found.count >= FEWEST and rank(found.mean, metric) > 0.0
    ]
    unclear = [other for other in others if other not in clear]
    if not unclear:
        return f", clearly apart from {'the other' if len(others) == 1 else 'all others'} {INTERVALS}"
    if not clear:
        rest = "the other cannot be" if len(others) == 1 else "no other method can be"
        return f", but {rest} told apart from it {INTERVALS}"
    return f", clearly apart from {listed(clear)} but not from {listed(unclear)} {INTERVALS}"
