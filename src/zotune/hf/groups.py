"""Parameter groups of a transformers model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D


def parameter_groups(
    model: nn.Module, *, weight_decay: float, decayed: Iterable[str] | None = None
) -> list[dict[str, Any]]:
    """Groups of all trainable parameters, with names, for any zotune optimizer.

    Biases and norm gains get no weight decay.  The weights of Conv1D layers (GPT-2), stored as the transpose of a
    Linear, are marked with ``input_dim=0``, so that methods with a row structure see them as (outputs, inputs).

    Args:
        model: any model.
        weight_decay: of the decayed parameters.
        decayed: names of the decayed parameters; left out, all with two or more dimensions.

    Raises:
        ValueError: if no parameter is trainable.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("The model has no trainable parameter; set requires_grad on those to be trained.")
    chosen = {name for name, p in named if p.dim() >= 2} if decayed is None else set(decayed)
    transposed = {id(module.weight) for module in model.modules() if isinstance(module, Conv1D)}
    groups: dict[tuple[bool, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, p in named:
        groups.setdefault((name not in chosen, id(p) in transposed), []).append((name, p))
    return [
        {
            "params": members,
            "weight_decay": 0.0 if plain else weight_decay,
            **({"input_dim": 0} if turned else {}),
        }
        for (plain, turned), members in sorted(groups.items(), key=lambda item: item[0])
    ]
