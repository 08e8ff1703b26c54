"""The other files that --resume reads, damaged: metrics.csv, a checkpoint's list and states, summary.json.

No damage is a traceback; what can be made again is made again, and the run ends with the same bits and rows.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_runs import shelf, stop_after, train, workshop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kill_matrix import difference
from safetensors.torch import load_file, save_file

from zotune.cli import main
from zotune.config import ConfigError
from zotune.hf.checkpoints import verified
from zotune.run import keepers
from zotune.run.checkpoints import start_of

__all__ = ["shelf", "workshop"]  # fixtures, for pytest to find in this module
SETTINGS = ("--save_ckpt", "--algorithm", "LOZO", "--step_interval", "2", "--momentum", "0.9", "--full_parameter")
_QUIET = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def stopped(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, workshop: Path) -> Path:
    """A run that was stopped behind its checkpoint of step 3."""
    with monkeypatch.context() as patch:

        def interrupt() -> None:
            raise KeyboardInterrupt

        stop_after(patch, 4, interrupt)
        run, _ = train(capsys, *SETTINGS, code=130)
    assert run is not None
    assert (run / "checkpoint-3").is_dir()
    return workshop / run


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no summary": lambda run: (run / "summary.json").unlink(),
    "summary is no JSON": lambda run: (run / "summary.json").write_bytes(b"\xff{"),
    "no rows": lambda run: (run / "metrics.csv").unlink(),
    "half a row": lambda run: (run / "metrics.csv").write_bytes((run / "metrics.csv").read_bytes()[:-9]),
    "no list": lambda run: (run / "checkpoint-3/files.json").unlink(),
    "empty list": lambda run: (run / "checkpoint-3/files.json").write_text('{"files": {}}'),
    "forged list": lambda run: (run / "checkpoint-3/files.json").write_text('{"files": {"../../x": [1, 2]}}'),
    "weights": lambda run: flip(run / "checkpoint-3/model.safetensors"),
    "optimizer": lambda run: flip(run / "checkpoint-3/optimizer.pt"),
    "state of the loop": lambda run: flip(run / "checkpoint-3/trainer_state.json"),
    "an empty checkpoint": lambda run: [path.unlink() for path in (run / "checkpoint-3").iterdir()],
    "a checkpoint of another step": lambda run: (run / "checkpoint-3").rename(run / "checkpoint-99"),
    "torn trajectory": lambda run: (run / "trajectory.zo").write_bytes((run / "trajectory.zo").read_bytes()[:-5]),
}


def test_every_damage_is_mended(
    capsys: pytest.CaptureFixture[str], stopped: Path, tmp_path: Path, workshop: Path
) -> None:
    whole, _ = train(capsys, *SETTINGS, "--results", "whole")
    assert whole is not None
    shutil.copytree(stopped, tmp_path / "kept")
    for name, damage in DAMAGES.items():
        shutil.rmtree(stopped)
        shutil.copytree(tmp_path / "kept", stopped)
        damage(stopped)
        code = main(["train", "--resume", str(stopped)])
        said = capsys.readouterr().err
        assert code == 0, f"{name}: {said}"
        assert "Traceback" not in said, name
        assert difference(stopped, workshop / whole) == "", name


SETTINGS_THAT_DECIDE = {
    "samplesize": 20,
    "max_seq_length": 8,
    "batchsize": 4,
    "batchsize_limit": 4,
    "epochs": 3.0,
    "eval_every": 0.5,
    "lr": 2e-3,
    "momentum": 0.8,
    "init_seed": 4,
}


@pytest.mark.parametrize("name", SETTINGS_THAT_DECIDE)
def test_a_changed_setting_is_refused(name: str, stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stopped / "config.json"
    settings = json.loads(path.read_text())
    assert settings[name] != SETTINGS_THAT_DECIDE[name]
    path.write_text(json.dumps(settings | {name: SETTINGS_THAT_DECIDE[name]}))
    rows = (stopped / "metrics.csv").read_bytes()
    assert main(["train", "--resume", str(stopped)]) == 2
    assert "config.json is not as the run wrote it" in capsys.readouterr().err
    assert (stopped / "metrics.csv").read_bytes() == rows


def _own_copy(name: str) -> Path:
    """A folder of the workshop as one that may be changed."""
    folder = Path("..") / name
    target = folder.resolve()
    folder.unlink()
    shutil.copytree(target, folder)
    return folder


@pytest.mark.parametrize("what", ["train", "validation", "frozen weights", "adapter's base"])
def test_other_data_or_another_base_is_refused(
    what: str, workshop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {name: _own_copy(name) for name in ("data", "model")}
    words = ["--tuning", "lora", "--save_ckpt"] if what == "adapter's base" else []
    with monkeypatch.context() as patch:

        def interrupt() -> None:
            raise KeyboardInterrupt

        stop_after(patch, 4, interrupt)
        run, _ = train(capsys, "--algorithm", "ZO", *words, code=130)
    assert run is not None
    if what in ("train", "validation"):
        path = own["data"] / f"{what}.csv"
        path.write_text(path.read_text().replace("good", "fine"))
        wanted = "The rows are not those that the run began with"
    else:
        path = own["model"] / "model.safetensors"
        tensors = load_file(path)
        tensors["model.layers.0.mlp.down_proj.weight"][0, 0] += 1e-6
        save_file(tensors, path, {"format": "pt"})
        wanted = "that are not trained are not those that the run began with"
    assert main(["train", "--resume", str(run)]) == 2
    assert wanted in capsys.readouterr().err


def test_a_run_goes_on_from_another_folder(
    stopped: Path, workshop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its model and data were named from where it began."""
    whole, _ = train(capsys, *SETTINGS, "--results", "whole")
    assert whole is not None
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--resume", str(stopped)]) == 0
    assert difference(stopped, workshop / whole) == ""


def test_a_lost_trajectory_is_said(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (stopped / "trajectory.zo").unlink()
    assert main(["train", "--resume", str(stopped)]) == 0
    assert "trajectory.zo is missing, so steps from here on are not recorded." in capsys.readouterr().err


def test_models_are_kept_whole_or_not_at_all(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk while a better model is written leaves the one before."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    model, tokenizer = LlamaForCausalLM.from_pretrained("../model"), AutoTokenizer.from_pretrained("../model")
    keepers.save_model(model, tokenizer, Path("best"))
    before = (Path("best") / "model.safetensors").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(tokenizer), "save_pretrained", full)
        with torch.no_grad():
            model.lm_head.weight.add_(1.0)
        with pytest.raises(OSError, match="No space left"):
            keepers.save_model(model, tokenizer, Path("best"))
    assert (Path("best") / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in Path().iterdir()) == ["best"]
    keepers.save_model(model, tokenizer, Path("best"))
    assert (Path("best") / "model.safetensors").read_bytes() != before
    assert sorted(path.name for path in Path().iterdir()) == ["best"]


_CELL = st.text(max_size=8) | st.sampled_from(["train", "eval", "", "nan", "1e999", '"', "\n", ",", "-1", "0", "1"])


@_QUIET
@given(lines=st.lists(st.lists(_CELL, max_size=12), max_size=6), header=st.booleans())
def test_rows_of_any_kind_are_read_or_refused(tmp_path: Path, lines: list[list[str]], header: bool) -> None:
    """A file of rows is used or refused with one sentence; nothing else is raised."""
    first = "kind,step,epoch,queries,forwards,loss,accuracy,lr,seconds,memory_mb\n" if header else ""
    text = first + "".join(",".join(line) + "\n" for line in lines)
    (tmp_path / "metrics.csv").write_bytes(text.encode("utf-8", "replace"))
    (tmp_path / "checkpoint-1").mkdir(exist_ok=True)
    (tmp_path / "checkpoint-1/state").write_bytes(b"abc")
    (tmp_path / "checkpoint-1/files.json").write_text('{"files": {"state": [3, 891568578]}}')
    assert verified(tmp_path / "checkpoint-1")
    said = ""
    try:
        start_of(tmp_path, recorded=False)
    except ConfigError as error:
        said = str(error)
    assert not said or (said.endswith(".") and "\n" not in said)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@_QUIET
@given(content=_JSON | st.builds(lambda own: {"files": own}, _JSON) | st.binary(max_size=40))
def test_lists_of_any_kind_verify_nothing(tmp_path: Path, content: object) -> None:
    folder = tmp_path / "checkpoint-7"
    folder.mkdir(exist_ok=True)
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "files.json").write_bytes(raw)
    assert not verified(folder)
