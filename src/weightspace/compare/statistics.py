"""Means with Student-t intervals, paired differences and Holm's adjustment: the only statistics a comparison uses.

Every interval here is the two-sided Student-t interval: the mean of `n` values plus and minus `t(1 - (1 - level) / 2, n
- 1)` standard errors, the standard error being `s / sqrt(n)` with `s` the sample standard deviation (divisor `n - 1`).
The values of one arm are its seeds, so the interval speaks about the randomness of a seed (initial weights, order of
the data, dropout) on this training and test set, and about nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from weightspace.errors import RunError

# Differences of accuracies that are equal on paper differ by round-off; relative to the values, this is far above it
# and far below one test image in a million.
_ROUND_OFF = 1e-10


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval.

    Attributes:
        mean: Sample mean, in the values' own unit.
        low: Lower end of the interval; None when `n` is 1, where no interval exists.
        high: Upper end, likewise.
        n: Number of values.
        level: Two-sided confidence level, between 0 and 1.
        standard_deviation: Sample standard deviation (divisor `n - 1`); None when `n` is 1.
        p_value: Two-sided p-value of "the mean is zero"; only of a paired difference, and None when it cannot be tested
            (one value, or all values equal and not zero: no spread to measure the mean against).
        note: Why there is no interval or no test, in words; empty when there is nothing to say.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    level: float
    standard_deviation: float | None
    p_value: float | None = None
    note: str = ""


def mean_interval(values: Sequence[float], *, level: float = 0.95) -> Estimate:
    """Mean of `values` with its two-sided Student-t interval.

    Args:
        values: One number per seed, finite.
        level: Confidence level, strictly between 0 and 1.

    Returns:
        The estimate. One value has no interval (`low` and `high` are None and `note` says so); equal values have an
        interval of width zero, and `note` says that they are equal.

    Raises:
        RunError: No values, a value that is not finite, or a level outside (0, 1).

    Example:
        >>> e = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
        >>> round(e.mean, 3), round(e.low, 3), round(e.high, 3), e.n
        (3.0, 1.037, 4.963, 5)
        >>> mean_interval([0.9]).note
        'one value: no interval'
    """
    data = _checked(values, level)
    n = data.size
    mean = float(data.mean())
    if n == 1:
        return Estimate(mean, None, None, 1, level, None, note="one value: no interval")
    deviation = float(data.std(ddof=1))
    if deviation <= _ROUND_OFF * max(float(np.abs(data).max()), 1e-300):
        return Estimate(mean, mean, mean, n, level, 0.0, note=f"all {n} values are equal")
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * deviation / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n, level, deviation)


def paired_difference(values: Sequence[float], baseline: Sequence[float], *, level: float = 0.95) -> Estimate:
    """Mean of `values - baseline`, pair by pair, with its Student-t interval and p-value.

    Args:
        values: One number per seed of the arm.
        baseline: The baseline's numbers for the same seeds in the same order.
        level: Confidence level, strictly between 0 and 1.

    Returns:
        The estimate of the difference. Differences that are all zero have p-value 1. Differences that are all equal but
        not zero have no spread, so that Student's t would be infinite: they have no p-value, and `note` says why.

    Raises:
        RunError: The lengths differ, or what `mean_interval` refuses.

    Example:
        Student's sleep data (1908): hours of extra sleep of ten patients under two drugs.

        >>> one = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
        >>> two = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
        >>> d = paired_difference(two, one)
        >>> round(d.mean, 2), round(d.low, 2), round(d.high, 2), round(d.p_value, 5)
        (1.58, 0.7, 2.46, 0.00283)
    """
    if len(values) != len(baseline):
        raise RunError(
            f"a paired difference needs equally many values on both sides, got {len(values)} and {len(baseline)}; "
            "pass the values of the seeds that both arms have finished"
        )
    first, second = _checked(values, level), _checked(baseline, level)
    difference = first - second
    scale = float(max(np.abs(first).max(), np.abs(second).max()))
    if float(np.ptp(difference)) <= _ROUND_OFF * scale:
        return _no_spread(float(difference.mean()), difference.size, level, scale)
    estimate = mean_interval([float(d) for d in difference], level=level)
    deviation = estimate.standard_deviation
    if deviation is None or deviation == 0.0:
        return estimate
    t = estimate.mean / (deviation / math.sqrt(estimate.n))
    p_value = float(2 * stats.t.sf(abs(t), estimate.n - 1))
    return Estimate(estimate.mean, estimate.low, estimate.high, estimate.n, level, deviation, p_value)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment: the chance of one false alarm among all tests stays below the level.

    Args:
        p_values: One p-value per test; None stands for a test that could not be made, which stays None and is not
            counted.

    Returns:
        Adjusted p-values in the same order, at most 1; compare them with `1 - level` directly.

    Raises:
        RunError: A p-value outside [0, 1].

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03, 0.005])]
        [0.03, 0.06, 0.06, 0.02]
        >>> holm([0.03, None])
        [0.03, None]
    """
    tested = [(p, index) for index, p in enumerate(p_values) if p is not None]
    if any(not 0.0 <= p <= 1.0 for p, _ in tested):
        raise RunError(
            f"got {list(p_values)} as p-values; give numbers between 0 and 1, and None for those that are not known"
        )
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(sorted(tested)):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[index] = largest
    return adjusted


def _checked(values: Sequence[float], level: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    if not 0.0 < level < 1.0:
        raise RunError(f"the confidence level lies strictly between 0 and 1, got {level}; 0.95 is usual")
    data = np.asarray(list(values), dtype=np.float64)
    if data.size == 0:
        raise RunError("a mean needs at least one value, got none")
    if not np.isfinite(data).all():
        raise RunError(
            f"a mean needs finite values, got {list(values)}; a diverged run counts as chance-level accuracy"
        )
    return data


def _no_spread(mean: float, n: int, level: float, scale: float) -> Estimate:
    if n == 1:
        return Estimate(mean, None, None, 1, level, None, note="one pair: no interval and no test")
    if abs(mean) <= _ROUND_OFF * scale:
        return Estimate(0.0, 0.0, 0.0, n, level, 0.0, 1.0, note=f"no difference in any of the {n} pairs")
    return Estimate(mean, mean, mean, n, level, 0.0, None, note=f"all {n} differences are equal: no test")
