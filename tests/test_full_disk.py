"""Whole runs on a small disk that is full for a while, and on one that can only be read."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_runs import TINY, rows_of, shelf, stop_after, train, workshop

from zotune.cli import main

__all__ = ["shelf", "workshop"]
pytestmark = pytest.mark.usefixtures("workshop")

SIZE = 2_000_000
WORDS = ["--algorithm", "ZO", "--momentum", "0.9"]


def mounted(place: Path, *options: str) -> bool:
    place.mkdir(exist_ok=True)
    return subprocess.run(["mount", *options, str(place)], capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes in memory."""
    place = tmp_path / "disk"
    if not mounted(place, "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs"):
        pytest.skip("This system does not let the tests mount a small disk.")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, room: int = 0) -> None:
    """Use up all room there is, but for so many bytes."""
    with (disk / "filler").open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError:
                continue
        file.truncate(file.tell() - room)


def results(disk: Path) -> list[str]:
    return ["--results", str(disk / "results")]


@pytest.fixture
def whole(capsys: pytest.CaptureFixture[str]) -> Path:
    """The run that has room all the time."""
    run, _ = train(capsys, *WORDS, "--save_ckpt")
    assert run is not None
    return run


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_a_full_disk_ends_a_run_with_a_sentence_and_it_goes_on_to_the_same_bits(
    step: int, disk: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Checkpoints find no room; what is short fits into the pages that its files have."""
    run = broken_by_a_full_disk(disk, step, [*WORDS, "--save_ckpt"], capsys)
    assert rows_of(run) == rows_of(whole)
    ends = [(folder / "last" / "model.safetensors").read_bytes() for folder in (run, whole)]
    assert ends[0] == ends[1]


def test_half_a_checkpoint_is_taken_away_and_the_disk_named(
    disk: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is room for the beginning of a checkpoint's weights only."""
    run = broken_by_a_full_disk(disk, 2, [*WORDS, "--save_ckpt"], capsys, room=40_000)
    assert rows_of(run) == rows_of(whole)


def test_a_trajectory_that_finds_no_room_loses_no_step(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--algorithm", "ZO", "--num_queries", "400", "--epochs", "1"]  # more than a page for each step
    whole, _ = train(capsys, *words)
    assert whole is not None
    run = broken_by_a_full_disk(disk, 1, words, capsys)
    assert rows_of(run) == rows_of(whole)


def broken_by_a_full_disk(
    disk: Path, step: int, words: list[str], capsys: pytest.CaptureFixture[str], room: int = 0
) -> Path:
    """A run whose disk is full from a step on, and that went on when there was room."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, step, lambda: fill(disk, room))
        assert main(["train", *TINY, *words, *results(disk)]) == 1
    out, err = capsys.readouterr()
    run = Path(out.strip())
    assert "Traceback" not in err
    assert "No space left on device" in err
    assert "broke off" not in err
    assert not (run / ".saving").exists()
    assert "No step is lost. Go on with: zotune train --resume" in err
    (disk / "filler").unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert "Traceback" not in capsys.readouterr().err
    return run


def test_a_disk_that_is_full_from_the_start_is_named(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(disk)
    code = main(["train", *TINY, *WORDS, *results(disk)])
    err = capsys.readouterr().err
    assert code in (1, 2)
    assert "No space left on device" in err
    assert "Traceback" not in err


def read_only(place: Path) -> Callable[[], None]:
    """Mount a folder over itself so that it can only be read; how to undo that."""
    good = mounted(place, "--bind", str(place)) and mounted(place, "-o", "remount,bind,ro", str(place))
    if not good:
        subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)
        pytest.skip("This system does not let the tests mount a folder for reading only.")
    return lambda: subprocess.run(["umount", "-l", str(place)], check=True) and None


def test_a_folder_that_can_only_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shelf").mkdir()
    undo = read_only(tmp_path / "shelf")
    try:
        code = main(["train", *TINY, *WORDS, "--results", str(tmp_path / "shelf" / "runs")])
    finally:
        undo()
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert "Read-only file system" in err
    assert "Traceback" not in err


def test_a_run_in_a_folder_that_can_only_be_read_goes_on_when_it_can_be_written(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["train", *TINY, *WORDS, "--results", "other"]) == 130
    run = Path(capsys.readouterr().out.strip())
    undo = read_only(run.resolve())
    try:
        code = main(["train", "--resume", str(run)])
    finally:
        undo()
    err = capsys.readouterr().err
    assert code in (1, 2)
    assert "Read-only file system" in err
    assert "Traceback" not in err
    assert main(["train", "--resume", str(run)]) == 0
    assert rows_of(run) == rows_of(whole)
