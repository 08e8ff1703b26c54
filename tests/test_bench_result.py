"""What `zotune bench` says beside its numbers: how far to trust them, what has none, and what is left after a stop."""

import itertools
import json
import os
import re
import signal
import sys

import pytest
import tiny_models
import torch
from rich.console import Console

from zotune.bench import launch, models, report
from zotune.bench import measure as measuring
from zotune.bench.clock import quartiles, spread
from zotune.bench.costs import FORWARD, STEP, Cost, Foresight
from zotune.bench.measure import Refused
from zotune.bench.notes import Certainty, certainty, notes
from zotune.bench.variants import VARIANTS, variants
from zotune.cli import main
from zotune.config import BenchConfig

SMALL = ["--batchsize", "2", "--max_seq_length", "8", "--rounds", "2", "--device", "cpu"]
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
CALM = Certainty(small=False, time=0.01)
MB = 10**6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("models") / "opt"
    tiny_models.save(place, "opt")
    return place


def bench(capsys, *words, code=0):
    ended = main(["bench", *map(str, words)])
    out, err = capsys.readouterr()
    assert ended == code, err
    assert "Traceback" not in err
    return out, err


def variant_of(title):
    return next(variant for variant in VARIANTS if variant.title == title)


def cost(title="MeZO", steps=(2.0, 2.0, 2.0), forwards=(1.0, 1.0, 1.0), *, memory=200 * MB, inference=200 * MB):
    middle, forward = quartiles(steps)[0], quartiles(forwards)[0]
    samples = {STEP: list(steps), FORWARD: list(forwards)}
    return Cost(
        variant=variant_of(title),
        seconds=middle,
        forward=forward,
        memory=memory,
        inference=inference,
        samples=samples,
    )


def told(*entries, device=CPU, **settings):
    """Lines below the table."""
    return notes(BenchConfig(model_name="m", **settings), entries, certainty(entries, device))


def shown(*entries, trust=CALM, **settings):
    """Lines of the table."""
    console = Console(width=200)
    grid = report.table(BenchConfig(model_name="m", **settings), entries, None, trust, title="")
    with console.capture() as capture:
        console.print(grid)
    return capture.get().splitlines()


# ---------------------------------------------------------------------------------------------- how certain


def test_the_spread_is_the_distance_of_the_quartiles_over_the_median():
    assert spread([2.0]) is None
    assert spread([]) is None
    assert spread([0.0, 0.0]) is None
    assert spread([1.0, 2.0, 4.0]) == 0.75  # half of the range
    assert spread([1.0, 2.0, 3.0, 4.0, 500.0]) == pytest.approx(2 / 3)  # one disturbed round counts little


def test_times_are_as_uncertain_as_the_forward_pass_over_all_methods():
    entries = [cost("MeZO", forwards=[1.0] * 3), cost("HiZOO", (4.5, 4.5, 4.5), forwards=[1.5] * 3)]
    trust = certainty(entries, CPU)
    assert trust.time == pytest.approx(0.5 / 1.25)
    assert trust.rough
    (line,) = told(*entries)
    assert line == (
        "Times are uncertain by about 40 %: the machine was busy with other work (the same forward pass took from"
        " 1.00 s to 1.50 s). Measure again when it is idle."
    )


def test_or_as_the_rounds_of_a_method_in_the_middle():
    entries = [cost("MeZO", (2.0, 2.5, 3.5)), cost("HiZOO", (3.0, 3.5, 4.9)), cost("FZOO", (8.0, 8.0, 8.0))]
    assert certainty(entries, CPU).time == pytest.approx(0.95 / 3.5)
    (line,) = told(*entries)
    assert "uncertain by about 27 %: the machine was busy with other work. Measure" in line


def test_a_single_method_that_was_disturbed_is_named():
    entries = [cost("MeZO"), cost("HiZOO", (3.0, 3.5, 4.9)), cost("FZOO", (8.0, 8.0, 8.0))]
    assert not certainty(entries, CPU).rough
    assert told(*entries) == ["The times of some methods are uncertain, as their rounds tell: HiZOO by 27 %."]


def test_calm_measurements_of_a_large_model_need_no_line():
    assert told(cost(), cost("HiZOO", (3.1, 3.0, 3.0))) == []
    assert certainty([cost(steps=[2.0], forwards=[1.0])], CPU).time is None


def test_of_what_is_foretold_it_is_said_that_it_is_rough_and_no_more():
    entry = Cost(variant=variant_of("MeZO"), seconds=2.1, forward=1.0, memory=MB, inference=MB)
    assert certainty([entry], CPU) == Certainty(small=False, time=None)
    (said,) = told(entry, plan=True)
    assert said.startswith("Foretold times are rough, and several times too short for models of a few million weights")


def test_a_ratio_of_times_is_that_of_neighbours():
    entry = cost(steps=[2.0, 6.0, 6.0], forwards=[1.0, 1.0, 3.0])
    assert entry.ratio == 1.0  # the quotient of the medians is 3
    assert entry.ratio_spread == pytest.approx(0.25)  # 1.0, 1.5, 1.0
    assert cost(steps=[2.0], forwards=[1.0]).ratio_spread is None


@pytest.mark.parametrize(
    ("titles", "lines"),
    [
        (["MeZO"], ["x passes below 1 is noise."]),
        (
            ["MeZO", "LOZO, stacked"],
            [
                "LOZO can make its forward passes together, which takes less time than one after another.",
                "x passes below 1 is noise, but for LOZO.",
            ],
        ),
        (
            ["LOZO, stacked"],
            ["LOZO can make its forward passes together, which takes less time than one after another."],
        ),
    ],
)
def test_a_step_that_is_faster_than_its_passes_is_explained(titles, lines):
    assert told(*[cost(title, [1.9] * 3) for title in titles]) == lines


def test_the_memory_ratio_of_a_small_model_is_called_uncertain():
    small = cost(memory=20 * MB, inference=25 * MB)
    (line,) = told(small)
    assert line.startswith("x inference is uncertain: a forward pass takes less than 100 MB")
    assert line.endswith("is noise (as a ratio below 1 shows).")
    assert told(cost(memory=26 * MB, inference=25 * MB))[0].endswith("itself is noise.")
    assert told(cost(memory=190 * MB))[0].startswith("x inference below 1 is noise")
    assert told(cost(memory=26 * MB, inference=25 * MB), device=GPU) == []  # its allocator is exact


def test_ratios_have_as_many_decimals_as_they_are_worth():
    entry = cost(steps=[2.2] * 3, memory=210 * MB)
    assert shown(entry)[-1].split()[4] == "1.10"
    rough = shown(entry, trust=Certainty(small=True, time=0.2))[-1].split()
    assert rough[4] == "1.1"
    assert rough[7] == "1.1" or rough[7] == "1.0"
    assert shown(entry)[-1].split()[7] == "1.05"


def test_uncertain_times_name_no_cheapest_query():
    config = BenchConfig(model_name="m")
    entries = [cost(), cost("HiZOO", [3.0] * 3)]
    assert report.advice(config, entries, None, CALM)[0].startswith("Cheapest query: ")
    rough = report.advice(config, entries, None, Certainty(small=False, time=0.2))
    assert rough[0].startswith("A good first try that fits: HiZOO")


def test_the_column_of_steps_has_one_unit_and_snapshots_are_explained():
    entries = [cost(steps=[0.095] * 3, forwards=[0.05] * 3), cost("MeZO-SVRG", [0.2] * 3, [0.05] * 3)]
    lines = shown(*entries)
    above, heading = next((a, b) for a, b in itertools.pairwise(lines) if b.startswith("method"))
    assert above.strip() == "1000 steps"
    assert heading.endswith("min:s")
    assert [line.split()[-1] for line in lines[-2:]] == ["1:35", "28:20"]
    line = next(line for line in told(*entries) if line.startswith("MeZO-SVRG"))
    assert line == (
        "MeZO-SVRG: 1000 steps take longer than 1000 x step, as every second one (--q 2) is a snapshot, two forward"
        " passes of all 512 rows of --samplesize."
    )
    assert not any(line.startswith("MeZO-SVRG") for line in told(*entries, samplesize=16))
    assert not any("snapshot" in line for line in told(entries[0]))


# ---------------------------------------------------------------------------------------------- without numbers


@pytest.mark.parametrize("words", [["--plan"], []], ids=["foretold", "measured"])
def test_a_missing_package_says_nothing_about_memory(words, folder, capsys, tmp_path, monkeypatch):
    for name in ("bitsandbytes", "bitsandbytes.functional"):
        monkeypatch.setitem(sys.modules, name, None)
    path = tmp_path / "x.json"
    out, err = bench(capsys, folder, *SMALL, *words, "--algorithm", "ZOAdam", "--output", path)
    assert re.search(r"^ZO-Adam, 8 bits +2( +-){6} *$", out, re.M)
    how = "foretold" if words else "measured"
    assert f"ZO-Adam, 8 bits was not {how}: it needs the package bitsandbytes (pip install 'zotune[low-bit]').\n" in out
    assert "8 bits is measured" not in err
    rows = json.loads(path.read_text())["rows"]
    assert [(row["method"], row["fits"]) for row in rows] == [("ZO-Adam", True), ("ZO-Adam, 8 bits", None)]


def test_memory_that_is_refused_is_a_no():
    entries = [Refused(variant=variant_of("MeZO"), reason="it does not fit", memory=True), cost("HiZOO", [3.0] * 3)]
    row = next(line for line in shown(*entries) if line.startswith("MeZO"))
    assert row.split() == ["MeZO", "2", "-", "-", "-", "-", "no", "-"]
    assert told(*entries) == ["MeZO: it does not fit."]
    assert report.as_json(entries, None)[0]["fits"] is False


def test_without_any_number_nothing_is_said_about_memory():
    config = BenchConfig(model_name="m")
    entry = Refused(variant=variant_of("MeZO"), reason="it needs a package")
    assert report.advice(config, [entry], 10**9, CALM) == []
    assert "No method fits" in report.advice(config, [Refused(**vars(entry) | {"memory": True})], 10**9, CALM)[0]


def test_the_file_has_the_rounds_and_their_spread(folder, capsys, tmp_path):
    path = tmp_path / "x.json"
    bench(capsys, folder, *SMALL, "--algorithm", "HiZOO", "--output", path)
    saved = json.loads(path.read_text())
    (row,) = saved["rows"]
    for name in ("seconds", "forward_seconds"):
        assert len(row[f"{name}_rounds"]) == 2
        assert row[f"{name}_spread"] == spread(row[f"{name}_rounds"])
        assert row[name] == quartiles(row[f"{name}_rounds"])[0]
    assert row["ratio"] > 0
    assert row["ratio_spread"] >= 0
    assert saved["time_uncertainty"] == max(row["seconds_spread"], row["forward_seconds_spread"])
    assert saved["missing"] == []


def test_a_narrow_terminal_cuts_no_figure_off(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    out, _ = bench(capsys, folder, *SMALL, "--plan", "--algorithm", "ZOSVRG")
    assert "MeZO-SVRG, anchor copied" in out
    assert "x inference" in out
    assert "…" not in out


# ---------------------------------------------------------------------------------------------- stopped

STOPS = pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)


def _stopping_after(done, number, patch):
    """The signal comes while the method after so many is being measured or foretold."""
    taken = []

    def took(call):
        def wrapped(*args, **more):
            if len(taken) == done:
                os.kill(os.getpid(), number)
            taken.append(call)
            return call(*args, **more)

        return wrapped

    patch.setattr(measuring, "_cost", took(measuring._cost))
    patch.setattr(Foresight, "cost", took(Foresight.cost))


@STOPS
@pytest.mark.parametrize("words", [["--plan"], []], ids=["foretold", "measured"])
def test_a_stop_leaves_the_table_and_the_file_of_what_is_done(
    words, number, code, folder, capsys, tmp_path, monkeypatch
):
    path = tmp_path / "x.json"
    _stopping_after(2, number, monkeypatch)
    out, err = bench(capsys, folder, *SMALL, *words, "--algorithm", "LOREN", "--output", path, code=code)
    titles = [variant.title for variant in variants("LOREN")]
    how = "foretold" if words else "measured"
    assert re.search(rf"^{titles[0]} .* yes ", out, re.M)
    assert re.search(rf"^{titles[1]} .* yes ", out, re.M)
    assert out.splitlines()[-1] == f"Stopped; not {how}: {titles[2]}; {titles[3]}."
    assert "A good first try" not in out
    assert "Stopped; the table has what there is." in err
    saved = json.loads(path.read_text())
    assert [row["method"] for row in saved["rows"]] == titles[:2]
    assert saved["missing"] == titles[2:]


@STOPS
def test_a_stop_before_the_first_number_leaves_an_earlier_file_alone(
    number, code, folder, capsys, tmp_path, monkeypatch
):
    path = tmp_path / "x.json"
    path.write_text("{}")
    _stopping_after(0, number, monkeypatch)
    out, err = bench(capsys, folder, *SMALL, "--algorithm", "LOREN", "--output", path, code=code)
    assert out == ""
    assert err.endswith("Stopped before there was anything to show.\n")
    assert path.read_text() == "{}"


@STOPS
def test_a_stop_while_the_model_is_being_loaded_is_one_sentence(number, code, folder, capsys, monkeypatch):
    monkeypatch.setattr(models, "outline", lambda *_: os.kill(os.getpid(), number))
    out, err = bench(capsys, folder, *SMALL, code=code)
    assert (out, err) == ("", "Stopped before there was anything to show.\n")


@STOPS
def test_a_stop_while_the_table_is_being_written_passes(number, code, folder, capsys, monkeypatch):
    table = report.table

    def late(*args, **more):
        os.kill(os.getpid(), number)
        return table(*args, **more)

    monkeypatch.setattr(launch.report, "table", late)
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    out, _ = bench(capsys, folder, *SMALL, "--plan", "--algorithm", "HiZOO")
    assert "A good first try that fits: HiZOO" in out
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
