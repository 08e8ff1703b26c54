"""The Triton backend without a GPU: its bits in Triton's interpreter, and the code it compiles to for one."""

import logging
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from zotune import kernels
from zotune.kernels import backends
from zotune.noise import Key


def test_backend_triton_is_refused_on_the_cpu():
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("Triton's interpreter is on, which accepts tensors on the CPU.")
    with pytest.raises(ValueError, match="works on a GPU: leave backend out, or set TRITON_INTERPRET=1"):
        kernels.combine(torch.zeros(3), None, terms=[(1.0, Key(1))], backend="triton")


def test_a_missing_triton_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "zotune.kernels.gpu", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)  # as if it were not installed
    monkeypatch.delattr(kernels, "gpu", raising=False)
    for name in ("gpu_rows", "gpu_elements", "gpu_noise"):
        monkeypatch.delitem(sys.modules, f"zotune.kernels.{name}", raising=False)
    backends._triton.cache_clear()
    with pytest.raises(ValueError, match="needs the package triton: install it, or leave backend out"):
        kernels.combine(torch.zeros(3), None, terms=[(1.0, Key(1))], backend="triton")


def test_the_default_of_a_device(monkeypatch, caplog):
    backends.default.cache_clear()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    found = True
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found or None)
    try:
        assert [backends.default(device) for device in ("cpu", "cuda", "meta")] == ["numba", "triton", "reference"]
        found = False
        backends.default.cache_clear()
        with caplog.at_level(logging.WARNING):
            assert [backends.default("cuda") for _ in range(2)] == ["reference", "reference"]
        assert [record.message for record in caplog.records] == [
            "the kernels run in plain torch, many times slower than in Triton: install the package triton"
        ]
    finally:
        backends.default.cache_clear()


def test_the_bits_are_those_of_the_specification():
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "triton_bits.py"]
    setting = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(
        command, cwd=Path(__file__).parent, env=setting, capture_output=True, text=True, timeout=1200, check=False
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert int(re.findall(r"(\d+) passed", run.stdout)[0]) >= 70


# ------------------------------------------------------------------------------------------------ code for a GPU


def ptx(kernel, pointers, constants, warps, tmp_path, monkeypatch):
    """Instructions of ``kernel`` compiled for an H100 or H200, and how often each occurs."""
    triton = pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("Triton's interpreter is on, which compiles nothing.")
    if not list((Path(triton.__file__).parent / "backends" / "nvidia" / "bin").glob("ptxas*")):
        pytest.skip("This build of Triton has no ptxas.")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    signature, constexprs, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in pointers:
            signature[name], attributes[(i,)] = f"*{pointers[name]}", [["tt.divisibility", 16]]
        elif name in constants or name in ("out", "w", "h", "x", "u", "vt", "rows"):
            signature[name], constexprs[(i,)] = "constexpr", constants.get(name)
        else:
            signature[name] = "i64" if name in ("second", "start", "size") else "i32"
            if name in ("start", "size", "columns"):
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs, attributes)
    options = {"num_warps": warps, "enable_fp_fusion": False}
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    return Counter(re.findall(r"^\s+(?:@!?%p\d+ )?([a-z][a-z0-9_.:]*)\s", code, re.MULTILINE))


def check_arithmetic(count):
    """Nothing fused, approximated, flushed to zero or added in an order left to chance."""
    for name in count:
        floating = re.search(r"\.f(16|32|64)", name) is not None
        assert not re.match(r"fma|mad", name) or not floating, name
        assert ".ftz" not in name, name
        assert ".approx" not in name, name
        assert not re.match(r"atom|red\.", name), name
        assert not (floating and re.match(r"add|sub|mul|div|sqrt", name)) or ".rn" in name, name


@pytest.fixture
def kernel_modules():
    pytest.importorskip("triton")
    from zotune.kernels import gpu_elements, gpu_rows

    return gpu_elements, gpu_rows


def test_the_elementwise_kernel_is_exact_and_lean_when_compiled(kernel_modules, tmp_path, monkeypatch):
    import triton.language as tl

    table = {"table": "i64", "out": "bf16", "w": "bf16"}
    settings = {"G": 4, "SQUARES": False, "STOCHASTIC": False, "COMPUTE": tl.float32}
    kernel = kernel_modules[0].elements
    for signs, warps, limit in ((False, 8, 80), (True, 4, 30)):
        count = ptx(kernel, table, {**settings, "SIGNS": signs}, warps, tmp_path, monkeypatch)
        check_arithmetic(count)
        per_thread = 4096 // (32 * warps)
        assert count["cvt.rn.bf16x2.f32"] == per_thread // 2  # rounding by the instruction, to nearest even
        assert sum(n for name, n in count.items() if re.match(r"(ld|st)\.global\.v[24]", name)) == 8
        assert 10 < sum(count.values()) / per_thread <= limit  # instructions for a weight
        assert count["sqrt.rn.f32"] == (0 if signs else per_thread // 2)


@pytest.mark.parametrize("dtype", ["fp16", "fp64"])
def test_division_and_stochastic_rounding_are_exact_when_compiled(dtype, kernel_modules, tmp_path, monkeypatch):
    import triton.language as tl

    wide = "fp64" if dtype == "fp64" else "fp32"
    pointers = {"table": "i64", "out": dtype, "w": dtype, "h": wide, "x": wide, "u": wide, "vt": wide}
    compute = tl.float64 if dtype == "fp64" else tl.float32
    settings = {"G": 1, "SIGNS": True, "SQUARES": True, "STOCHASTIC": dtype == "fp16", "COMPUTE": compute}
    count = ptx(kernel_modules[0].elements, pointers, settings, 4, tmp_path, monkeypatch)
    check_arithmetic(count)
    assert count[f"div.rn.f{wide[2:]}"] == count[f"sqrt.rn.f{wide[2:]}"] == 1024 // 128


def test_the_kernels_of_rows_are_exact_when_compiled(kernel_modules, tmp_path, monkeypatch):
    import triton.language as tl

    rows = {"table": "i64", "a": "fp32", "scratch": "fp32"}
    settings = {"G": 1, "SIGNS": False, "COMPUTE": tl.float32}
    corrected = {**rows, "out": "bf16", "w": "bf16"}
    for kernel, pointers, extra in (
        (kernel_modules[1].rank_one, corrected, {"STOCHASTIC": True}),
        (kernel_modules[1].gram, {**rows, "q": "fp32", "p": "fp32"}, {}),
    ):
        count = ptx(kernel, pointers, {**settings, **extra}, 4, tmp_path, monkeypatch)
        check_arithmetic(count)
        assert count["bar.sync"] >= 2  # scratch rows are read by other threads than wrote them
        assert not [name for name in count if ".nc" in name]  # and are not held in the read-only cache
