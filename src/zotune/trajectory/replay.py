"""Rebuilding weights from a trajectory: no data, no forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zotune.kernels.backends import check_backend
from zotune.sequences import set_rate, tell_all
from zotune.trajectory.frames import TrajectoryError
from zotune.trajectory.header import Header, parameters_of
from zotune.trajectory.reader import Event, Step, Trajectory, read

if TYPE_CHECKING:
    from pathlib import Path

    from torch.nn import Parameter

    from zotune.optimizer import ZerothOrder

CHECKED = "weights"
"""Kind of the events that hold a digest of the weights after a step."""

_BATCH = 32  # steps made in one pass over the weights at most, ...
_WORK = 1 << 33  # ... and weights times steps: a request to stop waits for the end of the pass
_WRONG = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
"""What numbers that nobody has checked can make of an optimizer."""


def replay(
    source: Trajectory | Path | str,
    params: Iterable[tuple[str, Parameter]],
    *,
    until: int | None = None,
    backend: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> ZerothOrder:
    """Make the steps of a trajectory again, on the weights it began with.

    Args:
        source: the trajectory, or the path of its file.
        params: (name, parameter) pairs as from ``model.named_parameters()``; changed in place.  Names that the
            trajectory does not know are left alone.
        until: number of steps to end with; all when left out.
        backend: kernel backend, which changes no bit.
        progress: called every few steps with the number of those made so far.

    Returns:
        The optimizer after its last step; it can go on.

    Raises:
        TrajectoryError: the weights are not those that the trajectory began with, it belongs to a method that this
            version does not know, or the weights on the way differ from those that were recorded.
    """
    trajectory = source if isinstance(source, Trajectory) else read(source)
    optimizer = build(trajectory.header, params, backend=backend)
    go_on(trajectory, optimizer, until=until, progress=progress)
    return optimizer


def build(
    header: Header, params: Iterable[tuple[str, Parameter]], *, backend: str | None = None, begun: bool = False
) -> ZerothOrder:
    """The optimizer of a trajectory before its first step, on the weights it began with.

    Args:
        header: of the trajectory.
        params: see `replay`.
        backend: see `replay`.
        begun: the weights are those after some steps, so they are not compared with the first ones; give the
            optimizer the state that belongs to them, then use `go_on`.

    Raises:
        TrajectoryError: see `replay`.
    """
    from zotune.methods import METHODS

    kinds: dict[str, Any] = {method.optimizer.__name__: method.optimizer for method in METHODS.values()}
    if header.method not in kinds:
        raise TrajectoryError(
            f"the trajectory was recorded by an optimizer {header.method[:40]!r}, which this version does not have: "
            "build it yourself and use zotune.trajectory.go_on"
        )
    chosen = _chosen(header, dict(params), begun=begun)
    groups = [
        {**settings, "params": [(p.name, chosen[p.name]) for p in header.parameters if p.group == number]}
        for number, settings in enumerate(header.groups)
    ]
    arguments = {name: tuple(v) if isinstance(v, list) else v for name, v in header.arguments.items()}
    check_backend(backend)
    try:
        optimizer: ZerothOrder = kinds[header.method](groups, **arguments, backend=backend)
    except _WRONG as error:
        raise TrajectoryError(f"the trajectory's settings make no {header.method}: {error}") from error
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    optimizer._numbers = {chosen[p.name]: p.number for p in header.parameters}
    return optimizer


def go_on(
    trajectory: Trajectory,
    optimizer: ZerothOrder,
    *,
    until: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Make the steps of a trajectory that the optimizer has not made yet, as from the state of a checkpoint.

    Args:
        trajectory: of the run that the optimizer belongs to.
        optimizer: it has made some of the steps, or none.
        until: number of steps to end with; all when left out.
        progress: called every few steps with the number of those made so far.

    Raises:
        TrajectoryError: see `replay`.
    """
    end = trajectory.end if until is None else until
    if not trajectory.header.start <= optimizer.t <= end <= trajectory.end:
        raise TrajectoryError(
            f"the trajectory holds the steps {trajectory.header.start} to {trajectory.end}: from step {optimizer.t} "
            f"to {end} is not within them"
        )
    named = _named(optimizer)
    missing = next((p.name for p in trajectory.header.parameters if p.name not in named), None)
    if missing is not None:
        raise TrajectoryError(f"the optimizer has no parameter {missing!r}: give all that were recorded")
    most = max(1, min(_BATCH, _WORK // max(trajectory.header.elements, 1)))
    batch: list[Step] = []

    def make() -> None:
        if batch:
            _tell(optimizer, batch)
            batch.clear()
            if progress is not None:
                progress(optimizer.t)

    for item in trajectory.items():
        if isinstance(item, Step):
            if item.number >= end:
                break
            if item.number < optimizer.t:
                _set(optimizer, item, named)
                if item.rate is not None:
                    set_rate(optimizer, item.rate)
                continue
            if item.settings or item.active is not None or len(batch) >= most:
                make()
                _set(optimizer, item, named)
            batch.append(item)
        elif item.kind == CHECKED and item.step >= optimizer.t:
            make()
            if item.step == optimizer.t:
                check_weights(item, named, trajectory.header)
    make()


def _tell(optimizer: ZerothOrder, steps: Sequence[Step]) -> None:
    try:
        tell_all(optimizer, [(step.rate, step.losses) for step in steps])
    except _WRONG as error:
        raise TrajectoryError(f"step {optimizer.t} of the trajectory cannot be made again: {error}") from error


def _set(optimizer: ZerothOrder, step: Step, named: Mapping[str, Parameter]) -> None:
    """Bring the groups' hyperparameters, and who takes part, to those of a step; its rate is left to `tell_all`."""
    for number, values in step.settings.items():
        group = optimizer.param_groups[number]
        group.update(values)
        try:
            optimizer._check_group(group)
        except _WRONG as error:
            raise TrajectoryError(
                f"step {step.number} of the trajectory has settings that cannot be: {error}"
            ) from error
    if step.active is not None:
        for name, parameter in named.items():
            parameter.requires_grad_(name in step.active)


def check_weights(event: Event, named: Mapping[str, Parameter], header: Header) -> None:
    """Compare weights with the digest that was recorded.

    Raises:
        TrajectoryError: they differ.
    """
    from zotune.checks import digest

    if event.facts.get("digest") != digest(named[p.name] for p in header.parameters):
        raise TrajectoryError(
            f"the weights after step {event.step} are not those that were recorded: the trajectory belongs to other "
            "weights, or was made by another version"
        )


def _named(optimizer: ZerothOrder) -> dict[str, Parameter]:
    optimizer._active()  # gives the parameters their numbers
    return {parameter.name: param for parameter, param in parameters_of(optimizer)}


def _chosen(header: Header, params: Mapping[str, Any], *, begun: bool) -> dict[str, Parameter]:
    """The parameters of the header, checked: names, shapes, types, and the digest of all unless they have begun."""
    from zotune.checks import digest

    for p in header.parameters:
        there = params.get(p.name)
        if there is None:
            raise TrajectoryError(
                f"the model has no parameter {p.name!r}: give the model that the run began with ({_what(header)})"
            )
        mine = (tuple(there.shape), str(there.dtype).removeprefix("torch."))
        if mine != (p.shape, p.dtype):
            raise TrajectoryError(
                f"{p.name!r} is {mine[1]} of shape {mine[0]}, in the trajectory {p.dtype[:20]!r} of {p.shape}: give "
                f"the model that the run began with ({_what(header)})"
            )
    chosen = {p.name: params[p.name] for p in header.parameters}
    if not begun and digest(chosen[p.name] for p in header.parameters) != header.digest:
        raise TrajectoryError(
            f"the weights are not those that the run began with ({_what(header)}): give the base model, bit for bit"
        )
    return chosen


def _what(header: Header) -> str:
    name = header.about.get("model_name")
    return f"{name[:200]!r}, {header.elements:,} weights" if isinstance(name, str) else f"{header.elements:,} weights"
