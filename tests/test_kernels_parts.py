"""Kernels on parts of a tensor, on memory in another order, beyond 2**32 elements, and fused: always the same bits."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from zotune import LOREN, HiZOO, kernels
from zotune.kernels import (
    combine,
    combine_rows,
    combine_with_gram,
    combine_with_squares,
    cpu,
    cpu_rows,
    reference,
    row_gram,
    scale_by_squares,
)
from zotune.noise import Key, normal

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
NOISES = ["gaussian", "rademacher"]
BACKENDS = ["numba", "reference"]
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
ROUNDING = Key(99, step=3, tag="rounding")


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(-1).view(BITS[x.dtype.itemsize])


def compute(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


def terms(count: int) -> list[tuple[float, Key]]:
    return [((-1.0) ** k * 0.3 / (k + 1), Key(7, step=2, query=k, parameter=5)) for k in range(count)]


def draws(shape: tuple[int, ...], number: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return normal(Key(1234, parameter=number), shape, dtype=dtype)


def settings(m: int, n: int, dtype: torch.dtype) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Every kind of write: the function and its arguments but for out, w and the part."""
    kind = compute(dtype)
    low = draws((m, 3), 2, kind), draws((3, n), 3, kind)
    for noise, rounding in itertools.product(NOISES, (None, ROUNDING)):
        common: dict[str, Any] = {"noise": noise, "rounding": rounding, "decay": 0.9}
        yield combine, {**common, "terms": terms(2)}
        precision, x = draws((m, n), 4, kind).square() + 0.1, draws((m, n), 5, kind)
        yield combine, {**common, "terms": terms(1), "precision": precision, "dense": (0.5, x)}
        yield combine_rows, {**common, "terms": terms(2), "rank_one": (0.4, draws((n,), 1, kind))}
    for rank in (1, 2, 3):
        for rounding in (None, ROUNDING):
            yield combine_rows, {"decay": 0.9, "rounding": rounding, "low_rank": (low[0][:, :rank], low[1][:rank])}


def taken(setting: dict[str, Any], own: Any) -> dict[str, Any]:
    """The arguments for some rows."""
    part = dict(setting)
    if "precision" in part:
        part["precision"], part["dense"] = part["precision"][own], (part["dense"][0], part["dense"][1][own])
    if "low_rank" in part:
        part["low_rank"] = part["low_rank"][0][own], part["low_rank"][1]
    return part


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(9, 123), (6, 1500), (5, 4)])
def test_parts_have_the_bits_of_the_whole(dtype, shape, backend):
    m, n = shape
    w = draws(shape, 0).to(dtype)
    listed = torch.tensor([m - 1, 0, 2, 2])
    for write, setting in settings(m, n, dtype):
        whole = torch.empty_like(w)
        write(whole, w, **setting, backend=backend)
        for own in (slice(0, 2), slice(2, m)):
            part = torch.empty_like(w[own])
            write(part, w[own], **taken(setting, own), start=own.start * n, backend=backend)
            assert torch.equal(bits(part), bits(whole[own]))
        part = w[listed]
        write(part, part, **taken(setting, listed), rows=listed, backend=backend)
        assert torch.equal(bits(part), bits(whole[listed]))


@pytest.mark.parametrize("start", [2**32 - 5000, 2**32 - 1, 2**38 + 7, 2**41 + 4095])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counters_go_on_beyond_32_bits(start, dtype):
    w = draws((40, 257), 0).to(dtype)
    for write, setting in settings(40, 257, dtype):
        outs = [torch.empty_like(w) for _ in range(3)]
        for out, backend in zip(outs, BACKENDS, strict=False):
            write(out, w, **setting, start=start, backend=backend)
        write(outs[2], w, **setting, start=start % 2**32)
        assert torch.equal(bits(outs[0]), bits(outs[1]))
        assert "low_rank" in setting or start < 2**32 or not torch.equal(bits(outs[0]), bits(outs[2]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("piece", [1 << 17, 300])
def test_transposed_memory_has_the_same_bits_with_and_without_pieces(dtype, piece, monkeypatch):
    monkeypatch.setattr(kernels.layout, "_PIECE", piece)
    m, n = 9, 123
    w = draws((m, n), 0).to(dtype)
    listed = torch.tensor([8, 0, 2, 2])
    for write, setting in settings(m, n, dtype):
        expected = torch.empty_like(w)
        write(expected, w, **setting)
        turned = w.t().contiguous().t()
        out = torch.empty_like(turned)
        assert not out.is_contiguous()
        for target, source in ((out, turned), (torch.empty_like(w), turned), (out.clone(), w), (turned, turned)):
            write(target, source, **setting)
            assert torch.equal(bits(target), bits(expected))
        rows = w[listed].t().contiguous().t()
        write(rows, rows, **taken(setting, listed), rows=listed)
        assert torch.equal(bits(rows), bits(expected[listed]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("noise", NOISES)
def test_the_gram_of_the_rows_comes_with_the_update(dtype, noise):
    for m, n in ((1, 7), (7, 1), (16, 300), (70, 123), (600, 5), (33, 1025), (0, 4), (4, 0)):
        w, a = draws((m, n), 0).to(dtype), draws((n,), 1, compute(dtype))
        for count, rounding in itertools.product((0, 1, 4), (None, ROUNDING)):
            setting: dict[str, Any] = {"terms": terms(count), "decay": 0.9, "noise": noise, "rounding": rounding}
            gram = [0.7 - k for k in range(count)]
            expected = torch.empty_like(w)
            combine_rows(expected, w, rank_one=(0.1, a), backend="reference", **setting)
            own = [(c, key) for c, (_, key) in zip(gram, terms(count), strict=True)]
            q_expected, p_expected = row_gram(own, a, m, noise=noise, backend="reference")
            for backend, in_place in itertools.product(BACKENDS, (True, False)):
                out = w.clone() if in_place else torch.empty_like(w)
                q, p = combine_with_gram(
                    out, out if in_place else w, rank_one=(0.1, a), gram=gram, backend=backend, **setting
                )
                assert torch.equal(bits(out), bits(expected))
                assert torch.equal(bits(q), bits(q_expected))
                assert p == p_expected
            turned = w.t().contiguous().t()
            combine_with_gram(turned, turned, rank_one=(0.1, a), gram=gram, **setting)
            assert torch.equal(bits(turned), bits(expected))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("noise", NOISES)
def test_the_scale_of_the_noise_is_adapted_with_the_update(dtype, noise):
    for shape in ((1,), (70, 123), (4097,), (0,), ()):
        w, h = draws(shape, 0).to(dtype), draws(shape, 1, compute(dtype)).square() + 0.1
        for count, rounding in itertools.product((0, 1, 4), (None, ROUNDING)):
            setting: dict[str, Any] = {"terms": terms(count), "decay": 0.9, "noise": noise, "rounding": rounding}
            squares = [0.7 - k / 10 for k in range(count)]
            h_expected, expected = h.clone(), torch.empty_like(w)
            own = [(c, key) for c, (_, key) in zip(squares, terms(count), strict=True)]
            scale_by_squares(h_expected, decay=0.8, terms=own, noise=noise, backend="reference")
            combine(expected, w, precision=h_expected, backend="reference", **setting)
            for backend, in_place in itertools.product(BACKENDS, (True, False)):
                out, own_h = w.clone() if in_place else torch.empty_like(w), h.clone()
                source = out if in_place else w
                combine_with_squares(out, source, own_h, squares=squares, keep=0.8, backend=backend, **setting)
                assert torch.equal(bits(own_h), bits(h_expected))
                assert torch.equal(bits(out), bits(expected))


def test_row_dots_are_the_dots_and_do_not_depend_on_what_lies_beside():
    for n in (1, 255, 256, 257, 3000):
        x, a = draws((6, n), 1, torch.float64), draws((n,), 2, torch.float64)
        dots = reference.row_dot(x, a)
        torch.testing.assert_close(dots, x @ a, rtol=1e-12, atol=1e-10)
        assert torch.equal(reference.row_dot(x[2:4], a), dots[2:4])
    assert reference.row_dot(torch.ones(3, 100_000), torch.ones(100_000)).tolist() == [100_000.0] * 3


def test_blocks_of_the_gram_are_few_and_cover_the_rows():
    for rows in (1, 15, 16, 17, 4096, 4097, 50_272):
        block = reference.gram_rows(rows)
        assert block >= 16
        assert -(-rows // block) <= 256


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_two_and_three_threads_give_the_same_bits(dtype):
    shape, results = (300, 301), []
    w, a = draws(shape, 0).to(dtype), draws((301,), 1, compute(dtype))
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outs = [torch.empty_like(w) for _ in range(4)]
            h = torch.ones(shape, dtype=compute(dtype))
            gram = combine_with_gram(outs[0], w, terms=terms(2), gram=[1.0, 2.0], rank_one=(0.1, a), rounding=ROUNDING)
            combine_with_squares(outs[1], w, h, terms=terms(2), squares=[1.0, 2.0], keep=0.5)
            combine(outs[2], w, terms=terms(3), noise="rademacher", start=12345)
            combine(outs[3], w, terms=terms(2), rows=torch.arange(299, -1, -1))
            results.append([*map(bits, [*outs, h, gram[0]]), gram[1]])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0][:-1], other[:-1], strict=True))
        assert other[-1] == results[0][-1]


# ------------------------------------------------------------------------------------------------ in the optimizers


class Counted:
    """How often each kernel was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: dict[str, int] = {}
        for name in ("combine", "combine_rows", "combine_with_gram", "combine_with_squares", "row_gram"):
            monkeypatch.setattr(kernels, name, self._counting(name, getattr(kernels, name)))
        monkeypatch.setattr(kernels, "scale_by_squares", self._counting("scale_by_squares", kernels.scale_by_squares))

    def _counting(self, name: str, function: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] = self.calls.get(name, 0) + 1
            return function(*args, **kwargs)

        return counted


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_loren_updates_weights_and_curvature_in_one_pass(momentum, monkeypatch):
    param = torch.nn.Parameter(draws((6, 5), 0))
    optimizer = LOREN([param], lr=1e-2, lr_cov=1e-2, momentum=momentum)
    losses = [float(k) for k in range(6)]
    before = param.detach().clone()
    optimizer.tell(losses)
    a_before = optimizer.state[param]["a"]
    counted = Counted(monkeypatch)
    optimizer.tell(losses)
    assert counted.calls["combine_with_gram"] == 1
    assert "row_gram" not in counted.calls
    assert not torch.equal(optimizer.state[param]["a"], a_before)
    assert not torch.equal(param, before)


def test_what_is_learnt_does_not_depend_on_whether_the_rule_writes():
    learnt = {}
    for name, cls, own in (("a", LOREN, {"momentum": 0.0, "lr_cov": 1e-2}), ("hessian", HiZOO, {})):
        for lr in (0.0, 1e-2):
            if cls is HiZOO:
                own = {"smoothing": "constant1e-2"}
            param = torch.nn.Parameter(draws((6, 5), 0))
            optimizer = cls([param], lr=lr, **own)
            optimizer.tell([float(k * k) for k in range(len(optimizer.plan()))])
            assert torch.equal(param, draws((6, 5), 0)) == (lr == 0.0)
            learnt[name, lr] = optimizer.state[param][name]
        assert torch.equal(bits(learnt[name, 0.0]), bits(learnt[name, 1e-2]))
    assert not torch.equal(learnt["hessian", 0.0], torch.ones(6, 5))


def test_hizoo_updates_weights_and_curvature_in_one_pass(monkeypatch):
    param = torch.nn.Parameter(draws((6, 5), 0))
    optimizer = HiZOO([param], lr=1e-2, queries=5, smoothing="constant1e-2")
    counted = Counted(monkeypatch)
    optimizer.tell([1.0, 2.0, 1.5, 0.7, 0.9])
    assert counted.calls["combine_with_squares"] == 1
    assert "scale_by_squares" not in counted.calls
    # a direction whose two losses are equal moves no weight, and still teaches H
    before = optimizer.state[param]["hessian"].clone()
    optimizer.tell([1.0, 2.0, 2.0, 0.7, 0.7])
    assert not torch.equal(optimizer.state[param]["hessian"], before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_after_the_warm_up_and_one_small_step_nothing_is_compiled(dtype):
    def compiled() -> int:
        return sum(
            len(kernel.signatures) for kernel in (cpu._combine, cpu._combine_listed, cpu_rows._rank_one, cpu_rows._gram)
        )

    kernels.warm_up(dtype)
    params = [torch.nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in ((2, 2), (2,))]
    LOREN(params, lr=1e-2).step(lambda: 1.0)
    before = compiled()
    params = [torch.nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in ((300, 70), (70_000,))]
    LOREN(params, lr=1e-2).step(lambda: 1.0)
    combine(
        torch.empty(4, 70, dtype=dtype),
        params[0].data[:4],
        terms=terms(2),
        rows=torch.arange(8)[::2],
        noise="rademacher",
    )
    assert compiled() == before


def test_shapes_that_do_not_belong_together_are_refused():
    """Compiled code does not look at bounds."""
    out = torch.zeros(6, 4)
    wrong = torch.zeros(6, 3)
    calls = [
        lambda: kernels.combine(out, wrong),
        lambda: kernels.combine(out, None, dense=(1.0, wrong)),
        lambda: kernels.combine(out, out, precision=wrong),
        lambda: kernels.combine(out, out, rows=torch.zeros(5, dtype=torch.int64)),
        lambda: kernels.combine_rows(out, out, rank_one=(1.0, torch.zeros(6))),
        lambda: kernels.combine_rows(out, out, low_rank=(torch.zeros(5, 2), torch.zeros(2, 4))),
        lambda: kernels.combine_with_gram(out, out, terms=[], gram=[], rank_one=(1.0, torch.zeros(6))),
        lambda: kernels.combine_with_squares(out, out, wrong, terms=[], squares=[], keep=1.0),
    ]
    for call in calls:
        with pytest.raises(AssertionError):
            call()
