"""The kernels: compiled code against the specification bit for bit, and rounding to half precision."""

import itertools
import math
from functools import partial

import pytest
import torch
from scipy import stats

from zotune import kernels
from zotune.kernels import (
    combine,
    combine_rows,
    reference,
    row_gram,
    scale_by_squares,
    tree_sum,
)
from zotune.noise import Key, normal

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HALF = [torch.bfloat16, torch.float16]
SHAPES = [(1, 7), (7, 1), (5, 123), (1,), (4097,), (33, 1025), (3, 5, 7), ()]
ROUNDING = Key(99, step=3, tag="rounding")
NOISES = ["gaussian", "rademacher"]
BACKENDS = ["numba", "reference"]  # Triton has a file of its own
BACKENDS = ("numba", "reference")  # those of the CPU; triton has tests of its own
BITS = {torch.float32: torch.int32, torch.float64: torch.int64, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(-1).view(BITS[x.dtype])


def compute(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


def terms(count: int) -> list[tuple[float, Key]]:
    return [((-1.0) ** k * 0.3 / (k + 1), Key(7, step=2, query=k, parameter=5)) for k in range(count)]


def draws(shape: tuple[int, ...], number: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return normal(Key(1234, parameter=number), shape, dtype=dtype)


def run_combine(start, out, backend, *, own=False, **setting) -> None:
    combine(out, out if own else start, **setting, backend=backend)


def on_both(run, out: torch.Tensor) -> torch.Tensor:
    """``run(out, backend)`` on copies of ``out`` that keep its strides; the compiled result after comparing bits."""
    results = {}
    for backend in BACKENDS:
        results[backend] = torch.empty_strided(out.shape, out.stride(), dtype=out.dtype).copy_(out)
        run(results[backend], backend)
    assert torch.equal(bits(results["numba"]), bits(results["reference"]))
    return results["numba"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_combine_gives_the_same_bits_on_both_backends(dtype, shape):
    w = draws(shape, 0).to(dtype)
    precision = draws(shape, 1, compute(dtype)).square() + 0.1
    x = draws(shape, 2, compute(dtype))
    extras = [{}, {"precision": precision}, {"dense": (0.7, x)}, {"precision": precision, "dense": (2.0, x)}]
    starts = [(None, 1.0), (w, 1.0), (w, 0.9)]
    seen = set()
    for noise, count, extra, rounding in itertools.product(NOISES, (0, 1, 3), extras, (None, ROUNDING)):
        setting = {"terms": terms(count), "noise": noise, "rounding": rounding, **extra}
        for start, decay in starts:
            result = on_both(partial(run_combine, start, decay=decay, **setting), torch.zeros_like(w))
            if start is not None:
                in_place = on_both(partial(run_combine, None, own=True, decay=decay, **setting), w)
                assert torch.equal(bits(in_place), bits(result))
            seen.add(tuple(bits(result).tolist()[:5]))
    assert len(seen) > 20


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 123), (33, 1025)])
def test_memory_order_does_not_change_a_bit(dtype, shape):
    w, x = draws(shape, 0).to(dtype), draws(shape, 1, compute(dtype))
    precision = draws(shape, 2, compute(dtype)).square() + 0.1
    setting = {"decay": 0.9, "terms": terms(2), "rounding": ROUNDING}
    expected = torch.empty_like(w)
    combine(expected, w, dense=(0.5, x), precision=precision, **setting)
    wide = torch.empty(shape[0], 2 * shape[1], dtype=dtype)
    for out in (w.t().contiguous().t(), wide[:, ::2].copy_(w)):
        assert not out.is_contiguous()
        turned = {"dense": (0.5, x.t().contiguous().t()), "precision": precision.t().contiguous().t()}
        for own in (True, False):
            result = on_both(partial(run_combine, w, own=own, **turned, **setting), out)
            assert torch.equal(bits(result), bits(expected))
    rows = torch.empty_like(w)
    combine_rows(rows, w, rank_one=(0.1, draws((shape[1],), 3, compute(dtype))), **setting)
    turned = w.t().contiguous().t()
    combine_rows(turned, turned, rank_one=(0.1, draws((shape[1],), 3, compute(dtype))), **setting)
    assert torch.equal(bits(turned), bits(rows))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (5, 123), (33, 1025), (70, 33)])
def test_combine_rows_gives_the_same_bits_on_both_backends(dtype, shape):
    m, n = shape
    w, a = draws(shape, 0).to(dtype), draws((n,), 1, compute(dtype))
    low = draws((m, 3), 2, compute(dtype)), draws((n, 3), 3, compute(dtype)).t()
    cases = [{"terms": terms(count), "noise": noise} for count in (0, 1, 3) for noise in NOISES]
    cases += [{**case, "rank_one": (0.4, a)} for case in cases] + [{"low_rank": low}]
    for case in cases:
        for rounding in (None, ROUNDING):
            for start, decay in ((None, 1.0), (w, 0.9)):
                setting = {**case, "rounding": rounding, "decay": decay}
                result = on_both(
                    lambda out, backend, start=start, setting=setting: combine_rows(
                        out, start, **setting, backend=backend
                    ),
                    torch.zeros_like(w),
                )
                if start is not None:
                    own = w.clone()
                    combine_rows(own, own, **setting)
                    assert torch.equal(bits(own), bits(result))
                assert bool(torch.isfinite(result).all())


@pytest.mark.parametrize("noise", NOISES)
def test_combine_computes_what_it_says(noise):
    """Against dense float64 algebra."""
    shape, ts = (5, 123), terms(3)
    w, x, a = (draws(s, i, torch.float64) for i, s in enumerate([shape, shape, (123,)]))
    precision = draws(shape, 4, torch.float64).square() + 0.1
    z = [torch.empty(shape, dtype=torch.float64) for _ in ts]
    for out, (_, key) in zip(z, ts, strict=True):
        combine(out, None, terms=[(1.0, key)], noise=noise)
    G = sum(c * z_k for (c, _), z_k in zip(ts, z, strict=True))
    out = torch.empty_like(w)
    combine(out, w, decay=0.9, terms=ts, noise=noise, precision=precision, dense=(0.5, x))
    torch.testing.assert_close(out, 0.9 * w + G / precision.sqrt() + 0.5 * x, rtol=1e-13, atol=1e-13)
    combine_rows(out, w, decay=0.9, terms=ts, noise=noise, rank_one=(0.3, a))
    torch.testing.assert_close(out, 0.9 * w + G - 0.3 * torch.outer(G @ a, a), rtol=1e-12, atol=1e-12)
    u, v = draws((5, 4), 5, torch.float64), draws((123, 4), 6, torch.float64)
    combine_rows(out, w, decay=0.9, low_rank=(u, v.t()))
    torch.testing.assert_close(out, 0.9 * w + u @ v.t(), rtol=1e-12, atol=1e-12)
    q, p = row_gram(ts, a, 5, noise=noise)
    expected_q = sum(c * z_k.t() @ (z_k @ a) for (c, _), z_k in zip(ts, z, strict=True))
    torch.testing.assert_close(q, expected_q, rtol=1e-11, atol=1e-11)
    assert p == pytest.approx(sum(c * float((z_k @ a).square().sum()) for (c, _), z_k in zip(ts, z, strict=True)))
    h = precision.clone()
    scale_by_squares(h, decay=0.8, terms=ts, noise=noise)
    squares = sum(c * z_k**2 for (c, _), z_k in zip(ts, z, strict=True))
    torch.testing.assert_close(h, precision * (0.8 + squares), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", NOISES)
def test_row_gram_and_scale_by_squares_give_the_same_bits(dtype, noise):
    for rows, n in ((1, 1), (1, 7), (7, 1), (5, 123), (33, 1025), (97, 65), (0, 4), (4, 0)):
        a = draws((n,), 0, dtype)
        for count in (0, 1, 3):
            q, p = row_gram(terms(count), a, rows, noise=noise, backend="numba")
            q_reference, p_reference = row_gram(terms(count), a, rows, noise=noise, backend="reference")
            assert torch.equal(bits(q), bits(q_reference))
            assert p == p_reference
            h = draws((rows, n), 1, dtype).square() + 0.1
            result = on_both(
                lambda out, backend, count=count: scale_by_squares(
                    out, decay=0.9, terms=terms(count), noise=noise, backend=backend
                ),
                h,
            )
            assert result.numel() == 0 or not torch.equal(result, h)


def everything(dtype: torch.dtype) -> list[torch.Tensor]:
    """All kernels on tensors above the size from which threads are used."""
    shape = (300, 301)
    w, a = draws(shape, 0).to(dtype), draws((301,), 1, compute(dtype))
    outs = [torch.empty_like(w) for _ in range(3)]
    combine(outs[0], w, decay=0.9, terms=terms(2), rounding=ROUNDING)
    combine_rows(outs[1], w, terms=terms(1), noise="rademacher", rank_one=(0.1, a))
    combine_rows(outs[2], w, low_rank=(draws((300, 2), 2, compute(dtype)), draws((2, 301), 3, compute(dtype))))
    q, p = row_gram(terms(2), a, 300)
    h = torch.ones(shape, dtype=compute(dtype))
    scale_by_squares(h, decay=0.9, terms=terms(2))
    return [*outs, q, torch.tensor(p, dtype=torch.float64), h]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_does_not_change_a_bit(dtype):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = everything(dtype)
        torch.set_num_threads(2)
        two = everything(dtype)
    finally:
        torch.set_num_threads(before)
    for left, right in zip(one, two, strict=True):
        assert torch.equal(bits(left), bits(right))


def test_the_references_chunks_do_not_change_a_bit(monkeypatch):
    shape = (5, 4096)
    expected = [torch.empty(shape), torch.empty(shape)]
    a = draws((4096,), 1)
    combine(expected[0], None, terms=terms(2), backend="reference")
    combine_rows(expected[1], None, terms=terms(2), rank_one=(0.1, a), backend="reference")
    monkeypatch.setattr(reference, "_CHUNK", 4096)
    pieces = [torch.empty(shape), torch.empty(shape)]
    combine(pieces[0], None, terms=terms(2), backend="reference")
    combine_rows(pieces[1], None, terms=terms(2), rank_one=(0.1, a), backend="reference")
    for left, right in zip(expected, pieces, strict=True):
        assert torch.equal(left, right)


# ------------------------------------------------------------------------------------------------ half precision


def all_patterns(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal bits, where any NaN equals any other."""
    nan = torch.isnan(right)
    return torch.equal(torch.isnan(left), nan) and torch.equal(bits(left)[~nan], bits(right)[~nan])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", HALF)
def test_every_half_precision_number_is_read_and_written_exactly(dtype, backend):
    w = all_patterns(dtype)
    for rounding in (None, ROUNDING):
        out = torch.empty_like(w)
        combine(out, w, rounding=rounding, backend=backend)
        assert same(out, w)
    loaded = torch.empty_like(w)
    combine(loaded, w, decay=0.5, backend=backend)
    assert same(loaded, (w.float() * 0.5).to(dtype))


def awkward(dtype: torch.dtype) -> torch.Tensor:
    """Float32 numbers on, between and next to the midpoints of half-precision numbers of every size, and specials."""
    patterns = all_patterns(dtype)
    finite = patterns[torch.isfinite(patterns)].float()
    neighbour = torch.nextafter(patterns, torch.full_like(patterns, math.inf)).float()
    middle = (patterns.float() + neighbour) / 2
    middle = middle[torch.isfinite(middle)]
    up, down = torch.full_like(middle, math.inf), torch.full_like(middle, -math.inf)
    sides = [torch.nextafter(middle, up), torch.nextafter(middle, down)]
    specials = torch.tensor([math.inf, -math.inf, math.nan, 65519.99, 65520.0, 65536.0, -1e6, 3.4e38, 1e-8, 2.0**-25])
    return torch.cat((finite, middle, *sides, specials))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", HALF)
def test_rounding_to_nearest_is_torchs_cast(dtype, backend):
    x = awkward(dtype)
    out = torch.empty(x.shape, dtype=dtype)
    combine(out, None, dense=(1.0, x), backend=backend)
    assert same(out, x.to(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", HALF)
def test_stochastic_rounding_goes_to_a_neighbour_and_leaves_exact_numbers_and_specials(dtype, backend):
    x = awkward(dtype)
    out = torch.empty(x.shape, dtype=dtype)
    combine(out, None, dense=(1.0, x), rounding=ROUNDING, backend=backend)
    assert torch.equal(torch.isnan(out), torch.isnan(x))
    assert torch.equal(out[torch.isinf(x)].float(), x[torch.isinf(x)])
    finite = torch.isfinite(x)
    x, out = x[finite], out[finite]
    nearest = x.to(dtype)
    lower = torch.where(nearest.float() > x, torch.nextafter(nearest, torch.full_like(nearest, -math.inf)), nearest)
    upper = torch.where(nearest.float() < x, torch.nextafter(nearest, torch.full_like(nearest, math.inf)), nearest)
    assert bool(((out == lower) | (out == upper)).all())
    exact = lower == upper
    assert int(exact.sum()) > 60_000
    assert torch.equal(out[exact], nearest[exact])


@pytest.mark.parametrize("dtype", HALF)
def test_stochastic_rounding_of_awkward_numbers_gives_the_same_bits_and_infinity_on_overflow(dtype):
    x = awkward(dtype)
    outs = []
    for backend in BACKENDS:
        outs.append(torch.empty(x.shape, dtype=dtype))
        combine(outs[-1], None, dense=(1.0, x), rounding=ROUNDING, backend=backend)
    assert same(*outs)
    overflow = x.abs() >= 2 * torch.finfo(dtype).max if dtype is torch.bfloat16 else x.abs() >= 65536
    assert bool(torch.isinf(outs[0][overflow]).all())
    assert int(overflow.sum()) >= 2


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.bfloat16, 1.0 + 2.0**-10),
        (torch.bfloat16, -0.02003),
        (torch.bfloat16, 3e-39),  # a subnormal number of both bfloat16 and float32
        (torch.float16, 1.0 + 2.0**-13),
        (torch.float16, -0.0200123),
        (torch.float16, 6.1e-5),  # just below the smallest normal number
        (torch.float16, -3.21e-6),  # subnormal
        (torch.float16, 1.3e-8),  # below the smallest subnormal: 0 or 2**-24
    ],
)
def test_stochastic_rounding_is_unbiased(dtype, value):
    n = 200_000
    x = torch.full((n,), value)
    out = torch.empty(n, dtype=dtype)
    combine(out, None, dense=(1.0, x), rounding=ROUNDING)
    found = sorted(set(out.double().tolist()))
    exact = float(x[0].double())
    assert len(found) == 2
    low, high = found
    probability = (exact - low) / (high - low)
    ups = int((out.double() == high).sum())
    assert stats.binomtest(ups, n, probability).pvalue > 1e-4


def test_small_updates_survive_in_bfloat16_on_average():
    """methods.md: round-to-nearest moves about one bfloat16 weight in a hundred; stochastic rounding keeps the mean."""
    n = 100_000
    w = (draws((n,), 0) * 0.02).to(torch.bfloat16)
    change = torch.full((n,), 1e-6)
    moved = {}
    for name, key in (("nearest", None), ("stochastic", ROUNDING)):
        out = w.clone()
        combine(out, out, dense=(1.0, change), rounding=key)
        moved[name] = float((out.double() - w.double()).mean()) / 1e-6
    assert moved["stochastic"] == pytest.approx(1.0, abs=0.15)
    assert moved["nearest"] < 0.2


def test_rounding_bits_depend_on_the_step():
    x = torch.full((1000,), 1.0 + 2.0**-9)
    outs = []
    for step in (0, 1):
        outs.append(torch.empty(1000, dtype=torch.bfloat16))
        combine(outs[-1], None, dense=(1.0, x), rounding=Key(1, step=step, tag="rounding"))
    agreement = float((outs[0] == outs[1]).double().mean())
    assert abs(agreement - 0.625) < 0.08  # 1/4 up, 3/4 down, independently


# ------------------------------------------------------------------------------------------------ the rest


def test_tree_sum_is_the_sum():
    for size in (1, 2, 3, 64, 100, 1025):
        x = draws((size, 3), 1, torch.float64)
        torch.testing.assert_close(tree_sum(x, 0), x.sum(0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(tree_sum(x.t().contiguous(), 1), x.sum(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_do_is_done(backend):
    for shape in ((0,), (0, 3), (3, 0)):
        out = torch.empty(shape)
        combine(out, None, terms=terms(1), backend=backend)
        assert out.shape == shape
    for shape in ((0, 3), (3, 0)):
        out = torch.empty(shape)
        combine_rows(out, None, terms=terms(1), rank_one=(0.1, torch.ones(shape[1])), backend=backend)
        assert out.shape == shape


def test_unknown_backends_are_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="unknown backend 'nubma': did you mean 'numba'"):
        kernels.check_backend("nubma")
    with pytest.raises(ValueError, match="choose one of numba, triton, reference"):
        kernels.check_backend("xyz")
    with pytest.raises(ValueError, match="works on the CPU"):
        combine(torch.empty(3, device="meta"), None, backend="numba")
