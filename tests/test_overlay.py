"""The overlay: every probe's loss is that of an explicitly perturbed copy, and stored weights keep their bits."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import tiny_models
import torch
import torch.utils.checkpoint
from overlay_checks import EPS, ChildRead, agree, hf_loss, numbers, overlaid, seeded, square, told
from torch import nn

from zotune import FZOO, LOREN, LOZO, HiZOO, InPlace, MeZO, Overlay, digest
from zotune.evaluators.overlay import Mode
from zotune.evaluators.scratch import Scratch
from zotune.optimizer import ZerothOrder

# ------------------------------------------------------------------------------------------------ model families


@pytest.mark.parametrize(("head", "tied"), [("classifier", True), ("lm", True), ("lm", False)])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_families(family: str, head: str, tied: bool) -> None:
    model = tiny_models.build(family, head=head, tie_word_embeddings=tied)
    agree(model, hf_loss(tiny_models.batch(), head), overlaid(model), steps=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["roberta", "gpt2", "llama"])
def test_families_half(family: str, dtype: torch.dtype) -> None:
    model = tiny_models.build(family, head="lm", dtype=dtype)
    agree(model, hf_loss(tiny_models.batch(rows=2), "lm"), overlaid(model), steps=1)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_parameter_that_matters_is_reached(family: str) -> None:
    """Perturbing one parameter alone changes the loss exactly for those whose gradient is not zero."""
    model = tiny_models.build(family)
    loss = hf_loss(tiny_models.batch(), "classifier")
    loss(model).backward()
    base = float(loss(model).detach())
    for name, p in model.named_parameters():
        if p.grad is None or float(p.grad.abs().max()) < 1e-6:
            continue
        optimizer = MeZO([(name, p)], lr=0.0, eps=EPS)
        assert any(value != base for value in told(model, loss, optimizer)), name


@pytest.mark.parametrize("cls", [LOREN, LOZO, HiZOO, FZOO])
def test_other_perturbations(cls: type[ZerothOrder]) -> None:
    model = tiny_models.build("gpt2")
    agree(model, hf_loss(tiny_models.batch(), "classifier"), overlaid(model, cls), steps=2)


def test_conv1d_with_input_dim() -> None:
    model = tiny_models.build("gpt2")
    conv = [(n, p) for n, p in model.named_parameters() if p.dim() == 2 and ".h." in n]
    rest = [(n, p) for n, p in model.named_parameters() if not (p.dim() == 2 and ".h." in n)]
    optimizer = LOREN([{"params": conv, "input_dim": 0}, {"params": rest}], lr=0.0, eps=EPS)
    agree(model, hf_loss(tiny_models.batch(), "classifier"), optimizer, steps=2)


# ------------------------------------------------------------------------------------------------ counts and memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cls", [MeZO, LOREN, LOZO, HiZOO, FZOO])
def test_in_place_agrees_bit_for_bit(cls: type[ZerothOrder], dtype: torch.dtype) -> None:
    models = [tiny_models.build("gpt2", head="lm", dtype=dtype) for _ in range(2)]
    loss = hf_loss(tiny_models.batch(rows=2), "lm")
    evaluators = (Overlay(), InPlace())
    optimizers = [
        cls(m.named_parameters(), lr=1e-3, eps=1e-2, evaluator=e) for m, e in zip(models, evaluators, strict=True)
    ]
    for _ in range(3):
        assert told(models[0], loss, optimizers[0]) == told(models[1], loss, optimizers[1])
        assert digest(models[0].parameters()) == digest(models[1].parameters())
    assert digest(models[0].parameters()) != digest(tiny_models.build("gpt2", head="lm", dtype=dtype).parameters())


@pytest.mark.parametrize(("cls", "queries"), [(MeZO, 2), (MeZO, 6), (LOREN, 6), (HiZOO, 5), (FZOO, 8), (LOZO, 4)])
def test_number_of_closure_calls(cls: type[ZerothOrder], queries: int) -> None:
    model = seeded(lambda: ChildRead("after"))
    optimizer = overlaid(model, cls, queries=queries)
    for step in range(1, 6):
        assert len(told(model, square, optimizer)) == queries
        assert optimizer.queries == step * queries


def test_closure_runs_without_gradients() -> None:
    model = seeded(lambda: nn.Linear(8, 8))
    flags: list[bool] = []
    overlaid(model).step(lambda: flags.append(torch.is_grad_enabled()) or square(model))
    assert flags == [False, False]


def test_scratch_is_one_layer() -> None:
    """What the evaluator keeps, and the most it ever hands out, is the largest module, not the model."""
    model = seeded(lambda: nn.Sequential(*(nn.Linear(32, 32) for _ in range(12))))
    evaluator = Overlay()
    taken: list[int] = []
    take, give_back = evaluator.scratch.take, evaluator.scratch.give_back
    open_now = {"n": 0}

    def counted(size: int, *args: Any) -> torch.Tensor:
        buffer = take(size, *args)
        open_now["n"] += buffer.numel()
        taken.append(open_now["n"])
        return buffer

    def returned(buffer: torch.Tensor) -> None:
        open_now["n"] -= buffer.numel()
        give_back(buffer)

    evaluator.scratch.take, evaluator.scratch.give_back = counted, returned
    optimizer = overlaid(model, evaluator=evaluator)
    for _ in range(3):
        optimizer.step(lambda: model(numbers(2, 32)).square().mean())
    layer = 32 * 32 + 64
    assert max(taken) == layer
    assert evaluator.scratch.numel() == layer, "the buffer is used again, and one is enough"
    assert set(evaluator.modes(optimizer._active()).values()) == {Mode.OWNER}


def test_scratch_gives_the_smallest_that_fits_and_no_matrix_for_a_bias() -> None:
    scratch, device = Scratch(), torch.device("cpu")
    matrix, vector = scratch.take(6400, device, torch.float32), scratch.take(64, device, torch.float32)
    scratch.give_back(vector)
    del vector
    scratch.give_back(matrix)
    del matrix
    assert scratch.take(60, device, torch.float32).numel() == 64
    assert scratch.take(60, device, torch.float32).numel() == 60, "the matrix's memory is left for a matrix"
    assert scratch.take(3200, device, torch.float32).numel() == 6400
    small = scratch.take(100, device, torch.float32)
    scratch.give_back(small)
    del small
    assert scratch.take(200, device, torch.float32).numel() == 200
    assert scratch.numel() == 0, "what was too small is given up"


def test_scratch_is_not_reused_while_a_view_lives() -> None:
    scratch, device = Scratch(), torch.device("cpu")
    buffer = scratch.take(64, device, torch.float32)
    address, view = buffer.data_ptr(), buffer[3:5]
    scratch.give_back(buffer)
    assert scratch.numel() == 0
    del view
    scratch.give_back(buffer)
    assert scratch.numel() == 64
    del buffer
    gc.collect()
    assert scratch.take(10, device, torch.float32).data_ptr() == address
    assert scratch.take(10, device, torch.bfloat16).dtype is torch.bfloat16


def test_one_evaluator_for_two_optimizers() -> None:
    """What was learnt about one model says nothing about another."""
    evaluator = Overlay()
    for seed in range(3):
        model = seeded(lambda: ChildRead("after"), seed)
        optimizer = overlaid(model, evaluator=evaluator)
        optimizer.t = 5
        agree(model, square, optimizer)
        del model, optimizer
        gc.collect()
