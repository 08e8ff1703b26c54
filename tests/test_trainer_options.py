"""--trainer_options: fields of the library's arguments from a file, which are refused, and where the others arrive."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command_runs import rows_of, train, workshop
from command_runs import shelf as shelf
from transformers import TrainingArguments

from zotune.cli import main
from zotune.config import ConfigError, TrainConfig
from zotune.hf.trainer_options import BACKWARD, KEPT, OWN
from zotune.run import arguments

__all__ = ["workshop"]


def written(content: Any, name: str = "options.json") -> str:
    Path(name).write_text(content if isinstance(content, str) else json.dumps(content))
    return name


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            {"activation_chekpointing": True},
            "sets 'activation_chekpointing', which TrainingArguments does not have; did",
        ),
        ({"learning_rate": 1.0}, "sets learning_rate, for which there is --lr; give that."),
        ({"save_total_limit": 1}, "sets save_total_limit, which the run sets itself; take it out."),
        ("{", "is not JSON; give an object with fields of TrainingArguments."),
        ([1], "is no object; give one with fields of TrainingArguments."),
        (
            {"fsdp": True},
            "sets fsdp, which the library leaves out on CPUs; take it out, or give a --device with a GPU.",
        ),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "sets deepspeed, which the library leaves out on CPUs"),
        ({"hub_strategy": "some"}, "cannot be used: some is not a valid HubStrategy"),
    ],
)
def test_wrong_options_are_named(content: Any, sentence: str, capsys: Any) -> None:
    _, said = train(capsys, "--algorithm", "FOAdam", "--trainer_options", written(content), code=2)
    assert "--trainer_options options.json " in said
    assert sentence in said
    assert not Path("results").exists()


@pytest.mark.usefixtures("workshop")
def test_a_missing_file_is_named(capsys: Any) -> None:
    _, said = train(capsys, "--trainer_options", "none.json", code=2)
    assert said.strip() == "--trainer_options none.json cannot be read (No such file or directory); give a JSON file."


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize("name", ["fsdp", "fsdp_config", "deepspeed"])
@pytest.mark.parametrize("algorithm", ["ZO", "LOREN"])
def test_divided_weights_are_refused_for_zeroth_order(algorithm: str, name: str, capsys: Any) -> None:
    _, said = train(capsys, "--algorithm", algorithm, "--trainer_options", written({name: {}}), code=2)
    assert f"sets {name}, which is for backward passes; choose --algorithm FOAdam or FOSGD, or take it out." in said


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize("options", [{"fsdp": True, "fsdp_config": {"fsdp_version": 2}}, {"deepspeed": {"stage": 2}}])
def test_divided_weights_reach_the_library(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are in the file; what the library makes of them needs GPUs, and DeepSpeed its package."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(arguments, "TrainingArguments", lambda **fields: given.update(fields) or SimpleNamespace())
    config = TrainConfig(algorithm="FOAdam", trainer_options=Path(written(options))).resolved()
    config.validate()
    machine: Any = SimpleNamespace(processes=2, device=torch.device("cuda", 0))
    arguments.training_arguments(config, machine, folder=Path("x"), rows=8, seed=0, resumed=False)
    assert {name: given[name] for name in options} == options
    assert given["learning_rate"] == config.lr


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize(
    ("processes", "save", "sentence"),
    [(1, False, "divides a model over processes; start the run with torchrun"), (2, True, "cannot be kept by --save_")],
)
def test_where_divided_weights_cannot_be(processes: int, save: bool, sentence: str) -> None:
    options = Path(written({"fsdp": True}))
    config = TrainConfig(algorithm="FOAdam", trainer_options=options, save_ckpt=save).resolved()
    machine: Any = SimpleNamespace(processes=processes, device=torch.device("cuda", 0))
    with pytest.raises(ConfigError, match=sentence):
        arguments.training_arguments(config, machine, folder=Path("x"), rows=8, seed=0, resumed=False)


@pytest.mark.usefixtures("workshop")
def test_a_run_with_options_and_its_going_on(capsys: Any) -> None:
    options = written({"activation_checkpointing": True})
    words = ["--algorithm", "FOAdam", "--save_ckpt", "--full_parameter"]
    run, _ = train(capsys, *words, "--trainer_options", options)
    plain, _ = train(capsys, *words)
    # The same gradients, from activations that are made again.
    for row, same in zip(rows_of(run, "train"), rows_of(plain, "train"), strict=True):
        assert float(row["loss"]) == pytest.approx(float(same["loss"]), rel=1e-5)
    assert json.loads((run / "config.json").read_text())["library_options"] == {"activation_checkpointing": True}
    written({"activation_checkpointing": False})
    assert main(["train", "--resume", str(run)]) == 2
    assert "--trainer_options options.json is no longer what the run began with" in capsys.readouterr().err


@pytest.mark.usefixtures("workshop")
def test_zeroth_order_takes_the_other_fields(capsys: Any) -> None:
    words = ["--algorithm", "ZO"]
    run, _ = train(capsys, *words, "--trainer_options", written({"dataloader_num_workers": 1}))
    plain, _ = train(capsys, *words)
    assert rows_of(run) == rows_of(plain)


def test_every_refused_field_is_one_of_the_library_or_was(tmp_path: Path) -> None:
    fields = vars(TrainingArguments(output_dir=str(tmp_path))).keys()
    assert OWN.keys() | KEPT | BACKWARD <= fields
    set_by_us = set(arguments.training_arguments.__code__.co_consts) & fields
    assert set_by_us <= OWN.keys() | KEPT
