"""The written rule that turns intervals into verdicts. No verdict of the page is decided by hand.

A number that decides has a condition: a range in which it must lie. Its interval, widened for the number of numbers
that decide the same claim (Bonferroni), lies wholly inside (the condition *holds*), wholly outside (*contradicted*), or
across the boundary (*open*: the data do not tell).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from claims.intervals import Interval

Outcome = Literal["holds", "contradicted", "open"]


class Verdict(Enum):
    """What came of a claim; a paper's claims are reproduced, our own and open questions hold."""

    REPRODUCED = "reproduced"
    IN_PART = "reproduced in part"
    NOT = "not reproduced"
    UNTESTED = "cannot be tested here"
    HOLDS = "holds"
    HOLDS_IN_PART = "holds in part"
    DOES_NOT_HOLD = "does not hold"
    NOT_MEASURED = "not measured yet"


@dataclass(frozen=True)
class Condition:
    """The range in which a number must lie, ends included unless they are open.

    Attributes:
        low: Lower end, -inf for none.
        high: Upper end, inf for none.
        text: The condition in words, as the page prints it.
        is_strict: Whether an end itself is outside, as for "above 0".
    """

    low: float
    high: float
    text: str
    is_strict: bool = False

    def outcome(self, interval: Interval) -> Outcome:
        """Where the interval lies; a number without an interval (one value) leaves the condition open."""
        if interval.low is None or interval.high is None:
            return "open"
        if self._holds(interval.low) and self._holds(interval.high):
            return "holds"
        if (
            interval.high < self.low
            or interval.low > self.high
            or (interval.is_exact and not self._holds(interval.mean))
        ):
            return "contradicted"
        return "open"

    def _holds(self, value: float) -> bool:
        return self.low < value < self.high if self.is_strict else self.low <= value <= self.high


def above(value: float, unit: str = "") -> Condition:
    """Greater than `value`.

    >>> above(0).outcome(Interval(1.0, 0.5, 1.5, 5)), above(0).outcome(Interval(1.0, -0.5, 2.5, 5))
    ('holds', 'open')
    """
    return Condition(value, math.inf, f"above {value:g}{unit}", is_strict=True)


def below(value: float, unit: str = "") -> Condition:
    """Less than `value`."""
    return Condition(-math.inf, value, f"below {value:g}{unit}", is_strict=True)


def at_most(value: float, unit: str = "") -> Condition:
    """`value` or less."""
    return Condition(-math.inf, value, f"at most {value:g}{unit}")


def at_least(value: float, unit: str = "") -> Condition:
    """`value` or more."""
    return Condition(value, math.inf, f"at least {value:g}{unit}")


def within(low: float, high: float, unit: str = "") -> Condition:
    """Between both, ends included."""
    return Condition(low, high, f"from {low:g} to {high:g}{unit}")


Rule = Literal["all", "any"]
RULES: dict[Rule, str] = {
    "all": "every condition must hold; if only some do, in part",
    "any": "one condition that holds is enough: the claim is that it can happen",
}


def level_for(decisive: int, level: float = 0.95) -> float:
    """Confidence at which each of so many decisive numbers is judged, so that all together have `level`.

    >>> level_for(1), round(level_for(5), 3)
    (0.95, 0.99)
    """
    return 1 - (1 - level) / max(decisive, 1)


def verdict(outcomes: Sequence[Outcome], rule: Rule, *, is_paper: bool) -> Verdict:
    """The rule.

    >>> verdict(["holds", "open"], "all", is_paper=True).value
    'reproduced in part'
    >>> verdict(["open", "contradicted"], "any", is_paper=False).value
    'does not hold'
    """
    if not outcomes:
        return Verdict.UNTESTED if is_paper else Verdict.NOT_MEASURED
    held = sum(outcome == "holds" for outcome in outcomes)
    if held == len(outcomes) or (rule == "any" and held):
        return Verdict.REPRODUCED if is_paper else Verdict.HOLDS
    if held:
        return Verdict.IN_PART if is_paper else Verdict.HOLDS_IN_PART
    return Verdict.NOT if is_paper else Verdict.DOES_NOT_HOLD
