"""Several processes on one run, started as people start them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_runs import TINY, losses_of, shelf, train, workshop

__all__ = ["shelf", "workshop"]  # fixtures, for pytest to find in this module
pytestmark = pytest.mark.usefixtures("workshop")

ROOT = Path(__file__).resolve().parents[1]


def test_two_processes_train_as_one(capsys, workshop):
    """Replicas are compared bit for bit inside the run, at its start and end; a difference would end it with 1."""
    alone = losses_of(train(capsys)[0])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = [str(ROOT / "main.py"), *TINY, "--results", "shared-run"]
    done = subprocess.run([*starter, *words], env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip().splitlines()) == 1
    run = Path(done.stdout.strip())
    assert len(list((workshop / "shared-run/model/sst2").iterdir())) == 1
    assert losses_of(run) == pytest.approx(alone, rel=1e-4)
    assert json.loads((run / "config.json").read_text())["processes"] == 2
