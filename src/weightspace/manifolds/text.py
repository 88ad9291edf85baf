"""Reads manifolds from the text that a `state_dict` holds: `"stiefel(matrix, retraction=polar)"`."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from weightspace.errors import RuleError, nearest
from weightspace.kernels.expressions import read_expression
from weightspace.manifolds.base import Manifold

_KNOWN: dict[str, type[Manifold]] = {}


def know(classes: Iterable[type[Manifold]]) -> None:
    """Enters manifolds under their names in lower case."""
    _KNOWN.update({cls.__name__.lower(): cls for cls in classes})


def parse(text: str) -> Manifold:
    """The manifold that `Manifold.text()` wrote; `on` is no part of the text.

    Raises:
        RuleError: The text names no manifold, or options that it does not have.

    Example:
        >>> from weightspace import manifolds
        >>> manifolds.parse("sphere(slice, radius=2.0)")
        Sphere(grouping='slice', on=None, radius=2.0)
        >>> manifolds.parse("sphere(slice, radius=2.0)").text()
        'sphere(slice, radius=2.0)'
    """
    return read_expression(text, "manifold", "sphere(filter)", lambda node: _build(node, text), RuleError)


def _build(node: ast.expr, text: str) -> Manifold:
    match node:
        case ast.Name(id=name):
            return _make(name, [], {}, text)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=keywords):
            options = {str(k.arg): _value(k.value, text) for k in keywords}
            return _make(name, [_value(a, text) for a in arguments], options, text)
        case _:
            raise RuleError(
                f"The manifold {text!r} holds {ast.unparse(node)!r}; write it as 'sphere(filter, radius=2.0)'."
            )


def _make(name: str, arguments: list[Any], options: dict[str, Any], text: str) -> Manifold:
    cls = _KNOWN.get(name)
    if cls is None:
        raise RuleError(
            f"There is no manifold {name!r} (in {text!r}){nearest(name, _KNOWN) or '; known are ' + ', '.join(_KNOWN)}."
        )
    known = [f.name for f in fields(cls) if f.name != "on"]
    for option in options:
        if option not in known:
            raise RuleError(f"{cls.__name__} has no option {option!r} (in {text!r}); known are {', '.join(known)}.")
    return cls.from_text(arguments, options)


def _value(node: ast.expr, text: str) -> Any:
    """A word, a number, None, True, False, a tuple of these, or a manifold."""
    match node:
        case ast.Call():
            return _build(node, text)
        case ast.Name(id=word):
            return word
        case ast.Tuple(elts=entries):
            return tuple(_value(entry, text) for entry in entries)
        case _:
            return ast.literal_eval(node)
