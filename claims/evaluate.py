"""Recomputes every number of a claim from its raw values and applies the rule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from claims.intervals import Interval
from claims.model import Claim, Number
from claims.sources import Sources
from claims.verdicts import Outcome, Verdict, level_for, verdict


@dataclass(frozen=True)
class Found:
    """A number, recomputed.

    Attributes:
        number: What it is.
        interval: At 95 %, as printed.
        outcome: By the interval widened for the number of conditions; None where there is no condition.
    """

    number: Number
    interval: Interval
    outcome: Outcome | None

    @property
    def value(self) -> str:
        """Mean and interval as the page prints them."""
        return written(self.interval, self.number.form)


@dataclass(frozen=True)
class Result:
    """A claim with its verdict.

    Attributes:
        claim: The claim.
        found: Its numbers, in order.
        verdict: By the rule.
        missing: Source files that are not there: what they decide is not measured yet.
        extra: Lines of Markdown after the numbers.
    """

    claim: Claim
    found: tuple[Found, ...]
    verdict: Verdict
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    @property
    def key(self) -> Found | None:
        """The number for the table of verdicts: the first that decides, or where one is enough the first that holds."""
        decisive = [one for one in self.found if one.outcome is not None]
        holding = [one for one in decisive if one.outcome == "holds"] if self.claim.rule == "any" else []
        return next(iter(holding or decisive), None)

    @property
    def tally(self) -> str:
        """How many conditions hold."""
        outcomes = [one.outcome for one in self.found if one.outcome is not None]
        parts = [f"{outcomes.count('holds')} of {len(outcomes)} conditions hold"]
        parts += [f"{outcomes.count(o)} {o}" for o in ("open", "contradicted") if outcomes.count(o)]
        return ", ".join(parts)


def evaluate(claim: Claim, sources: Sources) -> Result:
    """The claim's numbers from the raw values, and its verdict.

    Raises:
        KeyError: A source file lacks what a number is computed from.
    """
    missing = tuple(dict.fromkeys(n.source for n in claim.numbers if not sources.exists(n.source)))
    there = [number for number in claim.numbers if number.source not in missing]
    level = level_for(len(claim.decisive))
    found = tuple(_found(number, sources, level) for number in there)
    extra: tuple[str, ...] = ()
    if claim.extra is not None and sources.exists(claim.extra[0]):
        extra = tuple(claim.extra[1](sources[claim.extra[0]]))
    outcomes = [one.outcome for one in found if one.outcome is not None]
    came = Verdict.NOT_MEASURED if missing else verdict(outcomes, claim.rule, is_paper=claim.is_papers)
    return Result(claim, found, came, missing, extra)


def evaluate_all(claims: Iterable[Claim], sources: Sources) -> list[Result]:
    """`evaluate` for each."""
    return [evaluate(claim, sources) for claim in claims]


def written(interval: Interval, form: str) -> str:
    """`mean (low to high)`; the mean alone where it is exact or has no interval.

    >>> written(Interval(1.234, 0.5, 2.0, 5), "+.2f"), written(Interval(3.0, 3.0, 3.0, 5), ".0f")
    ('+1.23 (+0.50 to +2.00)', '3')
    """
    mean = _number(interval.mean, form)
    if interval.low is None or interval.high is None or interval.is_exact:
        return mean
    return f"{mean} ({_number(interval.low, form)} to {_number(interval.high, form)})"


def _number(value: float, form: str) -> str:
    if value == 0:
        return "0"
    text = f"{value:{form}}"
    return text.lstrip("-+") if float(text.replace(",", "")) == 0 else text


def _found(number: Number, sources: Sources, level: float) -> Found:
    raw = sources[number.source]
    interval = number.measure(raw, 0.95)
    outcome = None if number.condition is None else number.condition.outcome(number.measure(raw, level))
    return Found(number, interval, outcome)
