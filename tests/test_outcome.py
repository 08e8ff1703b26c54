"""What a run says in the end: what it reached, and that it hardly learnt anything where that is so."""

from __future__ import annotations

from typing import Any

import pytest

from zotune.config import SHARES, TrainConfig
from zotune.run.outcome import learnt, outcome

FACTS = {SHARES: {"loss": 0.69, "accuracy": 0.5}, "validation_examples": 256}


def evaluation(step: int, loss: float | None, accuracy: float) -> dict[str, Any]:
    return {"step": step, "queries": 30 * step + 34, "loss": loss, "accuracy": accuracy}


def said(first: tuple[float | None, float], final: tuple[float | None, float], **given: Any) -> list[str]:
    last, before = evaluation(40, *final), evaluation(0, *first)
    best = max(before, last, key=lambda one: float(one["accuracy"]))
    summary = {"first": before, "final": last, "best": best, "queries": 1300}  # it was stopped after 66 more
    return outcome(summary, given.pop("facts", FACTS), TrainConfig(**given), in_words="--objective options")


def test_a_run_that_learnt_says_what_it_reached_and_no_more() -> None:
    (line,) = said((0.70, 0.50), (0.31, 0.90))
    assert line == (
        "validation loss 0.7000 before, 0.3100 after; accuracy 0.5000 before, 0.9000 after 1,234 queries of"
        " 16 examples (best 0.9000, after step 40)"
    )


@pytest.mark.parametrize(
    ("first", "final", "words"),
    [
        ((0.7059, 0.4961), (0.7559, 0.5312), "The validation loss did not fall."),
        ((0.7059, 0.4961), (0.6866, 0.5234), "Hardly more was learnt than how frequent the classes are"),
        ((1.30, 0.4961), (0.6866, 0.5234), "which gives a loss of 0.6900."),
        ((1.30, 0.4961), (1.1257, 0.5234), "is still above the 0.6900 of knowing only how frequent the classes are."),
    ],
)
def test_a_run_that_hardly_learnt_says_so_and_what_may_help(first: Any, final: Any, words: str) -> None:
    line, advice = said(first, final)
    assert line.startswith(f"validation loss {first[0]:.4f} before, {final[0]:.4f} after")
    assert words in advice
    for way in ("--objective options", "--epochs", "--samplesize", "zotune sweep", "--algorithm FOAdam"):
        assert way in advice
    assert "FOAdam" not in said(first, final, algorithm="FOAdam")[1]


def test_a_better_untrained_model_is_named_as_the_best() -> None:
    assert "(best 0.4961, before the first step)" in said((0.70, 0.4961), (0.69, 0.4805))[0]


def test_a_run_that_lost_what_it_had_learnt_is_not_told_to_take_more_steps() -> None:
    first, best, final = evaluation(0, 0.63, 0.75), evaluation(4, 0.30, 0.87), evaluation(40, 7.12, 0.5)
    _, advice = outcome({"first": first, "final": final, "best": best}, FACTS, TrainConfig())
    begin = "The validation loss was 0.3000 after step 4 and rose from there. What may help: a lower --lr"
    assert advice.startswith(begin)
    assert "more steps" not in advice


def test_a_loss_that_is_no_number_has_a_sentence_of_its_own() -> None:
    (line,) = said((0.7059, 0.4961), (None, 0.5))
    assert line.startswith("validation loss 0.7059 before, nan after")


def test_a_run_that_may_stop_by_itself_is_told_of_its_patience() -> None:
    advice = said((0.7059, 0.4961), (0.6866, 0.5234), early_stopping=True)[1]
    assert "more steps (a larger --patience)" in advice


def test_nothing_is_said_of_one_evaluation() -> None:
    one = evaluation(0, 0.7, 0.5)
    assert outcome({"first": one, "final": one, "best": one, "queries": 0}, FACTS, TrainConfig()) == []


def test_what_cannot_be_run_is_not_advised() -> None:
    summary = {"first": evaluation(0, 0.19, 0.81), "final": evaluation(4, 0.19, 0.81), "best": None, "queries": 8}
    _, advice = outcome(summary, {}, TrainConfig(), in_words=None, smooth=False)
    assert "FOAdam" not in advice  # an accuracy has no gradient
    assert "in words" not in advice  # the model came with a head


def test_one_row_more_of_an_objective_that_counts_rows_is_not_learnt() -> None:
    first, final = evaluation(0, 0.1914, 0.8086), evaluation(4, 0.1875, 0.8125)
    assert learnt(first, final, FACTS)
    assert not learnt(first, final, {"validation_examples": 256}, counted=True)
    assert learnt(first, evaluation(4, 0.1, 0.9), {"validation_examples": 256}, counted=True)


@pytest.mark.parametrize(
    ("first", "final", "facts", "is_learnt"),
    [
        ((0.70, 0.50), (0.66, 0.50), FACTS, True),  # by the loss
        ((0.70, 0.50), (0.68, 0.50), FACTS, False),
        ((0.70, 0.50), (0.80, 0.60), FACTS, True),  # by the accuracy: 3 standard errors of 256 rows
        ((0.70, 0.50), (0.80, 0.55), FACTS, False),
        ((0.70, 0.50), (0.80, 0.60), {**FACTS, "validation_examples": 16}, False),
        ((2.00, 0.10), (1.90, 0.10), {"validation_examples": 256}, True),  # no classes: below what it was
        ((2.00, 0.10), (1.99, 0.10), {"validation_examples": 256}, False),
    ],
)
def test_what_counts_as_learnt(first: Any, final: Any, facts: Any, is_learnt: bool) -> None:
    assert learnt(evaluation(0, *first), evaluation(40, *final), facts) == is_learnt
