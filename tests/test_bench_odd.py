"""Odd command lines of `zotune bench`: other kinds of models, files that cannot be written, settings out of range."""

import json
from pathlib import Path

import pytest
import tiny_models
import transformers

from zotune.bench import launch, models
from zotune.cli import main

SMALL = ["--batchsize", "2", "--max_seq_length", "8", "--rounds", "1", "--device", "cpu", "--algorithm", "ZO"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
PICTURES = {"image_size": 16, "patch_size": 8}
SEQUENCES = {"d_model": 16, "vocab_size": tiny_models.VOCABULARY, "pad_token_id": tiny_models.PAD}
OTHER = {
    "ViT": transformers.ViTConfig(**SIZES, **PICTURES),
    "CLIP": transformers.CLIPConfig(vision_config=SIZES | PICTURES, text_config=SIZES | {"vocab_size": 100}),
    "ResNet": transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]),
    "Wav2Vec2": transformers.Wav2Vec2Config(**SIZES),
    "Whisper": transformers.WhisperConfig(d_model=16, encoder_layers=1, decoder_layers=1),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("models") / "opt"
    tiny_models.save(place, "opt")
    return place


def bench(capsys, *words, code):
    ended = main(["bench", *map(str, words)])
    out, err = capsys.readouterr()
    assert ended == code, err
    assert "Traceback" not in err
    return out, err


@pytest.mark.parametrize("words", [["--plan"], []], ids=["foretold", "measured"])
@pytest.mark.parametrize("kind", OTHER)
def test_a_model_that_reads_no_tokens_is_not_called_damaged(kind, words, tmp_path, capsys):
    OTHER[kind].save_pretrained(tmp_path)
    out, err = bench(capsys, tmp_path, *SMALL, *words, code=2)
    assert f"{tmp_path} is described by a {kind}Config, and transformers can make no text classifier of" in err
    assert "choose a language model" in err
    assert "damaged" not in err
    assert out == ""


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_an_encoder_with_a_decoder_is_given_its_end_token(kind, folder, tmp_path, capsys):
    if kind == "bart":
        own = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 32))}
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
        model = transformers.BartModel(transformers.BartConfig(**SEQUENCES, **own, **heads, max_position_embeddings=64))
    else:
        own = {"d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0, "eos_token_id": 99}
        model = transformers.T5Model(transformers.T5Config(**SEQUENCES, **own))
    model.save_pretrained(tmp_path)
    for file in folder.glob("*token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    out, _ = bench(capsys, tmp_path, *SMALL, code=0)
    assert "A good first try that fits: MeZO" in out


def test_more_tokens_than_positions_are_cut_and_said(folder, capsys):
    out, err = bench(capsys, folder, "--plan", *SMALL, "--max_seq_length", "5000", code=0)
    assert f"{folder} reads at most 64 tokens, so --max_seq_length is 64 here." in err
    assert "2 x 64 tokens" in out.replace("\n", " ")


# ---------------------------------------------------------------------------------------------- --output


def _nothing_is_loaded(patch):
    patch.setattr(models, "outline", lambda *_: pytest.fail("the model was looked at"))


def _circle(place):
    (place / "circle").symlink_to("circle")
    return "circle"


UNWRITABLE = {
    "a folder": (lambda place: (place / "there").mkdir() or "there", "must be a file in a folder that is there"),
    "no folder": (lambda _: "nowhere/x.json", "must be a file in a folder that is there"),
    "below a file": (lambda place: (place / "f").write_text("") or "f/x.json", "must be a file in a folder"),
    "too long": (lambda _: "a" * 300 + ".json", "cannot be written (File name too long); name another file."),
    "a circle of links": (_circle, "cannot be written ("),
    "empty": (lambda _: "", "--output must name a file, but is empty."),
}


@pytest.mark.parametrize("make", UNWRITABLE)
def test_a_file_that_cannot_be_written_is_named_before_anything_is_measured(
    make, folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    _nothing_is_loaded(monkeypatch)
    name, sentence = UNWRITABLE[make][0](tmp_path), UNWRITABLE[make][1]
    before = sorted(tmp_path.rglob("*"))
    _, err = bench(capsys, folder, *SMALL, "--output", name, code=2)
    assert sentence in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("there", [False, True], ids=["new", "existing"])
def test_a_file_without_permission_is_named_before_anything_is_measured(there, folder, tmp_path, capsys, monkeypatch):
    path = tmp_path / "x.json"
    if there:
        path.write_text("old")
    _nothing_is_loaded(monkeypatch)
    opened = Path.open

    def refused(self, mode="r", **more):
        if self == path and mode != "r":
            raise PermissionError(13, "Permission denied")
        return opened(self, mode, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refused)  # not by the file's mode, which means nothing to root
        _, err = bench(capsys, folder, *SMALL, "--output", path, code=2)
    assert f"--output {path} cannot be written (Permission denied); name another file." in err
    assert path.exists() == there
    assert not there or path.read_text() == "old"


def test_a_run_that_breaks_off_leaves_an_earlier_file_alone(folder, tmp_path, capsys, monkeypatch):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text("{}")
    monkeypatch.setattr(launch, "measure", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("odd")))
    for path in (old, new):
        bench(capsys, folder, *SMALL, "--output", path, code=1)
    assert old.read_text() == "{}"
    assert not new.exists()


def test_a_file_that_becomes_unwritable_does_not_cost_the_table(folder, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    path = tmp_path / "x.json"
    out, err = bench(capsys, folder, "--plan", *SMALL, "--output", path, code=1)
    assert f"--output {path} could not be written (No space left on device); the table has the numbers." in err
    assert "MeZO" in out


def test_an_earlier_file_is_replaced_and_a_link_followed(folder, tmp_path, capsys):
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    link.symlink_to(target.name)
    for _ in range(2):
        bench(capsys, folder, "--plan", *SMALL, "--output", link, code=0)
        assert json.loads(target.read_text())["rows"]
    assert link.is_symlink()


# ---------------------------------------------------------------------------------------------- settings

WRONG = {
    "no steps": ("--steps 0", "--steps must be from 1 to"),
    "negative batch": ("--batchsize -3", "--batchsize must be at least 1, not -3."),
    "huge batch": ("--batchsize 99999999999", "--batchsize must be at most 1,000,000"),
    "one token": ("--max_seq_length 1", "--max_seq_length must be at least 2 tokens"),
    "no examples": ("--samplesize 0", "--samplesize must be at least 1"),
    "half a round": ("--rounds 1.5", "--rounds takes a whole number, not '1.5'."),
    "value for a switch": ("--bf16=yes", "--bf16 is a switch"),
    "unknown device": ("--device tpu", "--device must be cpu, the number of a GPU or cuda:NUMBER"),
    "no value": ("--output", "--output needs a value."),
    "method of no list": ("--algorithm MEZO", "--algorithm knows all, ZO, ZOAdam, ZOSVRG, LOZO, HiZOO, LOREN or FZOO,"),
}


@pytest.mark.parametrize("case", WRONG)
def test_settings_out_of_range_end_with_2_and_a_sentence(case, folder, capsys):
    words, sentence = WRONG[case]
    out, err = bench(capsys, folder, *words.split(), code=2)
    assert sentence in err
    assert out == ""


def test_the_help_asks_for_a_file(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    assert "--output FILE" in capsys.readouterr().out
