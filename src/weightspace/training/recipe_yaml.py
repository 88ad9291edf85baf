"""Reads recipes as YAML 1.2 (core schema), with a clear error for every mistake in the text.

PyYAML follows YAML 1.1, where `5e-4` is a string and `on:` is the key `True`; both would bite in a recipe
(learning rates, a rule's `on=`). A key that stands twice is refused: otherwise the last one wins unseen.
"""

from __future__ import annotations

import re
from typing import Any, cast

import yaml

from weightspace.errors import RecipeError

_FLOAT = re.compile(
    r"^[-+]?(?:(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)|[0-9][0-9_]*\.[0-9_]*|\.[0-9]+|\.inf|\.nan)$"
)
_BOOLEAN = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")


class _Loader(yaml.SafeLoader):
    """Safe loader with YAML 1.2 numbers and booleans that refuses duplicate keys."""


# Take over the safe loader's table without the two resolvers that differ in YAML 1.2.
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in {"tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"}
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOLEAN, list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[object] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, list | dict):
            raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands here twice", key_node.start_mark
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def parse_yaml(text: str, source: str) -> Any:
    """Parse one YAML document.

    Args:
        text: The YAML text.
        source: Where it came from (a file name, an override), for the error's sentence.

    Returns:
        Dicts, lists, strings, numbers, booleans and None.

    Raises:
        RecipeError: The text is not YAML, or a key stands twice; names line and column.

    >>> parse_yaml("{lr: 5e-4, on: convs}", "an example")
    {'lr': 0.0005, 'on': 'convs'}
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        problem = error.problem or error.context or "syntax error"
        raise RecipeError(f"{source} is not valid YAML{place}: {problem}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error


def parse_mapping(text: str, source: str) -> dict[str, Any]:
    """Parse a YAML document that must be a mapping with text keys.

    Args:
        text: The YAML text.
        source: Where it came from, for the error's sentence.

    Raises:
        RecipeError: As `parse_yaml`, or the document is not a mapping.
    """
    value = parse_yaml(text, source)
    if not isinstance(value, dict):
        came = "nothing" if value is None else f"a {type(value).__name__}"
        raise RecipeError(f"{source} should hold keys such as 'name:' and 'train:', but holds {came}")
    return cast("dict[str, Any]", value)
