"""Perturbations: what a direction looks like, and everything a method keeps for that purpose, one parameter at a time.

A direction is D(x_k): x_k are the random coordinates of query k, a pure function of its key, and D is linear.
Methods therefore never hold a direction; they ask for ``w * decay + sum_k c_k D(x_k)``, written to a buffer in one
pass (`Perturbation.combine`).

Matrices are seen as (m, n) with n the input side.  Parameters with more than two dimensions count as (shape[0],
rest), and a group with ``input_dim=0`` holds matrices that are stored the other way round (GPT-2's Conv1D).  Vectors
always use `Dense`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from zotune import kernels
from zotune.noise import Key, Noise

Terms: TypeAlias = Sequence[tuple[float, Key]]


@dataclass(slots=True)
class Slot:
    """One parameter of an optimizer and what belongs to it.

    Attributes:
        param: the parameter.
        group: its param group.
        key: its noise key, at step 0, query 0, tag "z".
        state: the optimizer's state of the parameter.
        perturbation: how it is perturbed, chosen once from its shape.
        backend: name of the kernel backend, or None.
        memo: what a perturbation has computed for the present step; never saved.
    """

    param: torch.nn.Parameter
    name: str
    group: dict[str, Any]
    key: Key
    state: dict[str, Any]
    perturbation: Perturbation = field(init=False)
    backend: str | None = None
    memo: dict[str, Any] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """Type of sums and state: float64 for float64 weights, otherwise float32."""
        return torch.float64 if self.param.dtype is torch.float64 else torch.float32

    def logical(self, tensor: Tensor) -> Tensor:
        """The tensor, shaped as the parameter, as its perturbation sees it: (m, n) for matrices, n the input side."""
        if tensor.dim() < 2 or not self.perturbation.matrix:
            return tensor
        if self.group["input_dim"] == 0:
            return tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1]).t()
        return tensor.reshape(tensor.shape[0], math.prod(tensor.shape[1:]))

    def stored(self, logical: Tensor) -> Tensor:
        """Inverse of `logical`, as a view."""
        if logical.shape == self.param.shape and self.group["input_dim"] != 0:
            return logical
        if self.param.dim() >= 2 and self.perturbation.matrix and self.group["input_dim"] == 0:
            logical = logical.t()
        return logical.view(self.param.shape) if logical.shape != self.param.shape else logical

    def keep(self, logical: Tensor) -> None:
        """Take over new weights, written to ``logical(param.data)``.

        That is a view of the parameter, and nothing is left to do, except where the memory's order allows none
        (channels-last convolutions): then it was a copy.
        """
        if logical.data_ptr() != self.param.data_ptr():
            self.param.data.copy_(self.stored(logical))

    @property
    def shape(self) -> torch.Size:
        """Shape of `logical`."""
        return self.logical(self.param.data).shape


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some rows of a parameter's logical matrix: a block of them, or those listed.

    Attributes:
        first: first row of the block.
        last: the row after its last.
        rows: (k,) int64 numbers of rows; takes the place of the block.
    """

    first: int = 0
    last: int = 0
    rows: Tensor | None = None

    def take(self, matrix: Tensor) -> Tensor:
        """These rows of a matrix: a view of a block, a copy of listed rows."""
        return matrix[self.first : self.last] if self.rows is None else matrix.index_select(0, self.rows)


def address(slot: Slot, part: Part | None) -> dict[str, Any]:
    """Which noise belongs to a part, as the kernels' arguments ``start`` and ``rows``."""
    if part is None:
        return {}
    return {"start": part.first * math.prod(slot.shape[1:])} if part.rows is None else {"rows": part.rows}


class Perturbation:
    """Base class: D(x) = x, dense noise.

    Args:
        noise: distribution of the coordinates.
    """

    matrix: ClassVar[bool] = False
    """Whether the perturbation needs its parameter as a matrix."""

    rank: int = 0
    """Rank of the directions whose factors `low_rank` gives; 0 for all others."""

    gain: float = 1.0
    """Factor on D in the update that is not in the queries (LOZO's 1/r)."""

    def __init__(self, noise: Noise = "gaussian") -> None:
        self.noise = noise

    def settings(self) -> dict[str, Any]:
        """What a saved state and the optimizer that goes on from it must agree in."""
        return {"noise": self.noise, "rank": self.rank}

    def refresh(self, slot: Slot, step: int) -> None:
        """Bring ``slot.state`` to ``step``; called before the first query of the step, and again without effect after
        it."""

    def combine(
        self,
        slot: Slot,
        out: Tensor,
        w: Tensor | None,
        terms: Terms,
        *,
        decay: float = 1.0,
        rounding: Key | None = None,
        part: Part | None = None,
    ) -> None:
        """out = round(w * decay + sum_k c_k D(x_k)); out and w are shaped as `Slot.logical`, or as its ``part``."""
        kernels.combine(
            out,
            w,
            decay=decay,
            terms=terms,
            noise=self.noise,
            rounding=rounding,
            backend=slot.backend,
            **address(slot, part),
        )

    def low_rank(self, slot: Slot, directions: Sequence[Terms]) -> tuple[Tensor, Tensor]:
        """Factors of ``sum_k c_k D(x_k) = U V^T`` for several sets of terms, in the compute dtype.

        Returns:
            U, shape (len(directions), m, r), and V, shape (1, n, r), or (len(directions), n, r) if it differs.
        """
        raise NotImplementedError

    def update(
        self,
        slot: Slot,
        out: Tensor,
        w: Tensor | None,
        terms: Terms,
        *,
        decay: float = 1.0,
        rounding: Key | None = None,
        part: Part | None = None,
    ) -> None:
        """`combine` of a step's gradient estimate, once for each part of the parameter.

        A perturbation that adapts to the losses may do so in the same pass, which has the noise at hand.
        """
        self.combine(slot, out, w, terms, decay=decay, rounding=rounding, part=part)

    def coordinates_shape(self, slot: Slot) -> torch.Size:
        """Shape of the coordinates x."""
        return slot.shape

    def combine_coordinates(self, slot: Slot, x: Tensor, terms: Terms, *, decay: float) -> None:
        """x <- x * decay + sum_k c_k x_k, in place, in the space of coordinates."""
        kernels.combine(x, x, decay=decay, terms=terms, noise=self.noise, backend=slot.backend)

    def add_coordinates(
        self, slot: Slot, w: Tensor, x: Tensor, *, scale: float, decay: float, rounding: Key | None
    ) -> None:
        """w <- round(w * decay + scale * D(x)), in place."""
        kernels.combine(w, w, decay=decay, dense=(scale, x), rounding=rounding, backend=slot.backend)

    def after_losses(self, slot: Slot, step: int, weights: Sequence[float], losses: Sequence[float]) -> None:
        """Learn the losses, before the rule writes the weights."""

    def after_update(self, slot: Slot, step: int, weights: Sequence[float]) -> None:
        """Adapt the perturbation to the losses, unless `update` has: a rule may find nothing to write."""


class Dense(Perturbation):
    """D(x) = x: independent noise for every weight."""
