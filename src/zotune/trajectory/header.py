"""What a trajectory says about its run before the first step: all that is needed to build the optimizer anew."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from zotune.trajectory.frames import TrajectoryError, from_json, to_json

if TYPE_CHECKING:
    import torch

    from zotune.optimizer import ZerothOrder

FORMAT: Final = 1
NOISE: Final = "philox4x32-10/box-muller-1"
"""Names the layout and the arithmetic of `zotune.noise`; another one gives other weights from the same losses."""

_SCALARS = (str, int, float, bool, type(None))
_LARGEST = {"start": 1 << 32, "number": 1 << 24, "digest": 1 << 64, "elements": 1 << 62, "queries": 1 << 20}
_SCHEDULES = ("initial_lr", "max_lr", "min_lr")  # torch's own keep these in the groups
_RATES = {"lr", "lr_minibatch", *_SCHEDULES}  # the optimizer makes them floats before it reckons with them
_DIMENSIONS = 64
_RANK = 1 << 10  # above this, a rank is no larger than the largest side of a parameter


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A parameter as it was when recording began.

    Attributes:
        name: unique.
        shape: its sizes.
        dtype: such as "bfloat16".
        number: of its noise.
        group: number of its group.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    number: int
    group: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """The first frame of a trajectory.

    Attributes:
        method: class of the optimizer, with its module if it is none of zotune's own.
        arguments: those it was made with, without those that cannot change a bit (backend, evaluator).
        groups: hyperparameters of each parameter group.
        parameters: those of the optimizer, frozen ones included.
        start: number of the first recorded step.
        digest: `zotune.digest` of the parameters before it, in the order given here.
        about: what else the program wants to keep, such as the name of the model.
        noise: see `NOISE`.
        zotune: version that began the file.
        format: of the file.
    """

    method: str
    arguments: dict[str, Any]
    groups: tuple[dict[str, Any], ...]
    parameters: tuple[Parameter, ...]
    start: int
    digest: int
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    noise: str = NOISE
    zotune: str
    format: int = FORMAT

    @property
    def elements(self) -> int:
        """Weights of all parameters."""
        return sum(math.prod(parameter.shape) for parameter in self.parameters)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        rows = [[p.name, list(p.shape), p.dtype, p.number, p.group] for p in self.parameters]
        return {"format": self.format, **own, "groups": list(self.groups), "parameters": rows}

    @classmethod
    def from_dict(cls, content: Any) -> Header:
        """From JSON.

        Raises:
            TrajectoryError: it is not the header of this format.
        """
        if not isinstance(content, dict):
            raise TrajectoryError("its header is not one of a trajectory")
        if content.get("format") != FORMAT:
            raise TrajectoryError(
                f"it has format {str(content.get('format'))[:20]}, this version of zotune reads format {FORMAT}: use "
                "the version that wrote it"
            )
        fields = {field.name for field in dataclasses.fields(cls)}
        if set(content) != fields:
            raise TrajectoryError("its header lacks fields, or has some that are unknown")
        _check(content)
        parameters = tuple(
            Parameter(name=name, shape=tuple(shape), dtype=dtype, number=number, group=group)
            for name, shape, dtype, number, group in content["parameters"]
        )
        if len({p.name for p in parameters}) < len(parameters) or len({p.number for p in parameters}) < len(parameters):
            raise TrajectoryError("its header names or numbers a parameter twice")
        if any(p.group >= len(content["groups"]) for p in parameters):
            raise TrajectoryError("its header has a parameter of no group")
        if sum(math.prod(p.shape) for p in parameters) >= _LARGEST["elements"]:
            raise TrajectoryError("its header lists more weights than there can be")
        _check_arguments(content["arguments"], max((size for p in parameters for size in p.shape), default=0))
        return cls(**{**content, "groups": tuple(content["groups"]), "parameters": parameters})


def header_of(optimizer: ZerothOrder, about: Mapping[str, Any] | None = None) -> Header:
    """The header of a trajectory that begins with the optimizer's coming step.

    Raises:
        TrajectoryError: it has made steps already, or two of its parameters have one name.
    """
    import zotune
    from zotune.checks import digest

    if optimizer.t:
        raise TrajectoryError(
            f"the optimizer has made {optimizer.t} steps that no file holds: begin recording before the first step"
        )
    optimizer._active()  # gives the parameters their numbers
    listed = parameters_of(optimizer)
    parameters = tuple(parameter for parameter, _ in listed)
    if len({p.name for p in parameters}) < len(parameters):
        raise TrajectoryError("two parameters of the optimizer have one name: give each a name of its own")
    return Header(
        method=method_of(optimizer),
        arguments=arguments_of(optimizer),
        groups=tuple(settings_of(optimizer, group) for group in optimizer.param_groups),
        parameters=parameters,
        start=optimizer.t,
        digest=digest(tensor for _, tensor in listed),
        about=dict(about or {}),
        zotune=zotune.__version__,
    )


def parameters_of(optimizer: ZerothOrder) -> list[tuple[Parameter, torch.nn.Parameter]]:
    """The optimizer's parameters in the order of its groups, those without a name named by the number of their
    noise."""
    listed = []
    for number, group in enumerate(optimizer.param_groups):
        for name, param in optimizer._named(group):
            noise = optimizer._numbers[param]
            known, dtype = name or f"parameter {noise}", str(param.dtype).removeprefix("torch.")
            own = Parameter(name=known, shape=tuple(param.shape), dtype=dtype, number=noise, group=number)
            listed.append((own, param))
    return listed


def method_of(optimizer: ZerothOrder) -> str:
    """Name of the optimizer's class; with its module if it is none of zotune's own."""
    from zotune.methods import METHODS

    cls = type(optimizer)
    own = any(method.optimizer is cls for method in METHODS.values())
    return cls.__name__ if own else f"{cls.__module__}.{cls.__qualname__}"


def arguments_of(optimizer: ZerothOrder) -> dict[str, Any]:
    """Arguments that the optimizer was made with as JSON has them, without backend and evaluator.

    Raises:
        TrajectoryError: one of them is no plain value.
    """
    kept = {name: value for name, value in optimizer.arguments.items() if name not in ("backend", "evaluator")}
    for name, value in kept.items():
        _refuse_tensor(name, value)
    plain: dict[str, Any] = from_json(to_json(kept, f"an argument of {type(optimizer).__name__}"))
    return plain


def settings_of(optimizer: ZerothOrder, group: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters of a group as JSON has them, and what schedules keep there; a rate held in a tensor counts as its
    number.

    Raises:
        TrajectoryError: one of them is no number and no text.
    """
    settings = {}
    for name in (*optimizer.defaults, *_SCHEDULES):
        if name not in group:
            continue
        value = group[name]
        _refuse_tensor(name, value)
        if not isinstance(value, _SCALARS):
            value = from_json(to_json(value, f"{name} of a parameter group"))
            if not isinstance(value, _SCALARS):
                raise TrajectoryError(f"{name} of a parameter group is no plain number: give one to record the run")
        settings[name] = value
    return settings


def check_settings(settings: Any) -> bool:
    """Whether something read from a file can be settings of a group."""
    return isinstance(settings, dict) and all(
        name not in ("params", "param_names") and isinstance(value, _SCALARS) for name, value in settings.items()
    )


def _refuse_tensor(name: str, value: Any) -> None:
    """A sum with a tensor is rounded otherwise than one with the number that a file has."""
    if name not in _RATES and callable(getattr(value, "numel", None)):
        raise TrajectoryError(f"{name} is a tensor: give a plain number to record the run")


def _check_arguments(arguments: Mapping[str, Any], longest: int) -> None:
    """Raise TrajectoryError for arguments that no recorder writes, or that would fill the memory."""
    if {"params", "backend", "evaluator"} & arguments.keys():
        raise TrajectoryError("its header has arguments that do not belong there")
    bounds = {"queries": _LARGEST["queries"], "rank": max(_RANK, longest)}
    for name, bound in bounds.items():
        value = arguments.get(name)
        if isinstance(value, (int, float)) and not value <= bound:
            raise TrajectoryError(f"its header has {name} above {bound}")


def _check(content: Mapping[str, Any]) -> None:
    """Raise TrajectoryError if a field is of another kind than it should be."""
    kinds: dict[str, type | tuple[type, ...]] = {
        "method": str,
        "arguments": dict,
        "groups": list,
        "parameters": list,
        "start": int,
        "digest": int,
        "about": dict,
        "noise": str,
        "zotune": str,
    }
    for name, kind in kinds.items():
        if not isinstance(content[name], kind) or isinstance(content[name], bool):
            raise TrajectoryError(f"the field {name} of its header is of a wrong kind")
    if not 0 <= content["start"] < _LARGEST["start"] or not 0 <= content["digest"] < _LARGEST["digest"]:
        raise TrajectoryError("its header has a first step or a digest that cannot be")
    if not all(map(check_settings, content["groups"])):
        raise TrajectoryError("its header has a parameter group that cannot be")
    if not all(map(_is_parameter, content["parameters"])):
        raise TrajectoryError("its header lists a parameter in a wrong way")
    if content["noise"] != NOISE:
        raise TrajectoryError(
            f"its noise is {content['noise'][:40]!r}, this version of zotune draws {NOISE!r}: use the version that "
            f"wrote it ({content['zotune'][:20]})"
        )


def _is_parameter(row: Any) -> bool:
    if not isinstance(row, list) or len(row) != 5:
        return False
    name, shape, dtype, number, group = row
    if not (isinstance(name, str) and isinstance(dtype, str) and isinstance(shape, list)):
        return False
    whole = len(shape) <= _DIMENSIONS and all(type(x) is int and 0 <= x < _LARGEST["elements"] for x in (*shape, group))
    return whole and type(number) is int and 0 <= number < _LARGEST["number"]
