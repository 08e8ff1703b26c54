"""The plain-integer Philox against the published known answers, and the exact numbers built on it."""

import math

import pytest
from reference import philox
from scipy import stats


def words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_known_answers(counter, key, expected):
    assert philox.philox4x32(words(counter), words(key)) == words(expected)


@pytest.mark.parametrize("quadrant", range(4))
def test_box_muller_quadrants_and_radius(quadrant):
    x, fraction = 0x12345678, 0.25
    y = quadrant << 30 | int(fraction * 2**30)
    z = [philox.gaussian(i, (x, y, x, y)) for i in range(4)]
    angle = math.pi / 2 * (quadrant + fraction)
    radius = math.sqrt(-2 * math.log(((x >> 8) + 0.5) / 2**24))
    assert z[:2] == pytest.approx([radius * math.cos(angle), radius * math.sin(angle)], rel=1e-12)
    assert z[2:] == z[:2]
    assert [philox.angle_fraction(y) for y in (0, 0x1FFFFFFF, 0x20000000)] == [0.0, 0.5 - 2**-24, -0.5]


def test_keyed_numbers_have_the_declared_distribution_and_every_field_matters():
    key = {"parameter": 3, "step": 5, "tag": 1, "query": 2}
    z = philox.normal((4, 1024), 7, **key)
    assert stats.kstest(z.reshape(-1), "norm").pvalue > 1e-3
    assert abs(philox.rademacher((4096,), 7, **key).mean()) < 4 / 64
    assert z[1, 300] == philox.gaussian(1, philox.block_words(7, 256 + 44, **key))
    others = [key | {field: value + 1} for field, value in key.items()]
    firsts = {philox.block_words(7, 0, **other) for other in [key, *others]}
    firsts |= {philox.block_words(7 + 2**32, 0, **key), philox.block_words(7, 2**32, **key)}
    assert len(firsts) == 7
