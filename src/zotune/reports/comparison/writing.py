"""The files of a comparison's report, written into its folder."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from zotune.compare.curves import Curve, Numbers, Result
from zotune.config.compare import DERIVED
from zotune.reports.comparison.charts import Chart, charts_of, draw
from zotune.reports.comparison.findings import Findings
from zotune.reports.comparison.page import Report, as_html, as_markdown
from zotune.reports.comparison.tables import tables_of
from zotune.reports.style import DARK, LIGHT, THEMES

PAGE: Final = "report.html"


def write_report(
    out: Path,
    findings: Findings,
    *,
    budget: int,
    said: Sequence[str],
    again: tuple[str, str] | None = None,
    about: str,
    title: str,
    machine: str,
) -> Path:
    """Write page, Markdown, figures (PNG and SVG, light and dark) and CSV files; the path of the page.

    Args:
        out: folder of the comparison.
        findings: what the runs have measured.
        budget: forward passes of one example that each might spend.
        said: the conclusion, sentence by sentence.
        again: see `zotune.reports.comparison.page.Report`.
        about: one line on model, task and trials.
        title: of page and figures.
        machine: where the runs ran.
    """
    results = findings.results
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, tuple[bytes, bytes]] = {}
    charts = charts_of(results)
    for chart in charts:
        pictures[chart.title] = _write_chart(figures, chart, results, budget, f"{chart.title}: {title}")
    report = Report(
        title=title,
        about=about,
        said=said,
        again=again,
        pictures=pictures,
        names={chart.title: chart.name for chart in charts},
        tables=tables_of(findings),
        colours=_colours(findings),
        commands=[shlex.join(result.command) for result in results],
        machine=f"{machine}.",
    )
    _write(out / PAGE, as_html(report))
    _write(out / "report.md", as_markdown(report))
    _write(out / "runs.csv", _runs(results))
    _write(out / "evaluations.csv", _series(results, training=False))
    _write(out / "training.csv", _series(results, training=True))
    return out / PAGE


def _write_chart(
    figures: Path, chart: Chart, results: Sequence[Result], budget: int, title: str
) -> tuple[bytes, bytes]:
    svgs = []
    for theme, suffix in THEMES:
        for kind in ("png", "svg"):
            picture = draw(chart, results, budget, theme, kind, title=title)
            (figures / f"{chart.name}{suffix}.{kind}").write_bytes(picture)
        svgs.append(picture)
    return svgs[0], svgs[1]


def _colours(findings: Findings) -> dict[str, tuple[str, str]]:
    named = {}
    for label, results in findings.by_label.items():
        method = results[0].method if results else label
        method = method if method in LIGHT.methods else DERIVED.get(method, (method, {}))[0]
        named[label] = (LIGHT.of(method), DARK.of(method))
    return named


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8", newline="")
    part.replace(path)


def _runs(results: Sequence[Result]) -> str:
    metrics = sorted({name for result in results for name in result.evaluations.values})
    head = [
        "method",
        "trial",
        "diverged",
        "steps",
        "forward_passes",
        "seconds",
        "memory_mb",
        *metrics,
        "training_loss",
        "command",
    ]
    rows = [
        [
            result.label,
            result.trial,
            int(result.diverged),
            _last(result.training.step),
            _last(result.training.cost),
            _last(result.training.seconds, 3),
            result.memory_mb,
            *(result.final(name) for name in metrics),
            result.training_loss,
            shlex.join(result.command),
        ]
        for result in results
    ]
    return _csv(head, rows)


def _last(series: Numbers, digits: int | None = None) -> float | str:
    return round(float(series[-1]), digits) if len(series) else ""


def _series(results: Sequence[Result], *, training: bool) -> str:
    def curve_of(result: Result) -> Curve:
        return result.training if training else result.evaluations

    metrics = sorted({name for result in results for name in curve_of(result).values})
    rows = []
    for result in results:
        curve = curve_of(result)
        for number in range(len(curve.step)):
            place = [_count(curve.step[number]), _count(curve.cost[number]), round(float(curve.seconds[number]), 3)]
            values = [curve.values[name][number] if name in curve.values else "" for name in metrics]
            rows.append([result.label, result.trial, *place, *values])
    return _csv(["method", "trial", "step", "forward_passes", "seconds", *metrics], rows)


def _count(value: float) -> int | float:
    return int(value) if float(value).is_integer() else float(value)


def _csv(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()
