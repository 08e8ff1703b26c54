"""Modules and functions at perturbed weights in a shared forward: right without any comparison, or evaluated apart."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import test_stacked as helpers
import torch
import torch.utils.checkpoint
from test_stacked_rows import Unchecked
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import zotune

Build = Callable[[Any, Tensor], Tensor]
Parts = dict[str, Callable[[], Any]]


class Model(nn.Module):
    """A function of a linear layer and further parts."""

    def __init__(self, function: Build, parts: Parts) -> None:
        super().__init__()
        for name, make in parts.items():
            setattr(self, name, make())
        self.function, self.lin = function, nn.Linear(6, 6).double()
        self.register_buffer("buf", torch.zeros(4, 3, 6).double())
        self.idx = torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]])
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(0.5 * helpers.draw(number + 50, *parameter.shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x).double().pow(3).sum() * 0.01


def outcome(function: Build, parts: Parts) -> str | None:
    """Why queries do not share a forward, if they do not, after checking their losses."""
    x, losses, evaluator = helpers.draw(20, 4, 3, 6), [], Unchecked()
    for way in (zotune.Overlay(), evaluator):
        model = Model(function, parts)
        optimizer = helpers.optimizer_of(model, way, queries=4, eps=0.2)
        losses.append(helpers.losses_of(optimizer, lambda model=model: model(x)))
    assert max(losses[0]) > min(losses[0])
    assert losses[1] == pytest.approx(losses[0], rel=1e-9, abs=1e-12)
    return evaluator.alone


RIGHT: dict[str, tuple[Build, Parts]] = {
    "weight.data": (lambda s, x: x @ s.lin.weight.data.t() + s.lin(x), {}),
    "weight.detach clone": (lambda s, x: F.linear(x, s.lin.weight.detach().clone(), s.lin.bias), {}),
    "weight slice": (lambda s, x: F.linear(x, s.lin.weight[:3], s.lin.bias[:3]), {}),
    "weight norm": (lambda s, x: F.linear(x, s.lin.weight / s.lin.weight.norm(dim=1, keepdim=True)), {}),
    "param scalar": (lambda s, x: s.lin(x) * s.a, {"a": lambda: nn.Parameter(torch.tensor(2.0).double())}),
    "param 3d": (
        lambda s, x: torch.einsum("bti,hio->bhto", x, s.w).sum(1),
        {"w": lambda: nn.Parameter(torch.zeros(2, 6, 6).double())},
    ),
    "param 4d conv": (
        lambda s, x: F.conv2d(x[:, None], s.w, padding=1).mean(1),
        {"w": lambda: nn.Parameter(torch.zeros(2, 1, 3, 3).double())},
    ),
    "bilinear": (lambda s, x: s.b(x, x), {"b": lambda: nn.Bilinear(6, 6, 4).double()}),
    "MHA": (lambda s, x: s.m(x, x, x)[0], {"m": lambda: nn.MultiheadAttention(6, 2, batch_first=True).double().eval()}),
    "LSTM": (lambda s, x: s.m(x)[0], {"m": lambda: nn.LSTM(6, 5, batch_first=True).double()}),
    "GRU bi": (lambda s, x: s.m(x)[0], {"m": lambda: nn.GRU(6, 5, 2, bidirectional=True, batch_first=True).double()}),
    "embbag": (lambda s, x: s.e(s.idx).double() + s.lin(x).mean(1), {"e": lambda: nn.EmbeddingBag(9, 6).double()}),
    "emb maxnorm": (
        lambda s, x: s.e(torch.tensor([[1, 2, 3]] * 4)) + s.lin(x),
        {"e": lambda: nn.Embedding(9, 6, max_norm=1.0).double()},
    ),
    "emb padidx": (
        lambda s, x: s.e(torch.tensor([[0, 2, 3]] * 4)) + s.lin(x),
        {"e": lambda: nn.Embedding(9, 6, padding_idx=0).double()},
    ),
    "groupnorm": (lambda s, x: s.n(s.lin(x).transpose(1, 2)), {"n": lambda: nn.GroupNorm(2, 6).double()}),
    "bn train": (lambda s, x: s.n(s.lin(x).transpose(1, 2)), {"n": lambda: nn.BatchNorm1d(6).double().train()}),
    "bn train no stats": (
        lambda s, x: s.n(s.lin(x).transpose(1, 2)),
        {"n": lambda: nn.BatchNorm1d(6, track_running_stats=False).double().train()},
    ),
    "rmsnorm": (lambda s, x: s.n(s.lin(x)), {"n": lambda: nn.RMSNorm(6).double()}),
    "checkpoint": (lambda s, x: torch.utils.checkpoint.checkpoint(s.lin, x, use_reentrant=False), {}),
    "functional_call": (
        lambda s, x: torch.func.functional_call(s.lin, {k: v * 2 for k, v in s.lin.named_parameters()}, (x,)),
        {},
    ),
    "functional_call orig": (lambda s, x: torch.func.functional_call(s.lin, dict(s.lin.named_parameters()), (x,)), {}),
    "foreach": (lambda s, x: sum(torch._foreach_add([s.lin(x), x], 1.0)), {}),
    "foreach param": (
        lambda s, x: s.lin(x) + sum(p.sum() for p in torch._foreach_mul(list(s.lin.parameters()), 2.0)),
        {},
    ),
    "cat params": (lambda s, x: s.lin(x) * torch.cat([p.flatten() for p in s.lin.parameters()]).norm(), {}),
    "stack params": (lambda s, x: s.lin(x) + torch.stack([s.lin.bias, s.lin.bias * 2]).sum(0), {}),
    "nested list": (lambda s, x: s.lin(x) + torch.block_diag(s.lin.bias[None], s.lin.bias[None]).sum(), {}),
    "complex": (lambda s, x: torch.view_as_real(torch.fft.fft(s.lin(x)))[..., 0], {}),
    "sparse": (lambda s, x: torch.sparse.mm(torch.eye(3).double().to_sparse(), s.lin(x)[0]) + s.lin(x), {}),
    "bool idx write": (lambda s, x: (lambda y: (y.masked_fill_(y > 0, 0.1), y)[1])(s.lin(x).clone()), {}),
    "scatter plain": (
        lambda s, x: torch.zeros(4, 6).double().scatter_add_(0, torch.tensor([[0] * 6, [1] * 6, [1] * 6]), s.lin(x)[0]),
        {},
    ),
    "index_put acc": (
        lambda s, x: torch.zeros(4, 6).double().index_put_((torch.tensor([0, 1, 1]),), s.lin(x)[0], accumulate=True),
        {},
    ),
    "out=": (lambda s, x: torch.matmul(s.lin(x), s.lin.weight, out=torch.empty(4, 3, 6).double()), {}),
    "out= params": (lambda s, x: torch.add(s.lin.bias, s.lin.bias, out=torch.empty(6).double()) + x, {}),
    "triu mask": (lambda s, x: s.lin(x).masked_fill(torch.triu(torch.ones(3, 6, dtype=torch.bool)), 0.0), {}),
    "while": (lambda s, x: (lambda y: [y := y * 0.5 for _ in range(3)][-1])(s.lin(x)), {}),
    "sort by value": (lambda s, x: s.lin(x).sort(0)[0] * torch.arange(4).view(4, 1, 1), {}),
    "masked mean": (lambda s, x: s.lin(x)[s.lin(x) > 0].mean(), {}),
    "split ragged": (lambda s, x: torch.cat([r[r > 0] for r in s.lin(x)]).cumsum(0), {}),
    "item of input": (lambda s, x: s.lin(x) * x.sum().item(), {}),
    "float of weights agree": (lambda s, x: s.lin(x) * float((s.lin.weight.abs() < 1e9).all()), {}),
    "state": (lambda s, x: (setattr(s, "last", s.lin(x)), s.lin(s.last))[1], {}),
    "buffer write": (lambda s, x: (s.buf.copy_(s.lin(x)), s.buf * 2)[1], {}),
    "buffer slice write": (
        lambda s, x: (s.buf.__setitem__((slice(None), 0), s.lin(x)[:, 1]), s.buf.clone() * 2 + s.lin(x))[1],
        {},
    ),
    "expand write": (lambda s, x: s.lin(x)[:1].expand(4, -1, -1).contiguous().add_(1), {}),
    "as_strided": (lambda s, x: s.lin(x).as_strided((4, 6), (18, 1)), {}),
    "unfold": (lambda s, x: s.lin(x).unfold(1, 2, 1).sum(-1), {}),
    "tensor_split": (lambda s, x: torch.cat(s.lin(x).tensor_split([1, 3])[::-1]), {}),
    "repeat_interleave t": (lambda s, x: s.lin(x).repeat_interleave(torch.tensor([1, 2, 0, 1]), 0), {}),
    "gather": (lambda s, x: s.lin(x).gather(2, s.lin(x).argsort(2)), {}),
    "topk": (lambda s, x: s.lin(x).topk(2, -1)[0], {}),
    "cdist": (lambda s, x: torch.cdist(s.lin(x), s.lin(x)), {}),
    "logsumexp": (lambda s, x: s.lin(x).logsumexp((0, 1)), {}),
    "inverse": (lambda s, x: torch.linalg.inv(s.lin.weight + 3 * torch.eye(6).double()) @ x.transpose(1, 2), {}),
    "svd": (lambda s, x: torch.linalg.svdvals(s.lin(x)), {}),
    "det": (lambda s, x: torch.linalg.det(s.lin.weight) * s.lin(x), {}),
    "qr weight": (lambda s, x: x @ torch.linalg.qr(s.lin.weight)[0], {}),
    "param grad attr": (lambda s, x: s.lin(x) if s.lin.weight.grad is None else x, {}),
    "len param": (lambda s, x: s.lin(x) / len(s.lin.weight) / s.lin.weight.numel(), {}),
    "iterate weight rows": (lambda s, x: torch.stack([x @ r for r in s.lin.weight], -1), {}),
    "bias zip": (lambda s, x: sum(w * b for w, b in zip(s.lin(x).unbind(-1), s.lin.bias, strict=True)), {}),
    "bias item list": (lambda s, x: s.lin(x) * torch.tensor(x.tolist()).double().mean(), {}),
    "copy_ into new_empty": (lambda s, x: s.lin(x).new_empty(4, 3, 6).copy_(s.lin(x)), {}),
    "torch.tensor from batched": (
        lambda s, x: torch.stack([torch.zeros(6).double().copy_(r) for r in s.lin(x)[0]]),
        {},
    ),
    "swap dims inplace": (lambda s, x: s.lin(x).clone().transpose_(0, 1), {}),
    "resize": (lambda s, x: s.lin(x).clone().unsqueeze_(0), {}),
    "__getattr__ T": (lambda s, x: s.lin(x[0]).T, {}),
    "bincount weights": (lambda s, x: torch.bincount(torch.tensor([0, 1, 1]), weights=s.lin(x)[0, :, 0]), {}),
    "histc": (lambda s, x: torch.histc(s.lin(x), 5) * s.lin(x).sum(), {}),
    "interp": (lambda s, x: F.interpolate(s.lin(x), scale_factor=2.0), {}),
    "ctc": (
        lambda s, x: F.ctc_loss(
            s.lin(x).transpose(0, 1).log_softmax(-1),
            torch.tensor([[1, 2]] * 4),
            torch.tensor([3] * 4),
            torch.tensor([2] * 4),
        ),
        {},
    ),
    "kl": (lambda s, x: F.kl_div(s.lin(x).log_softmax(-1), x.softmax(-1), reduction="batchmean"), {}),
    "parametrization": (
        lambda s, x: s.p(x),
        {"p": lambda: torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 4).double())},
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_they_share_a_forward_and_are_right(name: str) -> None:
    assert outcome(*RIGHT[name]) is None


APART: dict[str, tuple[Build, Parts, str]] = {
    "checkpoint re": (
        lambda s, x: torch.utils.checkpoint.checkpoint(s.lin, x, use_reentrant=True),
        {},
        "autograd.Function",
    ),
    "vmap over rows with weights": (lambda s, x: torch.func.vmap(s.lin)(x), {}, "transformation of torch.func"),
    "unique": (lambda s, x: s.lin(x) * len(torch.unique((s.lin(x) * 2).round())), {}, "for one query"),
    "nonzero len": (lambda s, x: s.lin(x) / (s.lin(x) > 0).nonzero().shape[0], {}, "for one query"),
    "swapdata": (
        lambda s, x: (
            lambda old: (setattr(s.lin.weight, "data", old * 2), s.lin(x), setattr(s.lin.weight, "data", old))[1]
        )(s.lin.weight.data),
        {},
        "writes to the weights",
    ),
    "no_grad inplace weight": (lambda s, x: (s.lin.weight.mul_(1.0), s.lin(x))[1], {}, "writes to the weights"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of reentrant checkpoints, without a gradient
@pytest.mark.parametrize("name", APART)
def test_what_cannot_be_shared_is_evaluated_apart(name: str) -> None:
    function, parts, sentence = APART[name]
    assert sentence in str(outcome(function, parts))


def test_a_copy_of_a_module_has_perturbed_weights() -> None:
    outcome(lambda s, x: copy.deepcopy(s.lin)(x), {})
