"""Rates that follow the slopes: the factor's equations, and runs that are stopped, resumed and replayed with it."""

import json
import math
from pathlib import Path

import pytest
import torch
from command_runs import TINY, rows_of, shelf, stop_after, train, workshop
from torch import nn

from zotune import FZOO, LOREN, MeZO, MeZOSVRG, ZOAdam, digest
from zotune.cli import main
from zotune.hf.trainer import ZOTrainer
from zotune.pace import MEMORY, RISE, UNMEASURED, Pace
from zotune.rates import Rate, present_curvature, suggest_rate
from zotune.run.training import TrainingRun
from zotune.trajectory import Recorder, read

__all__ = ["shelf", "workshop"]


def measured(spread=4.0, curvature=40.0, lr=0.1, step=10.0):
    return Rate(lr=lr, step=step, run=lr, curvature=curvature, slope=2.0, spread=spread, queries=48)


def at(ratio, rate=None, rows=None, **how):
    """The factor where the squared slopes are ``ratio`` times those that were measured."""
    pace = Pace(rate or measured(), rows=rows)
    pace.mean = pace.spread * ratio
    return pace.factor(**how)


def test_a_step_costs_what_was_planned():
    """eta^2 v h stays: h is the measured one while slopes fall, and grows with v."""
    assert at(1.0) == 1.0
    assert at(1 / 2) == pytest.approx(math.sqrt(2.0))
    assert at(1e-6) == RISE
    assert at(4.0) == pytest.approx(1 / 4)


def test_the_curvature_of_a_fresh_head_begins_to_grow_at_the_fisher_information():
    """h_0 = 40 is that of v = 5 in batches of 16: up to there only slopes count."""
    fresh = measured(spread=1.0, curvature=40.0)
    assert at(4.0, fresh, rows=16) == pytest.approx(1 / 2)
    assert at(5.0, fresh, rows=16) == pytest.approx(1 / math.sqrt(5.0))
    assert at(20.0, fresh, rows=16) == pytest.approx(1 / math.sqrt(20.0) / math.sqrt(20.0 / 5.0))
    assert at(20.0, fresh) == pytest.approx(1 / 20)  # rows unknown: as it was measured
    assert at(2.0, measured(spread=8.0), rows=10**6) == pytest.approx(1 / 2)  # large batches: slopes are no noise


def test_never_beyond_the_line_search():
    narrow = measured(lr=0.1, step=0.12)
    assert at(1 / 4, narrow) == pytest.approx(1.2)
    assert at(4.0, narrow) == pytest.approx(1 / 4)  # eta* falls likewise, from 1.2
    assert at(2.0, measured(lr=0.1, step=0.1)) == pytest.approx(1 / 2)


def test_normalised_updates_only_slow_down():
    assert at(0.01, normalised=True) == 1.0
    assert at(4.0, normalised=True) == pytest.approx(1 / 2)
    assert at(4.0, measured(spread=1.0), rows=16, normalised=True) == 1.0


def test_the_mean_is_that_of_squared_slopes_and_the_measurement_counts_as_some_steps():
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer, pace = MeZO([weight], lr=0.5, eps=1e-2), Pace(measured(spread=9.0))
    optimizer.register_tell_hook(pace)
    mean = 9.0
    for step in range(1, 100):
        optimizer.tell([1.02, 0.98])  # the slope 2
        mean += (4.0 - mean) * max(1.0 / (UNMEASURED + step), 1.0 - MEMORY)
        assert pace.mean == pytest.approx(mean)
        assert optimizer.last_rates[0] == pytest.approx(0.5 * math.sqrt(9.0 / mean))


def test_it_warms_up():
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = MeZO([weight], lr=0.5, eps=1e-2)
    optimizer.register_tell_hook(Pace(warm_up=3))
    rates = []
    for _ in range(5):
        optimizer.tell([1.02, 0.98])
        rates.append(optimizer.last_rates[0])
    assert rates == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5])


def test_a_rate_of_ones_own_and_that_of_a_schedule_are_not_multiplied_twice():
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer, pace = MeZO([weight], lr=0.5, eps=1e-2), Pace(measured(spread=16.0))
    optimizer.register_tell_hook(pace)
    group = optimizer.param_groups[0]
    for _ in range(5):
        optimizer.tell([1.02, 0.98])
        assert optimizer.last_rates[0] == pytest.approx(0.5 * pace.factor())
        assert group["lr"] == 0.5
    group["lr"] = 0.25  # a schedule
    optimizer.tell([1.02, 0.98])
    assert optimizer.last_rates[0] == pytest.approx(0.25 * pace.factor())


def test_schedulers_of_torch_that_go_on_from_the_present_rate_do_not_multiply_it_again():
    """A line to zero, from the first rate (LambdaLR) and from the last one (PolynomialLR, LinearLR)."""

    def rates(schedule):
        weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = MeZO([weight], lr=0.5, eps=1e-2)
        optimizer.register_tell_hook(Pace(measured(spread=16.0)))
        scheduler, found = schedule(optimizer), []
        for _ in range(40):
            optimizer._recalled = (1.02, 0.98)
            optimizer.step()
            scheduler.step()
            found.append(optimizer.last_rates[0])
        return found

    schedulers = torch.optim.lr_scheduler
    expected = rates(lambda o: schedulers.LambdaLR(o, lambda step: 1.0 - step / 40))
    assert rates(lambda o: schedulers.PolynomialLR(o, 40)) == pytest.approx(expected, rel=1e-9)
    line = schedulers.LinearLR
    assert rates(lambda o: line(o, 1.0, 0.0, 40)) == pytest.approx(expected, rel=1e-9)


def test_both_rates_of_mezo_svrg_follow():
    weight = nn.Parameter(torch.ones(50, dtype=torch.float64))
    optimizer = MeZOSVRG([weight], lr=0.5, lr_minibatch=0.25, eps=1e-2)
    optimizer.register_tell_hook(Pace(warm_up=99))
    seen = []
    optimizer.register_tell_hook(lambda o, _: seen.append(o._rates(o.param_groups[0])))
    for _ in range(2):
        optimizer.step(lambda: weight.square().sum(), full_closure=lambda: weight.square().sum())
    assert seen == [pytest.approx((0.005, 0.0025)), pytest.approx((0.01, 0.005))]


def test_an_update_that_fails_is_made_again_with_the_same_rate():
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer, pace = MeZO([weight], lr=0.5, eps=1e-2), Pace(measured(spread=16.0))
    optimizer.register_tell_hook(pace)

    def fail(*_):
        raise OSError("no space")

    hook = optimizer.register_tell_hook(fail)
    for _ in range(3):
        with pytest.raises(OSError, match="no space"):
            optimizer.tell([1.02, 0.98])
    hook.remove()
    optimizer.tell([1.02, 0.98])
    assert pace.steps == 1
    assert optimizer.last_rates[0] == pytest.approx(0.5 * pace.factor())


def test_a_curvature_that_is_measured_again_counts_from_then_on():
    pace = Pace(measured(curvature=40.0), rows=1000)
    pace.measured(160.0)
    assert pace.factor() == pytest.approx(math.sqrt(40.0 / 160.0))  # the cost of a step is as planned
    assert pace.factor(normalised=True) == pytest.approx(math.sqrt(40.0 / 160.0))
    pace.mean *= 4.0  # it grows as the squared slopes do: h = 640
    assert pace.factor() == pytest.approx(math.sqrt(40.0 / 640.0 / 4.0))
    pace.measured(640.0)
    assert pace.factor() == pytest.approx(math.sqrt(40.0 / 640.0 / 4.0))
    pace.mean /= 2.0
    assert pace.factor() == pytest.approx(math.sqrt(40.0 / 640.0 / 2.0))  # and does not fall by itself
    near = Pace(measured(lr=0.1, step=0.12))
    near.measured(160.0)
    assert near.factor() == pytest.approx(1.2 / 4.0)  # eta* of now


def test_the_curvature_at_present_weights():
    """f = |w|^4 / 4: the Hessian's trace is (n + 2) |w|^2."""
    weight = nn.Parameter(torch.full((400,), 0.1, dtype=torch.float64))
    closure = lambda: weight.square().sum().square() / 4  # noqa: E731
    optimizer, before = MeZO([weight], lr=0.0), digest([weight])
    rate = suggest_rate(optimizer, [closure] * 16)
    found = present_curvature(optimizer, [closure] * 16, rate)
    assert 0.95 * 402 * 4.0 < found < 1.15 * 402 * 4.0  # with its error, and at a length
    assert digest([weight]) == before
    weight.data.mul_(2.0)
    found = present_curvature(optimizer, [closure] * 16, rate)
    assert 0.95 * 402 * 16.0 < found < 1.15 * 402 * 16.0
    assert present_curvature(optimizer, [lambda: -closure()] * 16, rate) is None
    assert present_curvature(optimizer, [lambda: closure() * math.nan] * 16, rate) is None


def test_without_a_measurement_the_first_steps_stand_for_it():
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer, pace = MeZO([weight], lr=0.5, eps=1e-2), Pace()
    optimizer.register_tell_hook(pace)
    for _ in range(UNMEASURED):
        optimizer.tell([1.02, 0.98])
        assert optimizer.last_rates[0] == 0.5
    assert pace.spread == pytest.approx(4.0)
    optimizer.tell([1.04, 0.96])
    assert optimizer.last_rates[0] < 0.5


@pytest.mark.parametrize("method", [MeZO, ZOAdam, LOREN, FZOO, MeZOSVRG])
def test_the_measured_spread_is_that_of_the_run(method):
    """On a linear function every method sees the slopes that were measured: the factor stays near 1."""
    line = torch.linspace(-1.0, 1.0, 400, dtype=torch.float64)
    weight = nn.Parameter(torch.zeros(400, dtype=torch.float64))
    closure = lambda: 5.0 + line @ weight + 1e-3 * weight.square().sum()  # noqa: E731
    rate = suggest_rate(method([weight], lr=0.0, seed=1), [closure] * 24, steps=100)
    optimizer, pace = method([weight], lr=0.0, seed=2), Pace(rate)
    optimizer.register_tell_hook(pace)
    for _ in range(60):
        optimizer.step(closure)
    assert pace.factor() == pytest.approx(1.0, rel=0.35)


def test_a_schedule_to_zero_may_begin_higher():
    weight = nn.Parameter(torch.full((400,), 0.3, dtype=torch.float64))
    closure = lambda: (2.5 * weight.square()).sum()  # noqa: E731
    runs = {
        schedule: suggest_rate(MeZO([weight], lr=0.0), [closure] * 16, steps=300, schedule=schedule).run
        for schedule in ("constant", "linear", "cosine", "adaptive")
    }
    assert runs["linear"] == runs["adaptive"] == pytest.approx(math.sqrt(3.0) * runs["constant"])
    assert runs["cosine"] == pytest.approx(math.sqrt(8.0 / 3.0) * runs["constant"])
    with pytest.raises(ValueError, match="schedule='steps': choose one of constant, linear, cosine, adaptive"):
        suggest_rate(MeZO([weight], lr=0.0), [closure], schedule="steps")


@pytest.mark.parametrize("paced_first", [True, False])
def test_a_trajectory_repeats_it_without_knowing_of_it(tmp_path, paced_first):
    """Whichever of the two is registered first."""

    def started():
        weight = nn.Parameter(torch.linspace(0.1, 1.0, 50))
        return weight, MeZO([("weight", weight)], lr=1e-2, seed=3)

    weight, optimizer = started()
    if paced_first:
        optimizer.register_tell_hook(Pace())
    with Recorder(tmp_path / "run.zo", optimizer):
        if not paced_first:
            optimizer.register_tell_hook(Pace())
        for _ in range(40):
            optimizer.step(lambda: weight.square().sum())
    other, again = started()
    for step in read(tmp_path / "run.zo").items():
        if step.rate is not None:
            again.param_groups[0]["lr"] = step.rate
        again.tell(step.losses)
    assert digest([weight]) == digest([other])
    assert len({step.rate for step in read(tmp_path / "run.zo").items()}) > 20


@pytest.mark.usefixtures("workshop")
def test_runs_with_a_measured_rate_fall_to_zero_and_say_so(capsys):
    run, _ = train(capsys, "--algorithm", "ZO", "--lr", "auto", "--epochs", "8")
    config = json.loads((run / "config.json").read_text())
    assert config["lr_scheduler_type"] == "adaptive"
    assert config["lr_measured"]["spread"] > 0.0
    found = [float(row["lr"]) for row in rows_of(run, "train")]
    assert len(found) == 24
    assert found[0] < 0.7 * found[1]  # two steps to warm up
    line = [config["lr"] * (24 - step) / 24 for step in range(24)]
    factors = [rate / planned for rate, planned in zip(found, line, strict=True)]
    assert len({round(factor, 6) for factor in factors}) > 12  # it follows
    assert all(0.1 < factor <= RISE for factor in factors)
    assert found[-1] < 0.3 * max(found)


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize("method", ["ZO", "HiZOO"])
def test_the_curvature_is_measured_on_the_way_and_runs_go_on_with_it(capsys, monkeypatch, method):
    """Killed before and after it is measured at step 18, with checkpoints and without."""
    words = ("--algorithm", method, "--lr", "auto", "--epochs", "60", "--evaluations", "4")
    whole, said = train(capsys, *words)
    facts = json.loads((whole / "config.json").read_text())["lr_measured"]
    assert facts["again"] == 1
    assert facts["forwards"] == 8 * (facts["queries"] + 24)
    assert f"in {facts['queries']} queries and 24 on the way" in said
    events = [item for item in read(whole / "trajectory.zo").items() if getattr(item, "kind", "") == "curvature"]
    assert [event.step for event in events] == [18]
    assert events[0].facts["value"] > 0.0

    class Killed(BaseException):
        pass

    def kill():
        raise Killed

    for step, more in ((17, ()), (18, ()), (19, ()), (25, ("--save_ckpt", "--save_every", "0.1"))):
        with monkeypatch.context() as patch:
            patch.setattr(TrainingRun, "finish", lambda *_: None)
            stop_after(patch, step, kill)
            place = f"killed-{step}"
            with pytest.raises(Killed):
                main(["train", *TINY, *words, *more, "--results", place])
        capsys.readouterr()
        (run,) = (path.parent for path in Path(place).glob("*/*/*/config.json"))
        with monkeypatch.context() as patch:
            if step > 18:  # it is not measured a second time
                patch.setattr(ZOTrainer, "curvature", lambda *_: pytest.fail("measured again"))
            assert main(["train", "--resume", str(run)]) == 0
        capsys.readouterr()
        assert rows_of(run, "train") == rows_of(whole, "train")


@pytest.mark.usefixtures("workshop")
def test_a_rate_that_is_given_stays_as_it_is(capsys):
    run, _ = train(capsys, "--algorithm", "ZO")
    assert {row["lr"] for row in rows_of(run, "train")} == {"0.001"}
    run, _ = train(capsys, "--algorithm", "FOAdam", "--lr_scheduler_type", "cosine")
    rates = [float(row["lr"]) for row in rows_of(run, "train")]
    assert rates == [pytest.approx(0.0005 * (1 + math.cos(math.pi * step / 6))) for step in range(6)]
    _, said = train(capsys, "--algorithm", "FOAdam", "--lr_scheduler_type", "adaptive", code=2)
    assert "follows the slopes that queries see, and FOAdam has none; take linear or cosine." in said
