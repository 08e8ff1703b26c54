"""Noise: the bits of the plain-integer Philox, the declared distributions, and no state anywhere."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from reference import philox
from scipy import stats

from zotune import MeZO, kernels
from zotune.kernels import cpu_noise, reference, reference_noise
from zotune.noise import TAGS, Key, normal, rademacher

CPU = torch.device("cpu")
KEYS = [
    Key(0),
    Key(1, step=2, query=3, parameter=4, tag="V"),
    Key(2**64 - 1, step=2**32 - 1, query=2**24 - 1, parameter=2**24 - 1, tag="rounding"),
    Key(0x9E3779B97F4A7C15, step=17, query=5, parameter=1234567, tag="a"),
]
SPANS = [(0, 40), (1000, 1060), (4090, 4110), (2**34 - 8, 2**34 + 8), (2**42 - 20, 2**42)]


def fields(key: Key) -> dict[str, int]:
    return {"parameter": key.parameter, "step": key.step, "tag": TAGS[key.tag], "query": key.query}


def compiled(key: Key, start: int, stop: int, *, signs: bool) -> torch.Tensor:
    """Elements start..stop-1 as the compiled kernels make them, without the tensor they would be part of."""
    buffer = np.zeros(stop - start + 2 * 4096, np.float32)
    words = np.array([key.words()], np.uint32)
    scratch = np.empty(cpu_noise.WORDS, np.uint32)
    offset = cpu_noise.accumulate(buffer, scratch, start, stop, words, np.ones(1, np.float32), signs)
    return torch.from_numpy(buffer[offset : offset + stop - start])


def word_at(i: int, key: Key) -> int:
    return philox.block_words(key.seed, 256 * (i // 1024) + i % 256, **fields(key))[i % 1024 // 256]


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("key", KEYS)
def test_raw_words_and_signs_are_those_of_the_plain_integer_philox(key, span):
    start, stop = span
    expected = [word_at(i, key) for i in range(start, stop)]
    assert reference.words(key, start, stop, CPU).tolist() == expected
    tile = np.empty(1024, np.uint32)
    cpu_noise.fill_words(tile, start // 1024, 1, np.array(key.words(), np.uint32))
    inside = min(stop, (start // 1024 + 1) * 1024) - start
    assert tile[start % 1024 : start % 1024 + inside].tolist() == expected[:inside]
    signs = [philox.sign_at(i, key.seed, **fields(key)) for i in range(start, stop)]
    assert reference.rademacher(key, start, stop, CPU).tolist() == signs
    assert compiled(key, start, stop, signs=True).tolist() == signs


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("key", KEYS)
def test_gaussians_are_box_muller_to_float32_precision_and_the_same_bits_compiled(key, span):
    start, stop = span
    got = reference.gaussian(key, start, stop, CPU)
    exact = [philox.normal_at(i, key.seed, **fields(key)) for i in range(start, stop)]
    assert np.abs(got.double().numpy() - np.array(exact)).max() < 1e-6
    assert torch.equal(compiled(key, start, stop, signs=False), got)


def test_a_million_gaussians_stay_within_two_millionths_of_float64():
    # The radius is a function of u rounded to float32; only where u is next to 1 does that rounding show in z.
    key, n = KEYS[3], 1 << 18
    words = reference.words(key, 0, 4 * n, CPU).view(-1, 4, 256).numpy()
    z = reference.gaussian(key, 0, 4 * n, CPU).view(-1, 4, 256).double().numpy()
    for pair in (0, 2):
        a, b = words[:, pair], words[:, pair + 1]
        exact_u = ((a >> 8) + 0.5) * 2.0**-24
        u = ((a >> 8).astype(np.float32) + np.float32(0.5)).astype(np.float64) * 2.0**-24
        fraction = ((b << 2 & 0xFFFFFFFF).astype(np.uint32).view(np.int32) >> 8) * 2.0**-24
        angle = np.pi / 2 * ((b >> 30) + fraction)
        for part, turn in ((0, np.cos), (1, np.sin)):
            error = np.abs(z[:, pair + part] - np.sqrt(-2 * np.log(u)) * turn(angle))
            assert error.max() < 2e-6
            assert np.mean(error > 1e-6) < 1e-4
            exact_error = np.abs(z[:, pair + part] - np.sqrt(-2 * np.log(exact_u)) * turn(angle))
            assert exact_error.max() < 2.5e-4
            assert np.mean(exact_error > 1e-6) < 1e-3


def test_all_radii_are_finite_and_below_5_9():
    """Exhaustive over the 2**24 values of u; the two backends agree on the bits of the ends and of a sweep."""
    largest = 0.0
    for start in range(0, 1 << 24, 1 << 21):
        u = (torch.arange(start, start + (1 << 21)).to(torch.float32) + 0.5) * 2.0**-24
        log = reference_noise._log(u)
        assert torch.all(log <= 0.0)
        assert torch.all(torch.isfinite(log))
        relative = (log.double() - u.double().log()).abs() / u.double().log().abs().clamp(min=2.0**-24)
        assert float(relative.max()) < 2e-7
        largest = max(largest, math.sqrt(-2.0 * float(log.min())))
    assert 5.8 < largest <= 5.9


def test_the_extreme_words_give_finite_numbers():
    a = torch.tensor([0, 0, 0xFFFFFFFF, 0xFFFFFFFF])
    b = torch.tensor([0, 0xFFFFFFFF, 0, 0xFFFFFFFF])
    z = torch.stack(reference_noise._box_muller(a, b))
    assert torch.all(torch.isfinite(z))
    assert float(z.abs().max()) <= 5.9


@pytest.mark.parametrize("key", [Key(11), Key(12, step=999, query=2, parameter=7), Key(2**63, tag="V")])
def test_a_million_gaussians_have_the_distribution(key):
    n = 1_000_000
    z = normal(key, (n,)).double().numpy()
    assert stats.kstest(z, "norm").pvalue > 1e-3
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs(stats.skew(z)) < 4 * math.sqrt(6 / n)
    assert abs(stats.kurtosis(z)) < 4 * math.sqrt(24 / n)
    assert 4.2 < np.abs(z).max() <= 5.9
    tails = np.mean(np.abs(z) > 3)
    assert tails == pytest.approx(2 * stats.norm.sf(3), rel=0.1)


@pytest.mark.parametrize("draw", [normal, rademacher])
def test_neighbouring_elements_are_independent(draw):
    """Lags that step through a block's words, a lane, a tile."""
    z = draw(Key(5), (1 << 20,)).double()
    bound = 4.5 / math.sqrt(z.numel())
    for lag in (1, 2, 31, 32, 255, 256, 512, 768, 1024, 4096):
        assert abs(float((z[lag:] * z[:-lag]).mean())) < bound, lag
        squares = (z[lag:] ** 2 - 1) * (z[:-lag] ** 2 - 1) / 2
        assert abs(float(squares.mean())) < bound, lag


@pytest.mark.parametrize("draw", [normal, rademacher])
def test_keys_that_differ_in_one_field_are_independent(draw):
    n, base = 1 << 18, Key(3, step=4, query=5, parameter=6)
    others = [
        base,
        Key(2, step=4, query=5, parameter=6),
        Key(3 + 2**32, step=4, query=5, parameter=6),
        base.at(step=5),
        base.at(query=4),
        base.at(tag="V"),
        base.at(tag="rounding"),
        Key(3, step=4, query=5, parameter=7),
        Key(3, step=5, query=4, parameter=6),
    ]
    z = torch.stack([draw(key, (n,)).double() for key in others])
    correlation = z @ z.T / n
    off = correlation[~torch.eye(len(others), dtype=torch.bool)]
    assert float(off.abs().max()) < 5 / math.sqrt(n)


def test_rademacher_is_exactly_plus_or_minus_one_and_balanced():
    n = 1_000_000
    z = rademacher(Key(8, step=1), (n,))
    assert torch.equal(z.abs(), torch.ones(n))
    assert abs(float(z.double().mean())) < 4 / math.sqrt(n)
    runs = int((z[1:] != z[:-1]).sum())
    assert abs(runs - n / 2) < 4 * math.sqrt(n) / 2


def test_order_of_calls_shapes_and_prefixes_do_not_matter():
    keys = [Key(1, step=s, query=q) for s, q in itertools.product(range(2), range(2))]
    forward = [normal(key, (37, 41)) for key in keys]
    backward = [normal(key, (37, 41)) for key in reversed(keys)]
    for one, other in zip(forward, reversed(backward), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(normal(keys[0], (41, 37)).view(-1), forward[0].view(-1))
    assert torch.equal(normal(keys[0], (500,)), forward[0].view(-1)[:500])
    assert torch.equal(normal(keys[0], (37, 41), dtype=torch.float64).float(), forward[0])


def test_chunks_of_the_reference_do_not_matter():
    key, n = Key(9), 10_000
    for draw in (reference.gaussian, reference.rademacher, reference.words):
        whole = draw(key, 0, n, CPU)
        cuts = [0, 1, 1023, 1024, 1500, 4096, 4097, 9999, n]
        pieces = torch.cat([draw(key, a, b, CPU) for a, b in itertools.pairwise(cuts)])
        assert torch.equal(pieces, whole)


@pytest.mark.parametrize("draw", [normal, rademacher])
def test_threads_do_not_matter(draw):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = draw(Key(4), (300_001,))
        torch.set_num_threads(2)
        two = draw(Key(4), (300_001,))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, two)


def test_no_global_generator_is_touched():
    def states():
        kind, words, *rest = np.random.get_state()  # noqa: NPY002
        return torch.get_rng_state(), random.getstate(), (kind, words.tolist(), rest)

    before = states()
    normal(Key(1), (100,))
    rademacher(Key(1), (100,))
    kernels.row_gram([(1.0, Key(1))], torch.ones(5), 7)
    weight = torch.nn.Parameter(torch.ones(4, 3))
    MeZO([weight], lr=0.1).step(lambda: weight.square().sum())
    after = states()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_words_of_a_key_are_laid_out_as_documented():
    key = Key(seed=0xAABBCCDD_11223344, step=0x01020304, query=0xABCDEF, parameter=0x123456, tag="a")
    assert key.words() == (0x11223344, 0xAABBCCDD, 0x12345600, 0x01020304, 0xABCDEF02)
    assert key.at(step=9, query=1, tag="z") == Key(key.seed, step=9, query=1, parameter=key.parameter)


@pytest.mark.parametrize(
    ("field", "value"),
    [("seed", 2**64), ("seed", -1), ("step", 2**32), ("step", -1), ("query", 2**24), ("parameter", 2**24)],
)
def test_a_field_that_does_not_fit_is_refused(field, value):
    with pytest.raises(ValueError, match=f"^{field}={value} does not fit"):
        Key(**({"seed": 0} | {field: value}))


def test_an_unknown_tag_is_refused():
    with pytest.raises(ValueError, match="unknown tag 'w': choose one of z, V, a, rounding"):
        Key(0, tag="w")
