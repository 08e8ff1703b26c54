"""The order of the training examples, and which of them a rank really holds."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Sampler

Batch = dict[str, Any]

_SAMPLER_TAG = 0x5A4F5341  # keeps this stream apart from other uses of the same seed


class KeyedSampler(Sampler[int]):
    """Random permutation that is a pure function of ``(seed, epoch)``.

    Every method, and a resumed run, therefore sees the same examples in the same order: differences between runs are
    differences between methods.

    Args:
        size: number of examples.
        seed: any non-negative integer.
    """

    def __init__(self, size: int, seed: int) -> None:
        if seed < 0:
            raise ValueError(f"The data seed must be 0 or larger, got {seed}.")
        self.size = size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation: epochs count from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        entropy = np.random.SeedSequence((_SAMPLER_TAG, self.seed, self.epoch))
        generator = np.random.Generator(np.random.Philox(entropy))
        yield from generator.permutation(self.size).tolist()


def real_rows(size: int, batch_size: int, batch_index: int) -> int:
    """Number of examples in batch ``batch_index`` (from 0) of a data set of ``size`` examples; 0 behind its end.

    Ranks take whole batches in turn. At the end of an epoch accelerate fills the short and the missing ones with
    examples from the beginning, so that all ranks do the same number of steps; the real examples come first.
    """
    return max(0, min(batch_size, size - batch_index * batch_size))


def first_rows(inputs: Batch, count: int) -> Batch:
    """The first ``count`` rows of every tensor in a collated batch (entries of other types are kept as they are)."""
    return {name: value[:count] if hasattr(value, "shape") and value.ndim else value for name, value in inputs.items()}


def count_rows(inputs: Batch) -> int:
    """Number of examples in a collated batch: the first dimension of its first tensor."""
    for value in inputs.values():
        if hasattr(value, "shape") and value.ndim:
            return int(value.shape[0])
    raise ValueError("The batch has no tensor with a first dimension; give the trainer a data_collator that makes one.")


@dataclass(frozen=True, kw_only=True)
class StepRows:
    """Examples of one optimizer step: ``own`` per micro-batch of this rank, ``total`` over all ranks."""

    own: Sequence[int]
    total: int


def share_step(size: int, batch_size: int, micro: range, world: int, rank: int) -> StepRows:
    """The real examples of a step that consists of the micro-batches ``micro`` (numbers within the epoch).

    Args:
        size: examples in the data set.
        batch_size: examples in a micro-batch of one rank.
        micro: numbers of the micro-batches, the same on all ranks.
        world: number of ranks.
        rank: this rank.
    """
    rows = [[real_rows(size, batch_size, number * world + other) for other in range(world)] for number in micro]
    return StepRows(own=[row[rank] for row in rows], total=sum(map(sum, rows)))


def rank_batches(
    dataset: Any, collate: Callable[[list[Any]], Batch], batch_size: int, world: int, rank: int
) -> Iterator[tuple[Batch, int]]:
    """This rank's share of the whole data set in micro-batches, each with the number of its examples that count.

    A rank without an example gets one that does not count, so that it still takes part.
    """
    own = range(rank, len(dataset), world)
    if not own:
        yield collate([dataset[0]]), 0
    for start in range(0, len(own), batch_size):
        indices = own[start : start + batch_size]
        yield collate([dataset[index] for index in indices]), len(indices)
