"""F1 of classes as what is trained: its value by hand, and runs whose loss it is."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from command_runs import ROWS, rows_of, train, workshop
from command_runs import shelf as shelf

from zotune.hf.options import BatchF1
from zotune.run.objectives import class_f1, objective_of
from zotune.tasks import compute_metrics, get_task

__all__ = ["workshop"]

# (task, choices, labels, 1 - F1 by hand)
BY_HAND = [
    ("cb", [0, 0, 1, 2], [0, 1, 1, 1], 1 - (2 / 3 + 1 / 2 + 0) / 3),  # macro: the mean of the three classes
    ("cb", [0, 1], [0, 1], 0.0),  # a class that occurs nowhere does not count
    ("mrpc", [1, 1, 0, 0], [1, 0, 1, 0], 1 - 2 / 4),
    ("boolq", [1, 1, 1, 0], [1, 0, 1, 1], 1 - 4 / 6),
    ("boolq", [0, 0], [0, 0], 1.0),  # nothing positive, neither there nor chosen
    ("trec", [3, 3, 5], [3, 4, 5], 1 - (2 / 3 + 0 + 1) / 3),
]


@pytest.mark.parametrize(("task", "choices", "labels", "loss"), BY_HAND)
def test_the_loss_is_one_minus_f1(task: str, choices: list[int], labels: list[int], loss: float) -> None:
    kind = get_task(task)
    objective = objective_of("f1", kind, soft_prompt=False, zeroth_order=True)
    assert not objective.differentiable
    scores = torch.full((len(choices), kind.num_labels), -1.0)
    scores[torch.arange(len(choices)), torch.tensor(choices)] = 0.5
    assert objective.loss is not None
    found = objective.loss({"logits": scores}, torch.tensor(labels))
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(loss, abs=1e-7)
    metrics = compute_metrics(kind, trained=objective.counted)
    told = metrics(SimpleNamespace(predictions=scores.numpy(), label_ids=np.asarray(labels)))
    assert told["loss"] == pytest.approx(loss, abs=1e-12)
    assert told[class_f1(kind)] == pytest.approx(1 - loss, abs=1e-12)


def test_a_batch_without_labels_is_named() -> None:
    with pytest.raises(ValueError, match="no 'labels'"):
        BatchF1("macro_f1")({"logits": torch.zeros(2, 2)}, None)


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize("words", [[], ["--soft_prompt"]])
@pytest.mark.parametrize("algorithm", ["ZO", "LOZO"])
def test_a_run_whose_loss_is_f1(algorithm: str, words: list[str], capsys: Any) -> None:
    run, _ = train(capsys, "--algorithm", algorithm, "--objective", "f1", *words)
    for row in rows_of(run, "eval"):
        assert float(row["loss"]) == pytest.approx(1 - float(row["positive_f1"]))
    possible = {round(1 - 2 * t / n, 4) for n in range(1, 17) for t in range(9) if 2 * t <= n} | {1.0}
    # The mean of two queries.
    halves = {round((a + b) / 2, 3) for a in possible for b in possible}
    assert all(round(float(row["loss"]), 3) in halves for row in rows_of(run, "train"))


@pytest.mark.usefixtures("workshop")
def test_f1_of_options_of_ones_own(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "".join(f"the {n},{'abc'[n % 3]}\n" for n in range(ROWS))
    Path("own.csv").write_text("text,kind\n" + rows)
    monkeypatch.setattr("command_runs.TINY", ())
    given = [
        "--model_name",
        "../model",
        "--train_file",
        "own.csv",
        "--template",
        "{text} is {kind}",
        "--options",
        "a,b,c",
    ]
    few = ["--samplesize_validation", "6", "--samplesize", "8", "--epochs", "1", "--device", "cpu"]
    run, _ = train(capsys, *given, *few, "--objective", "f1", "--algorithm", "ZO")
    for row in rows_of(run, "eval"):
        assert float(row["loss"]) == pytest.approx(1 - float(row["macro_f1"]))


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize("seed", ["1", "2"])
def test_training_on_the_f1_of_written_answers_moves_it(
    seed: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that has half learnt to swap two words, by a few first-order steps, gets better at it by F1 alone.

    The loss of the evaluations is that of the training rows, which are the validation rows as well.
    """
    words = ("great", "terrible", "good", "bad")
    rows = [{"pair": f"{one} {two}", "answer": f"{two} {one}"} for one in words for two in words if one != two]
    Path("own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = "--train_file own.jsonl --validation_file own.jsonl --samplesize 12 --samplesize_validation 12 --batchsize 12"
    given = [*own.split(), "--template", "{pair} was {answer}", "--max_new_tokens", "3", "--device", "cpu"]
    monkeypatch.setattr("command_runs.TINY", (*given, "--full_parameter", "--evaluations", "3"))
    first = ["--objective", "likelihood", "--algorithm", "FOAdam", "--lr", "1e-2", "--epochs", "60", "--save_ckpt"]
    begun, _ = train(capsys, "--model_name", "../model", *first)
    then = ["--objective", "f1", "--algorithm", "ZO", "--num_queries", "4", "--lr", "1e-3", "--epochs", "60"]
    more = ["--perturbation_scale", "1e-2", "--init_seed", seed]
    run, _ = train(capsys, "--model_name", str(begun / "last"), *then, *more)
    losses = [float(row["loss"]) for row in rows_of(run, "eval")]
    assert 0.2 < losses[0] < 0.8, "half right at first"
    assert losses[-1] < losses[0] - 0.05
    assert all(float(row["loss"]) == pytest.approx(1 - float(row["f1"])) for row in rows_of(run, "eval"))
