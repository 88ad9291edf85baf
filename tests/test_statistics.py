"""Means, intervals, paired differences, Holm: known answers and independent references."""

from __future__ import annotations

import math
import statistics as stdlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from weightspace.compare.statistics import holm, mean_interval, paired_difference
from weightspace.errors import RunError

numbers = st.floats(-1e3, 1e3).map(lambda x: round(x, 3))


def test_interval_matches_a_printed_table():
    # t(0.975, 4) = 2.776 in every printed table
    estimate = mean_interval([1, 2, 3, 4, 5])
    half = 2.776 * math.sqrt(2.5) / math.sqrt(5)
    assert estimate.mean == 3
    assert estimate.low == pytest.approx(3 - half, abs=1e-3)
    assert estimate.high == pytest.approx(3 + half, abs=1e-3)
    assert estimate.standard_deviation == pytest.approx(math.sqrt(2.5))


@given(st.lists(numbers, min_size=2, max_size=9), st.sampled_from([0.8, 0.95, 0.99]))
def test_interval_is_scipys(values, level):
    estimate = mean_interval(values, level=level)
    if stdlib.stdev(values) < 1e-9:
        assert estimate.low == estimate.high == pytest.approx(values[0])
        return
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(level)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), rel=1e-6, abs=1e-6)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=9))
def test_paired_difference_is_scipys(pairs):
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    spread = stdlib.pstdev([a - b for a, b in pairs])
    if spread < 1e-6:
        return
    reference = stats.ttest_rel(first, second)
    ours = paired_difference(first, second)
    assert ours.p_value == pytest.approx(reference.pvalue, rel=1e-6, abs=1e-12)
    assert (ours.low, ours.high) == pytest.approx(tuple(reference.confidence_interval(0.95)), rel=1e-6, abs=1e-6)
    swapped = paired_difference(second, first)
    assert (swapped.mean, swapped.p_value) == pytest.approx((-ours.mean, ours.p_value))


def test_interval_covers_the_truth_as_often_as_it_says():
    generator = __import__("random").Random(0)
    hits = 0
    for _ in range(2000):
        estimate = mean_interval([generator.gauss(1.0, 2.0) for _ in range(5)], level=0.9)
        hits += estimate.low <= 1.0 <= estimate.high
    assert 0.88 < hits / 2000 < 0.92


def test_one_value_has_no_interval_and_says_so():
    for estimate in (mean_interval([0.9]), paired_difference([0.9], [0.8])):
        assert estimate.low is estimate.high is estimate.p_value is None
        assert "no interval" in estimate.note


def test_equal_values_have_an_interval_of_width_zero():
    estimate = mean_interval([0.1 + 0.2, 0.3, 0.3])  # equal but for round-off
    assert estimate.low == estimate.high == estimate.mean
    assert "equal" in estimate.note


def test_no_difference_at_all_has_p_one():
    estimate = paired_difference([0.9, 0.8], [0.9, 0.8])
    assert (estimate.mean, estimate.p_value) == (0.0, 1.0)


def test_round_off_is_no_evidence():
    # the differences are 0.1 up to the last bit: Student's t would be 1e15 and p zero
    estimate = paired_difference([0.9, 0.8, 0.7], [0.8, 0.7, 0.6])
    assert estimate.p_value is None
    assert "equal" in estimate.note


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(RunError, match="finite"):
        mean_interval([0.5, bad])
    with pytest.raises(RunError, match="finite"):
        paired_difference([0.5, 0.6], [0.5, bad])


def test_bad_arguments_are_refused():
    with pytest.raises(RunError, match="at least one"):
        mean_interval([])
    with pytest.raises(RunError, match="between 0 and 1"):
        mean_interval([1.0, 2.0], level=95)
    with pytest.raises(RunError, match="got 2 and 1"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(RunError, match="p-values"):
        holm([1.5])


def test_holm_is_sharper_than_bonferroni():
    assert holm([0.01, 0.02, 0.03]) == pytest.approx([0.03, 0.04, 0.04])


@given(st.lists(st.floats(0, 0.1), max_size=8))
def test_holm_is_the_step_down_procedure(p_values):
    """At every level, adjusted p <= level exactly for the hypotheses that Holm's procedure rejects."""
    adjusted = holm(p_values)
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for level in (0.01, 0.05, 0.2):
        rejected = set()
        for rank, index in enumerate(order):
            if p_values[index] * (len(p_values) - rank) > level:
                break
            rejected.add(index)
        assert {i for i, p in enumerate(adjusted) if p <= level} == rejected
    assert all(a >= p for a, p in zip(adjusted, p_values, strict=True))
