"""Catching the torch functions that are handed a parameter, before they read it.

`StandIn` is a tensor that takes a parameter's place in one module; calls elsewhere cost nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

Function: TypeAlias = Callable[..., Any]
Handler: TypeAlias = Callable[[Function, tuple[Any, ...], dict[str, Any]], Any]
"""Called as handler(function, args, kwargs) in place of function(*args, **kwargs); its result is the function's."""

_PROPERTIES = (
    "shape dtype device layout requires_grad ndim itemsize nbytes name grad grad_fn is_leaf is_meta is_nested "
    "is_cuda is_cpu is_mps is_xpu is_sparse is_sparse_csr is_quantized is_mkldnn retains_grad output_nr _version"
)
_METHODS = (
    "size dim ndimension numel nelement element_size stride storage_offset is_contiguous is_floating_point is_complex "
    "is_signed is_inference get_device __len__ __hash__"
)
METADATA: frozenset[Any] = frozenset(
    [getattr(torch.Tensor, name).__get__ for name in _PROPERTIES.split()]
    + [getattr(torch.Tensor, name) for name in _METHODS.split()]
    + [torch.numel, torch.is_floating_point, torch.is_complex, torch.is_signed, torch.is_inference]
)
"""Functions whose result does not depend on the values of their tensors."""

SIZES: frozenset[Any] = frozenset(
    [getattr(torch.Tensor, name).__get__ for name in ("shape", "ndim", "nbytes")]
    + [
        getattr(torch.Tensor, name)
        for name in ["size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous", "__len__"]
    ]
    + [torch.numel]
)
"""Those that depend on the shape."""


def tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    """The arguments of a call, and the elements of those that are lists or tuples."""
    for value in (*args, *kwargs.values()) if kwargs else args:
        if type(value) in (list, tuple):
            yield from value
        else:
            yield value


class StandIn(nn.Parameter):
    """Takes a parameter's place in ``module._parameters``: functions that are given it go to ``handler``.

    Metadata is the parameter's. Made by `stand_in`.

    Attributes:
        param: the parameter.
        handler: see `Handler`; `originals` puts the parameter back in its arguments.
    """

    param: nn.Parameter
    handler: Handler

    @classmethod
    def __torch_function__(
        cls, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in METADATA:
            args, kwargs = originals(args, kwargs)
            return func(*args, **kwargs)
        first = next(value for value in tensors(args, kwargs) if type(value) is StandIn)
        return first.handler(func, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        """A copy of the parameter."""
        return copy.deepcopy(self.param, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Saved as the parameter."""
        return self.param.__reduce_ex__(protocol)  # type: ignore[no-untyped-call]


def stand_in(param: nn.Parameter, handler: Handler) -> StandIn:
    """A stand-in for the parameter."""
    new: StandIn = torch.Tensor._make_subclass(StandIn, param.data)
    new.param, new.handler = param, handler
    return new


def originals(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with parameters in place of their stand-ins."""
    return tuple(map(_original, args)), {name: _original(value) for name, value in kwargs.items()}


def _original(value: Any) -> Any:
    if type(value) is StandIn:
        return value.param
    return type(value)(map(_original, value)) if type(value) in (list, tuple) else value
