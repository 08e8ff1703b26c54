"""The commands of docs/questions.md end well: the page's own words, on tiny models of the names it uses, a few rows and
one step."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from test_documented_commands import ROOT, commands_of

from zotune.cli import main
from zotune.run import training

PAGE = (ROOT / "docs/questions.md").read_text(encoding="utf-8")
BLOCKS = [found for block in re.findall(r"^```[a-z]*\n(.*?)^```", PAGE, re.M | re.S) if (found := commands_of(block))]
CUT = ["--samplesize", "4", "--epochs", "1"]
CUT_ALL = ["--samplesize_validation", "2", "--device", "cpu", "--max_new_tokens", "4"]
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
CHAT += "{% if add_generation_prompt %}<assistant>{% endif %}"
FILES: dict[str, list[dict[str, Any]]] = {
    "sst2": [{"sentence": f"the {n}", "label": n % 2} for n in range(80)],
    "rte": [{"premise": f"a {n}", "hypothesis": "b", "label": n % 2} for n in range(12)],
    "copa": [
        {"premise": f"a {n}", "choice1": "b", "choice2": "c", "question": "cause", "label": n % 2} for n in range(12)
    ],
    "squad": [
        {"id": str(n), "title": "t", "context": f"the {n}", "question": "what", "answers": {"text": [str(n)]}}
        for n in range(12)
    ],
}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_model(folder: Path, family: str, chat: str | None = None) -> None:
    tiny_models.build(family, head="lm", max_position_embeddings=512).save_pretrained(folder)
    tokenizer = tiny_models.tokenizer(family)
    tokenizer.model_max_length = 500
    tokenizer.chat_template = chat
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the page names: models, where a name on the hub is also a path, and data."""
    folder = tmp_path_factory.mktemp("page")
    for name in ("facebook/opt-1.3b", "facebook/opt-125m"):
        write_model(folder / name, "opt")
    write_model(folder / "roberta-large", "roberta")
    write_model(folder / "Qwen/Qwen2.5-0.5B-Instruct", "llama", CHAT)
    for task, rows in FILES.items():
        for split in ("train", "validation"):
            write_lines(folder / "data" / task / f"{split}.jsonl", rows)
    (folder / "reviews.csv").write_text("review,stars\n" + "".join(f"film {n},{n % 5 + 1}\n" for n in range(12)))
    write_lines(folder / "questions.jsonl", [{"question": f"what {n}", "answer": str(n)} for n in range(12)])
    talk = [[{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"{n}!"}] for n in range(12)]
    write_lines(folder / "talks.jsonl", [{"messages": messages} for messages in talk])
    (folder / "margin.py").write_text(next(re.finditer(r"^```python\n(# margin.py.*?)^```", PAGE, re.M | re.S))[1])
    return folder


def told(words: list[str], runs: list[Path]) -> list[str]:
    """The words of the page, the rows and steps cut, with the data here and the name of the last run for RUN."""
    cut = [*CUT_ALL, *(CUT if words[0] == "train" else [])]
    if "sst2" in words and words[0] == "evaluate":  # by a head or label words: nothing is written
        cut = CUT_ALL[: CUT_ALL.index("--max_new_tokens")]
    embedded = words[0] == "train" and "--model_name" not in words
    data = [] if embedded or "--train_file" in words else ["--data_dir", "data"]
    return [word.replace("RUN", runs[-1].name if runs else "RUN") for word in words] + cut + data


def test_the_page_has_its_commands() -> None:
    assert sum(map(len, BLOCKS)) >= 13


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block[0][0]}-{len(block)}")
def test_the_commands_of_a_block_end_well(
    block: list[list[str]], page: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(page)
    monkeypatch.setattr(training, "draw_curves", lambda run: (run / "curves.png").write_text("drawn"))
    runs: list[Path] = []
    for words in block:
        code = main(told(words, runs))
        out, err = capsys.readouterr()
        assert code == 0, (words, err)
        if words[0] == "train":
            runs.append(Path(out.strip()))
            assert json.loads((runs[-1] / "summary.json").read_text())["status"] == "finished"
        if "--output" in words:
            found = json.loads(Path(words[words.index("--output") + 1]).read_text())
            assert all(len(one["answers"]) == 2 for one in found.get("seeds", [found]))
