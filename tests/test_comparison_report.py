"""What the report of a comparison says of costs, targets, rates and small numbers of trials; its axes."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from drawn_figures import drawn
from matplotlib.figure import Figure

from zotune.compare.curves import Curve, Result
from zotune.compare.plan import cells_of
from zotune.config import ConfigError, TrainConfig
from zotune.config.compare import CompareConfig
from zotune.reports.comparison.charts import _scale, charts_of, draw
from zotune.reports.comparison.conclusion import best_run, conclusion
from zotune.reports.comparison.costs import SMALLEST_MB, cost_table, settings_table, trained
from zotune.reports.comparison.findings import NONE, Findings, Table
from zotune.reports.comparison.page import _keys, _table
from zotune.reports.comparison.tables import tables_of
from zotune.reports.comparison.writing import write_report
from zotune.reports.style import LIGHT
from zotune.reports.words import LAST_BLOCKS
from zotune.sweep.watching import Watcher

__all__ = ["drawn"]  # a fixture, for pytest to find in this module


def a_result(label, trial, losses, *, algorithm="ZO", memory=1000.0, libraries=0.0, command=()):
    step = np.arange(len(losses), dtype=float)
    own = Curve(cost=100 * step, step=step, seconds=step, values={"loss": np.array(losses, dtype=float)})
    return Result(
        label=label,
        algorithm=algorithm,
        method=label,
        trial=trial,
        diverged=False,
        evaluations=own,
        training=own,
        memory_mb=memory,
        libraries_mb=libraries,
        settings={"lr": 0.001234567, "lr_scheduler_type": "constant", "batchsize": 16},
        command=list(command),
    )


def found(**by_label):
    reference = next(iter(by_label))
    return Findings(by_label=by_label, reference=reference, aim=None, trials=len(by_label[reference]))


def table(findings, title):
    return next(one for one in tables_of(findings) if one.title.startswith(title))


def with_shares(label, losses, accuracies, *, loss=0.69, accuracy=0.6):
    runs = []
    for trial in range(3):
        run = a_result(label, trial, losses)
        run.evaluations.values["accuracy"] = np.array(accuracies, dtype=float)
        run.settings.update(class_shares={"loss": loss, "accuracy": accuracy}, validation_examples=100)
        runs.append(run)
    return runs


# ------------------------------------------------------------------------------------------------------ sentences


def test_what_is_known_without_reading_is_a_row_a_sentence_and_no_target():
    findings = found(ZO=with_shares("ZO", [1.0, 0.7], [0.5, 0.55]), LOZO=with_shares("LOZO", [1.0, 0.3], [0.5, 0.9]))
    said = conclusion(findings, 100)
    assert said[2] == (
        "ZO has learnt nothing for certain: it does not end 2 % below the validation loss before its first step and"
        " that of predicting how frequent each class is, 0.6900, and is not right more often than both by two standard"
        " errors."
    )
    assert any(sentence.startswith("There is no target to be reached: a run of ZO") for sentence in said)
    assert table(findings, "At the end").rows[-1][:3] == ("shares of the classes", "0.6900", "0.6000")
    assert findings.targets() == []  # 0.7 and 0.55 are nothing to aim at
    learnt = found(LOZO=with_shares("LOZO", [1.0, 0.3], [0.5, 0.9]))
    assert learnt.targets() == [("loss", 0.3), ("accuracy", 0.9)]
    assert not [said for said in conclusion(learnt, 100) if "how frequent" in said]
    none = found(ZO=with_shares("ZO", [1.0, 0.7], [0.5, 0.5]), LOZO=with_shares("LOZO", [1.0, 0.8], [0.5, 0.5]))
    assert [
        said for said in conclusion(none, 100) if said.startswith("Nothing is learnt for certain: no method ends 2 %")
    ]


def test_the_command_that_trains_again_is_that_of_the_best_method_that_has_learnt_and_lost_no_run():
    sound, lucky = ([a_result(label, t, [1.0, end]) for t in range(3)] for label, end in (("ZO", 0.5), ("B", 0.4)))
    assert best_run(found(ZO=sound, B=lucky)) is lucky[0]
    lucky[1] = dataclasses.replace(lucky[1], diverged=True)
    assert best_run(found(ZO=sound, B=lucky)) is sound[0]
    assert best_run(found(B=lucky)) is None
    assert best_run(found(ZO=[a_result("ZO", t, [1.0, 0.99]) for t in range(3)])) is None  # hardly learnt


def test_a_method_that_is_right_but_too_sure_of_itself_has_learnt_something():
    findings = found(FOAdam=with_shares("FOAdam", [1.0, 0.9], [0.5, 0.88]))
    assert not [said for said in conclusion(findings, 100) if "how frequent" in said]


def test_there_is_no_figure_without_a_run_that_is_left():
    lost = [dataclasses.replace(run, diverged=True) for run in with_shares("ZO", [1.0, 9.0], [0.5, 0.5])]
    assert charts_of(lost) == []


def test_what_is_known_without_reading_is_a_line_in_the_figure():
    pictures = []
    for share in (0.6, 0.65):
        results = with_shares("ZO", [1.0, 0.7], [0.5, 0.55], accuracy=share)
        pictures.append([draw(chart, results, 100, LIGHT, "svg", title="x") for chart in charts_of(results)])
    assert [picture.count(b"shares of the classes") for picture in pictures[0]] == [1, 0, 1]  # not in training losses
    assert [one == other for one, other in zip(*pictures, strict=True)] == [False, True, True]


def test_one_method_is_no_winner_and_has_no_differences():
    findings = found(ZO=[a_result("ZO", trial, [1.0, 0.5]) for trial in range(3)])
    said = conclusion(findings, 100)
    assert said == ["At a budget of 100 forward passes ZO has a mean validation loss of 0.5000 ± 0.0000."]
    assert not [one for one in tables_of(findings) if one.title.startswith("Difference")]


def test_few_trials_are_in_the_sentence_itself():
    pairs = {
        label: [a_result(label, trial, [1.0, end]) for trial in range(2)] for label, end in (("ZO", 0.5), ("B", 0.4))
    }
    first, best = conclusion(found(**pairs), 100)
    assert first == "Two trials cannot tell methods apart; --trials 5 begins to."
    assert "B has the lowest mean validation loss" in best
    assert best.endswith("by two trials only.")


@pytest.mark.parametrize(
    ("trials", "of_means", "of_differences"),
    [
        (1, "There is one trial of each method, so there are no deviations.", False),
        (2, "The means are of 2 trials only: a deviation of so few says little, and one of 0.0000", True),
        (3, "", False),
    ],
)
def test_few_trials_are_below_the_tables(trials, of_means, of_differences):
    pairs = {
        label: [a_result(label, trial, [1.0, end]) for trial in range(trials)]
        for label, end in (("ZO", 0.5), ("B", 0.4))
    }
    note = table(found(**pairs), "At the end").note
    assert of_means in note
    assert ("trial" in note) == bool(of_means)
    assert ("13 standard errors" in table(found(**pairs), "Difference").note) == of_differences


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([{}, {}], f"partial, which trains {LAST_BLOCKS} (--full_parameter trains all weights)"),
        ([{"full_parameter": True}, {"tuning": "full"}], "full, which trains all weights"),
        ([{"tuning": "lora"}, {"tuning": "lora"}], "lora"),
        (
            [{}, {"tuning": "lora"}],
            f"partial A; lora B. Partial trains {LAST_BLOCKS} (--full_parameter trains all weights)",
        ),
        ([{"tuning": "full"}, {"tuning": "lora"}], "full A; lora B"),
    ],
)
def test_what_is_trained_is_said_in_words(settings, said):
    runs = {
        label: [dataclasses.replace(a_result(label, 0, [1.0, 0.5]), settings=own)]
        for label, own in zip("AB", settings, strict=True)
    }
    assert trained(found(**runs)) == said


def test_what_was_better_before_the_end_is_said():
    rose = [a_result("ZO", trial, [1.0, 0.2, 0.4]) for trial in range(3)]
    fell = [a_result("B", trial, [1.0, 0.5, 0.47]) for trial in range(3)]
    said = [sentence for sentence in conclusion(found(ZO=rose, B=fell), 200) if "before the end" in sentence]
    assert said == [
        "ZO had a lower validation loss before the end: 0.2000 after 100 forward passes, 0.4000 in the end."
    ]


@pytest.mark.parametrize(("command", "untuned"), [((), True), (("zotune", "train", "--lr", "1e-4"), False)])
def test_a_first_order_rate_that_nobody_tuned_is_said(command, untuned):
    adam = [a_result("FOAdam", trial, [1.0, 0.3], algorithm="FOAdam", command=command) for trial in range(3)]
    findings = found(ZO=[a_result("ZO", trial, [1.0, 0.5]) for trial in range(3)], FOAdam=adam)
    assert any("FOAdam ran at its default rate" in sentence for sentence in conclusion(findings, 100)) == untuned
    note = settings_table(findings).note
    assert ("FOAdam: the default" in note) == untuned
    assert ("The rates of FOAdam were given" in note) != untuned
    assert "measured" not in note.lower(), "no run has measured its rate"
    assert settings_table(findings).rows[0][1] == "0.00123457"


# --------------------------------------------------------------------------------------------------------- tables


def test_equal_differences_have_no_interval():
    pairs = {
        label: [a_result(label, trial, [1.0, end]) for trial in range(3)] for label, end in (("ZO", 0.5), ("B", 0.25))
    }
    assert table(found(**pairs), "Difference").rows == (("B", "-0.2500"),)


def test_a_target_reached_at_once_has_no_speed_up():
    late = [a_result("ZO", trial, [1.0, 0.9, 0.5]) for trial in range(3)]
    soon = [a_result("B", trial, [1.0, 0.4, 0.4]) for trial in range(3)]
    assert table(found(ZO=late, B=soon), "To a validation").rows[1][3].startswith("2.00")
    turned = table(found(B=soon, ZO=late), "To a validation")
    assert {row[3] for row in turned.rows} == {NONE}
    assert "give more --evaluations" in turned.note


def test_what_a_run_began_with_is_no_target():
    """The worst end is above the best beginning: at chance, whatever the means are."""
    ends = [a_result("ZO", 0, [0.70, 0.69]), a_result("ZO", 1, [0.68, 0.67]), a_result("ZO", 2, [0.69, 0.66])]
    assert found(ZO=ends).targets() == []


@pytest.mark.parametrize(("own", "ratio"), [(SMALLEST_MB / 2, NONE), (2 * SMALLEST_MB, "3.00\N{MULTIPLICATION SIGN}")])
def test_memory_on_a_cpu_is_without_the_libraries(own, ratio):
    small = [a_result("ZO", trial, [1.0, 0.5], memory=700 + own, libraries=700.0) for trial in range(3)]
    large = [a_result("B", trial, [1.0, 0.5], memory=600 + 3 * own, libraries=600.0) for trial in range(3)]
    found_here = cost_table(found(ZO=small, B=large))
    row = found_here.rows[1]
    assert row[:4] == ("B", f"{600 + 3 * own:,.0f}", f"{3 * own:,.0f}", ratio)
    assert ("says nothing" in found_here.note) == (ratio == NONE)
    there = {"device_used": "cuda:0"}
    on_gpu = cost_table(found(ZO=[dataclasses.replace(one, libraries_mb=0.0, settings=there) for one in small]))
    assert on_gpu.head[2] == "ratio to ZO"


# ----------------------------------------------------------------------------------------------------------- axes


@pytest.mark.parametrize(("losses", "scale"), [([1.0, 0.01], "log"), ([1.0, 0.2], "linear"), ([1.0, 0.0], "linear")])
def test_losses_decades_apart_have_a_logarithmic_axis(losses, scale):
    axes = Figure().subplots()
    axes.plot([0, 1], losses)
    _scale(axes, [np.array(losses)])
    assert axes.get_yscale() == scale
    if scale == "log":
        assert axes.get_ylim()[0] <= 0.01 < 1.0 <= axes.get_ylim()[1]


@pytest.mark.parametrize("label", ["ZO", "LOZO --rank 1 --full_parameter --weight_decay 0.5 --clipping", "x" * 250])
@pytest.mark.parametrize("methods", [1, 2, 7])
def test_the_legend_has_room_in_the_figure(label, methods, drawn):
    """Columns of long labels beside each other were cut off on both sides."""
    results = []
    for number in range(methods):
        results += [
            dataclasses.replace(run, label=f"{label} {number}") for run in with_shares("ZO", [1, 0.5], [0.5, 1])
        ]
    draw(charts_of(results)[0], results, 100, LIGHT, "png", title="x")
    (figure,) = drawn
    figure.draw_without_rendering()
    place = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= place.x0 < place.x1 <= figure.bbox.x1
    assert figure.axes[0].get_window_extent().height > 0.4 * figure.bbox.height


@pytest.mark.parametrize(("trials", "said"), [(1, None), (2, "mean of 2 trials, band"), (3, "mean of 3 trials, band")])
def test_a_figure_says_how_many_trials_a_line_is_of(trials, said):
    results = [a_result("ZO", trial, [1.0, 0.5]) for trial in range(trials)]
    picture = draw(charts_of(results)[0], results, 100, LIGHT, "svg", title="x").decode()
    assert ("trials" in picture) == (said is not None)
    assert (said or "") in picture


# --------------------------------------------------------------------------------------------------------- searches


@pytest.mark.parametrize(("losses", "value"), [([1.0, 0.5], 0.5), ([1.0, 5.0, 0.9], np.inf), ([1.0, 3.5], np.inf)])
def test_a_run_that_lost_what_it_began_with_is_diverged_in_a_search_too(losses, value):
    watcher = Watcher("loss", TrainConfig().resolved())
    for number, loss in enumerate(losses):
        state = type("State", (), {"global_step": number, "max_steps": 10})
        watcher.on_evaluate(None, state, None, metrics={"eval_loss": loss})
    assert watcher.value == value


def test_a_flag_that_the_settings_would_overrule_is_refused(tmp_path):
    best = tmp_path / "best.json"
    best.write_text(json.dumps({"ZO": {"lr": 0.5}}))
    config = CompareConfig(algorithms="ZO,LOZO", settings=best)
    with pytest.raises(ConfigError, match=r"best\.json has --lr for ZO, and the command gives it for all runs"):
        cells_of(config, {"lr": "0.1"}, tmp_path)
    assert cells_of(config, {"init_seed": "3"}, tmp_path)[0].given["lr"] == "0.5"
    own = CompareConfig(algorithms="ZO --lr 0.25,LOZO", settings=best)
    assert cells_of(own, {}, tmp_path)[0].given["lr"] == "0.25"


def test_variants_of_a_method_have_other_keys_in_the_tables():
    red, blue = "#FF0000", "#0000FF"
    rules = _keys([red, blue, red]).split("}")
    assert [f"background: {colour}" in rule for colour, rule in zip((red, blue), rules, strict=False)] == [True, True]
    assert "background" not in rules[2]
    assert red in rules[2]


# ------------------------------------------------------------------------------------------------------------- page


def cells(page):
    return re.findall(r"<t[hd][^>]*>.*?</t[hd]>", page)


def test_a_rate_that_was_measured_stays_on_one_line():
    rows = (("ZO", "0.00087 to 0.001, measured", "2"), ("LOREN", "0.0026 to 0.0031, measured", "6"))
    page = _table(Table("Settings", ("method", "lr", "num_queries"), rows), {})
    assert "<td>0.00087 to 0.001, measured</td>" in page  # td is nowrap
    assert "<th scope='col'>num_<wbr>queries</th>" in page


def test_a_column_is_words_as_a_whole_and_an_empty_cell_is_a_dash():
    rows = (("ZO", ""), ("LOREN", "x" * 50), ("HiZOO", "short"))
    found_cells = cells(_table(Table("Settings", ("method", "others"), rows), {}))
    others = [cell for number, cell in enumerate(found_cells) if number % 2]
    assert all('class="words"' in cell for cell in others)
    assert NONE in others[1]


def test_flags_and_names_of_methods_are_not_broken():
    note = "Give --lr auto, or LOZO-M & others <here>."
    page = _table(Table("T", ("method", "a"), (("LOZO --rank 1 --clipping --eps 0.1", "3"),), note), {})
    assert (
        'Give <span class="flag">--lr</span> auto, or <span class="flag">LOZO-M</span> &amp; others &lt;here&gt;.'
        in page
    )
    label = '<td class="long">LOZO <span class="flag">--rank 1</span> <span class="flag">--clipping</span>'
    assert f'{label} <span class="flag">--eps 0.1</span></td>' in page


def test_page_and_text_have_the_command_that_trains_again(tmp_path):
    findings = found(ZO=[a_result("ZO", trial, [1.0, 0.5]) for trial in range(3)])
    again = ("The first run of ZO again:", "zotune train --template '{a} <b>' --save_ckpt")
    told = {"budget": 100, "said": ["x."], "about": "y", "title": "z", "machine": "m"}
    page = write_report(tmp_path, findings, again=again, **told)
    assert '<pre class="wrap">zotune train --template &#x27;{a} &lt;b&gt;&#x27; --save_ckpt</pre>' in page.read_text()
    assert "The first run of ZO again:\n\n```\nzotune train --template '{a} <b>' --save_ckpt\n```" in (
        (tmp_path / "report.md").read_text()
    )
    assert page.read_text().index("<pre ") < page.read_text().index("<figure>")
    assert "again:" not in write_report(tmp_path, findings, **told).read_text()


def test_of_a_loss_that_counts_only_the_accuracy_is_told():
    runs = with_shares("ZO", [0.5, 0.45], [0.5, 0.55], loss=math.nan)
    for run in runs:
        run.settings["objective"] = "accuracy"
    (said, *_) = conclusion(found(ZO=runs), 100)
    assert said == (
        "Nothing is learnt for certain: no method is right more often than before its first step, and than the most"
        " frequent class, by two standard errors."
    )
    for run in runs:
        run.settings["objective"] = "f1"  # 10 % lower, which is a fall
    assert not any("learnt nothing" in said or "Nothing" in said for said in conclusion(found(ZO=runs), 100))


def test_a_guess_is_not_called_measured_and_a_missing_method_has_not_diverged():
    guess, known = ([a_result(label, t, [1.0, end]) for t in range(3)] for label, end in (("ZO", 0.9), ("B", 0.4)))
    for run in guess:
        run.settings.update(lr_measured={"lr": 1e-6, "guessed": True, "forwards": 9}, budget_queries=1000)
    known[0].command[:] = ["zotune", "train", "--lr", "1e-3"]
    said = conclusion(found(ZO=guess, B=known), 100)
    assert "The loss of ZO showed no curvature along the directions, so its rate is a guess." in said
    assert not any("measured" in sentence for sentence in said)
    findings = Findings(by_label={"ZO": known, "B": []}, reference="ZO", aim=None, trials=3)
    assert not any("diverged" in sentence for sentence in conclusion(findings, 100))


@pytest.mark.parametrize(("metric", "name"), [("positive_f1", "F1"), ("matthews", "Matthews correlation")])
def test_metrics_of_the_tasks_have_a_column(metric, name):
    runs = [a_result("ZO", trial, [1.0, 0.5]) for trial in range(3)]
    for run in runs:
        run.evaluations.values[metric] = np.array([0.1, 0.3])
    assert name in table(found(ZO=runs), "At the end").head
