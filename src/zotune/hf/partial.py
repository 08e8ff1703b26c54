"""Anatomy of a transformer by structure alone: its blocks, its embeddings, and what partial fine-tuning trains."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

BLOCK_SHARE = 6  # one block in six stays trainable


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Parameter names of a model by place.

    Attributes:
        blocks: names of each transformer block's parameters, first block first.
        embeddings: names of the parameters in front of the blocks, and of those that share their memory (tied heads).
    """

    blocks: tuple[frozenset[str], ...]
    embeddings: frozenset[str]


def anatomy(model: nn.Module) -> Anatomy:
    """Find the blocks and embeddings of any transformer.

    The blocks are the longest `nn.ModuleList` whose modules are of one class.  Embeddings are the modules beside the
    path from the model to that list that hold an `nn.Embedding` (so an embedding's own norm counts with it).

    Raises:
        ValueError: the model has no such list.
    """
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and len({type(item) for item in module}) == 1
    ]
    if not lists:
        raise ValueError(
            f"{type(model).__name__} has no list of equal blocks to choose the last ones from; "
            "give --full_parameter to train all of it."
        )
    place, blocks = max(lists, key=lambda item: len(item[1]))  # the first of equally long ones
    beside = _embedding_modules(model, place)
    by_name = dict(model.named_parameters(remove_duplicate=False))
    embedded = {id(p) for name, p in by_name.items() if any(_inside(name, module) for module in beside)}
    return Anatomy(
        blocks=tuple(
            frozenset(name for name in by_name if _inside(name, f"{place}.{number}")) for number in range(len(blocks))
        ),
        embeddings=frozenset(name for name, p in by_name.items() if id(p) in embedded),
    )


def _inside(name: str, module: str) -> bool:
    return name.startswith(module + ".")


def _embedding_modules(model: nn.Module, place: str) -> list[str]:
    """Names of the children along the path to the blocks that hold an embedding table and are not on the path."""
    found, owner, path = [], model, ""
    for step in place.split("."):
        for name, child in owner.named_children():
            if name != step and any(isinstance(module, nn.Embedding) for module in child.modules()):
                found.append(path + name)
        owner, path = owner.get_submodule(step), f"{path}{step}."
    return found


def select_trainable(model: nn.Module, *, full_parameter: bool) -> list[str]:
    """Set `requires_grad` and return the names of the trainable parameters.

    All of them, or for partial fine-tuning the last sixth of the blocks (rounded, at least one) and everything behind
    or beside the blocks: final norm and heads.  A head tied to the embedding table stays frozen with it.

    Raises:
        ValueError: partial fine-tuning of a model without a list of equal blocks.
    """
    frozen: frozenset[str] = frozenset()
    if not full_parameter:
        parts = anatomy(model)
        kept = max(1, round(len(parts.blocks) / BLOCK_SHARE))
        frozen = parts.embeddings.union(*parts.blocks[:-kept])
    names = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
        if parameter.requires_grad:
            names.append(name)
    return names
