"""What rules accept as options: each check returns the plain Python value to keep, or raises one clear sentence.

numpy's numbers, booleans and strings are accepted and kept as Python's own, so that a rule prints, compares and reads
back the same wherever its settings come from.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real

from weightspace.errors import RuleError

# Beyond these, 1/lambda and lambda * length^2 leave float32; what the rules do has long reached its limit there.
SMALLEST, LARGEST = 1e-15, 1e15


def positive_number(rule: str, name: str, value: object) -> float:
    """`value` as a float; RuleError unless it is a real number from `SMALLEST` to `LARGEST` (a boolean is none).

    Example:
        >>> positive_number("ChannelL2", "smoothing", 4)
        4.0
    """
    number = _as_float(value)
    if not SMALLEST <= number <= LARGEST:
        raise RuleError(
            f"{rule} got {name}={value!r}; it must be a finite number above 0, from {SMALLEST:g} to {LARGEST:g}."
        )
    return number


def number_from_zero(rule: str, name: str, value: object) -> float:
    """`value` as a float; RuleError unless it is a real number from 0 to `LARGEST` (a boolean is none).

    Example:
        >>> number_from_zero("SingularValueBand", "low", 0)
        0.0
    """
    number = _as_float(value)
    if not 0.0 <= number <= LARGEST:
        raise RuleError(f"{rule} got {name}={value!r}; it must be a finite number from 0 to {LARGEST:g}.")
    return number


def whole_number(rule: str, name: str, value: object, least: int = 1) -> int:
    """`value` as an int; RuleError unless it is a whole number of at least `least` (a boolean is none).

    Example:
        >>> whole_number("SingularValueBand", "every", 4)
        4
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
        raise RuleError(f"{rule} got {name}={value!r}; it must be a whole number of at least {least}.")
    return int(value)


def _as_float(value: object) -> float:
    """NaN for what is no real number."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except (OverflowError, ValueError):  # an integer of 400 digits
        return math.inf


def boolean(rule: str, name: str, value: object) -> bool:
    """`value` as a bool; RuleError for anything else, above all for the truthy text `"false"`.

    Example:
        >>> boolean("ChannelL2", "keep_norm", "false")
        Traceback (most recent call last):
            ...
        weightspace.errors.RuleError: ChannelL2 got keep_norm='false'; pass True or False.
    """
    # numpy's bool is no subclass of bool, and this package does not import numpy.
    if isinstance(value, bool) or (type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_")):
        return bool(value)
    raise RuleError(f"{rule} got {name}={value!r}; pass True or False.")


def choice(rule: str, name: str, value: object, choices: Collection[str]) -> str:
    """`value` as a str; RuleError unless it is one of `choices`.

    Example:
        >>> choice("ChannelL2", "axis", "out", ("out", "in"))
        'out'
    """
    if not isinstance(value, str) or value not in choices:
        raise RuleError(f"{rule} got {name}={value!r}; choose one of {', '.join(map(repr, choices))}.")
    return str(value)


def seed_or_none(rule: str, name: str, value: object) -> int | None:
    """`value` as an int, or None; RuleError unless it is an integer that can seed a generator (a boolean cannot).

    Example:
        >>> seed_or_none("ChannelSobolev", "permutation_seed", 0)
        0
    """
    if value is None:
        return None
    if not isinstance(value, Integral) or isinstance(value, bool) or not 0 <= int(value) < 2**63:
        raise RuleError(f"{rule} got {name}={value!r}; pass an integer from 0 to 2**63 - 1, or None.")
    return int(value)
