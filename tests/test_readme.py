"""The program in README.md runs as it stands there, but for the name of the model."""

import re
from pathlib import Path

import torch
from tiny_models import save

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_program_trains(tmp_path):
    save(tmp_path / "model", "opt")
    (program,) = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)
    assert program.count("facebook/opt-125m") == 1
    program = program.replace("facebook/opt-125m", str(tmp_path / "model")).replace("range(100)", "range(3)")
    names: dict[str, object] = {}
    exec(compile(program, str(README), "exec"), names)
    optimizer, loss = names["optimizer"], names["loss"]
    assert optimizer.t == 3
    assert torch.isfinite(torch.tensor(loss))
