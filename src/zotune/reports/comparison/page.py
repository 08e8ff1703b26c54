"""The report of a comparison as one self-contained HTML page, and as Markdown."""

from __future__ import annotations

import base64
import dataclasses
import html
import re
from collections.abc import Mapping, Sequence
from typing import Final

from zotune.reports.comparison.findings import NONE, Table

_STYLE: Final = """
:root { color-scheme: light dark;
  --ground: #ffffff; --text: #1f2328; --soft: #57606a; --line: #d8dee4; --raised: #f6f8fa;
  --shade: #1f232833; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #15181d; --text: #e6e8eb; --soft: #9aa4af; --line: #333a44; --raised: #1d2127;
    --shade: #000000b0; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
p.about, p.note { color: var(--soft); margin: .25rem 0 1rem; }
p.note { font-size: .875rem; margin: .5rem 0 0; max-width: 62rem; }
ul.said { margin: 1.25rem 0; padding: 1rem 1rem 1rem 2.25rem; background: var(--raised); border-radius: 8px; }
ul.said li + li { margin-top: .4rem; }
figure { margin: 1.5rem 0; }
figure { overflow-x: auto; }
figure img { width: 100%; min-width: 640px; height: auto; display: block; }
.scroll { overflow-x: auto; background:
  linear-gradient(to left, var(--ground), transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--shade), transparent) right / .9rem 100% no-repeat scroll; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .925rem; line-height: 1.5rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .375rem .75rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
th.words, td.words { text-align: left; }
td.words { white-space: normal; min-width: 15rem; }
td.long { white-space: normal; min-width: 15rem; }
.flag { white-space: nowrap; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px;
  margin-right: .5em; vertical-align: -.05em; }
@media (max-width: 680px) {
  main { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.4rem; }
  ul.said { padding: .8rem .8rem .8rem 1.8rem; }
  th + th { min-width: 5.5rem; }
  td:first-child, th:first-child { position: sticky; left: 0; background: var(--ground); }
  td.long { min-width: 9rem; }
}
details { margin-top: 2.5rem; }
summary { cursor: pointer; font-weight: 600; }
pre { background: var(--raised); padding: 1rem; border-radius: 8px; overflow-x: auto;
  font-size: .8rem; line-height: 1.5; }
pre.wrap { white-space: pre-wrap; margin-top: .5rem; }
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What a report says.

    Attributes:
        title: heading.
        about: one line below it: model, task, budget, trials.
        said: the conclusion, sentence by sentence.
        again: what the command in it does, and the command that trains with the best method; none if nothing is best.
        pictures: title to (SVG for a light ground, SVG for a dark one); empty in Markdown, which names files.
        names: title to the name of the picture's files.
        tables: in order.
        colours: label to (light, dark) colour of its method.
        commands: one a run.
        machine: on which the runs ran.
    """

    title: str
    about: str
    said: Sequence[str]
    again: tuple[str, str] | None
    pictures: Mapping[str, tuple[bytes, bytes]]
    names: Mapping[str, str]
    tables: Sequence[Table]
    colours: Mapping[str, tuple[str, str]]
    commands: Sequence[str]
    machine: str


def as_html(report: Report) -> str:
    """The page; it loads nothing from anywhere, and follows the reader's choice of light or dark."""
    said = "".join(f"<li>{_text(sentence)}</li>" for sentence in report.said)
    figures = "".join(_figure(title, *pair) for title, pair in report.pictures.items())
    tables = "".join(_table(table, report.colours) for table in report.tables)
    commands = html.escape("\n".join(report.commands))
    again = ""
    if report.again is not None:
        again = (
            f'<p class="note">{_text(report.again[0])}</p>\n<pre class="wrap">{html.escape(report.again[1])}</pre>\n'
        )
    light, dark = (_keys([pair[theme] for pair in report.colours.values()]) for theme in (0, 1))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(report.title)}</title>\n"
        f"<style>{_STYLE}{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{html.escape(report.title)}</h1>\n<p class="about">{_text(report.about)}</p>\n'
        f'<ul class="said">{said}</ul>\n{again}{figures}\n{tables}\n'
        f"<details><summary>The commands of the runs</summary><pre>{commands}</pre></details>\n"
        f'<p class="note">{_text(report.machine)}</p>\n</main>\n</body>\n</html>\n'
    )


def _keys(colours: Sequence[str]) -> str:
    """Rules for the square in front of each label: filled, or for another variant of the same method a frame."""
    rules = []
    for number, colour in enumerate(colours):
        first = colour not in colours[:number]
        fill = f"background: {colour}" if first else f"box-shadow: inset 0 0 0 .2em {colour}"
        rules.append(f".k{number} {{ {fill}; }}")
    return "".join(rules)


def _figure(title: str, light: bytes, dark: bytes) -> str:
    sources = [f"data:image/svg+xml;base64,{base64.b64encode(picture).decode('ascii')}" for picture in (light, dark)]
    alternative = html.escape(f"{title}, a line for each method; the tables below have the figures")
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{sources[1]}">'
        f'<img src="{sources[0]}" alt="{alternative}"></picture></figure>\n'
    )


def _table(table: Table, colours: Mapping[str, tuple[str, str]]) -> str:
    numbers = {label: number for number, label in enumerate(colours)}
    kinds = _kinds(table)
    head = "".join(
        f"<th scope='col'{kind}>{html.escape(name).replace('_', '_<wbr>')}</th>"
        for name, kind in zip(table.head, kinds, strict=True)
    )
    rows = []
    for row in table.rows:
        label = row[0]
        key = f'<span class="key k{numbers[label]}"></span>' if label in numbers else ""
        cells = "".join(f"<td{kind}>{_text(cell or NONE)}</td>" for cell, kind in zip(row[1:], kinds[1:], strict=True))
        long = ' class="long"' if len(label) > _LONG else ""
        rows.append(f"<tr><td{long}>{key}{_text(label, _FLAG_AND_VALUE)}</td>{cells}</tr>")
    note = f'<p class="note">{_text(table.note)}</p>' if table.note else ""
    return (
        f'<h2>{html.escape(table.title)}</h2>\n<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{note}\n"
    )


def _kinds(table: Table) -> list[str]:
    """The class of each column: words, which may be on several lines, where a cell has many of them."""
    longest = [max(map(len, column), default=0) for column in zip(*table.rows, strict=True)] or [0] * len(table.head)
    return ["", *(' class="words"' if length > _WORDS else "" for length in longest[1:])]


_WORDS: Final = 40
"""Letters of a cell from which on it is words."""

_LONG: Final = 24
"""Letters of a label from which on it may be on several lines."""

_FLAG: Final = r"(?<![\w-])--\w+"
_FLAG_OR_NAME: Final = rf"{_FLAG}|\b[A-Z]+-[A-Z]\b"  # of a method: LOZO-M
_FLAG_AND_VALUE: Final = rf"{_FLAG}(?: [^\s-]\S*)?"


def _text(text: str, whole: str = _FLAG_OR_NAME) -> str:
    """For HTML; what ``whole`` finds stays on one line."""
    return re.sub(whole, r'<span class="flag">\g<0></span>', html.escape(text))


def as_markdown(report: Report) -> str:
    """The report with pictures beside it."""
    parts = [f"# {report.title}", report.about, "\n".join(f"- {sentence}" for sentence in report.said)]
    if report.again is not None:
        parts += [report.again[0], f"```\n{report.again[1]}\n```"]
    parts += [f"![{title}](figures/{name}.png)" for title, name in report.names.items()]
    for table in report.tables:
        parts += [f"## {table.title}", markdown_table(table)]
        if table.note:
            parts.append(table.note)
    parts += ["## Commands", "```\n" + "\n".join(report.commands) + "\n```", report.machine]
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> str:
    """A table in Markdown."""
    lines = [table.head, ("---", *("---:" for _ in table.head[1:])), *table.rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("*", r"\*") or NONE
