"""Models with another `forward`: a class of this package stands in front of the model's own, in place."""

from __future__ import annotations

import functools
from typing import Any

from transformers import PreTrainedModel

_OWN = "_class_behind"


def put_in_front(front: type[Any], model: PreTrainedModel) -> None:
    """Let the model be one of ``front`` too, whose `super()` is the model's own class."""
    kind: Any = type(model)
    model.__class__ = _both(front, kind)  # type: ignore[arg-type]


def behind(kind: Any) -> Any:
    """The model's own class, which is ``kind`` itself where nothing stands in front."""
    return vars(kind).get(_OWN, kind)


def derived(kind: Any, *fronts: type[Any], **names: Any) -> type[PreTrainedModel]:
    """A class of the fronts, the model's own ``kind`` behind them, and further names.

    It has name and module of the model: transformers writes the one into config.json and reads the other's source.
    """
    return type(kind.__name__, (*fronts, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__, **names})


@functools.cache
def _both(front: Any, kind: Any) -> type[PreTrainedModel]:
    return derived(kind, front, **{_OWN: kind})
