"""What the package offers, and what importing it does not do."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zotune
from zotune.methods import METHODS

SRC = Path(zotune.__file__).parent
COMMON = {"eps": 1e-3, "weight_decay": 0.0, "noise": "gaussian", "seed": 0, "backend": None}
OWN = {
    "MeZO": {"queries": 2, "momentum": 0.0},
    "ZOAdam": {"queries": 2, "betas": (0.9, 0.999), "adam_eps": 1e-8, "bits": 32},
    "MeZOSVRG": {"lr_minibatch": None, "period": 2, "anchor": "recompute", "anneal": 1.0, "queries": 2},
    "LOZO": {"rank": 2, "period": 50, "momentum": 0.0, "queries": 2},
    "HiZOO": {"queries": 3, "smoothing": "constant1e-8"},
    "LOREN": {"queries": 6, "damping": 0.1, "lr_cov": 1e-3, "momentum": 0.0, "momentum_bits": 32},
    "FZOO": {"queries": 8, "noise": "rademacher"},
}


def test_all_is_sorted_and_complete() -> None:
    names = zotune.__all__
    constants_first = [name.isupper() for name in names]
    assert constants_first == sorted(constants_first, reverse=True), "constants first, as ruff sorts"
    for kind in (True, False):
        part = [name for name in names if name.isupper() is kind]
        assert part == sorted(part)
    assert len(set(names)) == len(names)
    lazy = {name for home in zotune._HOMES.values() for name in home}
    assert lazy == set(names), "every public name has a home"
    assert zotune.METHODS["LOREN"].optimizer is zotune.LOREN
    assert all(
        getattr(zotune, name).__module__.startswith(home)
        for home, own in zotune._HOMES.items()
        for name in own
        if name != "METHODS"
    )
    hidden = {"annotations", "Any", "TYPE_CHECKING"}
    public = {n for n, v in vars(zotune).items() if not n.startswith("_") and not inspect.ismodule(v)} - hidden
    assert set(names) == public


@pytest.mark.parametrize("name", OWN)
def test_signatures(name: str) -> None:
    """Keyword-only after ``params``; lr is required; the documented defaults; no catch-all."""
    cls = getattr(zotune, name)
    params = list(inspect.signature(cls).parameters.values())
    assert params[0].name == "params"
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in params[1:])
    table = {p.name: p.default for p in params[1:]}
    assert table["lr"] is inspect.Parameter.empty
    wanted = COMMON | OWN[name]
    assert {key: table[key] for key in wanted} == wanted
    assert issubclass(cls, torch.optim.Optimizer)


def test_every_optimizer_is_in_the_table() -> None:
    assert {row.optimizer.__name__ for row in METHODS.values()} == set(OWN)


@pytest.mark.parametrize("path", sorted((SRC / "methods").glob("*.py")), ids=lambda p: p.stem)
def test_docstring_examples(path: Path) -> None:
    module = importlib.import_module(f"zotune.methods.{path.stem}" if path.stem != "__init__" else "zotune.methods")
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.failed == 0


def test_some_docstring_examples_exist() -> None:
    texts = [path.read_text() for path in (SRC / "methods").glob("*.py")]
    assert sum(">>>" in text for text in texts) >= 3


def test_import_is_light_and_leaves_the_random_state() -> None:
    code = """
import sys, torch
before = torch.random.get_rng_state()
import zotune
heavy = {"transformers", "datasets", "matplotlib", "numba", "rich", "accelerate"} & set(sys.modules)
assert not heavy, heavy
assert torch.equal(before, torch.random.get_rng_state())
weight = torch.nn.Parameter(torch.ones(3, 3))
for name in zotune.__all__:
    cls = getattr(zotune, name)
    if isinstance(cls, type) and issubclass(cls, zotune.ZerothOrder) and cls is not zotune.ZerothOrder:
        cls([weight], lr=0.1).step(lambda: weight.sum())
assert torch.equal(before, torch.random.get_rng_state())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


FORBIDDEN = {"torch.manual_seed", "torch.seed", "torch.cuda.manual_seed", "torch.cuda.manual_seed_all"}
FORBIDDEN |= {"set_seed", "transformers.set_seed", "pickle.load", "pickle.loads", "eval", "exec"}
DRAWS = {"torch.rand", "torch.randn", "torch.randint", "torch.randperm", "torch.rand_like", "torch.randn_like"}
GENERATORS = {"Generator", "Philox", "SeedSequence", "BitGenerator"}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def global_randomness(source: str) -> list[str]:
    """Calls that read or change a global random state, and imports of ``random`` and ``pickle``."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name in ("random", "pickle")]
        if isinstance(node, ast.ImportFrom) and node.module in ("random", "pickle"):
            found.append(node.module)
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        numpy = name.startswith(("np.random.", "numpy.random.")) and name.rsplit(".", 1)[1] not in GENERATORS
        drawn = name in DRAWS and not any(keyword.arg == "generator" for keyword in node.keywords)
        if name in FORBIDDEN or numpy or drawn:
            found.append(name)
    return found


def test_no_global_randomness_in_the_package() -> None:
    found = {str(p.relative_to(SRC)): global_randomness(p.read_text()) for p in SRC.rglob("*.py")}
    lent = found.pop("hf/randomness.py")  # sets the state for code that is not ours, and puts it back: see its tests
    assert lent == ["torch.cuda.manual_seed"]
    assert {path: names for path, names in found.items() if names} == {}


def test_the_search_itself_finds_things() -> None:
    bad = "import random\nimport numpy as np\ntorch.manual_seed(0)\nnp.random.rand(3)\ntorch.randn(2)\neval('1')"
    assert len(global_randomness(bad)) == 5
    good = "np.random.Generator(np.random.Philox(key=1))\ntorch.randn(2, generator=g)\nmodel.eval()\noptimizer.seed"
    assert global_randomness(good) == []


DOCS = Path(__file__).resolve().parents[1] / "docs"
DESCRIBED = sorted({name for page in DOCS.rglob("*.md") for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)})


@pytest.mark.parametrize("name", DESCRIBED)
def test_the_pages_describe_what_there_is(name: str) -> None:
    try:
        found = importlib.import_module(name)
    except ModuleNotFoundError:
        home, _, attribute = name.rpartition(".")
        found = getattr(importlib.import_module(home), attribute)
    assert found.__doc__
