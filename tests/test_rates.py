"""`--lr auto`: the measured step against the best one of quadratic functions, and runs that take it."""

import json
import math

import numpy as np
import pytest
import torch
from command_runs import BATCH, shelf, train, workshop
from torch import nn

from zotune import FZOO, LOREN, LOZO, HiZOO, MeZO, MeZOSVRG, NonFiniteLossError, ZOAdam, digest
from zotune.hf.sampling import count_rows
from zotune.hf.trainer import ZOTrainer
from zotune.rates import (
    DECAY,
    LARGEST_SHARE,
    LENGTHS,
    REACH,
    UNKNOWN,
    WARM_UP,
    batches_for,
    most_rows,
    present_curvature,
    suggest_rate,
)

__all__ = ["shelf", "workshop"]
DIMENSION = 4000
EMBEDDED = ("--model_name", "embedded")


def numbers(count, seed):
    return np.random.Generator(np.random.PCG64(seed)).normal(size=count)


def quadratic(dtype=torch.float64):
    """f(w) = h/2 |w|^2 with the trace h * DIMENSION, away from its minimum."""
    weight = nn.Parameter(torch.full((DIMENSION,), 0.3, dtype=dtype))
    return weight, lambda: (2.5 * weight.double().square()).sum()  # h = 5


@pytest.mark.parametrize(
    ("method", "arguments", "best"),
    [
        (MeZO, {}, 1 / (5 * DIMENSION)),
        (MeZO, {"queries": 8}, 4 / (5 * DIMENSION)),
        (MeZO, {"momentum": 0.9}, 0.1 / (5 * DIMENSION)),
        (HiZOO, {}, 1 / (5 * DIMENSION)),
        (MeZOSVRG, {"period": 4}, 1 / (4 * 5 * DIMENSION)),
    ],
)
def test_it_is_the_line_search_of_a_quadratic(method, arguments, best):
    """Gaussian directions see the trace; K averaged ones may go K times as far."""
    weight, closure = quadratic()
    optimizer = method([weight], lr=0.0, **arguments)
    before = digest([weight])
    rate = suggest_rate(optimizer, [closure] * batches_for(optimizer))
    assert rate.step == pytest.approx(best, rel=0.05)
    assert rate.lr == pytest.approx(rate.share * rate.step)
    assert rate.share == pytest.approx(REACH / math.sqrt(UNKNOWN * optimizer.estimator.directions))
    assert rate.curvature == pytest.approx(5 * DIMENSION, rel=0.05)
    assert digest([weight]) == before
    assert rate.queries >= 3


def test_a_step_of_that_rate_is_the_best_one():
    weight, closure = quadratic()
    rate = suggest_rate(MeZO([weight], lr=0.0, seed=5), [closure] * 16)

    def after(lr):
        falls = []
        for seed in range(6):
            other, loss = quadratic()
            optimizer = MeZO([other], lr=lr, seed=seed)
            start = loss().item()
            optimizer.step(loss)
            falls.append(start - loss().item())
        return sum(falls)

    assert after(rate.step) > max(after(0.7 * rate.step), after(1.4 * rate.step), 0.0)


@pytest.mark.parametrize(("method", "arguments"), [(MeZO, {}), (MeZO, {"queries": 8}), (FZOO, {"queries": 9})])
def test_the_share_falls_with_the_root_of_the_directions_of_a_run(method, arguments):
    """Four times as many steps, or directions a step, halve it; a schedule counts as the squares of its shares."""

    def share(steps, schedule="constant"):
        weight, closure = quadratic()
        optimizer = method([weight], lr=0.0, **arguments)
        directions = optimizer.estimator.directions
        found = suggest_rate(optimizer, [closure] * 4, steps=steps, schedule=schedule)
        assert found.lr == pytest.approx(found.share * found.step)
        return found.share * math.sqrt(directions)

    assert share(400) == pytest.approx(REACH / 20.0)
    assert share(1600) == pytest.approx(REACH / 40.0)
    assert share(400, "linear") == pytest.approx(REACH / 20.0 * math.sqrt(3.0))
    assert share(400, "cosine") == pytest.approx(REACH / 20.0 * math.sqrt(8.0 / 3.0))
    weights = [min(1.0, 10 * (t + 1) / 400, (400 - t) / 400 / DECAY) for t in range(400)]
    assert pytest.approx(0.1) == WARM_UP
    squares = sum(w * w for w in weights)
    assert share(400, "adaptive") == pytest.approx(REACH / math.sqrt(squares), rel=1e-2)


def test_it_is_never_beyond_the_largest_share():
    weight, closure = quadratic()
    assert suggest_rate(MeZO([weight], lr=0.0), [closure] * 4, steps=2).share == LARGEST_SHARE
    assert suggest_rate(MeZO([weight], lr=0.0), [closure] * 4, steps=400, factor=0.5).share == REACH / 40.0
    with pytest.raises(ValueError, match="schedule='steps': choose one of constant, linear, cosine, adaptive"):
        suggest_rate(MeZO([weight], lr=0.0), [closure] * 4, schedule="steps")


@pytest.mark.parametrize("noise", [0.1, 0.15, 0.2])
def test_where_slopes_are_mostly_noise_the_share_ends_where_a_search_does(noise):
    """Quadratics with 400 equal curvatures whose slopes, 0.05 each, have up to four times as much noise; 250 steps."""

    def lost(share):
        generator = np.random.Generator(np.random.PCG64(5))
        weight = nn.Parameter(torch.full((400,), 0.05, dtype=torch.float64))
        optimizer = MeZO([weight], lr=share / 400, seed=5)
        for _ in range(250):
            line = torch.from_numpy(generator.normal(size=400)) * noise
            optimizer.step(lambda line=line: 0.5 * weight.square().sum() + weight @ line)
        return 0.5 * float(weight.detach().square().sum())

    own = REACH / math.sqrt(250)
    losses = {times: lost(times * own) for times in (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)}
    assert losses[1.0] < 1.05 * min(losses.values())
    assert losses[0.125] > losses[1.0] < losses[4.0]


def test_rescaled_rules_move_as_far():
    """Adam's first moments divide by the root of the mean square of w; FZOO's weights are the losses' scores."""
    weight, closure = quadratic()
    plain = suggest_rate(MeZO([weight], lr=0.0), [closure] * 16)
    adam = suggest_rate(ZOAdam([weight], lr=0.0), [closure] * 16)
    assert adam.step == pytest.approx(plain.step * plain.slope, rel=0.02)
    signs = suggest_rate(FZOO([weight], lr=0.0, queries=9), [closure] * 16)
    # Its weights are those of the estimate over sigma, which is eps times the spread of the slopes.
    assert signs.step == pytest.approx(8 * plain.step * 1e-3 * plain.slope, rel=0.3)


def test_low_rank_and_learnt_directions_have_rates():
    matrix = nn.Parameter(torch.full((40, 100), 0.3, dtype=torch.float64))
    closure = lambda: (2.5 * matrix.square()).sum()  # noqa: E731
    lozo = suggest_rate(LOZO([matrix], lr=0.0, rank=2), [closure] * 16)
    # D = U V^T has the mean square 2, and the update a factor 1/2: the trace is 2 x 5 x 4000, eta* 1 / (that / 2).
    assert lozo.step == pytest.approx(1 / (5 * 4000), rel=0.15)
    loren = suggest_rate(LOREN([matrix], lr=0.0), [closure] * 8)
    assert loren.step > 0.0


def test_a_slope_that_curvature_hides_has_a_rate_like_any_other(monkeypatch):
    """Of one-sided losses: for some draws of a few directions the weights of the plan point uphill on the whole."""

    def step(seed):
        weight = nn.Parameter(torch.zeros(6, dtype=torch.float64))
        closure = lambda: 1.0 + 0.02 * weight.sum() + weight[:2].square().sum()  # noqa: E731
        rate = suggest_rate(LOREN([weight], lr=0.0, eps=0.1, seed=seed), [closure] * 4)
        return None if rate is None else rate.step

    steps = [step(seed) for seed in range(12)]
    assert max(steps) < 8 * min(steps)
    monkeypatch.setattr("zotune.rates.without_curvature", lambda _, sample: sample)
    without = [step(seed) for seed in range(12)]
    assert without.count(None) == 2
    assert [own for own, other in zip(steps, without, strict=True) if other is not None] == list(filter(None, without))


def test_flat_functions_have_none():
    weight = nn.Parameter(torch.ones(50))
    assert suggest_rate(MeZO([weight], lr=0.0), [lambda: weight.sum() * 0.0] * 8) is None


def test_a_concave_loss_has_the_rate_of_a_convex_one_of_that_curvature():
    """What falls in all directions at first, behind a badly calibrated head, will not stay so."""
    weight = nn.Parameter(torch.full((400,), 0.1, dtype=torch.float64))
    up, down = (
        suggest_rate(MeZO([weight], lr=0.0), [lambda s=sign: 40.0 + s * weight.square().sum()] * 16)
        for sign in (1.0, -1.0)
    )
    assert down.curvature == pytest.approx(2.0 * 400, rel=0.1)
    assert down.lr == pytest.approx(up.lr, rel=0.1)


def test_longer_probes_where_rounding_drowns_the_curvature():
    """A loss in float32 around 1000: at eps 1e-3 its second difference is rounding only."""
    weight = nn.Parameter(torch.full((400,), 0.1))
    closure = lambda: 1000.0 + 0.05 * weight.square().sum()  # noqa: E731
    rate = suggest_rate(MeZO([weight], lr=0.0), [closure] * 16)
    assert 3 * 16 < rate.queries <= 3 * 16 * len(LENGTHS)
    assert rate.curvature == pytest.approx(0.1 * 400, rel=0.3)


@pytest.mark.parametrize("queries", [2, 8, 40, 100])
def test_a_few_dozen_queries(queries):
    weight, closure = quadratic()
    optimizer, calls = MeZO([weight], lr=0.0, queries=queries), []
    rate = suggest_rate(optimizer, [lambda: calls.append(1) or closure()] * batches_for(optimizer))
    assert len(calls) == rate.queries  # those on the CPU check nothing else
    assert 48 <= rate.queries <= 100
    assert rate.step == pytest.approx(queries / 2 / (5 * DIMENSION), rel=0.1)


def test_bad_arguments_are_told():
    weight, closure = quadratic()

    def ask(optimizer=None, closures=(closure,) * 8, **how):
        return suggest_rate(optimizer or MeZO([weight], lr=0.0), closures, **how)

    for number in (0, -3):
        with pytest.raises(ValueError, match="steps"):
            ask(steps=number)
        with pytest.raises(ValueError, match="factor"):
            ask(factor=number)
    for closures in ((), (closure,)):
        with pytest.raises(ValueError, match="give a closure for each of two or more"):
            ask(closures=closures)
    groups = [{"params": [weight]}, {"params": [nn.Parameter(torch.ones(2))], "eps": 0.1}]
    with pytest.raises(ValueError, match="give all groups the same eps"):
        ask(MeZO(groups, lr=0.0))
    with pytest.raises(ValueError, match="give a closure for each of two or more"):
        present_curvature(MeZO([weight], lr=0.0), [closure], ask())


def test_where_no_curvature_is_to_be_seen_the_largest_that_there_can_be_counts():
    """A line with noise: the mean of h_k is zero within its error."""
    weight, line = nn.Parameter(torch.zeros(400, dtype=torch.float64)), torch.from_numpy(numbers(400, 1))
    noise = iter(1e-4 * numbers(4096, 2))
    rate = suggest_rate(MeZO([weight], lr=0.0), [lambda: 5.0 + weight @ line + next(noise)] * 16, steps=100)
    assert rate.length == LENGTHS[-1]  # the longest probes see the least of it
    assert 0.0 < rate.curvature + rate.error < 6.0 * 1e-4 / (0.256**2)
    assert rate.lr > 0.0


def test_probes_that_are_too_long_for_the_loss_become_shorter():
    """A loss that is infinite beyond a distance of two eps."""
    weight = nn.Parameter(torch.zeros(400, dtype=torch.float64))

    def closure():
        square = weight.square().sum()
        return 1.0 + 2.5 * square if square < 400 * (2e-3) ** 2 else square * math.inf

    rate = suggest_rate(MeZO([weight], lr=0.0), [closure] * 16)
    assert rate is None  # the slopes are zero
    weight.data.fill_(1e-4)
    rate = suggest_rate(MeZO([weight], lr=0.0), [closure] * 16)
    assert rate.curvature == pytest.approx(5 * 400, rel=0.05)
    with pytest.raises(NonFiniteLossError):
        suggest_rate(MeZO([weight], lr=0.0, eps=1.0), [closure] * 16)


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize("method", ["ZO", "ZOSVRG", "LOZO", "LOREN"])
def test_runs_measure_say_and_keep_their_rate(capsys, method):
    words = ("--algorithm", method, "--lr", "auto", "--lr_scheduler_type", "linear", *EMBEDDED)
    run, said = train(capsys, *words)
    config = json.loads((run / "config.json").read_text())
    assert config["lr"] == config["lr_measured"]["lr"] > 0.0
    assert f"--lr auto: {config['lr']:.3g}, {config['lr_measured']['share']:.0%} of the best single step" in said
    if method == "ZOSVRG":
        assert config["lr_mezosvrg_mb"] == config["lr"]
    again, _ = train(capsys, *words)
    assert json.loads((again / "config.json").read_text())["lr"] == config["lr"]
    same, _ = train(capsys, *words[:2], "--lr", repr(config["lr"]), *words[4:])
    if method != "ZOSVRG":
        rows = [[line.split(",")[5] for line in (r / "metrics.csv").read_text().splitlines()] for r in (run, same)]
        assert rows[0] == rows[1]  # the measurement leaves no trace in the run


@pytest.mark.usefixtures("workshop")
def test_the_measurement_is_part_of_a_budget(capsys):
    run, _ = train(capsys, "--algorithm", "ZO", "--lr", "auto", "--budget_queries", "1600", *EMBEDDED)
    config = json.loads((run / "config.json").read_text())
    spent = config["lr_measured"]["forwards"]
    assert 100 < spent < 800
    assert config["budget_queries"] == 1600 - spent
    before = spent - config["lr_measured"]["later"]
    assert before <= most_rows(MeZO([nn.Parameter(torch.zeros(1))], lr=0.0), BATCH) < 1600
    _, said = train(capsys, "--algorithm", "ZO", "--lr", "auto", "--budget_queries", "70", code=2)
    assert "--budget_queries 70 is used up by --lr auto" in said
    assert list(run.parent.parent.parent.glob("*/*/*")) == [run]  # no empty folder


@pytest.mark.usefixtures("workshop")
def test_micro_batches_do_not_change_it(capsys):
    """A step is measured, however it is cut."""
    words = ("--algorithm", "ZO", "--lr", "auto", *EMBEDDED)
    whole, cut = (
        json.loads((train(capsys, *words, *more)[0] / "config.json").read_text())["lr_measured"]
        for more in ((), ("--batchsize_limit", "2"))
    )
    assert cut["forwards"] == whole["forwards"]
    for name in ("lr", "spread", "curvature", "step", "share"):
        assert cut[name] == pytest.approx(whole[name], rel=1e-2)


@pytest.mark.usefixtures("workshop")
def test_first_order_methods_have_none(capsys):
    _, said = train(capsys, "--algorithm", "FOAdam", "--lr", "auto", code=2)
    assert "give FOAdam a number" in said


@pytest.mark.usefixtures("workshop")
def test_a_measurement_that_runs_out_of_memory_takes_fewer_rows_or_says_so(capsys, monkeypatch):
    words = ("--algorithm", "ZO", "--lr", "auto")
    whole, _ = train(capsys, *words)
    real, asked = ZOTrainer._loss_on, []

    def loss_on(self, model, inputs):
        asked.append(count_rows(inputs))
        if asked[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return real(self, model, inputs)

    monkeypatch.setattr(ZOTrainer, "_loss_on", loss_on)
    run, _ = train(capsys, *words, "--on_out_of_memory", "halve")
    first = asked.index(BATCH)
    assert asked[first : first + 4] == [BATCH, BATCH // 2, BATCH // 4, BATCH // 4]
    assert set(asked[:first]) == {1}  # small batches, which have found the length of the probes
    found = [json.loads((path / "config.json").read_text())["lr"] for path in (whole, run)]
    assert found[1] == pytest.approx(found[0], rel=1e-3)  # the same losses, in parts
    _, said = train(capsys, *words, code=1)
    assert "not enough memory for a forward pass of 8 rows; give --on_out_of_memory halve" in said


@pytest.mark.parametrize("queries", [2, 12, 48])
def test_the_length_of_the_probes_does_not_need_many_closures(queries):
    """As many as are recommended, and a loss that is rounded so that short probes see nothing of its curvature."""
    weight = nn.Parameter(torch.full((1000,), 0.03, dtype=torch.float64))

    def closure():
        return round(float(1.0 + 2.5e-4 * weight.detach().square().sum()), 5)

    optimizer = MeZO([weight], lr=0.0, queries=queries)
    rate = suggest_rate(optimizer, [closure] * batches_for(optimizer))
    assert rate.length == LENGTHS[-1]
    assert rate.curvature == pytest.approx(0.5, rel=0.15)


def test_a_curvature_that_drowns_in_rounding_is_at_least_what_keeps_the_loss_above_zero():
    """A line: its curvature is rounding, and a step goes no further than to where the loss would be zero."""
    weight = nn.Parameter(torch.ones(400, dtype=torch.float64))
    rate = suggest_rate(MeZO([weight], lr=0.0), [lambda: weight.sum()] * 9)
    assert rate is None or rate.step <= 2.0 * 400.0 / rate.slope**2 * 1.01


@pytest.mark.parametrize("seed", range(4))
def test_probes_end_where_the_loss_has_changed_whatever_its_curvature(seed):
    """Curvatures of both signs that differ more than their mean, and a loss that has nowhere to go further out: longer
    probes would see a curvature that is twenty times too small."""
    weight = nn.Parameter(torch.zeros(400, dtype=torch.float64))
    matrix = torch.from_numpy(numbers(400 * 400, seed).reshape(400, 400))
    matrix = 1500.0 / 400 * torch.eye(400) + 4.0 * (matrix + matrix.T)  # of trace 1500, curvatures differ by 3200
    line = torch.from_numpy(numbers(400, 9))
    closures = [lambda: 1.0 + 0.5 * torch.tanh(weight @ (line + matrix @ weight))] * 16
    rate = suggest_rate(MeZO([weight], lr=0.0, seed=seed), closures, steps=100)
    assert rate.length < 20.0
    assert rate.curvature + rate.error > 500.0
