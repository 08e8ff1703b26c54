"""`make faults` in small: real kills, of one method at a few moments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import kill_matrix

SCRIPT = Path(kill_matrix.__file__)


def test_killed_runs_go_on() -> None:
    words = [sys.executable, str(SCRIPT), "--methods", "MeZO-SVRG", "--moments", "8"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, timeout=600)
    lines = [line for line in ended.stdout.splitlines() if line.startswith("MeZO-SVRG")]
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(lines) == 8
    assert sum("ok, killed at step" in line for line in lines) >= 4


def test_a_difference_is_noticed(tmp_path: Path) -> None:
    for name, loss in (("one", "0.5"), ("two", "0.25")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text(f"kind,step,loss\ntrain,1,{loss}\n")
    assert kill_matrix.difference(tmp_path / "one", tmp_path / "two") == "metrics.csv differs"
