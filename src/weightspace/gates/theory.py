"""Why a strong penalty stops a deep network from learning, and a gate rescues it: the model with one number.

A chain of D equal factors w, trained so that their product is 1, under a penalty of strength lambda:

    dw/dt = w^(D-1) (1 - w^D) - lambda w^(p-1)         p = 2: weight decay (L2), p = 1: L1

The data's pull over the penalty's, `f(w) = w^(D-p) (1 - w^D)`, is small for a small w (each factor's gradient is the
product of all others) and largest at `w^D = u = (D - p) / (2 D - p)`. So there are two thresholds:

    tolerance level     f(w0)                             above it a penalty that is always on takes w from w0 to 0
    largest strength    f(u^(1/D)) = u^((D-p)/D) (1 - u)  above it w comes to rest at 0 only: no delay helps

Between them it is only a matter of when the penalty sets in. Starts beyond the maximum of f have nothing to climb:
there both thresholds are equal.

Source: derived. It is a picture, not a prediction, of a network: layers are not equal numbers, and no start w0 is known
for them. What carries over is that the gap between the thresholds widens with depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from weightspace.errors import RuleError

Opens = Callable[[int, float], bool]
"""Whether the penalty acts at a step, given the steps done before and w."""


def pull(depth: int, weight: float, power: int = 2) -> float:
    """f(w) = w^(D-p) (1 - w^D): the strength at which the penalty balances the data.

    Args:
        depth: Number of factors D, at least `power`.
        weight: w, from 0 on.
        power: p: 2 for weight decay, 1 for L1.

    Raises:
        RuleError: An argument is out of its range.

    >>> pull(6, 0.5)
    0.0615234375
    """
    _check(depth, power, start=weight)
    return weight ** (depth - power) * (1.0 - weight**depth)


def turning_point(depth: int, power: int = 2) -> float:
    """The w at which f is largest, u^(1/D) with u = (D - p) / (2 D - p).

    Raises:
        RuleError: An argument is out of its range.

    >>> round(turning_point(6), 4)  # 0.4^(1/6)
    0.8584
    """
    _check(depth, power)
    return ((depth - power) / (2 * depth - power)) ** (1.0 / depth)


def tolerance_level(depth: int, start: float, power: int = 2) -> float:
    """The largest strength at which a penalty that is always on lets the chain learn.

    Args:
        depth: Number of factors D, at least `power`.
        start: w0, above 0.
        power: p: 2 for weight decay, 1 for L1.

    Raises:
        RuleError: An argument is out of its range.

    >>> round(tolerance_level(6, 0.5), 4)
    0.0615
    >>> tolerance_level(6, 0.9) == largest_strength(6)  # nothing left to climb
    True
    """
    _check(depth, power, start=start)
    if start == 0.0:
        raise RuleError("tolerance_level got start=0, from where no chain ever moves; pass a number above 0.")
    # With D = p the pull is largest at 0, so every start lies beyond the maximum.
    return largest_strength(depth, power) if start >= turning_point(depth, power) else pull(depth, start, power)


def largest_strength(depth: int, power: int = 2) -> float:
    """The largest strength that a chain which has learned survives: what a delay or a gate can reach at best.

    Args:
        depth: Number of factors D, at least `power`.
        power: p: 2 for weight decay, 1 for L1.

    Raises:
        RuleError: An argument is out of its range.

    >>> round(largest_strength(6), 4)
    0.3257
    >>> round(largest_strength(6, power=1), 4)
    0.2828
    """
    _check(depth, power)
    u = (depth - power) / (2 * depth - power)
    return u ** ((depth - power) / depth) * (1.0 - u)


def simulate(
    depth: int,
    start: float,
    strength: float,
    *,
    gate_opens: Opens | None = None,
    power: int = 2,
    steps: int = 20_000,
    dt: float = 0.05,
) -> float:
    """Follows w for `steps` steps of length `dt` (Euler), with a gate that decides when the penalty acts.

    Args:
        depth: Number of factors D, at least `power`.
        start: w0, from 0 on.
        strength: lambda, from 0 on.
        gate_opens: Called with the steps done and w; left out: always open.
        power: p: 2 for weight decay, 1 for L1.
        steps: How many; near a threshold it takes long to decide.
        dt: Length of a step. Stable below about `2 / D`, the inverse of the steepest slope at w = 1.

    Returns:
        w at the end: 0 (nearly, for p = 2) if it collapsed, beyond `turning_point` if it learned.

    Raises:
        RuleError: An argument is out of its range.

    >>> round(simulate(6, 0.5, strength=0.06), 2), round(simulate(6, 0.5, strength=0.063), 2)
    (0.99, 0.0)
    >>> round(simulate(6, 0.5, strength=0.32, gate_opens=lambda step, w: step >= 2000), 2)  # delayed: learned before
    0.88
    """
    _check(depth, power, start=start)
    if not math.isfinite(strength) or strength < 0.0:
        raise RuleError(f"simulate got strength={strength!r}; pass a finite number from 0 on.")
    if not 0.0 < dt <= 1.0:
        raise RuleError(f"simulate got dt={dt!r}; pass a number above 0 and at most 1, such as 0.05.")
    w = start
    for step in range(steps):
        slope = w ** (depth - 1) * (1.0 - w**depth)
        if gate_opens is None or gate_opens(step, w):
            slope -= strength * (w if power == 2 else 1.0)
        w = max(0.0, w + dt * slope)  # L1 holds w at 0, which plain arithmetic would step over
    return w


def _check(depth: int, power: int, start: float = 0.0) -> None:
    if power not in (1, 2):
        raise RuleError(f"the model of a chain got power={power!r}; pass 2 (weight decay) or 1 (L1).")
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < power:  # pyright: ignore[reportUnnecessaryIsInstance] - users are not type-checked
        raise RuleError(f"the model of a chain got depth={depth!r}; pass a whole number of factors from {power} on.")
    if not math.isfinite(start) or start < 0.0:
        raise RuleError(f"the model of a chain got a weight of {start!r}; pass a finite number from 0 on.")
