"""benchmarks/sign_products.py: the directions it compares are what it says, and the script works."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import zotune
from zotune.noise import Key
from zotune.perturbations import Part

SCRIPTS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    threads = torch.get_num_threads()
    spec = importlib.util.spec_from_file_location("benchmark_sign_products", SCRIPTS / "sign_products.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    torch.set_num_threads(threads)


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
def test_the_directions_of_a_step_are_one_draw_with_signs_of_rank_one(script, noise):
    weight = torch.nn.Parameter(torch.zeros(30, 20))
    optimizer = zotune.MeZO([weight], lr=0.1, queries=6, noise=noise)
    optimizer._matrix = script.SignProducts(noise)
    (slot,) = optimizer._active()
    out = torch.empty(30, 20)

    def direction(step, query, part=None):
        rows = out if part is None else part.take(out)
        slot.perturbation.combine(slot, rows, None, [(1.0, Key(0, step=step, query=query))], part=part)
        return rows.clone()

    first, second, third = (direction(0, k) for k in range(3))
    assert torch.equal(first.abs(), second.abs())
    assert torch.linalg.matrix_rank(second.sign() * first.sign()) == 1
    assert not torch.equal(first, second)
    assert not torch.equal(first.sign(), direction(1, 0).sign())
    assert noise == "rademacher" or not torch.equal(first.abs(), direction(1, 0).abs())
    assert torch.equal(direction(0, 1, Part(4, 9)), second[4:9])
    assert torch.equal(direction(0, 1, Part(rows=torch.tensor([7, 2]))), second[[7, 2]])
    optimizer.tell([1e-3, 0.0, 4e-3, 0.0, 0.0, 6e-3])  # weights of the three directions: 1/6, 4/6, -1
    moved = -0.1 * (first / 6 + second * 4 / 6 - third)
    torch.testing.assert_close(weight.data, moved, rtol=1e-5, atol=1e-6)


def test_all_queries_in_one_forward_are_those_of_written_out_weights(script):
    rows, columns, tokens, queries = 12, 8, 4, 3
    sides = script.sides(rows, columns, tokens, queries)
    w, x = script.normal(Key(1), (rows, columns)) * 0.02, script.normal(Key(2), (queries, tokens, columns))
    for noise, draw in (("gaussian", script.normal), ("rademacher", script.rademacher)):
        z = draw(Key(3, query=script._SHARED), (rows, columns))
        for k, found in enumerate(sides[f"signs, {noise}"]()):
            signs = script.rademacher(Key(3, query=k), (rows + columns,))
            changed = w + script.EPS * z * signs[:rows, None] * signs[rows:]
            torch.testing.assert_close(found, x[k] @ changed.t(), rtol=1e-5, atol=1e-6)


def test_the_script_works(script, tmp_path):
    script.main(["--quick", "--rounds", "1", "--results", str(tmp_path), "--only", "cost"])
    script.main(["--quick", "--results", str(tmp_path), "--only", "convergence"])
    content = json.loads((tmp_path / "sign_products.json").read_text())
    assert content["machine"]["torch"] == torch.__version__
    assert {row["way"] for row in content["layer"]} >= {"overlay, gaussian", "signs, gaussian"}
    assert all(row["ms"] > 0 for row in content["layer"])
    settings = content["convergence"]["settings"]
    assert list(settings) == ["leave-one-out, independent, gaussian", "leave-one-out, signs, gaussian"]
    losses = [setting["rates"]["0.001"]["loss_of_trials"] for setting in settings.values()]
    assert len(losses[0]) == len(losses[1]) == 2
    assert losses[0] != losses[1]
