"""Reads what prints as a Python expression (selections, manifolds) without running it."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LONGEST, SHOWN = 4000, 200  # characters


def read_expression(
    text: object, what: str, example: str, build: Callable[[ast.expr], T], error: type[ValueError]
) -> T:
    """What `build` makes of the parsed text.

    Args:
        text: As users or files give it.
        what: What it should be, for the errors.
        example: A text that could be read, for the errors.
        build: Makes it of the expression; raises `error` for what it does not allow.
        error: Raised for what is no text, too long, or no expression.
    """
    if not isinstance(text, str):
        raise error(f"parse() reads a {what} from text such as {example!r}; got {text!r}.")
    if len(text) > LONGEST:
        raise error(f"The {what} {text[:SHOWN]!r}... has {len(text):,} characters; none has {LONGEST:,}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of "1x": the sentence below says more
            tree = ast.parse(text.strip(), mode="eval")
        return build(tree.body)
    # ValueError: a null byte; what `build` raises is one as well. The last three: nested too deep, or a number of 400
    # digits.
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError, OverflowError) as found:
        if isinstance(found, error):
            raise
        reason = getattr(found, "msg", found) or "it is nested too deep"
        raise error(f"The {what} {text[:SHOWN]!r} cannot be read: {reason}.") from found
