"""The parameters of an optimizer: their groups, their noise numbers, and the slots that perturbations work on."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch

from zotune.checks import check_memory, check_number, check_parameter
from zotune.noise import Key
from zotune.perturbations import Perturbation, Slot
from zotune.saving import Saved

_TORCH_GROUP_KEYS = {"params", "param_names", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum"}


class Slotted(Saved):
    """The parameters' half of `zotune.optimizer.ZerothOrder`, which sets all that is declared here."""

    backend: str | None
    _vector: Perturbation

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer.add_param_group`; also checks every value.

        Raises:
            ValueError: if a key or a value is wrong, or a parameter cannot be perturbed.
        """
        known = self.defaults.keys() | _TORCH_GROUP_KEYS
        for key in param_group:
            if key not in known:
                close = difflib.get_close_matches(key, self.defaults, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(sorted(self.defaults))}"
                raise ValueError(f"unknown hyperparameter {key!r} in a param group: {hint}")
        self._check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for param in group["params"]:
            check_parameter(param)
        check_memory(param for own in self.param_groups for param in own["params"])
        if self._numbers:  # a group added later: its numbers follow the others, whose noise stays
            self._number(self._named(group))

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise ValueError if a hyperparameter is out of range."""
        check_number("lr", group["lr"], at_least=0.0)
        check_number("eps", group["eps"], above=0.0)
        check_number("weight_decay", group["weight_decay"], at_least=0.0)
        if group["input_dim"] not in (-1, 0):
            raise ValueError(f"input_dim={group['input_dim']!r}: choose -1 (as in torch.nn.Linear) or 0 (as in Conv1D)")

    @staticmethod
    def _named(group: dict[str, Any]) -> list[tuple[str | None, torch.nn.Parameter]]:
        names: Sequence[str | None] = group.get("param_names") or [None] * len(group["params"])
        return list(zip(names, group["params"], strict=True))

    def _number(self, named: Sequence[tuple[str | None, torch.nn.Parameter]]) -> None:
        """Give noise numbers: in the order of the names if all have one, otherwise in the order given."""
        if all(name is not None for name, _ in named):
            named = sorted(named, key=lambda pair: str(pair[0]))
        first = len(self._numbers)  # all at once: a request to stop half way would leave some without
        self._numbers = {**self._numbers, **{param: first + i for i, (_, param) in enumerate(named)}}

    def _active(self) -> list[Slot]:
        """The slots of all parameters that are not frozen."""
        if not self._numbers:
            self._number([pair for group in self.param_groups for pair in self._named(group)])
        slots = []
        for group in self.param_groups:
            for name, param in self._named(group):
                if not param.requires_grad:
                    continue
                slot = self._slots.get(param)
                if slot is None:
                    slot = self._slots[param] = self._make_slot(name, param, group)
                slot.group, slot.state = group, self.state[param]
                slots.append(slot)
        if not slots:
            raise ValueError("no parameter is trainable: set requires_grad=True on those to be trained")
        return slots

    def _make_slot(self, name: str | None, param: torch.nn.Parameter, group: dict[str, Any]) -> Slot:
        number = self._numbers[param]
        slot = Slot(
            param=param,
            name=name or f"parameter {number}",
            group=group,
            key=Key(self.seed, parameter=number),
            state=self.state[param],
            backend=self.backend,
        )
        slot.perturbation = self._matrix if param.dim() >= 2 else self._vector
        return slot

    def _check_same(self, slots: Sequence[Slot]) -> None:
        """Raise ValueError unless the parameters are those that the accumulated losses are of."""
        if self._evaluated is None:
            return
        before, now = ({id(slot.param): slot.name for slot in own} for own in (self._evaluated, slots))
        changed = [(before | now)[number] for number in before.keys() ^ now.keys()]
        if changed:
            raise ValueError(
                f"{', '.join(sorted(changed))}: frozen, unfrozen or added between the first estimate() of a step and "
                "its step(), which would move it along noise that no loss has seen: do so before the estimate or after "
                "the step"
            )
