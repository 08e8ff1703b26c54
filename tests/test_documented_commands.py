"""Every command in README and docs has flags that exist, with values of the right kind."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from zotune.cli.flags import parse_flags
from zotune.config import (
    COMPARE_FLAGS,
    EVALUATE_FLAGS,
    SWEEP_FLAGS,
    compare_from_text,
    config_from_text,
    evaluate_from_text,
    sweep_from_text,
)

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def commands(page: Path) -> list[list[str]]:
    """The words behind `zotune train`, `evaluate`, `compare` and `sweep` in a page's blocks of code."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    return [words for block in blocks for words in commands_of(block)]


def commands_of(block: str) -> list[list[str]]:
    """The same of one block, continued lines joined."""
    found = []
    for line in block.replace("\\\n", " ").splitlines():
        if (begin := re.search(r"\bzotune (train|evaluate|compare|sweep) ", line)) and "[--flag" not in line:
            words = shlex.split(line[begin.start() :].replace("$seed", "13"), comments=True)
            found.append([word for word in words[1:] if word not in ("&", ";", "done")])
    return found


ALL = [(page.name, words) for page in PAGES for words in commands(page)]


def test_there_are_commands() -> None:
    assert len(ALL) >= 14
    assert {words[0] for _, words in ALL} == {"train", "evaluate", "compare", "sweep"}


@pytest.mark.parametrize(("page", "words"), ALL, ids=lambda value: value if isinstance(value, str) else " ".join(value))
def test_the_command_is_understood(page: str, words: list[str]) -> None:
    command, *rest = words
    if command == "evaluate":
        given = parse_flags("zotune evaluate", "", rest, flags=EVALUATE_FLAGS, bare="model_name")
        assert evaluate_from_text(given).model_name
    elif command == "compare":
        config, shared = compare_from_text(parse_flags("zotune compare", "", rest, flags=COMPARE_FLAGS))
        assert dataclasses.replace(config, settings=None).entries()
        config_from_text(shared).resolved()
    elif command == "sweep":
        searched, shared = sweep_from_text(parse_flags("zotune sweep", "", rest, flags=SWEEP_FLAGS))
        assert searched.entries()
        config_from_text(shared).resolved()
    else:
        given = parse_flags("zotune train", "", rest)
        if "resume" not in given:  # which reads the settings in a folder
            config_from_text(given).resolved()
