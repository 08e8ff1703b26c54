"""What a comparison says, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from zotune.compare.curves import Result
from zotune.compare.running import BLOWN
from zotune.compare.statistics import band, difference
from zotune.reports.comparison.findings import (
    FEWEST,
    TENTH,
    Findings,
    guessed,
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
    trials = findings.most
    few = len(findings.by_label) > 1 and trials in range(1, FEWEST)
    nothing, some = _of_unlearnt(findings)
    said = [  # first what nothing else should be read without
        *([f"{_trials(trials)} cannot tell methods apart; --trials 5 begins to."] if few else []),
        *nothing,
        *(sentence for metric in findings.metrics[:2] if (sentence := _of_metric(findings, metric, budget))),
        *some,
        *_of_targets(findings),
        *_of_earlier(findings),
        *_of_diverged(findings),
        *_of_measuring(findings),
    ]
    if names := untuned(findings):
        one = len(names) == 1
        said.append(
            f"{listed(names)} ran at {'its default rate, a constant' if one else 'their default rates, constants'} that"
            " nobody tuned for these data and this budget; zotune sweep finds better ones."
        )
    given = with_own_rate(findings)
    by_guess = [label for label, found in findings.by_label.items() if guessed(found)]
    if by_guess:
        said.append(
            f"The loss of {listed(by_guess)} showed no curvature along the directions, so"
            f" {'its rate is a guess' if len(by_guess) == 1 else 'their rates are guesses'}."
        )
    measured = [label for label, found in findings.by_label.items() if shares_taken(found) and label not in by_guess]
    if given and measured:
        rates = "rate of {} was" if len(given) == 1 else "rates of {} were"
        own = "its own" if len(measured) == 1 else "their own"
        said.append(
            f"The {rates.format(listed(given))} given, {listed(measured)} measured {own}:"
            " tune all before you rank them."
        )
    if len(findings.by_label) > 1 and trials in range(FEWEST, 5):
        said.append(f"There are at most {trials} trials of a method, so small differences mean little.")
    return said


def _of_metric(findings: Findings, metric: str, budget: int) -> str:
    """Which method has the best mean in the end; "" where none has one."""
    means = {label: findings.finals(label, metric) for label in findings.by_label}
    ranked, whole = _ranked(findings, metric)
    if not ranked:
        return ""
    best = ranked[0]
    place, named = f"At a budget of {budget:,} forward passes", f"mean validation {shown(metric)}"
    if len(findings.by_label) == 1:
        return f"{place} {best} has a {named} of {mean_text(means[best])}."
    few = len(findings.by_label[best]) < FEWEST
    hedge = f", by {_trials(len(findings.by_label[best])).lower()} only" if few else ""
    if len(ranked) < len(findings.by_label):
        lost = any(findings.diverged(label) for label in findings.by_label)
        if len(ranked) == 1 and lost:
            return f"{place} {best} alone has no run that diverged, and a {named} of {mean_text(means[best])}{hedge}."
        if lost or not whole:
            place += f", of the {len(ranked)} methods without a run that diverged," if whole else ","
    equal = [label for label in ranked if f"{means[label].mean:.4f}" == f"{means[best].mean:.4f}"]
    superlative = "lowest" if metric == "loss" else "highest"
    others = [label for label in ranked if label not in equal]
    apart = _told_apart(findings, equal, others, metric) if whole else ", of the runs that are left"
    return (
        f"{place} {listed(equal)} {'has' if len(equal) == 1 else 'have'} the {superlative} {named},"
        f" {mean_text(means[best])}{hedge}{apart}."
    )


def _ranked(findings: Findings, metric: str) -> tuple[list[str], bool]:
    """Methods by their final means, the best one first, and whether these are of methods without a run that diverged:
    a mean of those runs that were lucky does not win."""
    there = [label for label in findings.by_label if findings.finals(label, metric).count]
    whole = [label for label in there if not findings.diverged(label)]
    return sorted(whole or there, key=lambda label: rank(findings.finals(label, metric).mean, metric)), bool(whole)


def best_run(findings: Findings) -> Result | None:
    """The first run of the method whose mean validation loss is lowest; None where that has learnt nothing for certain
    or has runs that diverged."""
    ranked, whole = _ranked(findings, "loss")
    if not (ranked and whole and findings.has_learnt(ranked[0])):
        return None
    return min(findings.by_label[ranked[0]], key=lambda result: result.trial)


def _trials(count: int) -> str:
    return "One trial" if count == 1 else "Two trials" if count == 2 else f"{count} trials"


def _of_unlearnt(findings: Findings) -> tuple[list[str], list[str]]:
    """A sentence where no method has learnt anything, or one that names those that have not."""
    there = [label for label in findings.by_label if findings.finals(label, "loss").count]
    hardly = [label for label in there if not findings.has_learnt(label)]
    if not hardly:
        return [], []
    bar, one = findings.untaught("loss"), len(hardly) == 1
    every = len(hardly) == len(there)
    its = "its" if every or one else "their"
    first, shares = f"before {its} first step", "predicting how frequent each class is"
    known = f" and that of {shares}, {bar:.4f}" if math.isfinite(bar) else ""
    both = "both" if known else first
    ends = [] if findings.counted else [f"end{'s' if every else ''} 2 % below the validation loss {first}{known}"]
    right = [f"right more often than {both} by two standard errors"] if "accuracy" in findings.metrics else []
    if findings.counted and math.isfinite(findings.untaught("accuracy")):
        right = [f"right more often than {first}, and than the most frequent class, by two standard errors"]
    if every:
        ways = ", or ".join([*ends, *(f"is {words}" for words in right)])
        return [f"Nothing is learnt for certain: no method {ways}."], []
    does, are = ("it does", "is") if one else ("they do", "are")
    subject = "" if ends else "it " if one else "they "
    ways = ", and ".join([*(f"{does} not {words}" for words in ends), *(f"{subject}{are} not {w}" for w in right)])
    return [], [f"{listed(hardly)} {'has' if one else 'have'} learnt nothing for certain: {ways}."]


def _of_targets(findings: Findings) -> list[str]:
    """Why there is nothing that all methods shall reach."""
    if findings.targets() or len(findings.by_label) < 2 or not findings.finals(findings.reference, "loss").count:
        return []
    shares = ", or than predicting how frequent each class is" if math.isfinite(findings.untaught("loss")) else ""
    return [
        f"There is no target to be reached: a run of {findings.reference} ends no better than one of them"
        f" began{shares}; --target sets one."
    ]


def _of_measuring(findings: Findings) -> list[str]:
    """Which methods have spent much of their budget on their rate."""
    shares = {label: max(found) for label, results in findings.by_label.items() if (found := shares_taken(results))}
    much = [f"{share:.0%} of that of {label}" for label, share in shares.items() if share > TENTH]
    if not much:
        return []
    return [
        f"Measuring the rate took of the budget up to {listed(much)}, which is not trained with; a larger"
        " --budget_queries, or rates that are given (zotune sweep finds some), leave more."
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


def _told_apart(findings: Findings, equal: Sequence[str], others: Sequence[str], metric: str) -> str:
    best, them = equal[0], "it" if len(equal) == 1 else "them"
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
        return f", but {rest} told apart from {them} {INTERVALS}"
    return f", clearly apart from {listed(clear)} but not from {listed(unclear)} {INTERVALS}"
