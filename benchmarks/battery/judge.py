"""The rule by which p-values become a verdict.  It was fixed before the first run.

Every p-value is a right tail; with q = 2 min(p, 1 - p), both ends count.

1. ``failed``: q < 1e-10.  No number of tests makes that luck (the border of L'Ecuyer and Simard 2007).
2. ``doubtful``: q < 0.01 / N, where N counts all p-values of the noise in the report: one sound report in a hundred
   has such a value.  The test is repeated on three other seeds, and has ``failed`` if any of the three has q < 0.001.
3. The set as a whole: the number of q < 0.01 must not be larger than luck allows: binomial(N, 0.01), right tail at
   least 0.001.

The noise ``passes`` if nothing failed and the set is in order.  For the deliberate faults only rule 1 counts: a fault
is ``detected`` if at least one test failed.  Variants with fewer rounds are judged likewise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy import stats

CLEAR = 1e-10
ALL_TESTS = 0.01
REPEAT = 1e-3
REPEATS = 3
LOW, SET = 0.01, 1e-3


def two_sided(p: float) -> float:
    """q of a right-tailed p-value."""
    return min(1.0, 2 * min(p, 1 - p))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the rule says about a set of p-values.

    Args:
        tests: number of p-values.
        failed: how many fail clearly.
        doubtful: how many others call for a repeat.
        low: how many have q < 0.01, the number expected, and the binomial right tail of that number.
        smallest: q.
    """

    tests: int
    failed: int
    doubtful: int
    low: int
    low_expected: float
    low_tail: float
    smallest: float

    @property
    def in_order(self) -> bool:
        return self.low_tail >= SET


def judge(p_values: Sequence[float]) -> Verdict:
    """Rules 1 and 3, and the count of rule 2."""
    q = [two_sided(p) for p in p_values]
    n = len(q)
    low = sum(value < LOW for value in q)
    return Verdict(
        tests=n,
        failed=sum(value < CLEAR for value in q),
        doubtful=sum(CLEAR <= value < ALL_TESTS / n for value in q),
        low=low,
        low_expected=round(LOW * n, 2),
        low_tail=float(stats.binom.sf(low - 1, n, LOW)),
        smallest=min(q),
    )


def is_doubtful(p: float, tests: int) -> bool:
    """Whether rule 2 asks for a repeat of a test that gave p among so many."""
    return two_sided(p) < ALL_TESTS / tests


def repeat_failed(p_values: Iterable[float]) -> bool:
    """Whether the repeats of a doubtful test confirm the doubt."""
    return any(two_sided(p) < REPEAT for p in p_values)
