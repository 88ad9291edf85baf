"""Reads recipes as YAML 1.2 (core schema), with a clear error for every mistake in the text.

PyYAML follows YAML 1.1, where `5e-4` is a string, `010` is eight, `12:30` is 750, `on:` is the key `True` and
`2020-01-01` a date; all would bite in a recipe (learning rates, a rule's `on=`). A key that stands twice is refused:
otherwise the last one wins unseen.
"""

from __future__ import annotations

import re
from typing import Any, cast

import yaml

from weightspace.errors import RecipeError
from weightspace.training.recipe_plain import DEEPEST, MOST_VALUES

_TAG = "tag:yaml.org,2002:"
LONGEST = 1 << 20  # characters of a recipe
_DIGITS = 64
# The plain words that are no text in YAML 1.2's core schema: tag, pattern, first characters.
_CORE = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),  # no part of 1.2, but what else should the key << mean
)


class _Loader(yaml.SafeLoader):
    """Safe loader with YAML 1.2 numbers and booleans that refuses duplicate keys."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own attribute; replaces the 1.1 table
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """As PyYAML does, but not deeper than recipes go: its time grows with the square of the depth."""
        self._depth += 1
        if self._depth > 2 * DEEPEST:
            mark = self.peek_event().start_mark
            text = f"this is nested more than {2 * DEEPEST} levels deep"
            raise yaml.constructor.ConstructorError(None, None, text, mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


for _name, _pattern, _first in _CORE:
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    if len(text) > _DIGITS:
        raise yaml.constructor.ConstructorError(None, None, f"{text[:20]}... has more than 64 bits", node.start_mark)
    if re.fullmatch(r"0[ox][0-9a-fA-F]+", text):
        return int(text, 0)
    try:
        return int(text)
    except ValueError as error:  # more digits than Python reads, or `!!int words`
        raise yaml.constructor.ConstructorError(None, None, f"{text[:20]!r} is no integer", node.start_mark) from error


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[object] = set()
    for key_node, _ in node.value:
        if key_node.tag == _TAG + "merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, list | dict):
            raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands here twice", key_node.start_mark
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(f"{_TAG}int", _construct_int)
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
_KINDS: dict[str, type[yaml.Node]] = {
    **dict.fromkeys((_TAG + "str", *(_TAG + name for name, _, _ in _CORE)), yaml.ScalarNode),
    _TAG + "seq": yaml.SequenceNode,
    _TAG + "map": yaml.MappingNode,
}
_PATTERNS = {_TAG + name: re.compile(pattern) for name, pattern, _ in _CORE if name != "int"}


def _check(node: yaml.Node, sizes: dict[int, int], above: set[int]) -> int:
    """How many values a node stands for, aliases written out: a kilobyte of aliases of aliases can be billions.

    Args:
        node: Composed, not yet constructed.
        sizes: Those of nodes that were seen, by identity.
        above: The nodes that this one is in.

    Raises:
        ConstructorError: Too many, a node within itself, a tag other than those of plain values, or one that does not
            fit its value.
    """
    mark = node.start_mark
    if id(node) in above:
        raise yaml.constructor.ConstructorError(None, None, "an alias stands inside of what it names", mark)
    if id(node) in sizes:
        return sizes[id(node)]
    if not isinstance(node, _KINDS.get(node.tag, ())):
        name = node.tag.replace(_TAG, "!!")
        raise yaml.constructor.ConstructorError(None, None, f"the tag {name} cannot be used in a recipe", mark)
    if isinstance(node, yaml.ScalarNode):
        if node.tag in _PATTERNS and not _PATTERNS[node.tag].fullmatch(node.value):
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value[:20]!r} is no {node.tag.removeprefix(_TAG)}", mark
            )
        return 1
    parts = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
    above.add(id(node))
    size = 1 + sum(_check(part, sizes, above) for part in parts)
    above.remove(id(node))
    if size > MOST_VALUES:
        raise yaml.constructor.ConstructorError(None, None, f"this stands for more than {MOST_VALUES:,} values", mark)
    sizes[id(node)] = size
    return size


def parse_yaml(text: str, source: str) -> Any:
    """Parse one YAML document.

    Args:
        text: The YAML text.
        source: Where it came from (a file name, an override), for the error's sentence.

    Returns:
        Dicts, lists, strings, numbers, booleans and None.

    Raises:
        RecipeError: The text is not YAML, or a key stands twice; names line and column.

    >>> parse_yaml("{lr: 5e-4, on: convs, hidden: 010, time: 12:30}", "an example")
    {'lr': 0.0005, 'on': 'convs', 'hidden': 10, 'time': '12:30'}
    """
    if len(text) > LONGEST:
        raise RecipeError(f"{source} has {len(text):,} characters; a recipe has at most {LONGEST:,}")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, {}, set())
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        problem = error.problem or error.context or "syntax error"
        raise RecipeError(f"{source} is not valid YAML{place}: {problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
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
    for key in value:
        if not isinstance(key, str):
            raise RecipeError(f"{source} has the key {key!r}, but keys are words; put it in quotes if it is one")
    return cast("dict[str, Any]", value)
