"""Finds and reads recipe files, bundled ones by name, and reads overrides from the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from weightspace.errors import RecipeError, nearest
from weightspace.training.recipe_yaml import LONGEST, parse_mapping, parse_yaml

_SUFFIXES = {".yaml", ".yml"}


def bundled_recipes() -> Mapping[str, str]:
    """Name to YAML text of the recipes that come with weightspace, sorted by name."""
    folder = resources.files("weightspace") / "recipes"
    found = [entry for entry in folder.iterdir() if entry.name.endswith(".yaml")]
    return {entry.name.removesuffix(".yaml"): entry.read_text(encoding="utf-8") for entry in sorted(found, key=str)}


def read_recipe(path_or_name: str | Path) -> tuple[dict[str, Any], str]:
    """Read a recipe without checking it.

    Args:
        path_or_name: A file (it ends in .yaml or .yml, or holds a folder separator) or a bundled name.

    Returns:
        Its parsed values, and the file name for error messages.

    Raises:
        RecipeError: No such file or name, unreadable, or not YAML.
    """
    path = Path(path_or_name)
    if path.suffix in _SUFFIXES or isinstance(path_or_name, Path) or len(path.parts) != 1 or _is_file(path):
        return parse_mapping(_read(path), path.name), path.name
    bundled = bundled_recipes()
    name = str(path_or_name)
    if name not in bundled:
        hint = nearest(name, bundled, "did you mean '{}'?") or f"the bundled recipes are {', '.join(bundled)}"
        raise RecipeError(f"there is no recipe '{name}', {hint} (a file of yours needs its ending .yaml)")
    return parse_mapping(bundled[name], f"{name}.yaml"), f"{name}.yaml"


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Parse `"dotted.path=value"` strings; the value is YAML, so `null`, `[1, 2]` and `5e-4` mean what they say.

    Raises:
        RecipeError: No `=`, or the value is not YAML.

    >>> parse_overrides(["train.epochs=3", "data.augment=[crop, flip]"])
    {'train.epochs': 3, 'data.augment': ['crop', 'flip']}
    """
    parsed: dict[str, Any] = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path.strip():
            raise RecipeError(f"'{override}' is not an override; write key=value, for example train.epochs=3")
        parsed[path.strip()] = parse_yaml(text, f"the value of '{override}'")
    return parsed


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as stream:
            return stream.read(LONGEST + 1)  # one more than is accepted: a device or a film ends here too
    except FileNotFoundError as error:
        raise RecipeError(f"there is no recipe file {path}; 'weightspace recipes' lists the bundled ones") from error
    except (OSError, ValueError) as error:  # ValueError: bytes that are no UTF-8, or a zero byte in the name
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RecipeError(f"cannot read the recipe file {path}: {reason}") from error


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the system knows no name as long as that
        return False
