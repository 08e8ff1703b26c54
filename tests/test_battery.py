"""The battery's side of the noise: its streams are the kernels' numbers in the order it names, and its report is about
the present bits."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import special

from zotune.kernels import cpu_noise, reference
from zotune.noise import Key

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks" / "battery"))

import judge  # noqa: E402
import streams  # noqa: E402
import testu01  # noqa: E402
import variants  # noqa: E402
from streams import RUN, SMALL, STREAMS, Source  # noqa: E402

CPU = torch.device("cpu")
SEED = 12345
REPORT = ROOT / "benchmarks" / "results" / "battery.json"


def first(name: str, count: int) -> list[int]:
    return next(STREAMS[name].chunks(Source(), SEED))[:count].tolist()


def words(key: Key, start: int, stop: int) -> list[int]:
    return reference.words(key, start, stop, CPU).tolist()


def packed(signs: list[float]) -> list[int]:
    return [sum(1 << (31 - j) for j in range(32) if signs[i + j] < 0) for i in range(0, len(signs), 32)]


def signs(key: Key, start: int, stop: int) -> list[float]:
    return reference.rademacher(key, start, stop, CPU).tolist()


def test_one_tensor_is_read_in_the_order_of_its_elements():
    key = Key(SEED, step=7, parameter=3)
    assert first("words: elements", 3000) == words(key, 0, 3000)
    assert first("signs: elements", 200) == packed(signs(key, 0, 6400))
    second = streams.tensor_words(Source(), "signs", key, 8192, 50)
    assert second.tolist() == packed(signs(key, 8192, 8192 + 1600))


@pytest.mark.parametrize("axis", ["steps", "queries", "parameters", "tags", "seeds"])
def test_small_tensors_follow_each_other_and_elements_are_followed(axis):
    keys = [streams.AXES[axis](i, SEED) for i in range(RUN)]
    assert len(set(keys)) == RUN
    assert first(f"words: {axis}", 3 * SMALL) == [word for key in keys[:3] for word in words(key, 0, SMALL)]
    followed = first(f"words: element over {axis}", RUN + 1)
    assert followed[:40] == [words(key, 0, 1)[0] for key in keys[:40]]
    assert followed[RUN] == words(keys[0], 1, 2)[0]


def test_counters_that_are_used_up_go_on_in_the_next_step():
    assert streams.AXES["queries"](2**24, SEED) == Key(SEED, step=8, query=0, parameter=3)
    assert streams.AXES["parameters"](2**24 + 1, SEED) == Key(SEED, step=8, query=2, parameter=1)
    assert streams.AXES["seeds"](3, 2**64 - 1).seed == 2


def test_signs_of_one_element_over_steps_are_packed_in_the_order_of_the_steps():
    keys = [Key(SEED, step=i, parameter=3) for i in range(64)]
    got = first("signs: element over steps", RUN // 32 + 2)
    table = [signs(key, 0, 2) for key in keys]
    assert got[:2] == packed([row[0] for row in table])
    assert got[RUN // 32 :] == packed([row[1] for row in table])


def test_normals_become_two_halves_of_sixteen_bits():
    z = reference.gaussian(Key(SEED, step=7, parameter=3), 0, 2000, CPU).double().numpy()
    expected = np.floor(special.ndtr(z) * 65536)
    got = np.array(first("normals: elements", 1000))
    halves = np.stack((got >> 16, got & 0xFFFF), axis=1).ravel()
    near_a_border = np.abs(special.ndtr(z) * 65536 - np.round(special.ndtr(z) * 65536)) < 1e-6
    assert ((halves == expected) | near_a_border).all()
    assert streams.sixteen_bits(np.array([-9, 0, 9], np.float32)).tolist() == [0, 32768, 65535]


def test_training_reads_every_query_and_parameter_of_a_step_in_turn():
    expected = [
        word
        for query in (0, 1)
        for p, size in ((0, 768), (1, 3072), (2, 48), (3, 1000), (4, 2145), (5, 7))
        for word in words(Key(SEED, query=query, parameter=p), 0, size)
    ]
    assert first("words: training", len(expected)) == expected


def test_blocks_beyond_32_bits_are_read_at_their_place():
    key = Key(SEED, step=7, parameter=3)
    start = (2**24 - 2**16) * 1024
    assert first("words: across block 2^32", 100) == words(key, start, start + 100)
    high = [words(key, (part << 24) * 1024, (part << 24) * 1024 + 2) for part in range(256)]
    assert first("words: high blocks", 512) == [row[0] for row in high] + [row[1] for row in high]


@pytest.mark.parametrize("variant", variants.VARIANTS.values(), ids=lambda variant: variant.name)
def test_the_variants_fit_the_kernels_of_today(variant):
    text = Path(cpu_noise.__file__).read_text()
    assert variants.edited(text, variant) != text
    with pytest.raises(ValueError, match=r"adapt benchmarks/battery/variants\.py"):
        variants.edited("", variant)


def test_a_line_of_the_driver_becomes_a_result():
    result = testu01.parse("6\tMaxOft AD\t0.25\t12000000\t0.321\n")
    assert (result.test, result.p, result.words, result.seconds) == ("6 MaxOft AD", 0.25, 12_000_000, 0.321)


def test_the_rule_counts_both_ends_and_knows_how_many_tests_there_were():
    found = judge.judge([0.5, 1e-12, 1 - 1e-12, 1e-6, 0.004])
    assert (found.failed, found.doubtful, found.low, found.tests) == (2, 1, 4, 5)
    assert not found.in_order
    assert judge.judge([0.5] * 99 + [0.004]).in_order
    assert judge.is_doubtful(1e-6, 1000)
    assert not judge.is_doubtful(1e-4, 1000)
    assert judge.repeat_failed([0.5, 0.9999, 0.2])
    assert not judge.repeat_failed([0.5, 0.99, 0.2])


def test_the_published_report_is_about_the_present_bits():
    report = json.loads(REPORT.read_text())
    assert report["fingerprints"] == {name: stream.fingerprint(Source()) for name, stream in STREAMS.items()}
    assert report["verdicts"]["zotune"]["passes"]
