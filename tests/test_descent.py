"""How surely a loss falls, against numpy's least squares, and what a measured rate makes of it."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from test_pace import measured
from torch import nn
from transformers import TrainerControl, TrainerState

from zotune import MeZO, suggest_rate
from zotune.descent import FEWEST, POINTS, SURE, Descent
from zotune.hf.pacing import PaceKeeper
from zotune.pace import DECAY, LIFT, LIFTED, Pace


def line(steps, fall, noise, seed=0, predicted=0.01):
    generator = np.random.Generator(np.random.PCG64(seed))
    losses = 2.0 - fall * np.arange(steps) + noise * generator.standard_normal(steps)
    return [(float(loss), predicted) for loss in losses]


def test_it_is_that_of_least_squares_a_standard_error_below():
    descent, steps = Descent(), line(80, 0.005, 0.02)
    for number, (loss, predicted) in enumerate(steps):
        descent.take([loss + 0.1, loss - 0.1], predicted, 30)
        assert (descent.sure > 0.0) <= (number + 1 >= FEWEST)
    last = np.array([loss for loss, _ in steps[-30:]])
    (slope, _), covariance = np.polyfit(np.arange(30), last, 1, cov=True)
    assert descent.sure == pytest.approx((-slope - SURE * math.sqrt(covariance[0, 0])) / 0.01)
    assert 0.3 < descent.sure < 0.5


def test_noise_alone_is_seldom_taken_for_a_fall():
    found = []
    for seed in range(200):
        descent = Descent()
        for loss, predicted in line(50, 0.0, 0.1, seed):
            descent.take([loss], predicted, 50)
        found.append(descent.sure)
    assert 15 <= sum(sure > 0.0 for sure in found) <= 50  # 16 % of Student's t with 48 degrees of freedom are 32


def test_long_stretches_are_kept_as_means_of_several_steps():
    descent = Descent()
    for loss, predicted in line(3000, 1e-4, 0.02):
        descent.take([loss], predicted, 1000)
    assert len(descent.points) <= POINTS + 3
    assert descent.sure == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(("fall", "holds"), [(0.05, True), (0.0, False)])
def test_a_rate_waits_with_its_fall_while_the_loss_falls_surely(fall, holds):
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    pace, generator = Pace(measured(spread=4.0), total=100), np.random.Generator(np.random.PCG64(1))
    optimizer = MeZO([weight], lr=0.5, eps=1e-2)
    optimizer.register_tell_hook(pace)
    rates = []
    for step in range(100):
        middle = 8.0 - fall * step + 0.02 * float(generator.standard_normal())
        optimizer.tell([middle + 0.02, middle - 0.02])
        rates.append(optimizer.last_rates[0] / 0.5)
    if holds:  # D is 0.1 * 4 / 40, and three times that once the share is: the fall stays above half of it
        assert rates[60:] == pytest.approx([LIFTED / 0.1] * 40)
    else:
        assert rates == pytest.approx([pace.planned(step) for step in range(100)])


@pytest.mark.parametrize(("seen", "early"), [(None, False), (0.5, True), (3.0, False)])
def test_before_the_middle_a_share_is_lifted_only_where_the_curvature_has_not_grown(monkeypatch, seen, early):
    pace = Pace(measured(), total=100)
    monkeypatch.setattr(Descent, "sure", 1.0)
    if seen is not None:
        for _ in range(2):
            pace.measured(seen * pace.curvature, 0.01 * pace.curvature)
    assert pace.lifted(5) == pace.planned(5)  # it warms up all the same
    assert pace.lifted(49) == pytest.approx(LIFTED / 0.1 if early else 1.0)
    assert pace.lifted(50) == pytest.approx(LIFTED / 0.1)
    assert pace.lifted(49, normalised=True) == 1.0
    assert pace.lifted(50, normalised=True) == pytest.approx(LIFTED / 0.1)


def test_no_share_is_lifted_above_its_limits(monkeypatch):
    pace = Pace(measured(), total=100)
    monkeypatch.setattr(Descent, "sure", 1.0)
    assert pace.lifted(49) == 1.0
    assert pace.lifted(50) == pace.lifted(99) == pytest.approx(LIFTED / 0.1)
    pace._share = 0.02
    assert pace.lifted(50) == LIFT
    pace._share = 0.4
    assert pace.lifted(50) == 1.0
    assert pace.lifted(99) == pytest.approx(LIFTED / 0.4)
    monkeypatch.setattr(Descent, "sure", 0.1)
    assert pace.lifted(85) == pytest.approx(max(0.05 / 0.4, 0.5))
    assert Pace(total=100).lifted(99) == Pace(total=100).planned(99)


@pytest.mark.parametrize(("noise", "low", "high"), [(0.0, 0.7, 1.1), (1.0, 0.0, 0.3)])
def test_all_of_the_predicted_fall_comes_true_but_for_the_noise_of_batches(noise, low, high):
    """On a parabola in 100 dimensions; noise is that of each batch's gradient, beside a gradient of length 10."""
    generator = torch.Generator().manual_seed(3)
    weight = nn.Parameter(torch.ones(100, dtype=torch.float64))

    def closure():
        tilt = 3.0 * noise * torch.randn(100, generator=generator, dtype=torch.float64)
        here = weight.detach().clone()  # batches differ in slope, not in loss
        return lambda: 10.0 + 0.5 * weight.square().sum() + tilt @ (weight - here)

    rate = suggest_rate(MeZO([weight], lr=0.0, seed=1), [closure() for _ in range(16)], steps=200, schedule="adaptive")
    assert rate is not None
    optimizer, pace = MeZO([weight], lr=rate.lr, seed=2), Pace(rate, total=200)
    optimizer.register_tell_hook(pace)
    for _ in range(round(200 * (1.0 - DECAY))):
        optimizer.step(closure())
    assert low <= pace.descent.sure <= high


def test_checkpoints_keep_it():
    def keeper_after(steps, saved=None):
        begun = PaceKeeper(dataclasses.asdict(measured(spread=4.0)))
        optimizer = MeZO([nn.Parameter(torch.ones(3, dtype=torch.float64))], lr=0.5, eps=1e-2)
        optimizer.register_tell_hook(begun.pace)
        optimizer.t = steps.start
        state = TrainerState(global_step=steps.start, max_steps=100, stateful_callbacks=saved or {})
        begun.on_train_begin(None, state, TrainerControl())
        rates = []
        for step in steps:
            middle = 2.0 - 0.01 * step + 0.003 * (step * 7 % 5)
            optimizer.tell([middle + 0.02, middle - 0.02])
            rates.append(optimizer.last_rates[0])
        return begun, rates

    _, whole = keeper_after(range(100))
    first, _ = keeper_after(range(60))
    saved = {"PaceKeeper": json.loads(json.dumps(first.state()))}
    _, rest = keeper_after(range(60, 100), saved=saved)
    assert rest == whole[60:]
    assert max(rest) > 0.5  # it was more than planned
