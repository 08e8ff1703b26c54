"""`zotune evaluate` of what answers with classes: heads that were trained or replayed, adapters, and label words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from command_runs import rows_of, train, workshop
from command_runs import shelf as shelf
from safetensors.torch import load_file, save_file

from zotune.cli import main
from zotune.hf.heads import order_of

__all__ = ["workshop"]
pytestmark = pytest.mark.usefixtures("workshop")

ROWS = ["--data_dir", "../data", "--samplesize_validation", "8", "--max_seq_length", "24", "--device", "cpu"]


def told(capsys: Any, *words: str) -> dict[str, Any]:
    assert main(["evaluate", *words, *ROWS, "--output", "told.json"]) == 0, capsys.readouterr().err
    assert "accuracy" in capsys.readouterr().out
    found: dict[str, Any] = json.loads(Path("told.json").read_text())
    return found


def refused(capsys: Any, *words: str) -> str:
    assert main(["evaluate", *ROWS, *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return str(err)


def test_a_trained_head_scores_what_the_run_scored(capsys: Any) -> None:
    run, _ = train(capsys, "--algorithm", "ZO", "--save_ckpt", "--lr", "1e-2")
    assert run is not None
    last = rows_of(run, "eval")[-1]
    assert main(["replay", "../model", str(run), "--out", "again", "--device", "cpu"]) == 0
    for folder in (run / "last", Path("again")):
        facts = told(capsys, str(folder))
        assert facts["scores"]["loss"] == pytest.approx(float(last["loss"]), abs=1e-6)
        assert facts["scores"]["accuracy"] == float(last["accuracy"])
        assert facts["way"] == "own head"
        assert facts["options"] == [["negative", "positive"]] * 8
        for scores, chosen in zip(facts["option_scores"], facts["answers"], strict=True):
            assert scores[chosen] == max(scores)
            assert sum(torch.tensor(scores).exp().tolist()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("words", [["--tuning", "lora"], ["--tuning", "prefix"], ["--soft_prompt", "--tuning", "lora"]])
def test_an_adapter_with_classes_scores_what_the_run_scored(words: list[str], capsys: Any) -> None:
    run, _ = train(capsys, "--algorithm", "ZO", "--save_ckpt", "--lr", "1e-2", *words)
    last = rows_of(run, "eval")[-1]
    flags = [word for word in words if word == "--soft_prompt"]
    words = ["../model", "--adapter", str(run / "last"), *flags]
    assert main(["evaluate", *words, *ROWS, "--output", "told.json"]) == 0
    said = "An adapter does not name its classes; they are taken to be 0 = negative, 1 = positive."
    assert (said in capsys.readouterr().err) == (not flags)
    assert f"is an adapter; give the model that it was trained on, and to zotune evaluate --adapter {run}/last" in (
        refused(capsys, str(run / "last"))
    )
    facts = json.loads(Path("told.json").read_text())
    assert facts["scores"]["loss"] == pytest.approx(float(last["loss"]), abs=1e-6)
    assert facts["scores"]["accuracy"] == float(last["accuracy"])


def test_a_masked_model_is_asked_with_label_words(capsys: Any) -> None:
    tiny_models.save(Path("roberta"), "roberta")
    assert "is a masked model and cannot be asked questions; give --soft_prompt" in refused(capsys, "roberta")
    run, _ = train(capsys, "--algorithm", "ZO", "--save_ckpt", "--soft_prompt", "--model_name", "roberta")
    first, last = rows_of(run, "eval")[0], rows_of(run, "eval")[-1]
    for model, row in (("roberta", first), (str(run / "last"), last)):
        facts = told(capsys, model, "--soft_prompt")
        assert facts["way"] == "label words"
        assert facts["scores"]["loss"] == pytest.approx(float(row["loss"]), abs=1e-6)


def test_classes_in_another_order_are_found_by_their_names(capsys: Any) -> None:
    run, _ = train(capsys, "--algorithm", "ZO", "--save_ckpt")
    assert run is not None
    folder = run / "last"
    before = told(capsys, str(folder))
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    (head,) = (name for name in weights if name.startswith("score"))
    weights[head] = weights[head].flip(0).contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config["id2label"] = {"0": "POSITIVE", "1": "NEGATIVE"}
    config["label2id"] = {"POSITIVE": 0, "NEGATIVE": 1}
    (folder / "config.json").write_text(json.dumps(config))
    after = told(capsys, str(folder))
    assert (after["scores"], after["answers"]) == (before["scores"], before["answers"])
    more, _ = train(capsys, "--algorithm", "ZO", "--model_name", str(folder), "--save_ckpt")
    assert more is not None
    first = rows_of(more, "eval")[0]
    assert float(first["loss"]) == pytest.approx(before["scores"]["loss"], abs=1e-6)  # training begins with it
    base = str(folder)
    assert main(["replay", base, str(more), "--out", "rebuilt"]) == 0
    kept, rebuilt = (load_file(place / "model.safetensors") for place in (more / "last", Path("rebuilt")))
    assert all(torch.equal(kept[name], rebuilt[name]) for name in kept)


def test_classes_that_differ_in_capital_letters_alone_are_not_taken_for_each_other() -> None:
    assert order_of(["bad", "BAD"], ["bad", "BAD"]) == [0, 1]
    assert order_of(["BAD", "bad"], ["bad", "BAD"]) == [1, 0]
    assert order_of(["Bad", "bAd"], ["bad", "BAD"]) is None
    assert order_of(["NEGATIVE", "POSITIVE"], ["positive", "negative"]) == [1, 0]


def test_an_adapter_on_exchanged_classes_says_in_which_order_its_own_are(capsys: Any) -> None:
    run, _ = train(capsys, "--algorithm", "ZO", "--save_ckpt")
    assert run is not None
    config = json.loads((run / "last/config.json").read_text())
    config |= {"id2label": {"0": "positive", "1": "negative"}, "label2id": {"positive": 0, "negative": 1}}
    (run / "last/config.json").write_text(json.dumps(config))
    words = ("--model_name", str(run / "last"), "--algorithm", "ZO", "--lr", "1e-2")
    said = f"The classes of the adapter are 0 = negative, 1 = positive: the task's order, and not that of {run}/last."
    assert said in train(capsys, *words, "--tuning", "lora")[1]
    assert "order" not in train(capsys, *words)[1]


@pytest.mark.parametrize("names", [["bad", "good"], ["LABEL_0", "LABEL_1"]])
def test_other_names_are_taken_in_order_which_is_said(names: list[str], capsys: Any) -> None:
    run, _ = train(capsys, "--algorithm", "ZO", "--save_ckpt")
    assert run is not None
    assert main(["evaluate", str(run / "last"), *ROWS]) == 0
    assert "taken in order" not in capsys.readouterr().err  # they are the task's
    config = json.loads((run / "last/config.json").read_text())
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}}
    (run / "last/config.json").write_text(json.dumps(config))
    assert main(["evaluate", str(run / "last"), *ROWS]) == 0
    said = f"taken in order: {names[0]} = negative, {names[1]} = positive."
    assert said in capsys.readouterr().err
    assert main(["train", *ROWS, "--algorithm", "ZO", "--model_name", str(run / "last"), "--epochs", "1"]) == 0
    assert said in capsys.readouterr().err
    (run / "last/config.json").write_text(json.dumps({**config, "problem_type": "multi_label_classification"}))
    assert "is a model of multi label classification, which gives no one class" in refused(capsys, str(run / "last"))


def test_scores_that_are_no_numbers_are_no_result(capsys: Any) -> None:
    run, _ = train(capsys, "--algorithm", "ZO", "--save_ckpt")
    assert run is not None
    path = run / "last/model.safetensors"
    weights = load_file(path)
    weights["score.weight"].fill_(float("nan"))
    save_file(weights, path, {"format": "pt"})
    assert "are NaN or infinite; its weights are damaged or overflow" in refused(capsys, str(run / "last"))


@pytest.mark.parametrize("kinds", [[3], 5, {}])
def test_odd_architectures_are_no_head(kinds: Any, capsys: Any) -> None:
    run, _ = train(capsys, "--algorithm", "ZO", "--save_ckpt")
    assert run is not None
    config = json.loads((run / "last/config.json").read_text())
    (run / "last/config.json").write_text(json.dumps({**config, "architectures": kinds}))
    assert main(["evaluate", str(run / "last"), *ROWS]) in (0, 2)  # in words where its tied head is one for words
    assert "own head" not in capsys.readouterr().out


def test_an_adapter_that_is_not_json_is_named(capsys: Any) -> None:
    run, _ = train(capsys, "--algorithm", "ZO", "--save_ckpt", "--tuning", "lora")
    assert run is not None
    (run / "last/adapter_config.json").write_text("{")
    assert "adapter_config.json is not JSON" in refused(capsys, "../model", "--adapter", str(run / "last"))


def test_an_adapter_on_a_classifier_has_the_classes_of_its_training(capsys: Any) -> None:
    """However the head under it names and orders its own."""
    run, _ = train(capsys, "--algorithm", "ZO", "--save_ckpt")
    assert run is not None
    config = json.loads((run / "last/config.json").read_text())
    config |= {"id2label": {"0": "positive", "1": "negative"}, "label2id": {"positive": 0, "negative": 1}}
    (run / "last/config.json").write_text(json.dumps(config))
    base = str(run / "last")
    more, _ = train(
        capsys, "--model_name", base, "--algorithm", "ZO", "--save_ckpt", "--tuning", "lora", "--lr", "1e-2"
    )
    assert more is not None
    facts = told(capsys, base, "--adapter", str(more / "last"))
    assert facts["scores"]["loss"] == pytest.approx(float(rows_of(more, "eval")[-1]["loss"]), abs=1e-6)


def test_what_a_head_has_no_use_for_is_refused(capsys: Any) -> None:
    run, _ = train(capsys, "--algorithm", "ZO", "--save_ckpt")
    last = str(run / "last")
    for flag in (["--demonstrations", "2"], ["--calibrate"], ["--score", "mean"], ["--max_new_tokens", "3"]):
        said = refused(capsys, last, *flag)
        assert f"{last} answers with its own head, so {flag[0]} has nothing to say; leave it out." in said
    assert "task squad has no classes" in refused(capsys, last, "--task", "squad")
    Path("cb").mkdir()
    Path("cb/validation.csv").write_text("premise,hypothesis,label\na b,c,0\nd e,f,1\n")
    assert "has no head for the 3 classes of task cb" in refused(capsys, last, "--task", "cb", "--data_dir", "cb")


def test_without_a_model_the_embedded_one_is_asked(capsys: Any) -> None:
    assert main(["evaluate", "--samplesize_validation", "4", "--device", "cpu"]) == 0
    assert "in words" in capsys.readouterr().out
