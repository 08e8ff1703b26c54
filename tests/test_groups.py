"""Parameter groups of transformers models: decay, frozen parameters, and GPT-2's transposed weights."""

import pytest
import torch
from tiny_models import build
from transformers.pytorch_utils import Conv1D

from zotune import LOREN, LOZO
from zotune.hf.groups import parameter_groups


def test_conv1d_weights_and_only_they_are_marked_as_stored_the_other_way_round() -> None:
    model = build("gpt2")
    conv = {id(module.weight) for module in model.modules() if isinstance(module, Conv1D)}
    groups = parameter_groups(model, weight_decay=0.1)
    marked = {id(p) for group in groups if group.get("input_dim") == 0 for _, p in group["params"]}
    assert conv
    assert marked == conv


@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_every_trainable_parameter_is_in_one_group_and_vectors_do_not_decay(family: str) -> None:
    model = build(family)
    frozen = next(iter(model.parameters()))
    frozen.requires_grad_(False)
    groups = parameter_groups(model, weight_decay=0.1)
    members = [(p, group["weight_decay"]) for group in groups for _, p in group["params"]]
    assert {id(p) for p, _ in members} == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(members) == len({id(p) for p, _ in members})
    assert all((decay == 0.1) == (p.dim() >= 2) for p, decay in members)


def test_nothing_trainable_is_refused() -> None:
    model = build("opt")
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        parameter_groups(model, weight_decay=0.0)


@pytest.mark.parametrize("kind", [LOZO, LOREN])
def test_a_conv1d_is_trained_like_the_linear_layer_that_computes_the_same(kind: type[torch.optim.Optimizer]) -> None:
    linear, conv = torch.nn.Linear(5, 7), Conv1D(7, 5)
    start = torch.linspace(-0.5, 0.5, 35).view(7, 5)
    linear.weight.data.copy_(start)
    conv.weight.data.copy_(start.t())
    for layer in (linear, conv):
        layer.bias.data.zero_()
    x = torch.linspace(-1.0, 1.0, 15).view(3, 5)
    for layer in (linear, conv):
        optimizer = kind(parameter_groups(layer, weight_decay=0.0), lr=1e-2)
        for _ in range(5):
            optimizer.step(lambda layer=layer: layer(x).square().mean())
    assert torch.allclose(conv.weight, linear.weight.t(), atol=2e-4)
    assert (linear.weight - start).abs().max() > 1e-2
