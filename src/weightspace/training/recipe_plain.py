"""What a recipe may consist of at all: plain values, so many of them, so deep, no number beyond 64 bits.

A file of a kilobyte can stand for billions of values (aliases of aliases), and numbers and texts that Python holds
without a word fail much later, in torch or on disk. So this is looked at before anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from weightspace.errors import RecipeError

MOST_VALUES = 100_000
DEEPEST = 40
_LARGEST = 1 << 63


def check_plain(values: Mapping[str, Any], source: str) -> None:
    """Refuse values that no recipe needs.

    Args:
        values: Nested values; one that stands in several places counts in each.
        source: Named first in errors.

    Raises:
        RecipeError: Too many values, nested too deep (or within themselves), keys that are no text, other types than
            numbers, text, booleans, None, lists and dicts; integers beyond 64 bits, or text that no file can hold.

    >>> check_plain({"seeds": 10**30}, "an example")
    Traceback (most recent call last):
    weightspace.errors.RecipeError: an example: seeds is a number of more than 64 bits; give a smaller one
    """
    waiting: list[tuple[Any, tuple[str, ...]]] = [(values, ())]
    count = 0
    while waiting:
        value, path = waiting.pop()
        count += 1
        if count > MOST_VALUES:
            raise RecipeError(f"{source} holds more than {MOST_VALUES:,} values; leave some out")
        if len(path) > DEEPEST:
            raise RecipeError(f"{source} is nested more than {DEEPEST} levels deep; no key of a recipe is")
        if isinstance(value, dict):
            entries = cast("dict[Any, Any]", value)
            for key in entries:
                _check_one(key, path, source, is_key=True)
            waiting += [(entry, (*path, key)) for key, entry in entries.items()]
        elif isinstance(value, list | tuple):
            waiting += [(entry, (*path, str(i))) for i, entry in enumerate(cast("list[Any]", value))]
        else:
            _check_one(value, path, source)


def _check_one(value: Any, path: tuple[str, ...], source: str, *, is_key: bool = False) -> None:
    place = f"{source}: {'a key below ' if is_key else ''}{'.'.join(path)[:200] or 'the recipe'}"
    if is_key and not isinstance(value, str):
        raise RecipeError(f"{place} is a {type(value).__name__}, but keys are words; put it in quotes if it is one")
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise RecipeError(f"{place} has a character that no file name or text can hold; leave it out")
    elif isinstance(value, int):
        if not -_LARGEST <= value < 2 * _LARGEST:
            raise RecipeError(f"{place} is a number of more than 64 bits; give a smaller one")
    elif value is not None and not isinstance(value, float):
        raise RecipeError(f"{place} is a {type(value).__name__}; a recipe holds numbers, text, lists and keys")
