"""The algorithms of the command line: which flags concern each, and what each takes when a flag is left out."""

import dataclasses
from typing import Final

EMBEDDED: Final = "embedded"
"""Name of the model and of the text generator that come with the package."""

WIDTH: Final = 1024
"""Numbers of a hidden state of RoBERTa-large, the narrowest model that the papers' first-order rates are of."""
NARROW: Final = {"full": 30.0, "lora": 10.0, "prefix": 1.0}
"""How many times as high the first-order rates of narrow models may be: with 30 and 10 models of width 64 and 96 are
within a half decade of their best ones (experiments/first_order.py); 768 gives twice RoBERTa-large's, as is usual for
models of that size, and 192 the 28 times of experiments/narrow.py."""

QUERY_FLAGS: Final = frozenset({"num_queries", "perturbation_scale", "noise", "backend"})
"""Flags of every method that estimates the gradient from forward passes."""

_ESTIMATE: Final = QUERY_FLAGS | {"clipping"}
"""The same, where the weights of the directions are those of a gradient (FZOO divides them by their spread)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Algorithm:
    """One choice of `--algorithm`.

    `flags` are the method flags that change its result, `queries` the forward passes a step when `--num_queries` is
    left out (0: not a zeroth-order method) and `query_rule` the counts that are possible: at least `query_minimum`,
    and `query_minimum + i * query_multiple`; with `query_pairs` also every even number.  `lr` is the
    rate of a zeroth-order method where none can be measured, and of the others where `--lr` is left out;
    `lr_lora` and `lr_prefix` those of the latter with adapters, the middle of the lists of MeZO's paper for first-order
    runs (arXiv 2305.17333, appendix E.3) of models from a width of `WIDTH` on, and `lr_embedded` with the embedded
    model (experiments/first_order.py).
    """

    flags: frozenset[str]
    lr: float
    lr_lora: float = 0.0
    lr_prefix: float = 0.0
    lr_embedded: float = 0.0
    queries: int = 0
    query_minimum: int = 0
    query_multiple: int = 1
    query_pairs: bool = False
    query_rule: str = ""
    noise: str = "gaussian"

    def takes(self, queries: int) -> bool:
        """Whether so many forward passes a step are possible."""
        above = queries - self.query_minimum
        regular = above >= 0 and above % self.query_multiple == 0
        return regular or (self.query_pairs and queries >= 2 and queries % 2 == 0)

    def first_order_rate(self, model_name: str, trained: str, width: int | None) -> float:
        """Where `--lr` is left out; ``trained`` is "full", "lora" or "prefix", ``width`` the model's, if it is known.

        Narrower models take higher rates, by the square of what they are narrower by, up to `NARROW` times as high.
        """
        if model_name == EMBEDDED:
            return self.lr_embedded
        wide = {"lora": self.lr_lora, "prefix": self.lr_prefix}.get(trained, self.lr)
        return wide * min(NARROW[trained], max(1.0, (WIDTH / width) ** 2 if width else 1.0))

    @property
    def zeroth_order(self) -> bool:
        """True when the method needs forward passes only."""
        return self.queries > 0


_PAIRS = "an even number, because a direction takes two forward passes"

ALGORITHMS: Final[dict[str, Algorithm]] = {
    "ZO": Algorithm(
        flags=_ESTIMATE | {"momentum"},
        lr=1e-6,
        queries=2,
        query_minimum=2,
        query_multiple=2,
        query_rule=_PAIRS,
    ),
    "ZOAdam": Algorithm(
        flags=_ESTIMATE | {"eps", "low_bit_adam"},
        lr=1e-5,
        queries=2,
        query_minimum=2,
        query_multiple=2,
        query_rule=_PAIRS,
    ),
    "ZOSVRG": Algorithm(
        flags=_ESTIMATE | {"lr_mezosvrg_mb", "q", "anneal", "anchor"},
        lr=1e-4,
        queries=3,
        query_minimum=3,
        query_multiple=3,
        query_pairs=True,
        query_rule="a multiple of 3 (the average per step at --q 2) or an even number (per estimate)",
    ),
    "LOZO": Algorithm(
        flags=_ESTIMATE | {"rank", "step_interval", "momentum"},
        lr=1e-6,
        queries=2,
        query_minimum=2,
        query_multiple=2,
        query_rule=_PAIRS,
    ),
    "HiZOO": Algorithm(
        flags=_ESTIMATE | {"hessian_smooth_type"},
        lr=1e-6,
        queries=3,
        query_minimum=3,
        query_multiple=2,
        query_rule="an odd number from 3, because it is one forward pass at the weights and two a direction",
    ),
    "LOREN": Algorithm(
        flags=_ESTIMATE | {"lr_cov", "damping", "momentum", "momentum_bits", "direction_rank"},
        lr=1e-5,
        queries=6,
        query_minimum=2,
        query_rule="at least 2, because each loss is compared with the others",
    ),
    "FZOO": Algorithm(
        flags=QUERY_FLAGS,
        lr=1e-7,
        queries=8,
        query_minimum=3,
        query_rule="at least 3, one at the weights and two or more directions whose spread is measured",
        noise="rademacher",
    ),
    "FOSGD": Algorithm(
        flags=frozenset({"momentum", "clipping"}),
        lr=1e-3,
        lr_lora=1e-2,
        lr_prefix=1e-2,
        lr_embedded=3e-2,
    ),
    "FOAdam": Algorithm(
        flags=frozenset({"eps", "clipping"}),
        lr=1e-5,
        lr_lora=3e-4,
        lr_prefix=1e-2,
        lr_embedded=1e-3,
    ),
}

METHOD_FLAGS: Final = frozenset().union(*(algorithm.flags for algorithm in ALGORITHMS.values()))
"""Flags that concern some of the algorithms only; every other flag concerns all of them."""


def methods_of(flag: str) -> list[str]:
    """Names of the algorithms that `flag` concerns, in the order of the table."""
    return [name for name, algorithm in ALGORITHMS.items() if flag not in METHOD_FLAGS or flag in algorithm.flags]
