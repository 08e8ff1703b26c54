"""Memory that runs out in a forward pass: the micro-batch is halved, or the run ends with a sentence."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from command_runs import TINY, losses_of, rows_of, shelf, stop_after, train, workshop
from tiny_runs import make_trainer, weights
from torch import nn

import zotune
from zotune import ZerothOrder, digest
from zotune.cli import main
from zotune.hf.portions import MemoryShortError, cut, is_out_of_memory
from zotune.trajectory import read

__all__ = ["shelf", "workshop"]

ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    "python": MemoryError(),
}


@contextmanager
def little_memory(
    monkeypatch: pytest.MonkeyPatch, rows: int, error: BaseException, since: int = 0
) -> Iterator[list[int]]:
    """Queries whose linear layers see more rows of a batch than that raise; gives the rows of those that did not.

    Evaluations have as much memory as they want.
    """
    seen: list[int] = []
    training = [False]
    estimate = ZerothOrder.estimate

    def estimated(self: ZerothOrder, *args: Any, **kwargs: Any) -> float:
        training[0] = self.t >= since
        try:
            return estimate(self, *args, **kwargs)
        finally:
            training[0] = False

    def check(module: nn.Module, args: Any, kwargs: Any) -> None:
        ids = kwargs.get("input_ids")
        if training[0] and isinstance(ids, torch.Tensor):
            if len(ids) > rows:
                raise error
            seen.append(len(ids))

    monkeypatch.setattr(ZerothOrder, "estimate", estimated)
    original = nn.Module.__call__

    def called(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if type(self).__name__.endswith("ForSequenceClassification"):
            check(self, args, kwargs)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "__call__", called)
    yield seen


@pytest.mark.parametrize("method", ["MeZO", "LOZO-M", "LOREN", "HiZOO", "MeZOSVRG"])
def test_portions_end_at_the_same_weights(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends, losses = [], []
    for halve in (False, True):
        model = tiny_models.build("opt", dtype=torch.float64)
        trainer = make_trainer(
            tmp_path / str(halve), method=method, model=model, trainer={"halve_when_out_of_memory": True}
        )
        with pytest.MonkeyPatch.context() as patch:
            if halve:
                with little_memory(patch, 3, ERRORS["cuda"]) as seen:
                    trainer.train()
                assert set(seen) <= {1, 2, 3}
            else:
                trainer.train()
        ends.append(weights(trainer))
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    # Losses are reduced in float32: a portion rounds once more.
    start = torch.cat([p.detach().flatten() for p in tiny_models.build("opt", dtype=torch.float64).parameters()])
    assert (ends[0] - start).abs().max() > 1e-3
    torch.testing.assert_close(ends[0], ends[1], rtol=0.0, atol=2e-5)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize(("halve", "rows"), [(False, 4), (True, 0)])
def test_without_leave_or_with_one_row_the_run_ends_as_it_was(
    error: Exception, halve: bool, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, trainer={"halve_when_out_of_memory": halve})
    before = digest(trainer.model.parameters())
    with little_memory(monkeypatch, rows, error), pytest.raises(MemoryShortError) as caught:
        trainer.train()
    assert digest(trainer.model.parameters()) == before
    assert caught.value.rows == (1 if halve else 8)
    assert caught.value.halved == halve


def test_only_memory_is_taken_for_memory() -> None:
    assert all(map(is_out_of_memory, ERRORS.values()))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_batches_are_cut_with_their_lists() -> None:
    batch = {
        "x": torch.arange(8).view(4, 2),
        "gold": [["a"], ["b"], ["c"], ["d"]],
        "scale": torch.tensor(2.0),
        "s": "abcd",
    }
    part = cut(batch, 1, 3, 4)
    assert part["x"].tolist() == [[2, 3], [4, 5]]
    assert part["gold"] == [["b"], ["c"]]
    assert part["scale"] is batch["scale"]
    assert part["s"] == "abcd"


def test_losses_of_a_block_that_breaks_off_do_not_count() -> None:
    model = nn.Linear(2, 1)
    optimizer, twin = (zotune.MeZO(model.parameters(), lr=0.0) for _ in range(2))
    optimizer.estimate(lambda: 1.0, weight=2)
    twin.estimate(lambda: 1.0, weight=2)

    def break_off() -> None:
        with optimizer.all_or_none():
            optimizer.estimate(lambda: 5.0, weight=3)
            raise MemoryError

    with pytest.raises(MemoryError):
        break_off()
    assert optimizer.step() == twin.step() == 1.0


# ------------------------------------------------------------------------------------- the command line


def test_a_run_goes_on_in_halves_and_says_so(capsys: Any, workshop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    del workshop
    whole, _ = train(capsys, "--algorithm", "ZO")
    with little_memory(monkeypatch, 4, ERRORS["cpu"], since=2) as seen:
        halved, said = train(capsys, "--algorithm", "ZO", "--on_out_of_memory", "halve")
    assert max(seen) == 4
    assert "memory ran out in step 2: 4 rows of a batch at once from here on" in said
    assert losses_of(halved) == pytest.approx(losses_of(whole), rel=1e-4)
    (event,) = (item for item in read(halved / "trajectory.zo").items() if getattr(item, "kind", "") == "portions")
    assert (event.step, event.facts) == (2, {"rows": 4, "begin": 3})


def test_a_run_without_memory_ends_with_a_sentence_and_goes_on_in_halves(
    capsys: Any, workshop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    del workshop
    with little_memory(monkeypatch, 4, ERRORS["cuda"], since=2):
        run, said = train(capsys, "--algorithm", "LOREN", code=1)
        assert "not enough memory for a forward pass of 8 rows; give --on_out_of_memory halve" in said
        assert "No step is lost. Go on with: zotune train --resume" in said
        assert len(rows_of(run, "train")) == 2
        assert main(["train", "--resume", str(run), "--on_out_of_memory", "halve"]) == 0
    assert len(rows_of(run, "train")) == 6


@pytest.mark.parametrize("stopped", [2, 3, 4, 5])
def test_a_resumed_run_cuts_as_the_whole_one_did(
    stopped: int, capsys: Any, workshop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where memory would do for whole batches when it goes on."""
    del workshop
    words = ["--algorithm", "ZO", "--on_out_of_memory", "halve", "--momentum", "0.9", "--save_ckpt"]
    with pytest.MonkeyPatch.context() as patch, little_memory(patch, 4, ERRORS["cuda"], since=2):
        whole, _ = train(capsys, *words)
    shutil.move(whole, "whole")
    with pytest.MonkeyPatch.context() as patch, little_memory(patch, 4, ERRORS["cuda"], since=2):
        stop_after(patch, stopped, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["train", *TINY, *words]) == 130
        run = Path(capsys.readouterr().out.strip())
    with pytest.MonkeyPatch.context() as patch:
        if stopped == 2:  # it has not run out yet, and will
            with little_memory(patch, 4, ERRORS["cuda"], since=2):
                assert main(["train", "--resume", str(run)]) == 0
        else:
            assert main(["train", "--resume", str(run)]) == 0
    assert rows_of(run) == rows_of(Path("whole"))
    assert (run / "last" / "model.safetensors").read_bytes() == Path("whole/last/model.safetensors").read_bytes()
