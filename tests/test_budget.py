"""A budget of forward passes: the most steps that it pays for, counted as the run itself counts."""

import itertools
import json

import pytest
from command_runs import BATCH, shelf, train, workshop

from zotune.config import TrainConfig
from zotune.run.budget import FIRST_ORDER, step_costs, steps_within

__all__ = ["shelf", "workshop"]
pytestmark = pytest.mark.usefixtures("workshop")


@pytest.mark.parametrize("algorithm", ["ZO", "ZOSVRG", "LOZO", "HiZOO", "LOREN", "FZOO", "FOAdam"])
@pytest.mark.parametrize("budget", [1, 22, 23, 300, 1_000, 12_345])
def test_as_many_steps_as_fit(algorithm, budget):
    config = TrainConfig(algorithm=algorithm, batchsize=8, q=5).resolved()
    spent = list(itertools.takewhile(lambda sum_: sum_ <= budget, itertools.accumulate(step_costs(config, 22))))
    assert steps_within(config, 22, budget) == len(spent)


@pytest.mark.parametrize(("algorithm", "more"), [("ZO", ()), ("ZOSVRG", ("--q", "3")), ("LOREN", ()), ("FOSGD", ())])
def test_the_run_spends_what_is_foretold(capsys, algorithm, more):
    run, _ = train(capsys, "--algorithm", algorithm, *more, "--samplesize", "22", "--budget_queries", "500")
    summary = json.loads((run / "summary.json").read_text())
    each = FIRST_ORDER if algorithm == "FOSGD" else 1
    config = TrainConfig(algorithm=algorithm, batchsize=BATCH, q=3 if more else 2).resolved()
    costs = list(itertools.islice(step_costs(config, 22), summary["steps"] + 1))
    assert summary["forwards"] * each == sum(costs[:-1]) <= 500 < sum(costs)
    assert summary["final"]["step"] == summary["steps"]


def test_a_budget_without_a_step_is_refused(capsys):
    _, said = train(capsys, "--algorithm", "ZO", "--budget_queries", "15", code=2)
    assert "--budget_queries 15 is less than the 16 forward passes of the first step" in said


def test_epochs_beside_a_budget_are_named(capsys):
    _, said = train(capsys, "--algorithm", "ZO", "--budget_queries", "32")
    assert "no effect with --budget_queries: --epochs" in said
