"""The Triton kernels against the specification, bit for bit, in Triton's interpreter.

`test_triton.py` runs this file in a process of its own, where TRITON_INTERPRET is set before anything is imported.
"""

import itertools
import math

import pytest
import torch
import triton
import triton.language as tl

from zotune.kernels import combine, combine_rows, combine_with_gram, combine_with_squares, row_gram, scale_by_squares
from zotune.kernels.gpu_elements import window
from zotune.noise import Key, normal

BITS = {torch.float32: torch.int32, torch.float64: torch.int64, torch.bfloat16: torch.int16, torch.float16: torch.int16}
DTYPES = list(BITS)
HALF = [torch.bfloat16, torch.float16]
NOISES = ["gaussian", "rademacher"]
ROUNDING = Key(99 + (3 << 40), step=2**31 + 3, parameter=5, tag="rounding")
STARTS = [0, 5, 1024 * 3 + 256, 2**32 - 5000, 2**40 + 7]  # the last: more than 2**32 blocks of signs, too

pytestmark = [pytest.mark.parametrize("noise", NOISES)]


def compute(dtype):
    return torch.float64 if dtype is torch.float64 else torch.float32


def terms(count):
    """Keys with large fields, of two parameters."""
    seed, steps = 7 + (2**31 << 32), (0, 2**32 - 1, 5)
    return [((-1.0) ** k * 0.3 / (k + 1), Key(seed, steps[k % 3], 2**24 - 1 - k, 5 + k // 2)) for k in range(count)]


def draws(shape, number, dtype=torch.float32):
    return normal(Key(1234, parameter=number), shape, dtype=dtype)


def weights(shape, dtype):
    """Normals, among them zeros of both signs and subnormal numbers."""
    w = draws(shape, 0)
    flat = w.view(-1)
    flat[::7], flat[1::7], flat[2::7] = 0.0, -0.0, flat[2::7] * 1e-39
    return w.to(dtype)


def same(left, right):
    """Equal bits, where any NaN equals any other."""
    left, right = left.contiguous().view(-1), right.contiguous().view(-1)
    nan = torch.isnan(right)
    kind = BITS[left.dtype]
    return torch.equal(torch.isnan(left), nan) and torch.equal(left[~nan].view(kind), right[~nan].view(kind))


def on_both(run, *tensors):
    """``run(backend, *tensors)`` on copies for each backend must leave the same bits in them; those are returned."""
    results = {}
    for backend in ("triton", "reference"):
        results[backend] = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype).copy_(t) for t in tensors]
        run(backend, *results[backend])
    for left, right in zip(*results.values(), strict=True):
        assert same(left, right)
    return results["triton"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_combine(dtype, noise):
    settings = itertools.cycle(itertools.product((None, ROUNDING), (True, False), (1, 3, 0), STARTS))
    addends = itertools.cycle([(), ("h",), ("x",), ("h", "x")])
    for shape in ((), (7,), (3, 5, 7), (4097,), (5, 123), (1, 4096), (33, 125), (2,), (1030,)):
        rounding, in_place, count, start = next(settings)
        for _ in range(11):  # no multiple of the cycle's inner lengths: all of them meet
            next(settings)
        h = draws(shape, 1, compute(dtype)).square() + 0.1
        x = draws(shape, 2, compute(dtype))
        chosen = next(addends)
        setting = {
            "terms": terms(count),
            "noise": noise,
            "rounding": rounding,
            "start": start,
            "precision": h if "h" in chosen else None,
            "dense": (0.7, x) if "x" in chosen else None,
        }
        w = weights(shape, dtype)

        def run(backend, out, w=w, own=in_place, setting=setting):
            combine(out, out if own else w, decay=0.9, **setting, backend=backend)

        on_both(run, w)
        on_both(lambda backend, out, setting=setting: combine(out, None, **setting, backend=backend), w)


@pytest.mark.parametrize("start", STARTS)
def test_counters_of_large_tensors(start, noise):
    for rounding in (None, ROUNDING):
        w = weights((2049,), torch.float16)
        setting = {"terms": terms(2), "noise": noise, "start": start, "rounding": rounding}
        (out,) = on_both(lambda backend, out, setting=setting: combine(out, out, **setting, backend=backend), w)
        assert not torch.equal(out, w)


def test_twenty_directions_at_once(noise):
    on_both(lambda backend, out: combine(out, None, terms=terms(20), noise=noise, backend=backend), draws((300,), 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_listed_rows(dtype, noise):
    rows = torch.tensor([2**31 // 5, 3])
    for columns, rounding in ((5, None), (1100, ROUNDING), (1024, None)):
        w = weights((2, columns), dtype)
        setting = {"terms": terms(2), "noise": noise, "rounding": rounding, "rows": rows}
        on_both(lambda backend, out, setting=setting: combine(out, out, **setting, backend=backend), w)


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_order(dtype, noise):
    w = weights((5, 123), dtype)
    (straight,) = on_both(
        lambda backend, out: combine(out, out, terms=terms(1), noise=noise, rounding=ROUNDING, backend=backend), w
    )
    (turned,) = on_both(
        lambda backend, out: combine(out, out, terms=terms(1), noise=noise, rounding=ROUNDING, backend=backend),
        w.t().contiguous().t(),
    )
    assert not turned.is_contiguous()
    assert same(turned, straight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rank_one(dtype, noise):
    cases = [((3, 1300), 0, None), ((2, 33), 2**38 + 7, None), ((2, 256), 0, torch.tensor([70_000_000, 3]))]
    for (shape, start, rows), rounding in zip(cases, (ROUNDING, None, ROUNDING), strict=True):
        w, a = weights(shape, dtype), draws((shape[1],), 1, compute(dtype))
        setting = {"terms": terms(2), "noise": noise, "rank_one": (0.4, a), "start": start, "rows": rows}

        def run(backend, out, setting=setting, rounding=rounding):
            combine_rows(out, out, decay=0.9, rounding=rounding, **setting, backend=backend)

        on_both(run, w)
    on_both(lambda backend, out: combine_rows(out, None, **setting, backend=backend), w)


@pytest.mark.parametrize("dtype", DTYPES)
def test_low_rank(dtype, noise):
    for shape, rank, start in (((5, 1), 1, 0), ((50, 123), 3, 1025), ((3, 1300), 2, 5), ((2, 4), 0, 0)):
        w = weights(shape, dtype)
        low = draws((shape[0], rank), 1, compute(dtype)), draws((shape[1], rank), 2, compute(dtype)).t()
        rounding = ROUNDING if noise == "gaussian" else None
        setting = {"low_rank": low, "rounding": rounding, "start": start}
        on_both(lambda backend, out, s=setting: combine_rows(out, out, decay=0.9, **s, backend=backend), w)
        on_both(lambda backend, out, s=setting: combine_rows(out, None, **s, backend=backend), w)
    rows = torch.tensor([3, 1])
    setting = {"low_rank": low, "rounding": ROUNDING, "rows": rows}
    on_both(lambda backend, out: combine_rows(out, out, **setting, backend=backend), w)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_row_gram(dtype, noise):
    for rows, columns, count in ((17, 33, 1), (2, 1300, 2), (0, 4, 1), (3, 5, 0)):
        a = draws((columns,), 0, dtype)
        q, p = row_gram(terms(count), a, rows, noise=noise, backend="triton")
        expected_q, expected_p = row_gram(terms(count), a, rows, noise=noise, backend="reference")
        assert same(q, expected_q)
        assert p == expected_p
        assert math.isfinite(p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scale_by_squares(dtype, noise):
    for shape, count in (((33, 125), 2), ((7,), 0), ((0, 3), 1), ((), 1)):
        h = draws(shape, 1, dtype).square() + 0.1

        def run(backend, out, count=count):
            scale_by_squares(out, decay=0.9, terms=terms(count), noise=noise, backend=backend)

        on_both(run, h)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_updates(dtype, noise):
    shape = (3, 50)
    w, a = weights(shape, dtype), draws(shape[1:], 1, compute(dtype))
    h = draws(shape, 1, compute(dtype)).square() + 0.1
    for count, rounding in ((2, ROUNDING), (0, None)):
        ts, factors = terms(count), [0.5, 0.25][:count]

        def squares(backend, out, h, ts=ts, factors=factors, rounding=rounding):
            setting = {"squares": factors, "keep": 0.8, "decay": 0.9, "noise": noise, "rounding": rounding}
            combine_with_squares(out, out, h, terms=ts, **setting, backend=backend)

        def gram(backend, out, sums, ts=ts, factors=factors, rounding=rounding):
            setting = {"gram": factors, "rank_one": (0.4, a), "decay": 0.9, "noise": noise, "rounding": rounding}
            q, p = combine_with_gram(out, out, terms=ts, **setting, backend=backend)
            sums[:-1], sums[-1] = q, p

        on_both(squares, w, h)
        on_both(gram, w, torch.zeros(shape[1] + 1, dtype=compute(dtype)))


def awkward(dtype):
    """Float32 numbers on, between and next to the midpoints of half-precision numbers of every size, and specials."""
    patterns = torch.arange(-(1 << 15), 1 << 15, 13).to(torch.int16).view(dtype)
    middle = (patterns.float() + torch.nextafter(patterns, torch.full_like(patterns, math.inf)).float()) / 2
    up, down = torch.full_like(middle, math.inf), torch.full_like(middle, -math.inf)
    sides = [torch.nextafter(middle, up), torch.nextafter(middle, down)]
    specials = torch.tensor([math.inf, -math.inf, math.nan, 65519.99, 65520.0, 65536.0, -1e6, 3.4e38, 1e-8, 2.0**-25])
    return torch.cat((patterns.float(), middle, *sides, specials))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy in the interpreter, about NaN and infinity
def test_rounding_of_awkward_numbers(dtype, noise):
    rounding = ROUNDING if noise == "gaussian" else None
    x = awkward(dtype)
    out = torch.empty(x.shape, dtype=dtype)
    on_both(lambda backend, out: combine(out, None, dense=(1.0, x), rounding=rounding, backend=backend), out)
    patterns = torch.arange(-(1 << 15), 1 << 15, 11).to(torch.int16).view(dtype)
    on_both(lambda backend, out: combine(out, out, rounding=rounding, backend=backend), patterns)


@triton.jit
def _windows(out, origin: tl.int64, size: tl.int64, program: tl.int64, G: tl.constexpr):
    values = window(tl.cast(program, tl.int64), tl.cast(origin, tl.int64), tl.cast(size, tl.int64), G)
    for i in tl.static_range(4):
        tl.store(out + i, values[i])


@pytest.mark.parametrize("origin", [0, 5, 2**32 - 5000, 2**38 + 7])
def test_programs_of_tensors_of_more_than_2_to_the_32_elements(origin, noise):
    G = 4 if noise == "gaussian" else 1
    tile, size = 1024 * G, 2**34 + 77
    last = (origin % tile + size - 1) // tile
    out = torch.zeros(4, dtype=torch.int64)
    for program in (0, 1, 2**31 // tile, 2**32 // tile + 1, last - 1, last):
        _windows[(1,)](out, origin, size, program, G=G)
        first = (origin // tile + program) * tile
        low, high = max(origin - first, 0), min(origin + size - first, tile)
        assert out.tolist() == [first // tile, first - origin, low, high]
        assert 0 <= low < high <= tile
