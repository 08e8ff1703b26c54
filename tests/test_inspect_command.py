"""`zotune inspect`: what it says of whole, torn and damaged trajectories, and of wrong command lines."""

import dataclasses
import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from recorded_runs import record_plain

import zotune
from zotune.cli import main
from zotune.config import INSPECT_FLAGS
from zotune.hf.partial import BLOCK_SHARE
from zotune.reports.trajectory_about import _TOLD, about_lines
from zotune.reports.words import BEHIND, LAST_BLOCKS
from zotune.run.base import FROZEN, BaseFacts
from zotune.trajectory import Recorder, read
from zotune.trajectory.frames import MAGIC, Frames, encode, packed, to_json

EVERY = b'["weight","bias"]'
ABOUT = {"model_name": "tiny", "task": "sst2", "head_seed": 3, "versions": {"torch": "9.9"}}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Thirty steps of ZO-Adam with two groups, changing rates, a parameter that rests, and evaluations."""
    path = tmp_path_factory.mktemp("file") / "run.zo"
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))
    bias = torch.nn.Parameter(torch.ones(5))
    bias.requires_grad_(False)
    groups = [{"params": [("weight", weight)], "weight_decay": 0.1}, {"params": [("bias", bias)]}]
    optimizer = zotune.ZOAdam(groups, lr=1e-2, seed=11, queries=4)
    with Recorder(path, optimizer, about=ABOUT) as recorder:
        for step in range(30):
            bias.requires_grad_(step >= 2)
            if step == 20:
                for group in optimizer.param_groups:
                    group["lr"] = 5e-3
            optimizer.step(lambda: weight.square().sum() + bias.square().sum())
            if step % 10 == 9:
                recorder.event("evaluation", metrics={"eval_loss": 3.0 - step / 10, "eval_accuracy": step / 30})
        recorder.event("weights", digest=zotune.digest([weight, bias]))
    return path


def inspect(capsys, *words, code=0):
    """Run `zotune inspect` and return (the lines by their name, standard output, standard error)."""
    ended = main(["inspect", *map(str, words)])
    out, err = capsys.readouterr()
    assert ended == code, err
    assert "Traceback" not in err
    return {line[:15].strip(): line[15:] for line in out.splitlines()}, out, err


def test_everything_is_told(file, capsys):
    told, out, err = inspect(capsys, file)
    assert err == ""
    trajectory = read(file)
    size = file.stat().st_size
    assert told["file"] == str(file)
    # Of the 30 steps of 4 queries, one of another rate and one with another set of parameters before it.
    steps = 30 * (1 + 1 + 4 * 8 + 4) + 8 + sum(len(encode("A", names, 0)[0]) for names in (b'["weight"]', EVERY))
    per = rf"{size:,} bytes: {steps:,} of losses and rates \({steps / 120:.1f} a query\)"
    assert re.fullmatch(per + r", [\d,]+ of the header, \d+ of events", told["size"])
    assert told["checksums"] == "all right, from the first byte to the last"
    assert told["method"].startswith("ZOAdam(")
    for part in ("(lr=0.01,", "queries=4", "eps=0.001"):
        assert part in told["method"]
    assert told["group 0"] == "weight_decay=0.1, 12 weights"
    assert told["seed"] == "11, of the directions"
    assert told["versions"] == f"format 1, noise {trajectory.header.noise}, zotune {zotune.__version__}, torch 9.9"
    assert (told["model"], told["task"]) == ("tiny", "sst2")
    assert told["head"] == "new unless the model has one, from seed 3"
    assert "about" not in told
    assert told["parameters"] == "17 weights in 2 tensors (float32); 12 take part in the first step"
    assert told["digest"] == f"0x{trajectory.header.digest:016x}, of these weights before the first step"
    assert told["steps"] == "30"
    assert told["queries"] == "120"
    assert told["learning rate"] == "0.01 at first, 0.005 at last, changed once, between 0.005 and 0.01"
    assert told["events"] == "3 evaluations, 1 digest of the weights"
    assert re.findall(r"^evaluation +after step (\d+): loss ([\d.]+), accuracy", out, re.M) == [
        ("10", "2.1"),
        ("20", "1.1"),
        ("30", "0.1"),
    ]


def test_what_is_inside_the_program_is_in_the_json_file_only(file, capsys, tmp_path):
    _, out, _ = inspect(capsys, file, "--json", tmp_path / "x.json")
    for name in ("input_dim", "initial_lr", "momentum_bits", "head_seed", "frozen_digest", "=[]", "=False"):
        assert name not in out
    told = json.loads((tmp_path / "x.json").read_text())
    assert [group["input_dim"] for group in told["groups"]] == [-1, -1]
    assert told["about"] == {name: value for name, value in ABOUT.items() if name != "versions"}


def test_the_sizes_are_those_of_the_parts_and_add_up(file, capsys, tmp_path):
    inspect(capsys, file, "--json", tmp_path / "x.json")
    told = json.loads((tmp_path / "x.json").read_text())
    by_kind: dict[str, int] = {}
    with file.open("rb") as opened:
        for frame in Frames(opened, file.stat().st_size):
            by_kind[frame.kind] = by_kind.get(frame.kind, 0) + frame.end - frame.start
    sizes = told["sizes"]
    assert sizes["header"] == len(MAGIC) + by_kind["H"]
    assert sizes["events"] == by_kind["E"]
    assert sizes["header"] + sizes["steps"] + sizes["events"] == told["bytes"] == file.stat().st_size
    assert sizes["steps_per_query"] == sizes["steps"] / 120
    assert told["bytes_per_query"] == told["bytes"] / 120


OF_A_COMMAND = {
    "model_name": "facebook/opt-125m",
    "task": "sst2",
    "head_seed": 5,
    "dtype": "float32",
    "full_parameter": False,
    "prompted": False,
    "question": False,
    "adapter": None,
    "own_words": [],
    "algorithm": "ZO",
    "max_seq_length": 64,
    "revision": None,
    "frozen_digest": 7,
}


@pytest.mark.parametrize(
    ("facts", "lines"),
    [
        (
            {},
            {
                "model": "facebook/opt-125m",
                "task": "sst2, texts of up to 64 tokens",
                "algorithm": "ZO",
                "trained": "the last sixth of the blocks, the final norm and the head",
                "head": "new unless the model has one, from seed 5",
            },
        ),
        (
            {"full_parameter": True, "revision": "abc"},
            {"trained": "all weights", "model": "facebook/opt-125m, revision abc"},
        ),
        (
            {"question": True},
            {"head": "none, the model is asked for an option or an answer", "trained": BEHIND},
        ),
        ({"prompted": True}, {"head": "none, the model's own label words"}),
        (
            {"prompted": True, "own_words": ["{text} It was {label}", "bad", "good"]},
            {"head": "none, the model's own label words: bad, good"},
        ),
        ({"adapter": {"kind": "lora", "rank": 8, "alpha": 16}}, {"trained": "lora of rank 8, alpha 16"}),
        ({"adapter": {"kind": "prefix", "tokens": 5}}, {"trained": "a prefix of 5 tokens"}),
        ({"adapter": {"kind": "head"}}, {"trained": "the head"}),
        (
            {"adapter": 3, "own_words": "x", "prompted": 1, "algorithm": "MeZO"},
            {"trained": "the last sixth of the blocks, the final norm and the head"},
        ),
        ({"learner": "mine", "note": "x" * 200}, {"about": f"learner=mine, note={'x' * 100}..."}),
    ],
)
def test_what_the_command_line_notes_is_told_in_words(facts, lines):
    told = dict(about_lines({**OF_A_COMMAND, **facts}, "MeZO"))
    assert {label: told[label] for label in lines} == lines
    assert ("about" in told) == ("about" in lines)
    assert ("algorithm" in told) == (facts.get("algorithm") != "MeZO")


def test_every_fact_of_the_command_line_has_words_and_they_are_true():
    """None is told under the name that it has inside."""
    written = {field.name for field in dataclasses.fields(BaseFacts)} | {FROZEN}
    assert written <= OF_A_COMMAND.keys() <= _TOLD
    assert "the last sixth of the blocks" in LAST_BLOCKS
    assert BLOCK_SHARE == 6


def test_the_numbers_are_those_of_the_steps(file, capsys, tmp_path):
    inspect(capsys, file, "--json", tmp_path / "x.json", "--steps", "28:")
    told = json.loads((tmp_path / "x.json").read_text())
    steps = [item for item in read(file).items() if hasattr(item, "losses")]
    means = [sum(step.losses) / 4 for step in steps]
    assert told["losses"]["first"] == pytest.approx(means[0])
    assert told["losses"]["last"] == pytest.approx(means[-1])
    assert told["losses"]["smallest"] == pytest.approx(min(means))
    assert means[told["losses"]["smallest_at"]] == min(means)
    spreads = [max(step.losses) - min(step.losses) for step in steps]
    assert told["losses"]["spread_mean"] == pytest.approx(sum(spreads) / 30)
    assert told["losses"]["spread_largest"] == max(spreads)
    assert told["listed"] == [{"step": n, "losses": list(steps[n].losses)} for n in (28, 29)]
    assert told["evaluations"][-1] == {"step": 30, "loss": pytest.approx(0.1), "accuracy": 29 / 30}
    assert told["state"] == "whole"


def test_the_loss_of_svrg_is_that_at_the_weights(capsys, tmp_path):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = zotune.MeZOSVRG([("weight", weight)], lr=1e-2, period=2)
    means = []
    with Recorder(tmp_path / "run.zo", optimizer):
        for _ in range(6):
            means.append(optimizer.step(lambda: weight.square().sum(), lambda: weight.square().sum()))
    inspect(capsys, tmp_path / "run.zo", "--json", tmp_path / "x.json")
    told = json.loads((tmp_path / "x.json").read_text())["losses"]
    assert (told["first"], told["last"]) == (pytest.approx(means[0]), pytest.approx(means[-1]))


def test_steps_are_listed(file, capsys):
    _, out, err = inspect(capsys, file, "--steps", ":2")
    rows = re.findall(r"^step (\d+) +(.*)$", out, re.M)
    assert [number for number, _ in rows] == ["0", "1"]
    assert all(len(losses.split()) == 4 for _, losses in rows)
    _, out, err = inspect(capsys, file, "--steps", "30:40")
    assert err == "--steps 30:40 is not in the file, which ends with step 30.\n"


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_pictures(suffix, file, capsys, tmp_path):
    for number, words in enumerate(([], ["--steps", "3:6"], ["--steps", "90:"])):
        path = tmp_path / f"{number}.{suffix}"
        inspect(capsys, file, "--plot", path, *words)
        assert path.stat().st_size > 2000
    assert len(list(tmp_path.iterdir())) == 3


def test_a_picture_shows_all_steps_and_evaluations(file, monkeypatch, capsys, tmp_path):
    from matplotlib.axes import Axes

    drawn = []
    plot = Axes.plot

    def spy(axes, x, y, **look):
        drawn.append((look.get("label"), list(x), list(y)))
        return plot(axes, x, y, **look)

    monkeypatch.setattr(Axes, "plot", spy)
    inspect(capsys, file, "--plot", tmp_path / "x.png")
    assert [(label, len(x)) for label, x, _ in drawn] == [
        ("mean loss of a step", 30),
        ("mean of 5 steps", 26),
        ("loss, evaluation", 3),
        (None, 3),
    ]
    assert drawn[2][1] == [10, 20, 30]


def test_a_torn_end_is_told_with_code_0_and_damage_with_1(file, capsys, tmp_path):
    data = file.read_bytes()
    path = tmp_path / "x.zo"
    path.write_bytes(data[:-2])
    told, _, err = inspect(capsys, path)
    assert told["checksums"].startswith("all right for the 30 whole steps; the file ends within a record")
    assert "of a step that was being written" in err
    bad = bytearray(data)
    bad[-600] ^= 4
    path.write_bytes(bad)
    told, _, err = inspect(capsys, path, "--json", tmp_path / "x.json", code=1)
    sound = read(path).end
    assert 0 < sound < 30
    assert told["steps"] == str(sound)
    assert told["checksums"].endswith("what follows them is damaged")
    assert f"is damaged at byte {read(path).size}, after step {sound}" in err
    assert json.loads((tmp_path / "x.json").read_text())["state"] == "damaged"


def test_a_file_without_steps_and_one_with_rates_that_differ(capsys, tmp_path):
    weight, bias = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))
    groups = [{"params": [("w", weight)], "lr": 1e-3}, {"params": [("b", bias)]}]
    optimizer = zotune.MeZO(groups, lr=1e-2)
    recorder = Recorder(tmp_path / "x.zo", optimizer)
    told, _, _ = inspect(capsys, tmp_path / "x.zo", "--plot", tmp_path / "x.png")
    assert (told["steps"], told["losses"], told["learning rate"]) == ("0", "none", "none")
    assert told["size"].startswith(f"{(tmp_path / 'x.zo').stat().st_size:,} bytes: 0 of losses and rates, ")
    optimizer.step(lambda: weight.sum() + bias.sum())
    recorder.close()
    told, _, _ = inspect(capsys, tmp_path / "x.zo")
    assert told["learning rate"] == "0.001 throughout (of the first group; others have other ones)"


def test_names_in_a_file_cannot_command_a_terminal(file, capsys, tmp_path):
    whole = read(file)
    frame, _ = encode("E", to_json({"kind": "\x1b[2J\nsteps"}, "a test"), whole.checksum)
    (tmp_path / "x.zo").write_bytes(file.read_bytes() + frame)
    _, out, _ = inspect(capsys, tmp_path / "x.zo")
    assert "\x1b" not in out
    assert "?[2J?steps" in out


def test_an_evaluation_of_another_kind_is_no_reason_to_break_off(file, capsys, tmp_path):
    checksum, more = read(file).checksum, b""
    for facts in ({}, {"metrics": 3}, {"metrics": {"eval_loss": "low", "eval_accuracy": None}}, {"metrics": {"n": 1}}):
        frame, checksum = encode("E", to_json({"kind": "evaluation", **facts}, "a test"), checksum)
        more += frame
    frame, _ = encode("R", packed(0.5, 1.0, 2.0, 3.0, 4.0), checksum)
    (tmp_path / "x.zo").write_bytes(file.read_bytes() + more + frame)
    told, _, _ = inspect(capsys, tmp_path / "x.zo", "--plot", tmp_path / "x.png", "--json", tmp_path / "x.json")
    assert told["learning rate"].startswith("0.01 at first, 0.5 at last, changed 2 times")


WRONG = {
    "nothing": ("", "Say which run: zotune inspect RUN.zo"),
    "misspelt flag": ("run.zo --plott x.png", "There is no flag --plott; did you mean --plot?"),
    "flag of replay": ("run.zo --out x", "There is no flag --out"),
    "two files": ("run.zo run.zo", "'run.zo' belongs to no flag"),
    "flag without a value": ("run.zo --json", "--json needs a value."),
    "empty name": ("run.zo --json=", "--json must name a file, but is empty."),
    "missing file": ("nowhere.zo", "There is no file nowhere.zo"),
    "folder without one": (".", ". holds no trajectory.zo"),
    "no trajectory": ("text.zo", "text.zo is not a trajectory of zotune"),
    "empty file": ("empty.zo", "empty.zo is empty: no step was recorded."),
    "cut header": ("short.zo", "The header of short.zo is not whole"),
    "other format": ("future.zo", "it has format 99, this version of zotune reads format 1"),
    "steps in words": ("run.zo --steps first", "--steps takes two whole numbers A:B, such as 0:10, not 'first'."),
    "one number": ("run.zo --steps 3", "--steps takes two whole numbers A:B"),
    "negative steps": ("run.zo --steps -3:5", "--steps takes two whole numbers A:B"),
    "steps the wrong way": ("run.zo --steps 5:5", "--steps 5:5 names no step"),
    "picture of another kind": ("run.zo --plot x.bmp", "--plot x.bmp must end in .png, .svg or .pdf."),
    "picture without a kind": ("run.zo --plot x", "--plot x must end in"),
    "picture into nowhere": ("run.zo --plot nowhere/x.png", "--plot nowhere/x.png must be a file in a folder"),
    "numbers into a folder": ("run.zo --json .", "--json . must be a file in a folder that is there."),
    "numbers over the run": ("run.zo --json run.zo", "--json run.zo is the trajectory itself; name another file."),
    "both in one file": ("run.zo --json x.png --plot x.png", "--plot and --json name the same file"),
}


@pytest.mark.parametrize(("words", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_command_lines_end_with_2_and_a_sentence(words, sentence, file, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = file.read_bytes()
    header = {**read(file).header.to_dict(), "format": 99}
    files = {"run.zo": data, "short.zo": data[:60], "empty.zo": b"", "text.zo": b"1, 2, 3"}
    files["future.zo"] = data[:8] + encode("H", to_json(header, "a test"), zlib.crc32(data[:8]))[0]
    for name, content in files.items():
        Path(name).write_bytes(content)
    _, out, err = inspect(capsys, *words.split(), code=2)
    assert sentence in err
    assert err.rstrip().splitlines()[-1].endswith((".", "?"))
    assert out == ""
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_help_names_every_flag_and_the_page_too(capsys):
    with pytest.raises(SystemExit):
        main(["inspect", "--help"])
    text = capsys.readouterr().out
    page = (Path(__file__).resolve().parents[1] / "docs" / "command-line.md").read_text()
    section = re.search(r"^## `zotune inspect`.*?(?=^## )", page, re.M | re.S)[0]
    assert set(re.findall(r"^\| `--(\w+)` \|", section, re.M)) == set(INSPECT_FLAGS)
    for flag in INSPECT_FLAGS:
        assert f"  --{flag}" in text


def test_looking_at_a_file_needs_none_of_the_libraries_of_training(file):
    code = (
        "import sys; from zotune.cli import main; code = main(['inspect', sys.argv[1]]);"
        "heavy = {'transformers', 'matplotlib', 'numba', 'datasets'} & set(sys.modules); assert not heavy, heavy;"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_example_of_the_page_runs(capsys, tmp_path):
    """The loop of docs/trajectories.md, on a model of a folder, and the commands that follow it."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "trajectories.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.S)[1]
    plain = record_plain(tmp_path)
    code = code.replace("facebook/opt-125m", str(plain / "base")).replace('"run.zo"', repr(str(tmp_path / "page.zo")))
    ids = torch.arange(5, 53).view(4, 12)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(4) % 2}
    names: dict = {"loader": [batch, batch]}
    exec(compile(code, "docs/trajectories.md", "exec"), names)
    told, _, _ = inspect(capsys, tmp_path / "page.zo")
    assert told["steps"] == "2"
    assert main(["replay", str(plain / "base"), str(tmp_path / "page.zo"), "--out", str(tmp_path / "again")]) == 0
    again = type(names["model"]).from_pretrained(tmp_path / "again")
    for (name, one), (_, other) in zip(names["model"].named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, other), name
