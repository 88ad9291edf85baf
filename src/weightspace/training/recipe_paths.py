"""Dotted paths into a recipe: `train.optimizer.lr`, `rules.0.smoothing`, `compare.arms.tuned SGD.tune`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from pydantic import BaseModel

from weightspace.errors import RecipeError, nearest
from weightspace.training.recipe_errors import unknown_key

# Below these the rest of a path is one key, dots included: `compare.tune.grid.train.optimizer.lr`.
_TABLES_OF_PATHS = {"grid", "ranges", "set"}


def set_path(values: dict[str, Any], path: str, value: object, model: type[BaseModel]) -> None:
    """Set one value in a nested dict in place; missing tables on the way are made.

    Args:
        values: Nested dicts and lists of a recipe.
        path: Dotted path. Numbers index lists; a key that holds dots itself (an arm's name) is found when it exists.
        value: What to put there.
        model: The recipe model: a first key it does not know is refused with the nearest known one. Deeper keys
            are checked when the recipe is validated.

    Raises:
        RecipeError: The path is empty, runs through a plain value, or past the end of a list.

    >>> from weightspace.training.recipe import Recipe
    >>> recipe = {"rules": [{"rule": "ChannelL2", "smoothing": 4.0}]}
    >>> set_path(recipe, "rules.0.smoothing", 8.0, Recipe)
    >>> recipe
    {'rules': [{'rule': 'ChannelL2', 'smoothing': 8.0}]}
    """
    parts = path.split(".")
    if not all(parts):
        raise RecipeError(f"'{path}' is not a path into a recipe; write for example train.optimizer.lr")
    if parts[0] not in model.model_fields:
        raise RecipeError(unknown_key(parts, model) if len(parts) == 1 else _unknown_first(parts, model))
    here: Any = values
    walked: list[str] = []
    while len(parts) > 1:
        key, parts = _next_key(here, parts, walked)
        if not parts:  # one key that holds all the remaining dots
            parts = [str(key)]
            break
        here = _step(here, key, path)
        walked.append(str(key))
    _assign(here, parts[0], value, path)


def _unknown_first(parts: Sequence[str], model: type[BaseModel]) -> str:
    guess = nearest(parts[0], model.model_fields, "{}")
    if guess:
        return f"unknown key '{'.'.join(parts)}', did you mean '{'.'.join([guess, *parts[1:]])}'?"
    return f"unknown key '{'.'.join(parts)}'; a recipe knows {', '.join(model.model_fields)}"


def _next_key(here: Any, parts: list[str], walked: list[str]) -> tuple[str, list[str]]:
    """Split off the next key: the longest existing one, so that names with dots can be reached."""
    if walked and walked[-1] in _TABLES_OF_PATHS:
        return ".".join(parts), []
    if isinstance(here, dict):
        for length in range(len(parts), 1, -1):
            joined = ".".join(parts[:length])
            if joined in here:
                return joined, parts[length:]
    return parts[0], parts[1:]


def _step(here: Any, key: str, path: str) -> Any:
    if isinstance(here, list):
        return cast("list[Any]", here)[_index(cast("list[Any]", here), key, path)]
    table = cast("dict[str, Any]", here)
    if table.get(key) is None:
        table[key] = {}
    inner = table[key]
    if not isinstance(inner, dict | list):
        raise RecipeError(f"cannot set '{path}': '{key}' is {inner!r}, which has no keys")
    return cast("Any", inner)


def _assign(here: Any, key: str, value: object, path: str) -> None:
    if isinstance(here, list):
        items = cast("list[Any]", here)
        items[_index(items, key, path)] = value
    else:
        cast("dict[str, Any]", here)[key] = value


def _index(items: list[Any], key: str, path: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        entries = f"has {len(items)} entries, counted from 0" if items else "is empty"
        raise RecipeError(f"cannot set '{path}': the list there {entries}, so '{key}' is none of them")
    return int(key)
