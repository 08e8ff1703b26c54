"""What a trajectory says about its run before the first step: all that is needed to build the optimizer anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from zotune.trajectory.frames import TrajectoryError

if TYPE_CHECKING:
    from zotune.optimizer import ZerothOrder

FORMAT: Final = 1
NOISE: Final = "philox4x32-10/box-muller-1"
"""Names the layout and the arithmetic of `zotune.noise`; another one gives other weights from the same losses."""

_SCALARS = (str, int, float, bool, type(None))


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
        method: class of the optimizer.
        arguments: its keyword arguments, without those that cannot change a bit (backend, evaluator).
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
        total = 0
        for parameter in self.parameters:
            product = 1
            for size in parameter.shape:
                product *= size
            total += product
        return total

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
        if len({p.name for p in parameters}) < len(parameters):
            raise TrajectoryError("its header names a parameter twice")
        if any(not 0 <= p.group < len(content["groups"]) for p in parameters):
            raise TrajectoryError("its header has a parameter of no group")
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
    parameters, tensors = [], []
    for number, group in enumerate(optimizer.param_groups):
        for name, param in optimizer._named(group):
            noise = optimizer._numbers[param]
            known = name or f"parameter {noise}"
            dtype = str(param.dtype).removeprefix("torch.")
            parameters.append(Parameter(name=known, shape=tuple(param.shape), dtype=dtype, number=noise, group=number))
            tensors.append(param)
    if len({p.name for p in parameters}) < len(parameters):
        raise TrajectoryError("two parameters of the optimizer have one name: give each a name of its own")
    return Header(
        method=type(optimizer).__name__,
        arguments=arguments_of(optimizer),
        groups=tuple(settings_of(group) for group in optimizer.param_groups),
        parameters=tuple(parameters),
        start=optimizer.t,
        digest=digest(tensors),
        about=dict(about or {}),
        zotune=zotune.__version__,
    )


def arguments_of(optimizer: ZerothOrder) -> dict[str, Any]:
    """Keyword arguments that the optimizer was made with, without backend and evaluator, as JSON has them."""
    kept = {name: value for name, value in optimizer.arguments.items() if name not in ("backend", "evaluator")}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}


def settings_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters of a group as JSON has them; a rate held in a tensor counts as its number."""
    kept = {name: value for name, value in group.items() if name not in ("params", "param_names")}
    return {
        name: value if isinstance(value, _SCALARS) else float(value)
        for name, value in kept.items()
        if isinstance(value, _SCALARS) or getattr(value, "numel", lambda: 0)() == 1
    }


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
    if content["start"] < 0 or not all(isinstance(group, dict) for group in content["groups"]):
        raise TrajectoryError("its header has a group or a first step that cannot be")
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
    sizes: Sequence[Any] = shape if isinstance(shape, list) else [None]
    whole = all(type(x) is int and x >= 0 for x in (*sizes, number, group))
    return isinstance(name, str) and isinstance(dtype, str) and whole
