"""The picture and the summary made from a run folder."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from zotune.reports.curves import draw_curves
from zotune.reports.style import METHOD_COLOURS, method_colour
from zotune.reports.summary import build_summary

HEADER = "kind,step,epoch,queries,forwards,loss,accuracy,f1,lr,seconds,memory_mb"
CONFIG = {"algorithm": "LOZO", "method": "LOZO-M", "task": "sst2", "model_name": "a/b", "versions": {"torch": "2"}}


def write_run(folder: Path, lines: list[str], config: dict | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def run_lines(steps: int = 60) -> list[str]:
    lines = ["eval,0,0.0,0,0,0.75,0.5,0.4,,0.5,100.0"]
    for step in range(1, steps + 1):
        lines.append(f"train,{step},{step / 20},{2 * step},{32 * step},{0.7 - step / 200},,,0.001,{step},110.5")
        if step % 20 == 0:
            accuracy = {20: 0.8, 40: 0.9, 60: 0.9}[step]
            lines.append(
                f"eval,{step},{step / 20},{2 * step},{32 * step},{0.65 - step / 200},{accuracy},0.7,,{step},120"
            )
    return lines


def has_colour(picture: np.ndarray, colour: str) -> bool:
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return bool((np.abs(picture[..., :3] - wanted) < 0.01).all(axis=-1).sum() > 200)


def test_the_picture_has_the_colour_of_the_method_and_no_other(tmp_path: Path) -> None:
    path = draw_curves(write_run(tmp_path, run_lines(), CONFIG))
    picture = imread(path)
    assert path == tmp_path / "curves.png"
    assert picture.shape[0] > 400
    assert picture.shape[1] > 1200
    assert has_colour(picture, METHOD_COLOURS["LOZO-M"])
    assert not has_colour(picture, METHOD_COLOURS["LOREN"])


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    first = draw_curves(write_run(tmp_path / "a", run_lines(), CONFIG)).read_bytes()
    second = draw_curves(write_run(tmp_path / "b", run_lines(), CONFIG)).read_bytes()
    assert first == second


@pytest.mark.parametrize("lines", [run_lines()[:2], run_lines()[:1], run_lines()[1:4]])
def test_a_run_that_has_just_begun_can_be_drawn_without_settings(tmp_path: Path, lines: list[str]) -> None:
    assert imread(draw_curves(write_run(tmp_path, lines))).mean() < 1.0


def test_other_data_give_another_picture(tmp_path: Path) -> None:
    whole = imread(draw_curves(write_run(tmp_path / "a", run_lines(), CONFIG)))
    part = imread(draw_curves(write_run(tmp_path / "b", run_lines(40), CONFIG)))
    assert not np.array_equal(whole, part)


def test_every_method_has_its_own_colour() -> None:
    names = ["ZO", "ZOAdam", "ZOSVRG", "LOZO", "LOZO-M", "HiZOO", "LOREN", "FZOO", "FOSGD", "FOAdam"]
    assert len({method_colour(name) for name in names}) == len(names)
    assert method_colour("something else") == "#000000"


def test_the_summary_holds_evaluations_and_cost(tmp_path: Path) -> None:
    summary = build_summary(write_run(tmp_path, run_lines(), CONFIG))
    assert summary["method"] == "LOZO-M"
    assert summary["first"] == {"step": 0, "queries": 0, "forwards": 0, "loss": 0.75, "accuracy": 0.5, "f1": 0.4}
    assert summary["best"]["step"] == 60  # that of the lower loss of two that are as accurate, as in best/
    assert summary["final"]["queries"] == 120
    assert (summary["steps"], summary["queries"], summary["forwards"]) == (60, 120, 1920)
    assert (summary["seconds"], summary["peak_memory_mb"]) == (60.0, 120.0)
    assert summary["settings"]["task"] == "sst2"
    assert summary["versions"] == {"torch": "2"}
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_the_best_may_be_the_evaluation_of_the_untrained_weights(tmp_path: Path) -> None:
    lines = ["eval,0,0.0,0,0,0.1,0.99,0.4,,0.5,100.0", *run_lines()[1:]]
    best = build_summary(write_run(tmp_path, lines))["best"]
    assert (best["step"], best["accuracy"]) == (0, 0.99)


@pytest.mark.parametrize(("loss", "step"), [("0.1", 61), ("0.9", 60), ("nan", 60)])
def test_of_equal_accuracies_that_of_the_lower_loss_is_the_best(tmp_path: Path, loss: str, step: int) -> None:
    lines = [*run_lines(), f"eval,61,3.1,122,1952,{loss},0.9,0.4,,61,100.0"]
    assert build_summary(write_run(tmp_path, lines))["best"]["step"] == step


def test_a_nan_becomes_null_in_the_summary(tmp_path: Path) -> None:
    lines = [*run_lines(), "eval,61,3.1,122,1952,nan,0.5,0.1,,61,120"]
    assert build_summary(write_run(tmp_path, lines))["final"]["loss"] is None


def test_half_a_line_at_the_end_is_skipped(tmp_path: Path) -> None:
    run = write_run(tmp_path, run_lines())
    with (run / "metrics.csv").open("a") as file:
        file.write("train,61,3.05,12")
    assert build_summary(run)["steps"] == 60


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "does not exist"), (HEADER + "\n", "no rows yet"), (HEADER + "\ntrain,one,0,0,0,0,0,0,0,0,0\n", "Line 2")],
)
def test_a_missing_or_damaged_file_is_named(tmp_path: Path, content: str | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        draw_curves(tmp_path)
