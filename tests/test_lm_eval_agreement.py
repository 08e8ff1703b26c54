"""benchmarks/lm_eval_agreement.py on a few rows, where lm-evaluation-harness is installed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from zotune.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT.parent / "shared" / "models" / "opt-mini"
COPA = {"premise": "The man fell", "choice1": "the road was icy", "choice2": "he slept", "question": "cause"}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("lm_eval_agreement", ROOT / "benchmarks" / "lm_eval_agreement.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("count", [0, 2])
def test_both_say_the_same_of_a_few_rows(
    count: int, script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("lm_eval.models.huggingface", reason="needs lm-evaluation-harness: pip install zotune[harness]")
    if not MODEL.is_dir():
        pytest.skip("the model opt-mini is not beside the repository")
    (tmp_path / "copa").mkdir()
    rows = [{**COPA, "label": n % 2} for n in range(3)]
    rows.append({**COPA, "premise": "very " * 600, "label": 0})
    for split, chosen in (("train", rows[:3]), ("validation", rows)):
        (tmp_path / "copa" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, chosen)))
    words = ["x", str(MODEL), str(tmp_path), "--tasks", "copa", "record", "drop", "--demonstrations", str(count)]
    monkeypatch.setattr(sys, "argv", [*words, "--results", str(tmp_path)])
    assert script.run() == 0
    assert "11 questions compared, 1 left out because they are too long for the model." in capsys.readouterr().out
    found = json.loads((tmp_path / "lm_eval_agreement.json").read_text())["rows"]
    assert [row["task"] for row in found] == ["copa", "drop", "record"]
    for row in found:
        assert row["demonstrations"] == count
        assert row["too long"] == (row["task"] == "copa")
        assert row["equal"] + row.get("line break first", 0) == row["rows"] == (3 if row["task"] == "copa" else 4)
        assert row.get("largest difference", 0.0) < 1e-4


def test_without_the_harness_a_sentence_says_what_is_needed(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setattr(sys, "argv", ["x", "model", "data"])
    assert script.run() == 2
    assert "This needs lm-evaluation-harness: pip install zotune[harness]" in capsys.readouterr().out


def test_every_task_is_compared_unless_told_otherwise(script: Any) -> None:
    assert set(script.TASKS.split()) == set(TASKS)
