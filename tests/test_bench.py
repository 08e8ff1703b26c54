"""`zotune bench`, what it measures with, and the scripts in benchmarks/."""

import dataclasses
import gc
import importlib.util
import json
import re
import types
from pathlib import Path

import pytest
import tiny_models
import torch
from torch import nn

import zotune
from zotune.bench import costs, launch, models, report, texts
from zotune.bench.clock import ratio, take_turns
from zotune.bench.machine import describe, free_memory
from zotune.bench.measure import Refused, measure
from zotune.bench.peak import peak_bytes, resident_bytes
from zotune.bench.shapes import shapes_of
from zotune.bench.variants import VARIANTS, variants
from zotune.bench.workload import one_layer, random_workload
from zotune.cli import main
from zotune.config import BENCH_FLAGS, FLAGS, BenchConfig

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
TITLES = [variant.title for variant in variants()]


@pytest.fixture(scope="module", autouse=True)
def _quick_collections():
    # Each measured peak begins with a full collection, which otherwise walks through the libraries' modules each time.
    gc.freeze()
    yield
    gc.unfreeze()


def variant_of(title):
    return next(variant for variant in VARIANTS if variant.title == title)


# ---------------------------------------------------------------------------------------------- measuring


def test_sides_take_turns_and_what_comes_before_is_not_timed():
    now, log = [0.0], []

    def side(name, seconds):
        def run():
            log.append(name)
            now[0] += seconds

        return run

    sides = {"a": side("a", 1.0), "b": side("b", 3.0)}
    samples = take_turns(sides, clock=lambda: now[0], rounds=2, before={"b": side("before b", 100.0)})
    assert log == ["a", "before b", "b"] * 2
    assert samples == {"a": [1.0, 1.0], "b": [3.0, 3.0]}


def test_no_round_begins_after_the_time():
    samples = take_turns({"a": lambda: None}, clock=lambda: 0.0, rounds=5, seconds=-1.0)
    assert samples == {"a": [0.0]}


def test_a_ratio_is_to_the_base_before_and_after():
    samples = {"forward": [1.0, 3.0, 3.0], "step": [4.0, 6.0, 12.0]}
    middle, low, high = ratio(samples, "step", "forward", 2)
    assert (middle, low, high) == (1.0, 1.0, 1.5)
    assert ratio({"forward": [2.0], "step": [4.0]}, "step", "forward", 1) == (2.0, 2.0, 2.0)


def test_the_peak_counts_what_is_freed_again():
    size = 64 << 20
    idle = peak_bytes(lambda: None, CPU)
    if idle is None:
        pytest.skip("This system does not set the peak of a process back.")
    busy = peak_bytes(lambda: torch.ones(size // 4), CPU)
    after = peak_bytes(lambda: None, CPU)
    assert size - (8 << 20) < busy - idle < size + (32 << 20)
    assert after - idle < size // 2
    assert resident_bytes(CPU) <= after + (8 << 20)


def test_the_machine_is_described():
    assert {"device", "torch", "threads"} <= describe(CPU).keys()
    free = free_memory(CPU)
    assert free is None or free > 1 << 20


# ---------------------------------------------------------------------------------------------- workload and variants


def workload(family="opt", rows=2, length=5):
    model = tiny_models.build(family)
    return random_workload(model, rows=rows, length=length, vocabulary=tiny_models.VOCABULARY, labels=2)


def test_a_workload_is_the_same_each_time_and_all_of_its_tokens_are_words():
    first, second = workload(), workload()
    assert torch.equal(first.ids, second.ids)
    assert first.ids.min() >= 5
    assert first.ids.max() < tiny_models.VOCABULARY
    assert first.size == "2 x 5"
    assert first.shortened().size == "1 x 2"


def test_copies_of_a_batch_have_its_loss():
    work = workload()
    assert work.doubled().ids.shape == (2 * len(work.ids), work.ids.shape[1])
    assert work.doubled().forward() == pytest.approx(work.forward(), abs=1e-6)


def test_a_language_model_is_asked_at_the_last_position():
    model = tiny_models.build("opt", head="lm")
    work = random_workload(model, rows=2, length=5, vocabulary=tiny_models.VOCABULARY, labels=2)
    with torch.no_grad():
        logits = model(input_ids=work.ids, attention_mask=torch.ones_like(work.ids)).logits[:, -1]
    assert work.forward() == pytest.approx(float(nn.functional.cross_entropy(logits, work.labels)))


def optimizer_of(variant, model, **options):
    try:
        return variant.optimizer(model, **options)
    except ValueError as error:
        pytest.skip(f"{variant.title}: {error}")


@pytest.mark.parametrize("title", TITLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_foretold_state_is_the_state(title, dtype):
    variant = variant_of(title)
    model = nn.Sequential(nn.Linear(80, 96), nn.Linear(96, 8)).to(dtype)
    optimizer = optimizer_of(variant, model)
    losses = iter(range(1000))
    for _ in range(3):
        optimizer.estimate(lambda: float(next(losses)))
        optimizer.step()
    tensors = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    kept = sum(v.numel() * v.element_size() for v in tensors)
    told = sum(variant.state(p.shape, p.element_size()) for p in model.parameters())
    if variant.algorithm == "LOZO":  # V belongs to no state: it is drawn again from its key
        told -= sum(4 * 2 * p.shape[1] for p in model.parameters() if p.dim() == 2)
    assert kept == pytest.approx(told, rel=0.01)


@pytest.mark.parametrize("title", TITLES)
def test_a_step_of_a_variant_takes_the_forward_passes_that_it_names(title):
    variant, work = variant_of(title), one_layer(4, 4, CPU, torch.float32)
    optimizer = optimizer_of(variant, work.model)
    variant.prepare(optimizer, work)
    before = optimizer.queries
    variant.run(optimizer, work)
    assert optimizer.queries - before == variant.queries


def test_variants_of_one_algorithm():
    assert {v.algorithm for v in variants("LOREN")} == {"LOREN"}
    assert {v.algorithm for v in variants()} == set(zotune.METHODS)
    assert len(set(TITLES)) == len(TITLES)


# ---------------------------------------------------------------------------------------------- foretelling


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    for family in ("opt", "llama", "gpt2", "roberta"):
        tiny_models.save(folder / family, family)
    return folder


@pytest.mark.parametrize("family", ["opt", "llama", "gpt2", "roberta"])
@pytest.mark.parametrize("full", [True, False], ids=["all", "part"])
def test_shapes_without_weights_are_those_of_the_loaded_model(shelf, family, full):
    config = BenchConfig(model_name=str(shelf / family), full_parameter=full, batchsize=3, max_seq_length=10)
    outline = models.outline(config)
    assert all(p.is_meta for p in outline.parameters())
    told = shapes_of(outline, rows=3, length=10)
    loaded = models.load(config, CPU)
    named = list(loaded.parameters())
    assert told.parameters == sum(p.numel() for p in named)
    assert sorted(told.trained) == sorted(p.shape for p in named if p.requires_grad)
    assert told.weights >= told.parameters * 4
    hidden = 3 * 10 * 16 * 4
    assert 3 * hidden < told.activations < 40 * hidden
    assert told.flops > 2 * 3 * 10 * sum(p.numel() for name, p in loaded.named_parameters() if ".mlp" in name)
    assert models.length_of(config, outline) == 10
    assert models.length_of(BenchConfig(model_name="", max_seq_length=500), outline) == 64


def test_activations_grow_with_the_batch_and_stacking_needs_them_at_once(shelf):
    outline = models.outline(BenchConfig(model_name=str(shelf / "opt"), full_parameter=True))
    one, four = (shapes_of(outline, rows=rows, length=10) for rows in (1, 4))
    assert four.activations == pytest.approx(4 * one.activations, rel=0.1)
    assert four.weights == one.weights
    many = dataclasses.replace(four, tokens=512)
    single, stacked = (costs.memory_of(variant_of(title), many, CPU) for title in ("LOZO", "LOZO, stacked"))
    assert stacked - single == four.activations - four.scratch
    assert costs.memory_of(variant_of("LOZO"), four, CPU) == stacked


def test_a_forecast_adds_passes_to_operations(shelf):
    shapes = shapes_of(
        models.outline(BenchConfig(model_name=str(shelf / "opt"), full_parameter=True)), rows=1, length=8
    )
    foresight = costs.Foresight(CPU, torch.float32)
    cost = foresight.cost(variant_of("MeZO"), shapes, None)
    assert cost.forward == shapes.flops / foresight.speed()
    assert cost.ratio > 1.0
    assert cost.memory == costs.memory_of(variant_of("MeZO"), shapes, CPU)


def test_full_batch_steps_count_in_the_duration_of_svrg():
    plain = costs.Cost(variant=variant_of("MeZO"), seconds=2.0, forward=1.0, memory=None, inference=None)
    assert plain.duration(10, 5) == 20.0
    svrg = costs.Cost(variant=variant_of("MeZO-SVRG"), seconds=4.0, forward=1.0, memory=None, inference=None)
    assert svrg.duration(10, 5) == 10 * (4.0 + (2.0 + 2 * 4)) / 2


# ---------------------------------------------------------------------------------------------- the command


def bench(capsys, *words, code=0):
    ended = main(["bench", *words])
    out, err = capsys.readouterr()
    assert ended == code, err
    assert "Traceback" not in err
    return out, err


SMALL = ["--batchsize", "2", "--max_seq_length", "8", "--device", "cpu"]


@pytest.mark.parametrize("words", [["--plan"], ["--rounds", "1"]], ids=["foretold", "measured"])
def test_the_table_and_the_numbers(shelf, capsys, tmp_path, words):
    output = tmp_path / "bench.json"
    model = str(shelf / "opt")
    out, _ = bench(capsys, *words, model, *SMALL, "--algorithm", "LOZO", "--steps", "77", "--output", str(output))
    lines = out.splitlines()
    assert lines[0].startswith(f"{model}, 2 x 8 tokens on cpu") or model in out.replace("\n", "")
    heading = next(line for line in lines if line.startswith("method"))
    assert "77 steps" in heading
    titles = [v.title for v in variants("LOZO")]
    for title in titles:
        assert any(line.startswith(title) and "yes" in line for line in lines)
    assert "--algorithm LOZO" in lines[-1]
    saved = json.loads(output.read_text())
    assert [row["method"] for row in saved["rows"]] == titles
    assert all(row["seconds"] > 0 and row["fits"] for row in saved["rows"])


def test_the_command_that_is_named_can_be_run():
    config = BenchConfig(model_name="my model", bf16=True, full_parameter=True, batchsize=4)
    words = report.command(config, variant_of("LOZO-M"))
    assert words == (
        "zotune train --model_name 'my model' --algorithm LOZO --momentum 0.9 --batchsize 4 --max_seq_length 128"
        " --full_parameter --bf16"
    )
    for variant in VARIANTS:
        assert variant.settings.keys() <= FLAGS.keys()


@pytest.mark.parametrize("words", [["--plan"], ["--rounds", "1"]], ids=["foretold", "measured"])
def test_what_does_not_fit_is_not_loaded(shelf, capsys, monkeypatch, words):
    monkeypatch.setattr(launch, "free_memory", lambda device: 1000)
    monkeypatch.setattr(models, "load", lambda *_: pytest.fail("the model was loaded"))
    out, _ = bench(capsys, str(shelf / "opt"), *words, *SMALL, "--algorithm", "ZO")
    assert "No method fits into the 0.0 MB that are free; try a smaller --batchsize or --bf16." in out
    assert re.search(r"^MeZO .* no ", out, re.M)


def test_a_missing_package_is_a_row_without_numbers(monkeypatch):
    work = workload()
    broken = variant_of("MeZO")
    monkeypatch.setattr(type(broken), "optimizer", lambda *_, **__: (_ for _ in ()).throw(ValueError("no package")))
    (entry,) = measure(work, [broken], noise=None, rounds=1, libraries=0)
    assert isinstance(entry, Refused)
    assert entry.reason == "no package"
    assert report.as_json([entry], None) == [{"method": "MeZO", "refused": "no package", "fits": None}]


def test_a_model_that_breaks_off_ends_in_a_sentence(shelf, capsys, monkeypatch):
    monkeypatch.setattr(launch, "measure", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("odd\nsecond line")))
    _, err = bench(capsys, str(shelf / "opt"), *SMALL, code=1)
    assert "broke off with RuntimeError: odd." in err


def test_sizes_and_times_for_people():
    assert [texts.memory_text(size) for size in (None, 2_000_000, 3 * 10**9)] == ["?", "2.0 MB", "3.00 GB"]
    assert texts.seconds_texts([0.0123, 0.5]) == ["12.3 ms", "500.0 ms"]
    assert texts.seconds_texts([0.0123, 5.0]) == ["0.012 s", "5.000 s"]
    assert texts.seconds_texts([120.0, 0.5]) == ["120.00 s", "0.50 s"]
    assert texts.seconds_texts([]) == []


@pytest.mark.parametrize(
    ("seconds", "unit", "expected"),
    [
        ([0.01, 0.5], "", ["10.0 ms", "500.0 ms"]),
        ([95.2, 3.0], "", ["95.20 s", "3.00 s"]),
        ([95.2, 119.6, 1200.0], "min:s", ["1:35", "2:00", "20:00"]),
        ([95.2, 36030.0], "h:min", ["0:02", "10:00"]),
        ([], "", []),
    ],
)
def test_a_column_of_durations_has_one_unit(seconds, unit, expected):
    assert texts.durations(seconds) == (unit, expected)


WRONG = {
    "no model": ("", "Say which model: zotune bench MODEL"),
    "missing folder": ("./nowhere", "There is no folder ./nowhere"),
    "misspelt flag": ("embedded --plann", "There is no flag --plann; did you mean --plan?"),
    "flag of train": ("embedded --lr 1", "There is no flag --lr"),
    "two models": ("embedded other", "'other' belongs to no flag"),
    "first order": ("embedded --algorithm FOSGD", "--algorithm FOSGD is first-order; choose all or ZO"),
    "unknown method": ("embedded --algorithm LORAN", "did you mean LOREN?"),
    "no rounds": ("embedded --rounds 0", "--rounds must be from 1 to"),
    "rounds in words": ("embedded --rounds few", "--rounds takes a whole number, not 'few'."),
    "two half precisions": ("embedded --bf16 --fp16", "exclude each other"),
    "unknown noise": ("embedded --noise gausian", "did you mean gaussian?"),
    "output into nowhere": ("embedded --output nowhere/x.json", "must be a file in a folder that is there"),
}


@pytest.mark.parametrize(("words", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_command_lines_end_with_2_and_a_sentence(words, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out, err = bench(capsys, *words.split(), code=2)
    assert sentence in err
    assert out == ""


def test_the_name_of_the_model_may_stand_anywhere():
    from zotune.cli.flags import parse_flags

    for words in (["m", "--plan"], ["--plan", "m"], ["--plan", "--model_name", "m"]):
        assert parse_flags("x", "", words, flags=BENCH_FLAGS, bare="model_name") == {"plan": True, "model_name": "m"}


def test_help_names_every_flag_and_the_page_too(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    text = capsys.readouterr().out
    page = (ROOT / "docs" / "speed-and-memory.md").read_text()
    for flag in BENCH_FLAGS:
        assert f"  --{flag}" in text
        assert f"`--{flag}`" in page


# ---------------------------------------------------------------------------------------------- benchmarks/


@pytest.fixture
def script(monkeypatch):
    """Imports a script of benchmarks/ by name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    threads = torch.get_num_threads()

    def load(name):
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    torch.set_num_threads(threads)


def rows_in(folder, name):
    content = json.loads((folder / f"{name}.json").read_text())
    assert content["machine"]["torch"] == torch.__version__
    return content["rows"]


def test_step_cost_measures_and_adds_rows(script, tmp_path, capsys):
    step_cost = script("step_cost")
    words = ["--quick", "--rounds", "1", "--results", str(tmp_path), "--methods"]
    step_cost.main([*words, "LOZO"])
    step_cost.main([*words, "MeZO"])
    step_cost.main([*words, "MeZO"])
    rows = rows_in(tmp_path, "step_cost")
    assert [(row["method"], row["noise"]) for row in rows] == [
        *((method, noise) for method in ("LOZO", "MeZO") for noise in ("gaussian", "rademacher", "textbook")),
        ("two batches in one forward", "none"),
    ]
    assert all(row["ratio"] > 0 and row["size"] == "2x8" for row in rows)
    assert "MeZO" in capsys.readouterr().out


def test_memory_measures_in_a_process_of_its_own(script, tmp_path):
    memory = script("memory")
    memory.main(["--quick", "--methods", "MeZO", "--ways", "zotune", "--results", str(tmp_path)])
    (row,) = rows_in(tmp_path, "memory")
    assert row["way"] == "zotune"
    assert row["target"] == 1.02
    assert row["step_mb"] >= row["inference_mb"] * 0.98
    assert row["verdict"] == ("met" if row["of_inference"] <= 1.02 else "missed")


def test_passes_and_drift_hold_their_targets(script, tmp_path):
    script("passes").main(["--quick", "--rounds", "1", "--results", str(tmp_path)])
    sides = {row["side"]: row for row in rows_in(tmp_path, "passes")}
    assert sides["copy"]["copies"] == 1.0
    assert sides["gaussian 1"]["target"] == 2.5
    assert {"rank 2", "rademacher 20"} <= sides.keys()
    script("drift").main(["--quick", "--results", str(tmp_path)])
    found = {(row["what"], row["dtype"], row["way"]): row["value"] for row in rows_in(tmp_path, "drift")}
    for dtype in ("float32", "bfloat16", "float16"):
        assert found["drift", dtype, "zotune"] == 0.0
        assert found["drift", dtype, "textbook"] > 0.0
    assert found["kept of 1e-06", "bfloat16", "to nearest"] < 0.1
    assert found["kept of 1e-06", "bfloat16", "stochastic"] == pytest.approx(1.0, abs=0.05)


def test_gpu_all_says_that_there_is_no_gpu_and_can_be_tried_without(script, tmp_path, capsys, monkeypatch):
    gpu_all = script("gpu_all")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_all.main(["--results", str(tmp_path)]) == 2
    assert "There is no GPU here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert gpu_all.main(["--smoke", "--results", str(tmp_path)]) == 0
    rows = rows_in(tmp_path, "gpu")
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert content["bits"]["compared"] == content["bits"]["cases"] > 5
    assert content["bits"]["different"] == []
    assert content["left_out"] == []
    assert [row["way"] for row in rows[:3]] == ["inference", "gaussian", "rademacher"]
    assert all(row["ms"] > 0 for row in rows)


def test_gpu_all_lists_what_it_had_no_time_for(script, tmp_path):
    gpu_all = script("gpu_all")
    assert gpu_all.main(["--smoke", "--minutes", "0", "--results", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert content["bits"]["compared"] == 0
    assert any("MeZO gaussian" in line for line in content["left_out"])


def test_a_wrong_bit_is_found(script, monkeypatch):
    bits = script("bits")
    right = bits.kernels.combine

    def wrong(out, w, *, backend, **more):
        right(out, w, backend=backend, **more)
        if backend is None and out.dtype is torch.float32:
            out.view(-1)[0] += out.view(-1)[0] * 2.0**-23

    monkeypatch.setattr(bits.kernels, "combine", wrong)
    chosen = dict(list(bits.cases())[::40])
    done, different = bits.differing(chosen, CPU, lambda: False)
    assert done == len(chosen)
    assert different
    assert all(name.startswith("float32") for name in different)


@pytest.mark.parametrize(
    "name", ["MeZO", "ZO-Adam", "MeZO-SVRG", "LOZO", "LOZO-M", "HiZOO", "LOREN", "LOREN, momentum"]
)
def test_the_textbook_ways_descend_and_repeat_themselves(script, name):
    eager = script("eager")

    def run(steps):
        generator = torch.Generator().manual_seed(0)
        params = [nn.Parameter(torch.randn(size, generator=generator)) for size in ((6, 4), (5,))]
        method = eager.TEXTBOOK[name](params, lr={"ZO-Adam": 0.02, "LOREN, momentum": 0.001}.get(name, 0.005))
        calls = 0

        @torch.no_grad()
        def loss():
            nonlocal calls
            calls += 1
            return sum((p**2).sum() for p in params)

        if name == "MeZO-SVRG":
            method.full = 0.0
        before = float(loss())
        for _ in range(steps):
            method.step(loss)
        assert calls == 1 + steps * method.queries
        return before, float(loss()), torch.cat([p.data.flatten() for p in params])

    before, after, weights = run(300)
    assert torch.equal(run(300)[2], weights)
    if name == "MeZO-SVRG":  # the anchor moves in no step: its correction takes away what the first estimate gave
        assert after == pytest.approx(before, rel=0.5)
    else:
        assert after < 0.7 * before


def test_the_page_shows_the_results(script):
    tables = script("tables")
    pages = [page.read_text() for page in (tables.PAGE, tables.REPLAY_PAGE)]
    assert set(re.findall(r"<!-- table: ([\w-]+) -->", "".join(pages))) == set(tables.TABLES)
    assert [tables.render(page) for page in pages] == pages


def test_tables_name_targets_and_what_is_missing(script, tmp_path):
    tables = script("tables")
    row = {"head": "class", "size": "8x64", "method": "MeZO", "noise": "gaussian", "queries": 2, "ratio": 1.2}
    row |= {"target": 1.28, "verdict": "met"}
    (tmp_path / "step_cost.json").write_text(json.dumps({"rows": [row]}))
    lines = tables.time_table(tmp_path).splitlines()
    assert lines[2] == "| MeZO | 2 | 1.20 (target 1.28: met) | not measured | not measured |"
    assert tables.gpu_table(tmp_path).count("not measured") >= 12
    gpu = {"shape": "OPT-13B", "size": "16x128", "method": "MeZO", "way": "gaussian", "ms": 180.0, "memory_mb": 27000}
    (tmp_path / "gpu.json").write_text(json.dumps({"rows": [gpu | {"target_ms": 200.0, "verdict": "met"}]}))
    assert "180 ms (target 200: met), 27.0 GB" in tables.gpu_table(tmp_path)


def test_what_quick_measures_goes_to_a_folder_apart(script):
    common = script("common")
    assert common.parse(common.arguments("x"), ["--quick"]).results == common.RESULTS / "quick"
    assert common.parse(common.arguments("x"), []).results == common.RESULTS
    assert isinstance(common.SHAPES["OPT-13B"].fields, dict)
    assert types.ModuleType is type(common)
