"""The model of a chain of equal factors: its two thresholds against the simulation, by bisection."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightspace.errors import RuleError
from weightspace.gates.theory import largest_strength, pull, simulate, tolerance_level, turning_point

CASES = [(3, 0.3), (4, 0.4), (6, 0.5), (6, 0.7), (10, 0.6), (16, 0.75)]


def flips_at(learns, low, high, rounds=11):
    """The strength where `learns` turns from true to false, to 1/2^rounds of the bracket."""
    assert learns(low)
    assert not learns(high)
    for _ in range(rounds):
        middle = (low + high) / 2
        low, high = (middle, high) if learns(middle) else (low, middle)
    return (low + high) / 2


def learned(depth, power, end):
    """An end near zero or beyond the maximum of the pull: nothing is left undecided in between."""
    turn = turning_point(depth, power)
    assert end < 0.3 * turn or end > 0.9 * turn, end
    return end > 0.5 * turn


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize(("depth", "start"), CASES)
def test_always_on_flips_exactly_at_the_tolerance_level(depth, start, power):
    level = tolerance_level(depth, start, power)

    def learns(strength):
        # On the edge w leaves its start at a rate of f'(w0) only: long enough for the slowest of the cases.
        return learned(depth, power, simulate(depth, start, strength, power=power, steps=12_000, dt=0.1))

    assert flips_at(learns, 0.5 * level, min(2 * level, 1.5 * largest_strength(depth, power))) == pytest.approx(
        level, rel=2e-3
    )


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize(("depth", "start"), [(4, 0.4), (6, 0.5), (10, 0.6)])
def test_delayed_flips_exactly_at_the_largest_strength(depth, start, power):
    largest = largest_strength(depth, power)

    def learns(strength):
        end = simulate(
            depth, start, strength, power=power, steps=22_000, dt=0.1, gate_opens=lambda step, _: step >= 10_000
        )
        return end > 0.5 * turning_point(depth, power)

    assert flips_at(learns, 0.5 * largest, 2 * largest) == pytest.approx(largest, rel=2e-3)


def test_known_answers_of_depth_six():
    """Six factors from one half: 1/16 (1 - 1/64) and 0.4^(2/3) 0.6."""
    assert tolerance_level(6, 0.5) == (1 / 16) * (63 / 64)
    assert largest_strength(6) == pytest.approx(0.4 ** (2 / 3) * 0.6, rel=1e-14)
    assert simulate(6, 0.5, 0.0614) > 0.98
    assert simulate(6, 0.5, 0.0617) < 1e-3
    # A delay of 1,000 steps of 0.05 is long enough for w to have grown.
    assert simulate(6, 0.5, 0.325, gate_opens=lambda step, _: step >= 1000) > turning_point(6)
    assert simulate(6, 0.5, 0.327, gate_opens=lambda step, _: step >= 1000) < 1e-3


def test_a_gate_that_compares_directions_rescues_between_the_thresholds():
    """In one dimension cos(g, g + R) is 1 or -1: the gate is open where the penalty is weaker than the pull."""
    for strength in (0.07, 0.2, 0.32):
        opened = []

        def opens(_, w, strength=strength, opened=opened):
            opened.append(pull(6, w) > strength)
            return opened[-1]

        assert simulate(6, 0.5, strength) < 1e-3
        assert simulate(6, 0.5, strength, gate_opens=opens) > turning_point(6)
        assert not opened[0]
        assert any(opened)
    # Above the largest strength such a gate never opens: the chain learns, unregularized.
    assert simulate(6, 0.5, 0.4, gate_opens=lambda _, w: pull(6, w) > 0.4) == pytest.approx(1.0, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(depth=st.integers(3, 30), start=st.floats(0.05, 1.2), power=st.sampled_from([1, 2]))
def test_thresholds_are_the_first_and_the_largest_value_of_the_pull(depth, start, power):
    grid = [pull(depth, k / 2000, power) for k in range(2001)]
    largest = largest_strength(depth, power)
    assert max(grid) <= largest * (1 + 1e-12)
    assert max(grid) == pytest.approx(largest, rel=1e-3)
    assert pull(depth, turning_point(depth, power), power) == pytest.approx(largest, rel=1e-12)
    level = tolerance_level(depth, start, power)
    # Always-on must climb over everything from its start up to where the pull turns.
    climb = [pull(depth, start + (turning_point(depth, power) - start) * k / 500, power) for k in range(501)]
    assert level == pytest.approx(min(climb) if start < turning_point(depth, power) else largest, rel=1e-12)


def test_the_gap_between_the_thresholds_widens_with_depth():
    gaps = [math.log2(largest_strength(depth) / tolerance_level(depth, 0.5)) for depth in (3, 6, 12, 24)]
    assert gaps == sorted(gaps)
    assert gaps[1] == pytest.approx(math.log2(0.3257 / 0.0615), abs=0.01)


def test_shallow_chains_have_no_gap():
    assert tolerance_level(2, 0.1) == largest_strength(2) == 1.0
    assert tolerance_level(1, 0.1, power=1) == largest_strength(1, power=1) == 1.0
    assert simulate(2, 0.1, 0.9) > 0.3
    assert simulate(2, 0.1, 1.1) < 1e-3


def test_l1_holds_the_weight_at_zero():
    assert simulate(6, 0.5, 0.5, power=1) == 0.0
    assert simulate(6, 0.0, 0.0, power=1) == 0.0


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: tolerance_level(6, 0.0), "start=0, from where no chain ever moves"),
        (lambda: tolerance_level(6, -1.0), "got a weight of -1.0"),
        (lambda: tolerance_level(6, math.nan), "got a weight of nan"),
        (lambda: tolerance_level(1, 0.5), "depth=1; pass a whole number of factors from 2 on"),
        (lambda: largest_strength(2.5), "depth=2.5"),
        (lambda: largest_strength(True, power=1), "depth=True"),
        (lambda: pull(6, 0.5, power=3), "power=3; pass 2"),
        (lambda: simulate(6, 0.5, -0.1), "strength=-0.1"),
        (lambda: simulate(6, 0.5, math.inf), "strength=inf"),
        (lambda: simulate(6, 0.5, 0.1, dt=0.0), "dt=0.0"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, sentence):
    with pytest.raises(RuleError) as caught:
        call()
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
