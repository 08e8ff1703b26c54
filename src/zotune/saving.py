"""Saving an optimizer and going on from what was saved."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from zotune.estimators import Estimator
from zotune.evaluators import Evaluator
from zotune.perturbations import Perturbation, Slot
from zotune.rules import Rule

FORMAT = 2
_OWN_KEY = "zotune"
_REMADE = {"_zero_grad_profile_name", "_opt_called", "_warned_capturable_if_run_uncaptured"}


class OtherSettingsError(ValueError):
    """A saved state belongs to an optimizer with other settings than the one that was to go on from it.

    Attributes:
        field: the setting that differs.
        saved: its value in the state.
        present: its value in the optimizer.
    """

    def __init__(self, field: str, saved: Any, present: Any) -> None:
        self.field, self.saved, self.present = field, saved, present
        super().__init__(f"the saved state has {field}={saved!r}, this optimizer {present!r}: build it the same way")


class Saved(torch.optim.Optimizer):
    """The saving half of `zotune.optimizer.ZerothOrder`, which sets all that is declared here."""

    arguments: dict[str, Any]
    estimator: Estimator
    evaluator: Evaluator
    rule: Rule
    seed: int
    t: int
    queries: int
    last_loss: float | None
    _matrix: Perturbation
    _sums: list[float]
    _weight: float
    _evaluated: list[Slot] | None  # what the sums are of; None if that is not known, as after loading a state
    _slots: dict[torch.nn.Parameter, Slot]
    _numbers: dict[torch.nn.Parameter, int]

    def __getstate__(self) -> dict[str, Any]:
        """For ``copy.deepcopy``: all but what torch makes anew, an evaluator that has seen no parameter yet, and no
        hooks."""
        own = {k: v for k, v in self.__dict__.items() if "hook" not in k and k not in _REMADE}
        arguments = {name: value for name, value in self.arguments.items() if name != "evaluator"}
        fresh = self.evaluator.fresh()
        return {
            **own,
            "_slots": {},
            "_listeners": OrderedDict(),
            "_recorders": OrderedDict(),
            "evaluator": fresh,
            "arguments": arguments,
        }

    def state_dict(self) -> dict[str, Any]:
        """torch's layout, plus what a run needs to go on with the same bits, under ``"zotune"``."""
        state = super().state_dict()
        state[_OWN_KEY] = self._own_state()
        return state

    def _own_state(self) -> dict[str, Any]:
        numbers = [self._numbers.get(p, -1) for group in self.param_groups for p in group["params"]]
        return {
            "format": FORMAT,
            **self._kind(),
            "numbers": numbers,
            "t": self.t,
            "queries": self.queries,
            "last_loss": self.last_loss,
            "sums": list(self._sums),
            "weight": self._weight,
        }

    def _kind(self) -> dict[str, Any]:
        """What a state must agree in with the optimizer that goes on from it.

        Learning rates, eps and weight decay are values of the groups and may change, as may `clip`, which only looks
        at the present step.
        """
        return {
            "method": type(self).__name__,
            "seed": self.seed,
            "queries_per_step": self.estimator.queries,
            "rule": type(self.rule).__name__,
            "bits": self.rule.bits,
            **self._matrix.settings(),
            **self.rule.settings(),
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken.

        The values of the groups (lr, eps, weight decay and other rates) become those of the state; set them
        afterwards to go on with others.

        Raises:
            OtherSettingsError: a ValueError, if it belongs to another method, seed or number of queries, or to
                directions or a rule with other settings.
            ValueError: if it was not saved by this class or belongs to other parameters.
        """
        own = state_dict.get(_OWN_KEY)
        if not isinstance(own, dict) or own.get("format") != FORMAT:
            raise ValueError("this state was not saved by an optimizer of this version of zotune")
        for field, mine in self._kind().items():
            if own.get(field, mine) != mine:
                raise OtherSettingsError(field, own[field], mine)
        exact = {i: dict(values) for i, values in state_dict["state"].items()}
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        params = [p for group in self.param_groups for p in group["params"]]
        numbers = [i for group in state_dict["param_groups"] for i in group["params"]]
        # torch casts state to the parameter's type on loading; ours is kept in float32 and must stay so
        for number, param in zip(numbers, params, strict=True):
            values = exact.get(number, {})
            self.state[param] = {
                k: v.detach().clone().to(param.device) if isinstance(v, Tensor) else v for k, v in values.items()
            }
        self._numbers = {p: n for p, n in zip(params, own["numbers"], strict=True) if n >= 0}
        self._slots = {}
        self._load_own(own)

    def _load_own(self, own: dict[str, Any]) -> None:
        self.t, self.queries, self.last_loss = own["t"], own["queries"], own["last_loss"]
        self._sums, self._weight, self._evaluated = list(own["sums"]), own["weight"], None
