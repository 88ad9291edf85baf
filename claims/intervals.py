"""Intervals from raw values: the only statistics of the claims page.

Every function takes the values of single seeds, chains or problems, never a stored mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

# Differences that are equal on paper differ by round-off; relative to the values, this is far above it.
_ROUND_OFF = 1e-10


@dataclass(frozen=True)
class Interval:
    """A number with its uncertainty.

    Attributes:
        mean: The number, in its own unit.
        low: Lower end; None where one value has no interval. Equal to `mean` for what is counted or exact.
        high: Upper end, likewise.
        n: Number of independent values behind it.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    def scaled(self, factor: float) -> Interval:
        """The same in another unit; `factor` is positive."""
        low, high = (None if end is None else factor * end for end in (self.low, self.high))
        return replace(self, mean=factor * self.mean, low=low, high=high)

    @property
    def is_exact(self) -> bool:
        """Whether it has no width: counted, or equal in all values."""
        return self.low == self.high == self.mean


def exact(value: float, n: int) -> Interval:
    """A count, a ratio of file sizes, the largest error of n cases: no chance in it.

    >>> exact(3.0, 7)
    Interval(mean=3.0, low=3.0, high=3.0, n=7)
    """
    return Interval(value, value, value, n)


def student(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean with its two-sided Student-t interval; equal values have one of width zero, one value has none.

    Args:
        values: One finite number per seed.
        level: Confidence, between 0 and 1.

    Raises:
        ValueError: No values, or one that is not finite.

    >>> found = student([1.0, 2.0, 3.0, 4.0, 5.0])
    >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3), found.n
    (3.0, 1.037, 4.963, 5)
    """
    from scipy.special import stdtrit  # a tenth of the time that scipy.stats takes to import

    data = _checked(values)
    mean = float(data.mean())
    if data.size == 1:
        return Interval(mean, None, None, 1)
    deviation = float(data.std(ddof=1))
    if deviation <= _ROUND_OFF * float(np.abs(data).max()):
        return Interval(mean, mean, mean, data.size)
    half = float(stdtrit(data.size - 1, 0.5 + level / 2)) * deviation / math.sqrt(data.size)
    return Interval(mean, mean - half, mean + half, data.size)


def paired(values: Sequence[float], baseline: Sequence[float], level: float = 0.95) -> Interval:
    """`student` of the differences, seed by seed; differences that are round-off count as zero.

    >>> paired([0.5, 0.7], [0.5, 0.7])
    Interval(mean=0.0, low=0.0, high=0.0, n=2)
    """
    if len(values) != len(baseline):
        raise ValueError(f"pairs need equally many values on both sides, got {len(values)} and {len(baseline)}")
    difference = _checked(values) - _checked(baseline)
    scale = max(float(np.abs(values).max()), float(np.abs(baseline).max()))
    if float(np.abs(difference).max()) <= _ROUND_OFF * scale:
        return exact(0.0, difference.size)
    return student([float(d) for d in difference], level)


def geometric(values: Sequence[float], level: float = 0.95) -> Interval:
    """Geometric mean with Student's interval of the logarithms, for ratios and positive sizes.

    >>> geometric([1.0, 100.0]).mean
    10.0
    """
    if min(values) <= 0:
        raise ValueError(f"a geometric mean needs positive values, got {min(values)}")
    found = student([math.log10(value) for value in values], level)
    low, high = (None if end is None else 10**end for end in (found.low, found.high))
    return Interval(10**found.mean, low, high, found.n)


def from_error(mean: float, error: float, n: int, level: float = 0.95) -> Interval:
    """Mean and standard error over n independent chains, thousands of them: the normal interval."""
    from scipy.special import ndtri

    half = float(ndtri(0.5 + level / 2)) * error
    return Interval(mean, mean - half, mean + half, n)


def bootstrap(values: Sequence[float], level: float = 0.95) -> Interval:
    """Percentile bootstrap of the mean, as the page of the spirals has it (same resamples)."""
    from experiments.paired_bootstrap import bootstrap as resampled

    found = resampled(values, level=level)
    return Interval(found.mean, found.low, found.high, len(values))


def share(hits: int, n: int, level: float = 0.95) -> Interval:
    """How often something happened, with Clopper and Pearson's interval.

    >>> [round(x, 4) for x in (share(0, 100).low, share(0, 100).high)]
    [0.0, 0.0362]
    """
    from scipy.special import betaincinv

    if not 0 <= hits <= n or n == 0:
        raise ValueError(f"a share needs 0 <= hits <= n and n > 0, got {hits} of {n}")
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(betaincinv(hits, n - hits + 1, tail))
    high = 1.0 if hits == n else float(betaincinv(hits + 1, n - hits, 1 - tail))
    return Interval(hits / n, low, high, n)


def _checked(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    data = np.asarray(list(values), dtype=np.float64)
    if data.size == 0:
        raise ValueError("a mean needs at least one value, got none")
    if not np.isfinite(data).all():
        raise ValueError(f"a mean needs finite values, got {list(values)}")
    return data
