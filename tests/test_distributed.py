"""Data-parallel runs on two processes (gloo): equal replicas, equal to one process, one all-gather a step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from zotune import DataParallel

WORKER = Path(__file__).with_name("two_ranks.py")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two processes reports; see two_ranks.py."""
    folder = tmp_path_factory.mktemp("ranks")
    commands = [[sys.executable, str(WORKER), str(rank), str(folder)] for rank in range(2)]
    running = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for c in commands]
    try:
        ends = [process.communicate(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, errors) in zip(running, ends, strict=True):
        assert process.returncode == 0, errors
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


METHODS = ["MeZO", "MeZO momentum", "ZOAdam", "MeZOSVRG", "LOZO", "LOZO-M", "HiZOO", "LOREN", "FZOO"]


@pytest.mark.parametrize("method", METHODS)
def test_replicas_have_the_same_bits(ranks: list[dict[str, Any]], method: str) -> None:
    first, second = (rank["methods"][method] for rank in ranks)
    assert first["digests"] == second["digests"]
    assert len(set(first["digests"])) == 10, "the weights move in each of the ten steps"
    assert first["losses"] == second["losses"]


@pytest.mark.parametrize("method", METHODS)
def test_equal_to_one_process_on_the_whole_batch(ranks: list[dict[str, Any]], method: str) -> None:
    """Shares of 5 and 3 examples; a mean of the ranks' means would be off by far more."""
    report = ranks[0]["methods"][method]
    assert report["deviation"] < 1e-5
    assert report["losses"] == pytest.approx(report["losses_alone"], rel=1e-6)
    assert report["moved"] > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_one_all_gather_a_step(ranks: list[dict[str, Any]], method: str) -> None:
    """Nothing else is sent."""
    for rank in ranks:
        assert rank["methods"][method]["collectives"] == {"all_gather": 10}
        assert rank["methods"][method]["queries"] == rank["methods"][method]["queries_alone"]


def test_micro_batches(ranks: list[dict[str, Any]]) -> None:
    """Two estimates on one rank and one on the other: still one all-gather, and the mean over all examples."""
    assert ranks[0]["micro"]["digest"] == ranks[1]["micro"]["digest"]
    assert ranks[0]["micro"]["gathers"] == ranks[1]["micro"]["gathers"] == 1
    assert ranks[0]["micro"]["loss"] == pytest.approx(ranks[0]["micro"]["loss_alone"], rel=1e-6)


def test_a_rank_without_examples(ranks: list[dict[str, Any]]) -> None:
    """Its mean over nothing is NaN and has weight 0."""
    assert ranks[0]["empty"]["digest"] == ranks[1]["empty"]["digest"]
    assert ranks[0]["empty"]["loss"] == pytest.approx(ranks[0]["empty"]["loss_alone"], rel=1e-6)
    for rank in ranks:
        assert "no rank had an example" in rank["empty"]["nobody"]


def test_nan_on_one_rank_raises_on_all(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["nan"]["step"] == 1
        assert "at step 1" in rank["nan"]["message"]
        assert rank["nan"]["kept"], "weights and step count are as before"
    assert ranks[0]["nan"]["digest_after"] == ranks[1]["nan"]["digest_after"], "the run goes on"


def test_a_measured_rate_is_that_of_the_whole_batch_on_all_ranks(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["rate"]["shared"] == ranks[1]["rate"]["shared"]
    for rank in ranks:
        assert rank["rate"]["shared"] == pytest.approx(rank["rate"]["alone"], rel=1e-5)
        assert "the loss is nan at step 0" in rank["rate"]["message"], "told as what it is, on both"


def test_needs_a_process_group() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        pytest.skip("torch.distributed is initialised here.")
    with pytest.raises(ValueError, match=r"needs torch\.distributed: start with torchrun"):
        DataParallel()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="this system does not show the names of threads")
def test_no_thread_of_the_group_outlives_it(ranks: list[dict[str, Any]]) -> None:
    """A process that exits beside such a thread sometimes aborts, after all of its work."""
    for rank in ranks:
        assert rank["threads"]
        assert not [name for name in rank["threads"] if "gloo" in name]
