"""Settings files of runs, damaged or forged: one sentence, never another error, and quickly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zotune.config import FLAGS, ConfigError, TrainConfig, dump_settings
from zotune.config.resume import resumed_config, with_checksum

SAVED = {**dump_settings(TrainConfig().resolved()), "method": "LOREN", "parameters": 444384}
WHOLE = json.dumps(with_checksum(SAVED)).encode()
_QUIET = settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def read(folder: Path, content: bytes) -> TrainConfig | None:
    """The settings in a file, None if it was refused in one sentence."""
    (folder / "config.json").write_bytes(content)
    try:
        config = resumed_config({"resume": folder})
        config.resolved().validate()
    except ConfigError as error:
        said = str(error)
        assert said.strip().endswith((".", "?")), said
        assert "\n" not in said
        assert len(said) < 2000
        return None
    return config


def test_the_file_itself_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, WHOLE) is not None


@_QUIET
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    content = bytearray(WHOLE)
    for place, value in changes:
        content[place] = value
    try:
        same = json.loads(content) == json.loads(WHOLE)
    except ValueError:
        same = False
    assert (read(tmp_path, bytes(content)) is not None) == same  # a changed digit is no setting of the run


@_QUIET
@given(st.integers(0, len(WHOLE) - 1))
def test_a_file_that_was_cut(tmp_path: Path, size: int) -> None:
    assert read(tmp_path, WHOLE[:size]) is None


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@_QUIET
@given(st.dictionaries(st.sampled_from(sorted(FLAGS)), _VALUES, min_size=1, max_size=3))
def test_values_of_any_kind(tmp_path: Path, changes: dict[str, Any]) -> None:
    read(tmp_path, json.dumps(with_checksum({**SAVED, **changes})).encode())


@_QUIET
@given(_VALUES)
def test_any_json(tmp_path: Path, value: Any) -> None:
    assert read(tmp_path, json.dumps(value).encode()) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"\xff\xfe",
        b"1e999999999",
        b'{"algorithm": "LOREN", "algorithm": 1}',
        b"NaN",
    ],
)
def test_odd_files(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path, content) is None
