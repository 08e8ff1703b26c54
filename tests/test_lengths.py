"""How long a row may be when nobody says so, and the line about rows that were cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from command_runs import TINY, train, workshop
from command_runs import shelf as shelf

from zotune.cli import main
from zotune.hf.models import load_tokenizer
from zotune.tasks import get_task
from zotune.tasks.asking import ask
from zotune.tasks.sources import load_rows
from zotune.tasks.tokens import Cut, tokenise

__all__ = ["workshop"]

READS = 3000
SQUAD = {"id": "1", "title": "t", "question": "what", "answers": {"text": ["was"], "answer_start": [0]}}


@pytest.fixture
def unsaid(workshop: Path) -> Path:
    """A model that reads `READS` tokens, and rows of which some are long; the answer of squad is behind 200 words."""
    tiny_models.build("llama", head="lm", max_position_embeddings=READS).save_pretrained("long")
    tokenizer = tiny_models.tokenizer("llama")
    tokenizer.model_max_length = READS
    tokenizer.save_pretrained("long")
    asked = [json.dumps({**SQUAD, "context": "the " * 200 + "was"})] * 4
    labelled = ["sentence,label", *(f"{'the ' * length},{n % 2}" for n, length in enumerate((100, 140, 200, 10)))]
    for name, lines in (("squad/{}.jsonl", asked), ("sst2/{}.csv", labelled)):
        for split in ("train", "validation"):
            file = Path("rows") / name.format(split)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(lines))
    return workshop


def length_of(run: Path) -> int:
    return int(json.loads((run / "config.json").read_text())["max_seq_length"])


LONG = ["--model_name", "long", "--data_dir", "rows", "--algorithm", "ZO", "--epochs", "1", "--max_new_tokens", "2"]
FORMS = [
    (["--task", "squad"], 2048, 0),
    (["--task", "sst2", "--objective", "options"], 2048, 0),
    (["--task", "sst2"], 128, 4),
    (["--task", "sst2", "--soft_prompt"], 128, 4),
    (["--task", "squad", "--max_seq_length", "128"], 128, 8),
    (["--task", "sst2", "--max_seq_length", "300"], 300, 0),
    (
        ["--train_file", "rows/sst2/train.csv", "--template", "{sentence} {label}", "--samplesize_validation", "1"],
        2048,
        0,
    ),
]


@pytest.mark.usefixtures("unsaid")
@pytest.mark.parametrize(("words", "length", "cut"), FORMS, ids=lambda value: str(value))
def test_the_longest_row_follows_from_the_form(words: list[str], length: int, cut: int, capsys: Any) -> None:
    given = [word for word in LONG if "--train_file" not in words or word not in ("--data_dir", "rows")]
    run, said = train_long(capsys, [*given, *words])
    assert length_of(run) == length
    sentence = f"{cut} of 8 rows are longer than {length} tokens and were cut; --max_seq_length sets that."
    assert (sentence in said) == bool(cut)
    assert ("were cut" in said) == bool(cut)


def train_long(capsys: Any, words: list[str]) -> tuple[Path, str]:
    shared = [
        "--samplesize",
        "4",
        "--samplesize_validation",
        "4",
        "--batchsize",
        "4",
        "--lr",
        "1e-3",
        "--device",
        "cpu",
    ]
    assert main(["train", *shared, *words]) == 0
    out, err = capsys.readouterr()
    return Path(out.strip()), err


@pytest.mark.usefixtures("workshop")
def test_a_model_that_reads_less_decides(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    place = TINY.index("--max_seq_length")
    monkeypatch.setattr("command_runs.TINY", (*TINY[:place], *TINY[place + 2 :]))
    for words in ([], ["--objective", "options"], ["--objective", "options", "--tuning", "prefix"]):
        run, said = train(capsys, "--algorithm", "ZO", *words)
        assert length_of(run) == (64 - 5 if "prefix" in words else 64)
        assert "is lowered" not in said


@pytest.mark.usefixtures("unsaid")
def test_a_resumed_run_keeps_its_length(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    run, _ = train_long(capsys, [*LONG, "--task", "squad", "--save_ckpt"])
    monkeypatch.setattr("zotune.run.parts.LONGEST_QUESTION", 100)
    (run / "summary.json").unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert length_of(run) == 2048
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"


@pytest.mark.usefixtures("unsaid")
def test_the_answer_stays_in_what_is_read() -> None:
    task, tokenizer = get_task("squad"), load_tokenizer("long")
    row = load_rows(task, "train", source="rows")[0]
    whole, short = (ask(row, task, tokenizer, length) for length in (2048, 128))
    answer = tokenizer.convert_tokens_to_ids("was")
    assert (whole.cut, answer in whole.prompt) == (False, True)
    assert (short.cut, answer in short.prompt) == (True, False)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("style", [None, "last", "mask"])
def test_rows_that_are_cut_are_counted(family: str, style: Any, tmp_path: Path) -> None:
    if style == "mask" and family == "gpt2":
        pytest.skip("no mask")
    (tmp_path / "train.csv").write_text("sentence,label\n" + "".join(f"{'the ' * n},{n % 2}\n" for n in (1, 9, 30, 40)))
    rows = load_rows(get_task("sst2"), "train", source=tmp_path)
    tokenizer = tiny_models.tokenizer(family)
    cut = Cut()
    encoded = tokenise(rows, get_task("sst2"), tokenizer, 20, prompt=style, cut=cut)
    assert (cut.rows, cut.of) == (2, 4)
    assert max(map(len, encoded["input_ids"])) <= 20
