"""Heads of classifiers: one that a checkpoint does not hold, drawn from a key instead of global random state; and the
order of the classes of one that it does hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

_DEFAULT_RANGE = 0.02  # what nearly every configuration of transformers says where it says anything


def initialise(model: PreTrainedModel, names: Iterable[str], *, seed: int) -> None:
    """Overwrite the named parameters: matrices N(0, initializer_range), biases 0, other vectors (norm gains) 1.

    Each parameter has a Philox stream of its own, keyed by (name, seed), so its bits depend neither on the global
    random state nor on which other parameters are new.  Names that are not parameters (buffers) are left alone.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    deviation = float(_initializer_range(model))
    with torch.no_grad():
        for name in sorted(set(names) & parameters.keys()):
            parameter = parameters[name]
            if parameter.dim() >= 2:
                drawn = _normal(name, seed, tuple(parameter.shape)) * deviation
                # Float32 first: half-precision weights are then those of a float32 model, rounded once.
                parameter.copy_(torch.from_numpy(drawn).float())
                _clear_padding(model, name, parameter)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def _initializer_range(model: PreTrainedModel) -> float:
    for name in ("initializer_range", "init_std"):
        value = getattr(model.config, name, None)
        if value is not None:
            return float(value)
    return _DEFAULT_RANGE


def _normal(name: str, seed: int, shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    digest = hashlib.blake2b(f"zotune head {name} {seed}".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    return generator.standard_normal(shape)


def _clear_padding(model: PreTrainedModel, name: str, parameter: nn.Parameter) -> None:
    owner = model.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, nn.Embedding) and owner.padding_idx is not None:
        parameter[owner.padding_idx] = 0.0


def order_of(names: Sequence[str], labels: Sequence[str]) -> list[int] | None:
    """For each label the number of the class that has its name, in capital letters or not; None where not all do, or
    where names are the same but for capital letters and not those of the labels."""
    for told, wanted in ((names, labels), ([n.casefold() for n in names], [label.casefold() for label in labels])):
        if len(set(told)) == len(told) and sorted(told) == sorted(wanted):
            return [told.index(label) for label in wanted]
    return None


def rearrange(model: PreTrainedModel, order: Sequence[int]) -> None:
    """Let class k of a classifier be what was its class ``order[k]``: the rows of its last linear map change places."""
    if list(order) == list(range(len(order))):
        return
    last = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == len(order)][-1]
    with torch.no_grad():
        for values in (last.weight, last.bias):
            if values is not None:
                values.copy_(values[list(order)])
