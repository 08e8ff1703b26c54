"""Two processes share the batches: the run of one process, on replicas that stay the same bits."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import build
from tiny_runs import Losses, make_trainer, weights

import zotune
from zotune.rates import measure

SIZE, STEPS = 25, 5
"""25 rows in batches of 8: the last batch of an epoch has one row, so that rank 1 has none."""

SHARES: dict[int, dict[str, Any]] = {
    world: {"per_device_train_batch_size": 4 // world, "gradient_accumulation_steps": 2} for world in (1, 2)
}
METHODS = {
    "MeZO": lambda groups: zotune.MeZO(groups, lr=1e-3, seed=3),
    "MeZOSVRG": lambda groups: zotune.MeZOSVRG(groups, lr=1e-3, lr_minibatch=1e-3, period=2, seed=3),
}


def run(folder: Path, method: str, world: int, **arguments: Any) -> dict[str, Any]:
    """Train; the losses, the cost and the checksum of the weights."""
    losses = Losses()
    measuring = make_trainer(folder / "rate", method=METHODS[method], train=SIZE, **SHARES[world])
    optimizer: Any = measuring.create_optimizer()
    small = measuring.step_batches(6, rows=3)  # two ranks have two and one of them
    rate = measure(optimizer, measuring.step_batches(6), small=small, steps=lambda _: 50, schedule="constant")
    settings = SHARES[world] | {"max_steps": STEPS} | arguments
    trainer = make_trainer(folder, method=METHODS[method], train=SIZE, callbacks=[losses], **settings)
    trainer.train(resume_from_checkpoint=(folder / "checkpoint-2").is_dir() or None)
    metrics = trainer.evaluate()
    return {
        "rate": dataclasses.asdict(rate),
        "losses": losses.values,
        "cost": [trainer.queries, trainer.forwards],
        "digest": zotune.digest(trainer.model.parameters()),
        "weights": weights(trainer)[::97].tolist(),
        "evaluation": [metrics["eval_loss"], metrics["eval_accuracy"]],
    }


def work(folder: Path) -> None:
    """What each rank does; rank r writes its findings to r.json."""
    rank = int(os.environ["RANK"])
    found: dict[str, Any] = {}
    for method in METHODS:
        target = folder / method
        found[method] = run(target, method, 2, save_strategy="steps", save_steps=2)
    # Resumes from checkpoint-2, in the middle of the epoch, once the later checkpoints are out of the way.
    torch.distributed.barrier()
    if rank == 0:
        for step in (4, STEPS):
            shutil.rmtree(folder / "MeZO" / f"checkpoint-{step}")
    torch.distributed.barrier()
    found["resumed"] = run(folder / "MeZO", "MeZO", 2, save_strategy="no")
    trainer = make_trainer(folder / "other", model=build("llama", seed=rank))
    try:
        trainer.train()
    except RuntimeError as error:
        found["mismatch"] = str(error)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("method", list(METHODS))
def test_two_ranks_make_the_steps_of_one_process(tmp_path: Path, ranks: list[dict[str, Any]], method: str) -> None:
    alone = run(tmp_path, method, 1)
    for found in (rank[method] for rank in ranks):
        assert found["losses"] == pytest.approx(alone["losses"], abs=2e-4)
        assert found["losses"][0] == pytest.approx(alone["losses"][0], abs=1e-6)
        assert found["cost"] == alone["cost"]
        assert found["weights"] == pytest.approx(alone["weights"], abs=2e-4)
        assert found["evaluation"] == pytest.approx(alone["evaluation"], abs=1e-3)


def test_a_rate_is_measured_on_whole_steps(tmp_path: Path, ranks: list[dict[str, Any]]) -> None:
    """Two micro-batches on each of two ranks, or on one: 8 rows, and 1 in the last of the four steps."""
    assert ranks[0]["MeZO"]["rate"] == ranks[1]["MeZO"]["rate"]
    found, alone = ranks[0]["MeZO"]["rate"], run(tmp_path, "MeZO", 1)["rate"]
    assert found["forwards"] == alone["forwards"]
    assert found["rate"]["lr"] == pytest.approx(alone["rate"]["lr"], rel=1e-2)
    assert found["forwards"] < 8 * found["queries"]


@pytest.mark.parametrize("method", list(METHODS))
def test_replicas_keep_the_same_bits(ranks: list[dict[str, Any]], method: str) -> None:
    assert ranks[0][method]["digest"] == ranks[1][method]["digest"]
    assert ranks[0][method]["losses"] == ranks[1][method]["losses"]


def test_a_resumed_run_sees_the_same_order_on_all_ranks(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["resumed"]["digest"] == found["MeZO"]["digest"]
        assert found["resumed"]["losses"] == found["MeZO"]["losses"][2:]
        assert found["resumed"]["cost"] == found["MeZO"]["cost"]


def test_replicas_that_differ_stop_the_run(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert "The weights of rank 1 differ from those of rank 0 after step 0" in found["mismatch"]


if __name__ == "__main__":
    work(Path(sys.argv[1]))
