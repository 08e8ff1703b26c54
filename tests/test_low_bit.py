"""State of update rules in parts and in few bits."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zotune import LOREN, MeZO, ZOAdam, digest, low_bit
from zotune.config import ALGORITHMS, TrainConfig
from zotune.noise import TAGS, Key, normal
from zotune.optimizer import ZerothOrder
from zotune.perturbations import Dense, Part
from zotune.rules import Momentum
from zotune.run.optimizers import optimizer_plan

SHAPES = [(), (7,), (5000,), (1, 9000), (33, 257), (300, 100), (64, 5, 3, 3), (0, 4)]


def slot_of(parameter: torch.nn.Parameter, **group: Any) -> Any:
    optimizer = MeZO([{"params": [parameter], **group}], lr=0.1)
    return optimizer._active()[0]


def generated(shape: tuple[int, ...], seed: int = 1) -> torch.Tensor:
    return normal(Key(seed), shape)


# ------------------------------------------------------------------------------------------------ parts


@pytest.mark.parametrize("chunk", [1, 256, 5000, 1 << 18])
@pytest.mark.parametrize("shape", SHAPES)
def test_parts_cover_every_row_once_and_begin_at_whole_blocks(shape, chunk, monkeypatch):
    monkeypatch.setattr(low_bit, "CHUNK", chunk)
    parts = low_bit.parts(slot_of(torch.nn.Parameter(torch.zeros(shape))))
    size = math.prod(shape)
    if parts == [None]:
        assert size <= max(chunk, 1)
        return
    row = math.prod(shape[1:])
    assert [row * part.first % low_bit.BLOCK for part in parts] == [0] * len(parts)
    assert [part.first for part in parts] == [0, *(part.last for part in parts[:-1])]
    assert parts[-1].last == shape[0]
    assert max(part.last - part.first for part in parts) * row <= max(chunk, 256 * row)


METHODS: dict[str, Callable[..., ZerothOrder]] = {
    "ZOAdam": lambda p: ZOAdam(p, lr=0.01, weight_decay=0.1, queries=4),
    "ZOAdam 8": lambda p: ZOAdam(p, lr=0.01, bits=8),
    "LOREN 8": lambda p: LOREN(p, lr=0.01, momentum=0.9, momentum_bits=8, weight_decay=0.1),
    "LOREN 16": lambda p: LOREN(p, lr=0.01, momentum=0.9, momentum_bits=16),
    "LOREN 16 signs": lambda p: LOREN(p, lr=0.01, momentum=0.9, momentum_bits=16, noise="rademacher"),
}


def build(method: str, parameters: Any) -> ZerothOrder:
    if method == "ZOAdam 8":
        pytest.importorskip("bitsandbytes")
    return METHODS[method](parameters)


def told(optimizer: ZerothOrder, steps: int, begin: int = 0) -> None:
    for step in range(begin, begin + steps):
        optimizer.tell([math.sin(3.0 * step + k) for k in range(len(optimizer.plan()))])


def stored(optimizer: ZerothOrder) -> dict[str, torch.Tensor]:
    return {
        f"{number} {key}": value
        for number, group in enumerate(optimizer.state.values())
        for key, value in group.items()
        if isinstance(value, torch.Tensor)
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_the_size_of_the_parts_does_not_change_a_bit(method, dtype, monkeypatch):
    runs = []
    for chunk in (1024, 1 << 18):
        monkeypatch.setattr(low_bit, "CHUNK", chunk)
        plain = [torch.nn.Parameter(generated(shape).to(dtype)) for shape in SHAPES if math.prod(shape)]
        turned = torch.nn.Parameter(generated((100, 120)).to(dtype))
        odd = torch.nn.Parameter(generated((64, 5, 4, 4)).to(dtype).to(memory_format=torch.channels_last))
        optimizer = build(method, [{"params": [*plain, odd]}, {"params": [turned], "input_dim": 0}])
        told(optimizer, 3)
        runs.append((digest([*plain, odd, turned]), stored(optimizer)))
    (first, states), (second, others) = runs
    assert first == second
    assert states.keys() == others.keys()
    assert all(torch.equal(states[key], others[key]) for key in states)


class Largest(TorchDispatchMode):
    """Bytes of the largest memory that any operator's result lies in, beside the memory that was there before."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known, self.bytes = known, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("method", METHODS)
def test_an_update_needs_no_memory_that_grows_with_the_parameter(method, monkeypatch):
    monkeypatch.setattr(low_bit, "CHUNK", 1 << 14)
    weight = torch.nn.Parameter(generated((1000, 256)))
    optimizer = build(method, [weight])
    told(optimizer, 1)
    tensors = [weight, *stored(optimizer).values()]
    with Largest({tensor.untyped_storage().data_ptr() for tensor in tensors}) as mode:
        told(optimizer, 1, begin=1)
    assert 0 < mode.bytes <= 4 * (1 << 14)


@pytest.mark.parametrize(("method", "most"), [("ZOAdam 8", 2.04), ("LOREN 8", 1.02), ("LOREN 16", 2.001)])
def test_bytes_of_state_per_weight(method, most):
    weight = torch.nn.Parameter(generated((512, 512)))
    optimizer = build(method, [weight])
    told(optimizer, 2)
    sizes = {key: x.numel() * x.element_size() for key, x in stored(optimizer).items() if not key.endswith(" a")}
    assert sum(sizes.values()) <= most * weight.numel()
    assert sum(sizes.values()) > 0.98 * round(most) * weight.numel()


# ------------------------------------------------------------------------------------------------ accuracy


def test_eight_bit_floats_are_within_a_sixteenth_down_to_a_small_part_of_the_blocks_largest():
    codec = low_bit.Float8()
    values = torch.cat((generated((3000,)) * 10.0 ** generated((3000,), 2), torch.zeros(300), generated((100,)) * 1e30))
    codes, scales = codec.encode("momentum", values)
    again = codec.decode("momentum", codes, scales)
    assert codes.dtype is torch.uint8
    assert codes.shape == again.shape == values.shape
    assert scales.shape == (-(-values.numel() // low_bit.BLOCK),)
    largest = (448 * scales).repeat_interleave(low_bit.BLOCK)[: values.numel()]
    close = values.abs() > largest / 28_000
    assert 0.7 < float(close.float().mean()) < 1.0
    assert torch.all((again - values).abs()[close] <= values.abs()[close] / 16)
    assert torch.all((again - values).abs()[~close] <= largest[~close] / 448 * 2.0**-10)
    blocks = values[: values.numel() // 256 * 256].view(-1, 256)
    peak = blocks.abs().argmax(1, keepdim=True)
    torch.testing.assert_close(again[: blocks.numel()].view(-1, 256).gather(1, peak), blocks.gather(1, peak))


@pytest.mark.parametrize("size", [1e-45, 1e-38, 1.0, 3e38])
def test_eight_bit_floats_are_finite_for_every_size(size):
    values = generated((256,)).clamp(-1, 1) * size
    again = low_bit.Float8().decode("momentum", *low_bit.Float8().encode("momentum", values))
    assert torch.isfinite(again).all()
    assert float((again - values).abs().max()) <= max(size / 16, 1e-33)


@pytest.mark.parametrize(("bits", "error"), [(16, 0.01), (8, 0.08)])
def test_a_heavy_ball_in_few_bits_is_unbiased_and_stays_near(bits, error):
    """Columns of very different sizes; g changes M by less than half of its size in a step."""
    size, steps = 1 << 15, 60
    scale = 10.0 ** -torch.linspace(0, 3, 256).repeat(size // 256)
    slot, exact = slot_of(torch.nn.Parameter(torch.zeros(size))), torch.zeros(size)
    storage = low_bit.STORAGES[bits]()
    for step in range(steps):
        g = scale * normal(Key(3, step=step), (size,))
        exact = 0.9 * exact + g
        own = 0.9 * storage.load(slot, "momentum", None) + g
        storage.save(slot, "momentum", own, None, slot.key.at(step=step, tag="rounding"))
    own, exact = storage.load(slot, "momentum", None) / scale, exact / scale
    for part in (
        (own.view(-1, 256)[:, columns], exact.view(-1, 256)[:, columns]) for columns in (slice(64), slice(192, 256))
    ):
        slope = float((part[0] * part[1]).sum() / part[1].square().sum())
        assert slope == pytest.approx(1.0, abs=0.01)
        assert 1e-4 < float((part[0] - part[1]).norm() / part[1].norm()) < error


def test_bfloat16_state_is_rounded_stochastically_with_bits_of_its_own():
    slot, storage = slot_of(torch.nn.Parameter(torch.zeros(1 << 14))), low_bit.Bfloat16()
    value = torch.full((1 << 14,), 1.0 + 2.0**-9)  # a quarter of the spacing above 1
    runs = []
    for step in (0, 1):
        storage.save(slot, "momentum", storage.load(slot, "momentum", None) * 0 + value, None, slot.key.at(step=step))
        runs.append(storage.load(slot, "momentum", None))
    assert float(runs[0].mean()) == pytest.approx(1.0 + 2.0**-9, abs=2e-4)
    assert not torch.equal(*runs)
    assert len(set(TAGS.values())) == len(TAGS)
    assert TAGS["state"] not in (TAGS["rounding"], TAGS["z"])


@pytest.mark.parametrize("bits", [16, 8])
def test_loren_in_few_bits_descends_like_loren_in_32(bits):
    centre = generated((64, 80))
    falls = {}
    for own in (32, bits):
        weight = torch.nn.Parameter(torch.zeros(64, 80))
        optimizer = LOREN([weight], lr=2e-4, momentum=0.9, momentum_bits=own, seed=3)
        losses = [optimizer.step(lambda w=weight: (w - centre).double().square().mean() * 100) for _ in range(60)]
        falls[own] = losses[0] - losses[-1]
    assert falls[32] > 0.5
    assert falls[bits] == pytest.approx(falls[32], rel=0.03)
    assert falls[bits] != falls[32]


def test_small_and_double_precision_tensors_keep_their_own_precision():
    small, double = torch.nn.Parameter(torch.zeros(60)), torch.nn.Parameter(torch.zeros(90, 90, dtype=torch.float64))
    for bits in (8, 16):
        optimizer = LOREN([small, double], lr=0.1, momentum=0.5, momentum_bits=bits)
        told(optimizer, 2)
        assert optimizer.state[small]["momentum"].dtype is torch.float32
        assert optimizer.state[double]["momentum"].dtype is torch.float64


def test_a_part_is_the_part_of_the_whole():
    for storage in (low_bit.Storage(), low_bit.Bfloat16(), low_bit.Float8()):
        slot, value = slot_of(torch.nn.Parameter(torch.zeros(64, 128))), generated((64, 128))
        storage.load(slot, "momentum", None).copy_(value)
        storage.save(slot, "momentum", value, None, slot.key)
        whole = storage.load(slot, "momentum", None).clone()
        assert float((whole - value).norm() / value.norm()) < 0.04
        assert torch.equal(storage.load(slot, "momentum", Part(4, 20)), whole[4:20])


# ------------------------------------------------------------------------------------------------ saving, settings


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("method", ["LOREN 8", "LOREN 16"])
def test_a_saved_run_goes_on_with_the_same_bits(method):
    straight, other = (torch.nn.Parameter(generated((90, 100))) for _ in range(2))
    first, second = METHODS[method]([straight]), METHODS[method]([other])
    told(first, 6)
    told(second, 3)
    third = METHODS[method]([other])
    third.load_state_dict(through_a_file(second.state_dict()))
    told(third, 3, begin=3)
    assert digest([straight]) == digest([other])
    assert all(torch.equal(a, b) for a, b in zip(stored(first).values(), stored(third).values(), strict=True))


def test_state_in_another_number_of_bits_is_refused():
    weight = torch.nn.Parameter(generated((90, 100)))
    saved = LOREN([weight], lr=0.1, momentum=0.9, momentum_bits=8)
    told(saved, 1)
    with pytest.raises(ValueError, match="bits=8, this optimizer 32"):
        LOREN([weight], lr=0.1, momentum=0.9, momentum_bits=32).load_state_dict(saved.state_dict())
    state = saved.state_dict()
    del state["zotune"]["bits"]  # saved before there was a choice
    LOREN([weight], lr=0.1, momentum=0.9, momentum_bits=8).load_state_dict(state)


@pytest.mark.parametrize("bits", [4, 0, "8", None, [8]])
def test_other_numbers_of_bits_are_refused(bits):
    with pytest.raises(ValueError, match="choose 8, 16 or 32"):
        LOREN([torch.nn.Parameter(torch.ones(3))], lr=0.1, momentum_bits=bits)


def test_the_rule_takes_any_storage_and_any_perturbation():
    weight = torch.nn.Parameter(generated((90, 100)))
    before = weight.detach().clone()
    slot = slot_of(weight)
    rule = Momentum(0.5, low_bit.Float8())
    assert (rule.bits, Momentum(0.5).bits) == (8, 32)
    assert isinstance(slot.perturbation, Dense)
    rule.step(slot, [(1.0, slot.key)], lr=0.1, rounding=slot.key.at(tag="rounding"))
    torch.testing.assert_close(weight.data, before - 0.1 * normal(slot.key, (90, 100)), rtol=0, atol=1e-6)


def test_the_flag_reaches_the_optimizer():
    for bits in (8, 16, 32):
        config = TrainConfig(algorithm="LOREN", lr=1e-3, momentum=0.9, momentum_bits=bits).resolved()
        kind, arguments = optimizer_plan(config, steps_per_epoch=1, seed=0)
        assert kind([torch.nn.Parameter(torch.ones(3))], **arguments).rule.bits == bits
    assert "momentum_bits" in ALGORITHMS["LOREN"].flags
