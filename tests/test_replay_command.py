"""`zotune replay`: weights rebuilt bit for bit from the command line, and what it says of wrong files."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from recorded_runs import METHODS, STEPS, record, record_plain, same_weights
from rich.console import Console
from tiny_models import save

from zotune.cli import main
from zotune.config import REPLAY_FLAGS, TrainConfig
from zotune.run import replaying
from zotune.run.base import BaseFacts, facts_of
from zotune.trajectory import TrajectoryError, read


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save(tmp_path_factory.mktemp("base") / "model", "gpt2")


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """A recorded run of LOREN on the last blocks."""
    return record(tmp_path_factory.mktemp("run") / "loren", base, "LOREN")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return record_plain(tmp_path_factory.mktemp("plain"))


def replay(capsys, *words, code=0):
    """Run `zotune replay` and return (standard output, standard error)."""
    ended = main(["replay", *map(str, words), "--device", "cpu"])
    out, err = capsys.readouterr()
    assert ended == code, err
    assert "Traceback" not in err
    return out, err


# ---------------------------------------------------------------------------------------------- right ones


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_rebuilt_bit_for_bit_from_the_base_and_from_a_checkpoint(method, base, capsys, tmp_path):
    run = record(tmp_path / "run", base, method, full_parameter=True)
    out, err = replay(capsys, base, run, "--out", tmp_path / "whole")
    assert out == f"{tmp_path / 'whole'}\n"
    assert f"{STEPS} steps from 0 to {STEPS}" in err
    assert "ns per weight and step; the weights have the digest that was recorded with them." in err
    assert same_weights(tmp_path / "whole", run / "last")
    replay(capsys, run / "checkpoint-3", run / "trajectory.zo", "--out", tmp_path / "half")
    assert same_weights(tmp_path / "half", run / "last")
    out, err = replay(capsys, base, run, "--out", tmp_path / "third", "--step", 3)
    assert "for the last ones the file has none" in err
    assert same_weights(tmp_path / "third", run / "checkpoint-3")


@pytest.mark.parametrize("settings", [{"bf16": True}, {"soft_prompt": True}, {"task": "mnli"}], ids=str)
def test_half_precision_prompts_and_other_heads(settings, base, capsys, tmp_path):
    if "task" in settings:  # its rows have three labels; the loop's two are among them
        settings = {**settings, "full_parameter": True}
    run = record(tmp_path / "run", base, "LOZO-M", **settings)
    replay(capsys, base, run, "--out", tmp_path / "out")
    assert same_weights(tmp_path / "out", run / "last")
    names = [path.name for path in (run / "last").iterdir()]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)


def test_the_result_is_a_model_that_loads(base, run, capsys, tmp_path):
    replay(capsys, base, run, "--out", tmp_path / "out")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model(**tokenizer("the good", return_tensors="pt")).logits.shape == (1, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_is_filled(base, run, capsys, tmp_path):
    (tmp_path / "out").mkdir()
    replay(capsys, base, run, "--out", tmp_path / "out")
    assert same_weights(tmp_path / "out", run / "last")
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_no_step_gives_the_base_with_its_new_head(base, run, capsys, tmp_path):
    _, err = replay(capsys, base, run, "--out", tmp_path / "out", "--step", 0)
    assert "0 steps from 0 to 0, which took 0 queries" in err
    assert "nan" not in err


def test_a_torn_end_is_told_and_the_sound_steps_are_made(base, run, capsys, tmp_path):
    data = (run / "trajectory.zo").read_bytes()
    (tmp_path / "torn.zo").write_bytes(data[:-3])
    _, err = replay(capsys, base, tmp_path / "torn.zo", "--out", tmp_path / "out")
    assert "are of a step that was being written; they do not count." in err
    assert same_weights(tmp_path / "out", run / "last")


def test_damage_is_refused_unless_the_step_is_named(base, run, capsys, tmp_path):
    data = bytearray((run / "trajectory.zo").read_bytes())
    data[-400] ^= 1
    (tmp_path / "bad.zo").write_bytes(data)
    end = read(tmp_path / "bad.zo").end
    assert end < STEPS
    _, err = replay(capsys, base, tmp_path / "bad.zo", "--out", tmp_path / "out", code=2)
    assert err.rstrip().endswith(f"take the weights before the damage with --step {end}.")
    assert not (tmp_path / "out").exists()
    replay(capsys, base, tmp_path / "bad.zo", "--out", tmp_path / "out", "--step", end)


def test_a_terminal_gets_a_bar(base, run, tmp_path, monkeypatch):
    import io

    from zotune.config import ReplayConfig

    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120)
    config = ReplayConfig(base=str(base), run=run, out=tmp_path / "out", device="cpu")
    assert replaying.launch(config, console) == 0
    text = stream.getvalue()
    assert f"{STEPS}/{STEPS}" in text
    assert "steps/s" in text


# ---------------------------------------------------------------------------------------------- plain torch


@pytest.mark.parametrize("method", ["MeZO", "HiZOO"])
def test_a_run_of_a_plain_loop_is_rebuilt_from_its_folder(method, capsys, tmp_path):
    plain = record_plain(tmp_path, method=method)
    replay(capsys, plain / "base", plain / "run.zo", "--out", tmp_path / "out")
    assert same_weights(tmp_path / "out", plain / "trained")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").pad_token == "[PAD]"


def test_a_plain_base_needs_a_tokenizer_no_more_than_the_run_did(plain, capsys, tmp_path):
    shutil.copytree(plain / "base", tmp_path / "base", ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    replay(capsys, tmp_path / "base", plain / "run.zo", "--out", tmp_path / "out")
    assert same_weights(tmp_path / "out", plain / "trained")


def test_a_plain_base_without_all_weights_or_of_another_kind_is_refused(plain, capsys, tmp_path):
    save(tmp_path / "lm", "opt", head="lm")
    words = (plain / "run.zo", "--out", tmp_path / "out")
    _, err = replay(capsys, tmp_path / "lm", *words, code=2)
    assert "the model has no parameter" in err
    shutil.copytree(plain / "base", tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    for name, sentence in (
        ("NoSuchModel", "names the architecture NoSuchModel, which transformers does not have"),
        ("pipeline", "names the architecture pipeline, which transformers does not have"),
        ("OPTForQuestionAnswering", "does not hold qa_outputs.bias of OPTForQuestionAnswering"),
    ):
        (tmp_path / "odd" / "config.json").write_text(json.dumps({**config, "architectures": [name]}))
        _, err = replay(capsys, tmp_path / "odd", *words, code=2)
        assert sentence in err
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------- wrong ones

WRONG = {
    "nothing": ("", "Say which base model and which run: zotune replay BASE RUN.zo --out DIR."),
    "no run": ("embedded --out o", "Say which run, after the base model"),
    "no folder": ("embedded run.zo", "Say where the model goes with --out"),
    "misspelt flag": ("embedded run.zo --oot o", "There is no flag --oot; did you mean --out?"),
    "flag of train": ("embedded run.zo --out o --lr 1", "There is no flag --lr"),
    "dtype": ("embedded run.zo --out o --dtype bfloat16", "There is no flag --dtype"),
    "three words": ("embedded run.zo o", "'o' belongs to no flag"),
    "flag without a value": ("embedded run.zo --out", "--out needs a value."),
    "empty folder name": ("embedded run.zo --out=", "--out must name a folder, but is empty."),
    "empty run": ("embedded --run= --out o", "--run must name a file, but is empty."),
    "step in words": ("embedded run.zo --out o --step last", "--step takes a whole number, not 'last'."),
    "negative step": ("embedded run.zo --out o --step -1", "--step must be from 0 to"),
    "step too far": ("embedded run.zo --out o --step 99", "--step 99 is not in run.zo, which ends with step 6."),
    "unknown device": ("embedded run.zo --out o --device tpu", "--device must be cpu"),
    "missing run": ("embedded nowhere.zo --out o", "There is no file nowhere.zo"),
    "folder without trajectory": ("embedded empty --out o", "empty holds no trajectory.zo"),
    "no trajectory": ("embedded text.zo --out o", "text.zo is not a trajectory of zotune"),
    "empty file": ("embedded empty.zo --out o", "empty.zo is empty: no step was recorded."),
    "cut header": ("embedded short.zo --out o", "The header of short.zo is not whole"),
    "wrong order": ("run.zo embedded --out o", "run.zo is a trajectory, and the base model comes first"),
    "run as base": ("run run.zo --out o", "run is the folder of a run, and the base model comes first"),
    "missing base": ("./nowhere run.zo --out o", "There is no folder ./nowhere; give --base a model folder"),
    "base without config": ("empty run.zo --out o", "empty is not a model folder: it has no config.json."),
    "file as base": ("text.zo.txt run.zo --out o", "text.zo.txt is a file; give --base the folder"),
    "folder in use": ("model run.zo --out full", "--out full is not empty"),
    "file in the way": ("model run.zo --out text.zo.txt", "--out text.zo.txt is no folder"),
    "below a file": ("model run.zo --out text.zo.txt/o", "--out text.zo.txt/o cannot be"),
    "another model": ("embedded run.zo --out o", "embedded does not fit: "),
    "another base": ("other run.zo --out o", "other does not fit: the weights that were not trained are not those"),
    "other checkpoint": ("alien run.zo --out o", "alien is no checkpoint of this run"),
    "damaged state": ("broken run.zo --out o", "optimizer.pt cannot be read; take another checkpoint"),
    "state of another step": ("mixed run.zo --out o", "an optimizer after step 3 and a trainer after step 4"),
    "step before the checkpoint": ("run/checkpoint-3 run.zo --out o --step 1", "from step 3 to 1 is not within them"),
}


@pytest.fixture(scope="module")
def desk(base, run, tmp_path_factory):
    """A folder with right and wrong files to name."""
    desk = tmp_path_factory.mktemp("desk")
    data = (run / "trajectory.zo").read_bytes()
    (desk / "run").symlink_to(run)
    (desk / "model").symlink_to(base)
    (desk / "run.zo").write_bytes(data)
    (desk / "short.zo").write_bytes(data[:100])
    (desk / "empty.zo").touch()
    (desk / "text.zo").write_text("losses: 1, 2, 3")
    (desk / "text.zo.txt").write_text("no folder")
    (desk / "empty").mkdir()
    (desk / "full").mkdir()
    (desk / "full" / "thesis.tex").touch()
    save(desk / "other", "gpt2", seed=1)
    for name in ("alien", "broken", "mixed"):
        shutil.copytree(run / "checkpoint-3", desk / name)
    record(desk / "mezo", base, "MeZO")
    shutil.copy(desk / "mezo" / "checkpoint-3" / "optimizer.pt", desk / "alien" / "optimizer.pt")
    (desk / "broken" / "optimizer.pt").write_bytes(b"not a state")
    state = json.loads((desk / "mixed" / "trainer_state.json").read_text())
    (desk / "mixed" / "trainer_state.json").write_text(json.dumps({**state, "global_step": 4}))
    return desk


@pytest.mark.parametrize(("words", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_command_lines_end_with_2_and_a_sentence(words, sentence, desk, capsys, monkeypatch):
    monkeypatch.chdir(desk)
    before = sorted(path.name for path in desk.rglob("*"))
    assert main(["replay", *words.split()]) == 2
    out, err = capsys.readouterr()
    said = err.rstrip().splitlines()[-1]
    assert sentence in said
    assert said.endswith((".", "?"))
    assert "Traceback" not in err
    assert out == ""
    assert sorted(path.name for path in desk.rglob("*")) == before


def test_a_changed_trained_weight_of_the_base_is_found(base, capsys, tmp_path):
    run = record(tmp_path / "run", base, "MeZO", full_parameter=True)
    save(tmp_path / "other", "gpt2", seed=1)
    _, err = replay(capsys, tmp_path / "other", run, "--out", tmp_path / "out", code=2)
    assert "the weights are not those that the run began with" in err


def test_a_wrong_digest_on_the_way_is_refused_and_leaves_nothing(base, run, capsys, tmp_path):
    from zotune.trajectory.frames import encode, to_json

    whole = read(run / "trajectory.zo")
    frame, _ = encode("E", to_json({"kind": "weights", "digest": 1}, "a test"), whole.checksum)
    (tmp_path / "x.zo").write_bytes((run / "trajectory.zo").read_bytes() + frame)
    _, err = replay(capsys, base, tmp_path / "x.zo", "--out", tmp_path / "out", code=2)
    assert f"The weights after step {STEPS} are not those that were recorded" in err
    assert [path.name for path in tmp_path.iterdir()] == ["x.zo"]


def test_a_full_disk_is_told_before_the_first_step(base, run, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(replaying.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    monkeypatch.setattr(replaying, "go_on", lambda *_, **__: pytest.fail("a step was made"))
    _, err = replay(capsys, base, run, "--out", tmp_path / "out", code=2)
    assert "has 0 MB free; make room" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (replaying.Terminated, 143)])
def test_a_stopped_replay_leaves_nothing(stop, code, base, run, capsys, tmp_path, monkeypatch):
    def go_on(*_, **__):
        raise stop

    monkeypatch.setattr(replaying, "go_on", go_on)
    _, err = replay(capsys, base, run, "--out", tmp_path / "out", code=code)
    assert err.endswith("Stopped; no model was written.\n")
    assert list(tmp_path.iterdir()) == []


def test_a_defect_ends_with_1_and_a_sentence(base, run, capsys, tmp_path, monkeypatch):
    def go_on(*_, **__):
        raise RuntimeError("no such kernel\nmore")

    monkeypatch.setattr(replaying, "go_on", go_on)
    _, err = replay(capsys, base, run, "--out", tmp_path / "out", code=1)
    assert "The replay broke off with RuntimeError: no such kernel. No model was written." in err


def test_somebody_elses_folder_is_not_touched(base, run, capsys, tmp_path, monkeypatch):
    real = replaying.go_on

    def go_on(*words, **more):
        real(*words, **more)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").touch()

    monkeypatch.setattr(replaying, "go_on", go_on)
    _, err = replay(capsys, base, run, "--out", tmp_path / "out", code=2)
    assert "made it meanwhile" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


# ---------------------------------------------------------------------------------------------- facts


def test_facts_are_written_and_read_alike():
    config = TrainConfig(task="cb", soft_prompt=True, full_parameter=True)
    facts = BaseFacts.of(config, dtype=torch.bfloat16, head_seed=9)
    about = json.loads(json.dumps({**facts.__dict__, "more": 1}))
    assert facts_of(about) == facts
    assert facts_of({"model_name": "mine"}) is None
    for wrong in ({"task": 1}, {"head_seed": True}, {"head_seed": -1}, {"dtype": "int8"}, {"prompted": 0}):
        with pytest.raises(TrajectoryError):
            facts_of({**about, **wrong})


def test_help_names_every_flag_and_the_page_too(capsys):
    with pytest.raises(SystemExit):
        main(["replay", "--help"])
    text = capsys.readouterr().out
    page = (Path(__file__).resolve().parents[1] / "docs" / "command-line.md").read_text()
    section = re.search(r"^## `zotune replay`.*?(?=^## )", page, re.M | re.S)[0]
    assert set(re.findall(r"^\| `--(\w+)` \|", section, re.M)) == set(REPLAY_FLAGS)
    for flag in REPLAY_FLAGS:
        assert f"  --{flag}" in text
