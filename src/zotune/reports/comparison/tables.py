"""The tables of a comparison."""

from __future__ import annotations

import math

from zotune.compare.curves import LAST, Result
from zotune.compare.statistics import difference, mean_of, reaching
from zotune.reports.comparison.costs import cost_table, settings_table
from zotune.reports.comparison.findings import FEWEST, NONE, TIMES, UNTAUGHT, Findings, Table, mean_text, or_none, shown


def tables_of(findings: Findings) -> list[Table]:
    """Every table, in the order of the report."""
    targets = [_to_target(findings, metric, value) for metric, value in findings.targets()]
    differences = [_differences(findings)] if len(findings.by_label) > 1 else []
    return [_final(findings), *differences, *targets, cost_table(findings), settings_table(findings)]


def _final(findings: Findings) -> Table:
    rows = []
    for label, results in findings.by_label.items():
        diverged = sum(result.diverged for result in results)
        runs = f"{len(results)}" + (f", {diverged} diverged" if diverged else "")
        if len(results) < findings.trials:
            runs += f" of {findings.trials}"
        training = mean_of([result.training_loss for result in results])
        finals = [findings.finals(label, metric) for metric in findings.metrics]
        rows.append((label, *map(mean_text, [*finals, training]), runs))
    note = (
        "Validation rows after the last step: mean ± standard deviation over the runs that did not diverge. Training"
        f" loss: mean over the batches of the last {LAST:.0%} of the budget."
    )
    note = " ".join([note, *_of_few(findings.trials)])
    untaught = [findings.untaught(metric) for metric in findings.metrics]
    if any(math.isfinite(value) for value in untaught):
        rows.append((UNTAUGHT, *(or_none(value, lambda x: f"{x:.4f}") for value in untaught), NONE, NONE))
        note += (
            " Shares of the classes: predicting how frequent each is among the training rows, and for the accuracy the"
            " most frequent one, whatever the text."
        )
    head = ("method", *map(shown, findings.metrics), "training loss", "runs")
    return Table("At the end of the budget", head, tuple(rows), note)


def _of_few(trials: int) -> list[str]:
    """What a mean and a deviation of so few numbers do not say."""
    if trials == 1:
        return ["There is one trial of each method, so there are no deviations."]
    if trials < FEWEST:
        return [
            f"The means are of {trials} trials only: a deviation of so few says little, and one of 0.0000 no more than"
            " that they ended alike."
        ]
    return []


def _differences(findings: Findings) -> Table:
    rows, partly = [], False
    for label, results in findings.by_label.items():
        if label == findings.reference:
            continue
        cells = []
        for metric in findings.metrics:
            found = difference(results, findings.base, metric)
            text = NONE if not found.count else f"{found.mean:+.4f}"
            if found.low < found.high:
                text += f" [{found.low:+.4f}, {found.high:+.4f}]" + (
                    " *" if found.clear and found.count >= FEWEST else ""
                )
            if 0 < found.count < findings.trials:
                text += f" ({found.count} of {findings.trials} trials)"
                partly = True
            cells.append(text)
        rows.append((label, *cells))
    note = (
        f"Final metric minus that of {findings.reference} in the same trial: mean and 95 % confidence interval"
        f" (Student's t). An asterisk: the interval leaves zero out, from {FEWEST} trials on; each"
        " interval by itself, no correction for many."
    )
    if findings.trials == 2:
        note += " Of two trials it is 13 standard errors wide to either side."
    if partly:
        note += (
            " Where a run of either diverged or is missing, the difference is of the other trials alone, and flatters"
            " the method that lost the run."
        )
    return Table(f"Difference from {findings.reference}", ("method", *map(shown, findings.metrics)), tuple(rows), note)


def _to_target(findings: Findings, metric: str, value: float) -> Table:
    base = reaching(findings.base, metric, value)
    at_once = base.cost <= max((_first_cost(result) for result in findings.base), default=0.0)
    rows = []
    for label, results in findings.by_label.items():
        found = reaching(results, metric, value)
        share = base.cost / found.cost
        rows.append(
            (
                label,
                or_none(found.cost, lambda x: f"{x:,.0f}"),
                or_none(found.seconds, lambda x: f"{x:.1f}"),
                NONE if at_once else or_none(share, lambda x: f"{x:.2f}{TIMES}"),
                f"{found.reached} of {found.runs}",
            )
        )
    comparison = "at least" if metric == "accuracy" else "at most"
    left = " that is left" if findings.diverged(findings.reference) else ""
    source = "" if findings.aim is not None else f", which no run of {findings.reference}{left} misses in the end"
    note = (
        f"First evaluation with a validation {shown(metric)} of {comparison} {value:.4g}{source}; medians over all"
        f" runs, those that did not get there or diverged later last. Speed-up: forward passes of {findings.reference}"
        " divided by those of the method; both are known to one evaluation."
    )
    if at_once:
        note += (
            f" {findings.reference} is there at its first evaluation, so there is no speed-up to be seen: give more"
            " --evaluations or another --target."
        )
    head = ("method", "forward passes", "seconds of training", "speed-up", "runs that got there")
    return Table(f"To a validation {shown(metric)} of {value:.4g}", head, tuple(rows), note)


def _first_cost(result: Result) -> float:
    """Forward passes before the first evaluation after a step."""
    later = result.evaluations.cost[result.evaluations.step > 0]
    return float(later[0]) if len(later) else 0.0
