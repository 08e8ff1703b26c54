"""The picture of `zotune sweep`: its axis, its signs, and what it says of the chosen run."""

import math

import pytest
from drawn_figures import drawn

optuna = pytest.importorskip("optuna", reason="zotune sweep needs optuna: pip install 'zotune[sweep]'.")
from zotune.reports.style import DARK, LIGHT, columns_of  # noqa: E402
from zotune.reports.sweep import _with_others  # noqa: E402
from zotune.reports.sweep_plot import Found, draw, is_wide, limits_of, points_of, whole  # noqa: E402

__all__ = ["drawn"]  # a fixture, for pytest to find in this module

RATES = {"lr": optuna.distributions.FloatDistribution(1e-6, 1e30, log=True)}


def trial(rate, loss, *, state="COMPLETE", metric="loss", value=None):
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState[state],
        params={"lr": rate},
        distributions=RATES,
        value=None if state == "PRUNED" else loss if value is None else value,
        user_attrs={"scores": {metric: loss} if math.isfinite(loss) else {}},
    )


def numbered(*trials):
    for number, one in enumerate(trials):
        one.number = number
    return list(trials)


FEW = numbered(trial(6e-3, 0.1553), trial(5e-2, math.inf), trial(1e-3, 0.3388), trial(9e-3, 0.1405))


def picture(found, metric="loss", theme=LIGHT, about=""):
    return draw(found, metric, "svg", theme, about=about).decode()


def test_a_run_that_diverged_has_no_place_on_the_axis_whatever_its_accuracy():
    trials = numbered(trial(1e-3, 0.5, metric="accuracy"), trial(1e20, 0.5, metric="accuracy", value=-math.inf))
    assert [point.value for point in points_of(Found(trials), "accuracy")] == [0.5, math.inf]


def test_the_axis_of_the_metric_leaves_out_what_is_far_off():
    low, high = limits_of([0.1, 0.2, 0.3, 0.4, 1e9, math.inf])
    assert low < 0.1
    assert 0.4 < high < 1e9
    assert limits_of([math.inf]) == (0.0, 1.0)
    low, high = whole([0.5, 0.5, 0.5, 0.9, math.inf])  # of accuracies, the best of which is the highest
    assert low < 0.5 < 0.9 < high


def test_the_axis_has_all_of_a_few_runs():
    low, high = limits_of([0.1553, math.inf, 0.3388, 0.1405])
    assert low < 0.1405 < 0.3388 < high
    assert limits_of([0.14] * 6 + [0.15] * 6 + [0.7] * 2)[1] < 0.7


def test_what_is_nearly_equal_looks_so():
    low, high = limits_of([0.1553, 0.1565])
    assert high - low >= 0.1 * 0.1553
    low, high = limits_of([0.2, 0.2])
    assert low < 0.2 < high
    low, high = whole([0.9, 0.9])
    assert high - low == pytest.approx(0.04)


def test_losses_some_times_as_large_as_others_have_a_logarithmic_axis():
    assert is_wide([0.1, 0.2, 0.5, 0.9])
    assert not is_wide([0.14, 0.15, 0.34])
    trials = numbered(trial(1e-3, 1.0), trial(1e-2, 0.001), trial(1e-1, math.inf))
    found = picture({"ZO": Found(trials, {}, 0)})
    assert all(f">{tick}</text>" in found for tick in ("0.001", "0.1", "1"))
    assert found.startswith("<?xml")


def test_the_legend_has_the_signs_that_are_there_and_no_others():
    def signs(found, metric="loss"):
        text = picture(found, metric)
        every = ("finished", "broken off", "diverged", "worse than", "another draw", ">chosen<")
        return {name.strip("><") for name in every if name in text}

    assert signs({"ZO": Found(FEW)}) == {"finished", "diverged"}
    assert signs({"ZO": Found(FEW, {3: [0.12]}, 3)}) == {"finished", "diverged", "another draw", "chosen"}
    more = numbered(*(trial(1e-3 * n, 0.14 + 0.001 * n) for n in range(1, 12)), trial(0.5, 9.0, state="PRUNED"))
    assert signs({"ZO": Found(more)}) == {"finished", "worse than"}
    assert "broken off" in signs({"ZO": Found(FEW), "LOZO": Found(numbered(trial(1e-3, 0.3, state="PRUNED")))})
    assert signs({"ZO": Found([])}) == set()


def test_the_title_says_what_was_chosen_and_that_it_is_a_mean():
    text = picture(
        {"ZO": Found(FEW, {3: [0.1285], 0: [0.2]}, 3)}, about="sst2 with embedded, 3,000 forward passes a run"
    )
    assert "chosen: lr 0.009, loss 0.1345, mean of 2 draws" in text
    assert "sst2 with embedded, 3,000 forward passes a run" in text
    assert "chosen: lr 0.009, loss 0.1405<" in picture({"ZO": Found(FEW, {}, 3)})
    assert "no run with a rate has ended" in picture({"ZO": Found([])})


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
@pytest.mark.parametrize("methods", [1, 2, 3, 5])
def test_the_legend_and_titles_have_room(theme, methods, drawn):
    every = [
        *FEW,
        *(trial(1e-3 * n, 0.14 + 0.001 * n) for n in range(1, 12)),
        trial(0.5, 9.0),
        trial(2e-3, 0.2, state="PRUNED"),
    ]
    labels = [
        f"LOZO --rank {n} --full_parameter --weight_decay 0.5 --clipping --step_interval 100" for n in range(methods)
    ]
    draw({label: Found(numbered(*every), {3: [0.13]}, 3) for label in labels}, "loss", "png", theme)
    (figure,) = drawn
    figure.draw_without_rendering()
    for text in (figure.legends[0], *(axes.title for axes in figure.axes)):
        place = text.get_window_extent()
        assert figure.bbox.x0 <= place.x0 < place.x1 <= figure.bbox.x1


def test_columns_of_a_legend_are_as_many_as_have_room():
    assert columns_of(["a"] * 3, 10.0) == 3
    assert columns_of(["a"] * 9, 10.0) == 5
    assert columns_of(["a" * 50] * 3, 10.0) == 2
    assert columns_of(["a" * 200, "b"], 10.0) == 1
    assert columns_of([], 10.0) == 1


def test_rows_of_other_methods_stay_in_the_table(tmp_path):
    path = tmp_path / "trials.csv"
    head = "method,run,state,forward_passes,lr"
    own = f"{head},loss,draws,mean_loss\nZO,1,finished,96,0.001,0.5,1,0.5\n"
    assert _with_others(own, path, {"ZO"}) == own  # there is none yet
    path.write_text(
        f"{head},rank,loss,draws,mean_loss\nZO,1,finished,9,0.1,,9,1,9\nLOZO,1,finished,96,0.01,2,0.4,1,0.4\n"
    )
    assert _with_others(own, path, {"ZO"}) == (
        f"{head},loss,rank,draws,mean_loss\nZO,1,finished,96,0.001,0.5,,1,0.5\nLOZO,1,finished,96,0.01,0.4,2,1,0.4\n"
    )
    path.write_bytes(b"\xff\xfe")
    assert _with_others(own, path, {"ZO"}) == own
