"""What a run of the embedded model has kept is a model of its own: it reads generated text, and a run folder itself is
none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from zotune.cli import main
from zotune.config import TrainConfig
from zotune.embedded.descent import reads_generated_text
from zotune.run import training

SMALL = ["--samplesize", "4", "--samplesize_validation", "4", "--epochs", "1", "--device", "cpu", "--task", "rte"]
KINDS = {"full": ["--full_parameter"], "lora": ["--tuning", "lora", "--merge"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run with checkpoints in full, and one with an adapter."""
    place = tmp_path_factory.mktemp("kept")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "draw_curves", lambda run: (run / "curves.png").write_text("drawn"))
        for kind, words in KINDS.items():
            given = ["train", *SMALL, *words, "--objective", "options", "--algorithm", "ZO", "--save_ckpt"]
            assert main([*given, "--results", str(place / kind)]) == 0
            (found[kind],) = (place / kind).glob("*/*/*")
    return found


@pytest.mark.parametrize(("kind", "name"), [("full", "last"), ("full", "best"), ("lora", "merged")])
def test_a_model_from_the_embedded_one_reads_generated_text(kind: str, name: str, runs: Any, capsys: Any) -> None:
    folder = runs[kind] / name
    assert TrainConfig(model_name=str(folder)).source == "embedded"
    assert main(["evaluate", str(folder), "--task", "rte", "--samplesize_validation", "4", "--device", "cpu"]) == 0
    words = ["train", *SMALL, "--model_name", str(folder), "--algorithm", "ZO", "--results", str(runs[kind] / "more")]
    assert main(words) == 0
    assert main(["evaluate", str(folder), "--task", "copa", "--device", "cpu"]) == 2
    assert "No text is generated for the task copa; give --data_dir" in capsys.readouterr().err


def test_other_models_do_not(tmp_path: Path) -> None:
    tiny_models.save(tmp_path / "tiny", "llama")
    assert not reads_generated_text(str(tmp_path / "tiny"))
    config = json.loads((tmp_path / "tiny/config.json").read_text())
    (tmp_path / "tiny/config.json").write_text(json.dumps({**config, "vocab_size": 1164}))
    assert not reads_generated_text(str(tmp_path / "tiny"))
    (tmp_path / "tiny/tokenizer.json").write_text("{}")
    assert not reads_generated_text(str(tmp_path / "tiny"))
    assert not reads_generated_text("facebook/opt-125m")
    assert not reads_generated_text("\0")
    assert reads_generated_text("embedded")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["embedded", "--adapter", "RUN"], "--adapter RUN is a run folder; give RUN/last or RUN/best."),
        (["RUN"], "RUN is a run folder, not a model; give RUN/merged."),
    ],
)
def test_a_run_folder_is_told_from_what_it_keeps(words: list[str], sentence: str, runs: Any, capsys: Any) -> None:
    run = str(runs["lora"])
    assert main(["evaluate", *[word.replace("RUN", run) for word in words], "--task", "rte", "--device", "cpu"]) == 2
    assert capsys.readouterr().err.strip() == sentence.replace("RUN", run)


def test_a_run_without_a_model_says_what_was_missing(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "config.json").write_text('{"algorithm": "ZO"}')
    assert main(["evaluate", "embedded", "--adapter", str(tmp_path)]) == 2
    assert "it has kept no adapter, which takes --tuning lora and --save_ckpt" in capsys.readouterr().err


def test_the_run_folder_has_what_the_page_lists(runs: Any) -> None:
    page = (Path(__file__).parents[1] / "docs/command-line.md").read_text(encoding="utf-8")
    table = page[page.index("## The run folder") : page.index("## Ends")]
    for run in runs.values():
        for path in run.iterdir():
            name = "checkpoint-N" if path.name.startswith("checkpoint-") else path.name
            assert path.name == "more" or f"`{name}/`" in table or f"`{name}`" in table, path
