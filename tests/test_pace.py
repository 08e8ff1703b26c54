"""Rates that follow the slopes: the factor's equations, and runs that are stopped, resumed and replayed with it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from command_runs import TINY, rows_of, shelf, stop_after, train, workshop
from torch import nn

from zotune import FZOO, LOREN, MeZO, MeZOSVRG, ZOAdam, digest
from zotune.cli import main
from zotune.hf.trainer import ZOTrainer
from zotune.pace import BRAKE, DRIFT, FALL, LATEST, LIMIT, MEASURED, MEMORY, RISE, STEPS, UNMEASURED, Pace
from zotune.rates import Rate, present_curvature, suggest_rate
from zotune.run.training import TrainingRun
from zotune.trajectory import Recorder, read

__all__ = ["shelf", "workshop"]


def again_of(run):
    """Curvatures that a run has measured on its way."""
    return [item for item in read(run / "trajectory.zo").items() if getattr(item, "kind", "") == "curvature"]


def measured(spread=4.0, curvature=40.0, error=0.0, lr=0.1, step=1.0):
    return Rate(
        lr=lr, step=step, share=0.1, curvature=curvature, error=error, slope=2.0, spread=spread, queries=48, length=4.0
    )


def test_the_rate_falls_as_the_curvature_grows():
    pace = Pace(measured(curvature=40.0))
    assert pace.factor() == 1.0
    for _ in range(30):
        pace.measured(160.0, 1e-3)
    assert pace.factor() == pytest.approx(1 / 4, rel=1e-4)
    assert pace.factor(normalised=True) == pace.factor()
    for _ in range(30):
        pace.measured(20.0, 1e-3)
    assert pace.factor() == pytest.approx(2.0, rel=1e-4)


def test_updates_that_are_normalised_by_themselves_follow_the_slopes_besides():
    pace = Pace(measured(spread=4.0))
    pace.mean = 1.0
    assert pace.factor() == 1.0
    assert pace.factor(normalised=True) == pytest.approx(1 / 2)
    pace.mean = 4.0 * LIMIT
    assert pace.factor(normalised=True) == pytest.approx(math.sqrt(LIMIT))


def test_measurements_count_by_their_errors():
    """The equations of a scalar Kalman filter, and the rate is that of the curvature one deviation above."""
    pace = Pace(measured(curvature=40.0, error=10.0))
    assert pace.factor() == 1.0
    old = 10.0**2 + (DRIFT * 40.0) ** 2
    weight = old / (old + 8.0**2)
    pace.measured(60.0, 8.0)
    assert pace.curvature == pytest.approx(40.0 + weight * 20.0)
    assert pace.variance == pytest.approx((1.0 - weight) * old)
    assert pace.factor() == pytest.approx(50.0 / (pace.curvature + math.sqrt(pace.variance)))
    sure, unsure = Pace(measured()), Pace(measured())
    sure.measured(80.0, 1.0)
    unsure.measured(80.0, 80.0)
    assert 79.0 < sure.curvature < 80.0
    assert 40.0 < unsure.curvature < 45.0
    unsure.measured(80.0, math.inf)
    assert unsure.curvature < 45.0


def test_small_samples_that_are_low_by_chance_have_small_errors_and_do_not_count_more_for_it():
    """Curvatures scatter in proportion to themselves: half as large with half the error is as uncertain."""
    pace, same = Pace(measured()), Pace(measured())
    pace.measured(20.0, 5.0)
    same.measured(40.0 + 1e-9, 10.0)
    assert pace.variance == pytest.approx(same.variance)


def test_no_single_measurement_makes_the_rate_jump():
    pace = Pace(measured())
    pace.measured(1e-9, 1e-12)
    assert pace.curvature == 40.0 / FALL
    assert 0.0 < pace.factor() <= FALL
    concave, convex = Pace(measured()), Pace(measured())
    concave.measured(-100.0, 1.0)
    convex.measured(100.0, 1.0)
    assert concave.factor() == convex.factor()  # what is concave will not stay so


def test_it_estimates_a_curvature_that_grows_from_noisy_samples():
    """Sixteen exponential samples each time: the error of what is known is below that of a single measurement."""
    generator = np.random.Generator(np.random.PCG64(3))
    known, single = [], []
    for _ in range(200):
        pace = Pace(measured(curvature=100.0, error=25.0))
        for truth in (110.0, 140.0, 170.0, 190.0, 200.0, 200.0):
            samples = generator.exponential(truth, size=16)
            pace.measured(float(samples.mean()), float(samples.std(ddof=1)) / 4.0)
        known.append(pace.curvature)
        single.append(float(samples.mean()))
    assert np.std(known) < 0.8 * np.std(single)
    assert 165.0 < np.mean(known) < 200.0


@pytest.mark.parametrize(
    ("total", "back"), [(None, LATEST[1]), (5000, LATEST[1]), (200, 200 * MEMORY), (30, LATEST[0])]
)
def test_the_mean_is_that_of_squared_slopes_and_the_measurement_counts_as_some_steps(total, back):
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer, pace = ZOAdam([weight], lr=0.5, eps=1e-2), Pace(measured(spread=9.0), total=total)
    optimizer.register_tell_hook(pace)
    mean = 9.0
    for step in range(1, 100):
        optimizer.tell([1.02, 0.98])  # the slope 2
        mean += (4.0 - mean) / min(MEASURED + step, back)
        assert pace.mean == pytest.approx(mean)
        assert optimizer.last_rates[0] == pytest.approx(0.5 * pace.planned(step - 1) * math.sqrt(mean / 9.0))


@pytest.mark.parametrize("method", [MeZO, ZOAdam])
def test_a_step_that_is_much_steeper_than_others_moves_the_weights_as_far_as_a_usual_one(method):
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer, pace = method([weight], lr=0.5, eps=1e-2), Pace(measured(spread=4.0), total=45)
    optimizer.register_tell_hook(pace)
    for _ in range(UNMEASURED):
        optimizer.tell([1.02, 0.98])  # the slope 2
    optimizer.tell([1.039, 0.961])  # a little less than `LIMIT` times as steep
    assert pace.limited == 1.0
    before, usual = pace.mean, pace.usual
    optimizer.tell([1.2, 0.8])  # ten times as steep
    assert pace.limited == pytest.approx(LIMIT * math.sqrt(usual) / 20.0)
    assert pace.usual == pytest.approx(usual + (LIMIT**2 - 1.0) * usual / (MEASURED + UNMEASURED + 2))
    assert pace.mean == pytest.approx(before + (LIMIT**2 * usual - before) / 5)
    steeper = pace.mean / (LIMIT * 4.0)  # and more curved, than when the curvature was measured
    assert steeper > 1.0
    if method is MeZO:
        assert optimizer.last_rates[0] == pytest.approx(0.5 * pace.limited / steeper)
    else:  # Adam has divided by the slope
        assert optimizer.last_rates[0] == pytest.approx(0.5 * math.sqrt(pace.mean / 4.0) / steeper)
    optimizer.tell([1.02, 0.98])
    assert pace.limited == 1.0


@pytest.mark.parametrize("limited", [True, False])
def test_a_few_steep_batches_do_not_lose_the_run(monkeypatch, limited):
    """One batch of 20 is 30 times as steep: without the limit the loss of the others ends above what it was."""
    if not limited:
        monkeypatch.setattr("zotune.pace.LIMIT", math.inf)
    weight = nn.Parameter(torch.full((20,), 1.0, dtype=torch.float64))
    optimizer = MeZO([weight], lr=0.01, eps=1e-3, seed=1)
    optimizer.register_tell_hook(Pace(measured(spread=4.0 * 20.0)))
    first = float(weight.detach().square().sum())
    for step in range(200):
        optimizer.step(lambda steep=30.0 if step % 20 == 19 else 1.0: steep * weight.square().sum())
    last = float(weight.detach().square().sum())
    assert last < 0.3 * first if limited else last > first


def test_it_warms_up_stays_and_falls_to_zero():
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = MeZO([weight], lr=0.5, eps=1e-2)
    optimizer.register_tell_hook(Pace(total=20))
    rates = []
    for _ in range(22):
        optimizer.tell([1.02, 0.98])
        rates.append(optimizer.last_rates[0])
    falling = [0.5 * left / 6 for left in (5, 4, 3, 2, 1, 0, 0)]  # the last three tenths, and nothing after them
    assert rates == pytest.approx([0.5 / 3, 1 / 3, *[0.5] * 13, *falling])


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
    pace = Pace(total=990)
    pace.limited = 0.1  # a step before was steep: no matter for a snapshot
    optimizer.register_tell_hook(pace)
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


def test_the_curvature_at_present_weights():
    """f = |w|^4 / 4: the Hessian's trace is (n + 2) |w|^2."""
    weight = nn.Parameter(torch.full((400,), 0.1, dtype=torch.float64))
    closure = lambda: weight.square().sum().square() / 4  # noqa: E731
    optimizer, before = MeZO([weight], lr=0.0), digest([weight])
    rate = suggest_rate(optimizer, [closure] * 16)
    found, error = present_curvature(optimizer, [closure] * 16, rate)
    assert 0.95 * 402 * 4.0 < found < 1.1 * 402 * 4.0  # at a length
    assert 0.0 < error < 0.1 * found
    assert digest([weight]) == before
    weight.data.mul_(2.0)
    found = present_curvature(optimizer, [closure] * 16, rate).value
    assert 0.95 * 402 * 16.0 < found < 1.1 * 402 * 16.0
    assert present_curvature(optimizer, [lambda: -closure()] * 16, rate).value == pytest.approx(-found)
    assert present_curvature(optimizer, [lambda: closure() * math.nan] * 16, rate) is None


def test_without_a_measurement_the_first_steps_stand_for_it():
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer, pace = ZOAdam([weight], lr=0.5, eps=1e-2), Pace()
    optimizer.register_tell_hook(pace)
    for _ in range(UNMEASURED):
        optimizer.tell([1.02, 0.98])
        assert optimizer.last_rates[0] == 0.5
    assert pace.spread == pytest.approx(4.0)
    optimizer.tell([1.04, 0.96])
    assert optimizer.last_rates[0] == pytest.approx(0.5 * math.sqrt(pace.mean / 4.0))
    assert pace.mean > 4.0
    assert pace.factor() == 1.0  # other rules have nothing to follow


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
    assert pace.factor() == 1.0
    assert pace.factor(normalised=True) == pytest.approx(1.0, rel=0.35)


@pytest.mark.parametrize("paced_first", [True, False])
def test_a_trajectory_repeats_it_without_knowing_of_it(tmp_path, paced_first):
    """Whichever of the two is registered first."""

    def started():
        weight = nn.Parameter(torch.linspace(0.1, 1.0, 50))
        return weight, MeZO([("weight", weight)], lr=1e-2, seed=3)

    weight, optimizer = started()
    if paced_first:
        optimizer.register_tell_hook(Pace(total=40))
    with Recorder(tmp_path / "run.zo", optimizer):
        if not paced_first:
            optimizer.register_tell_hook(Pace(total=40))
        for _ in range(40):
            optimizer.step(lambda: weight.square().sum())
    other, again = started()
    for step in read(tmp_path / "run.zo").items():
        if step.rate is not None:
            again.param_groups[0]["lr"] = step.rate
        again.tell(step.losses)
    assert digest([weight]) == digest([other])
    assert len({step.rate for step in read(tmp_path / "run.zo").items()}) > 12


@pytest.mark.usefixtures("workshop")
def test_runs_with_a_measured_rate_fall_to_zero_and_say_so(capsys, monkeypatch):
    monkeypatch.setattr("zotune.pace.LIMIT", math.inf)  # its own test is above, and that of
    monkeypatch.setattr("zotune.pace.LIFTED", 0.0)  # ... in test_descent
    run, _ = train(capsys, "--algorithm", "ZO", "--lr", "auto", "--epochs", "8")
    config = json.loads((run / "config.json").read_text())
    assert config["lr_scheduler_type"] == "adaptive"
    assert config["lr_measured"]["spread"] > 0.0
    found = [float(row["lr"]) for row in rows_of(run, "train")]
    assert len(found) == 24
    assert found[0] < 0.7 * found[1]  # two steps to warm up
    pace = Pace(total=24)
    factors = [rate / config["lr"] / pace.planned(step) for step, rate in enumerate(found)]
    assert len({round(factor, 6) for factor in factors}) == 1 + len(again_of(run))  # it follows what is measured
    assert all(0.1 < factor < 10.0 for factor in factors)
    assert found[-1] < 0.3 * max(found)


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize("method", ["ZO", "HiZOO"])
def test_the_curvature_is_measured_on_the_way_and_runs_go_on_with_it(capsys, monkeypatch, method):
    """Killed before and after it is measured at step 22, with checkpoints and without."""
    words = ("--algorithm", method, "--lr", "auto", "--epochs", "60", "--evaluations", "4")
    whole, said = train(capsys, *words)
    facts = json.loads((whole / "config.json").read_text())["lr_measured"]
    assert facts["again"] >= 4
    assert facts["later"] == 6 * 3 * facts["again"]  # six times, three queries of one row (an eighth of eight)
    taken = f"{facts['forwards'] - facts['later']} forward passes of one example; {facts['later']} more will be spent"
    assert taken in said
    events = again_of(whole)
    assert [event.step for event in events] == [5, 13, 22, 36, 63, 99]
    assert all(event.facts["error"] > 0.0 for event in events)
    assert len({event.facts["value"] for event in events}) == 6

    class Killed(BaseException):
        pass

    def kill():
        raise Killed

    for step, more in ((21, ()), (22, ()), (23, ()), (100, ("--save_ckpt", "--save_every", "0.1"))):
        with monkeypatch.context() as patch:
            patch.setattr(TrainingRun, "finish", lambda *_: None)
            stop_after(patch, step, kill)
            place = f"killed-{step}"
            with pytest.raises(Killed):
                main(["train", *TINY, *words, *more, "--results", place])
        capsys.readouterr()
        (run,) = (path.parent for path in Path(place).glob("*/*/*/config.json"))
        with monkeypatch.context() as patch:
            if step == 100:  # none is measured a second time
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


def test_a_loss_that_becomes_flat_or_concave_keeps_a_rate_within_bounds():
    """Nothing of what a measurement can say makes the rate negative, infinite or more than `RISE` times as large."""
    for first in (measured(curvature=100.0, error=10.0), measured(curvature=-2.0, error=3.0)):
        for value, error in ((0.0, 0.0), (-30.0, 5.0), (-3.0, 0.01), (1e-9, 1e-12)):
            pace = Pace(first)
            pace.mean = 100.0 * pace.spread
            for _ in range(20):
                pace.measured(value, error)
                for normalised in (False, True):
                    assert 0.0 < pace.factor(normalised=normalised) <= RISE
            pace.mean = pace.spread
            pace.measured(1e6, 1.0)
            assert pace.factor() < 0.1  # and finds back


def test_a_loss_that_rises_by_more_than_chance_halves_the_rate():
    draws = np.random.Generator(np.random.PCG64(3))
    pace = Pace(measured(), total=20 * STEPS)

    def window(mean, deviation=0.1):
        for loss in mean + deviation * draws.normal(size=STEPS):
            pace._watch([loss - 0.01, loss + 0.01])

    for mean in (1.0, 0.8, 0.5, 0.52, 0.5):
        window(mean)
    assert pace.braked == 1.0
    window(0.9)
    assert pace.factor() == pace.braked == BRAKE
    window(0.9)  # it is compared with what it was when the rate was halved
    assert pace.braked == BRAKE
    window(0.4)
    window(0.6)
    assert pace.braked == BRAKE**2


def test_noise_alone_does_not_halve_it():
    draws = np.random.Generator(np.random.PCG64(4))
    braked = 0
    for _ in range(100):
        pace = Pace(measured(), total=20 * STEPS)
        for loss in 1.0 + 0.3 * draws.standard_t(4, size=20 * STEPS):
            pace._watch([loss])
        braked += pace.braked < 1.0
    assert braked <= 2


@pytest.mark.parametrize("paced", [False, True])
def test_a_rate_that_is_too_high_for_a_parabola_is_braked_until_it_falls(paced):
    """MeZO on h/2 |w|^2 in 200 dimensions grows at any rate above about 2 / (h 200)."""
    weight = nn.Parameter(torch.full((200,), 0.1, dtype=torch.float64))
    optimizer = MeZO([weight], lr=2.5 * 2.0 / 202.0)
    pace = Pace(total=400)
    if paced:
        optimizer.register_tell_hook(pace)
    for _ in range(400):
        loss = optimizer.step(lambda: 0.5 * weight.square().sum())
        if loss > 1e6:
            break
    assert (loss > 1e6) != paced
    assert (pace.braked < 1.0) == paced
    assert loss < 1.0 or not paced  # which it was at first


def test_a_loss_that_has_become_steep_counts_as_more_curved_until_it_is_measured():
    """A run of FZOO that had learnt all, and whose curvature was measured as a tenth, left 0.003 for 1.4 otherwise."""
    pace = Pace(measured(spread=4.0))
    curvature = pace.curvature
    assert pace.factor() == 1.0
    pace.mean = 4.0 * LIMIT
    assert pace.factor() == pytest.approx(1.0), "as much happens by chance"
    pace.mean = 40.0 * LIMIT
    assert pace.factor() == pytest.approx(0.1)
    assert pace.factor(normalised=True) == pytest.approx(0.1 * math.sqrt(10.0 * LIMIT))
    pace.measured(curvature, 0.1 * curvature)
    assert pace.factor() > 0.9, "what is measured now is of now"


@pytest.mark.parametrize(("value", "error"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, -1.0), (1.0, math.nan)])
def test_what_is_no_measurement_is_refused(value, error):
    pace = Pace(measured())
    before = pace.factor()
    with pytest.raises(ValueError, match="leave it out"):
        pace.measured(value, error)
    assert pace.factor() == before


@pytest.mark.parametrize("total", [0, -3, 1.5, "x"])
def test_a_length_that_is_none_is_refused(total):
    with pytest.raises(ValueError, match="total"):
        Pace(measured(), total=total)


def test_mistakes_in_what_is_measured_are_sentences():
    weight = nn.Parameter(torch.ones(3))
    optimizer = MeZO([weight], lr=0.1)
    with pytest.raises(TypeError, match="a list, with a closure for each"):
        suggest_rate(optimizer, lambda: weight.sum())
    with pytest.raises(TypeError, match="SGD is none"):
        suggest_rate(torch.optim.SGD([weight], lr=0.1), [lambda: weight.sum()] * 2)
    assert present_curvature(optimizer, [lambda: weight.sum()] * 2, None) is None
