"""Names for callables that say which function it is, alike in every process: no addresses, no pickle."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any, cast

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))


def identity(value: Callable[..., Any]) -> str:
    """Which function this is: equal for two callables only if they can be expected to do the same.

    A module's function or class is its name; a lambda or inner function its name and a fingerprint of its bytecode,
    default values and closed-over values (which differs between Python versions); a `functools.partial` its function
    and arguments; a bound method its object and name; any other object its class and attributes.

    Example:
        >>> identity(partial(max, 3)), identity(str.upper)
        ('partial(builtins.max, 3)', 'str.upper')
        >>> identity(lambda x: x + 1) == identity(lambda x: x + 2)
        False
    """
    return _describe(value, ())


def _describe(value: object, seen: tuple[int, ...]) -> str:
    if isinstance(value, _PLAIN):
        return repr(value)
    if id(value) in seen:  # a function that closes over itself
        return "..."
    seen = (*seen, id(value))
    match value:
        case FunctionType():
            text = _function(value, seen)
        case partial():
            text = f"partial({', '.join([_describe(value.func, seen), *_arguments(value, seen)])})"
        case MethodType():
            text = f"{_describe(value.__self__, seen)}.{value.__func__.__name__}"
        case list() | tuple() | set() | frozenset() | Mapping():
            text = _container(cast("Any", value), seen)
        case _ if isinstance(value, type) or inspect.isroutine(value) or inspect.ismodule(value):
            text = _qualified(value)
        case _:
            text = _object(value, seen)
    return text


def _function(function: FunctionType, seen: tuple[int, ...]) -> str:
    name = _qualified(function)
    if "<" not in function.__qualname__:  # neither <lambda> nor <locals>: the name alone finds it again
        return name
    closed = [_cell(c, seen) for c in function.__closure__ or ()]
    parts = (
        _code(function.__code__),
        _describe(function.__defaults__ or (), seen),
        _describe(function.__kwdefaults__ or {}, seen),
        "; ".join(closed),
    )
    return f"{name}#{hashlib.sha256(repr(parts).encode()).hexdigest()[:8]}"


def _cell(cell: Any, seen: tuple[int, ...]) -> str:
    try:
        return _describe(cell.cell_contents, seen)
    except ValueError:  # a variable of the enclosing function that was never assigned
        return "<empty>"


def _code(code: CodeType) -> str:
    """Bytecode, names and constants; neither line numbers nor files, so that edits elsewhere change nothing."""
    constants = [_code(c) if isinstance(c, CodeType) else _describe(c, ()) for c in code.co_consts]
    return repr((code.co_code.hex(), constants, code.co_names, code.co_varnames, code.co_freevars))


def _arguments(value: partial[Any], seen: tuple[int, ...]) -> list[str]:
    named = [f"{key}={_describe(v, seen)}" for key, v in value.keywords.items()]
    return [_describe(a, seen) for a in value.args] + named


def _container(value: Any, seen: tuple[int, ...]) -> str:
    if isinstance(value, Mapping):
        items = [f"{_describe(k, seen)}: {_describe(v, seen)}" for k, v in cast("Any", value).items()]
    else:
        items = [_describe(v, seen) for v in value]
    if isinstance(value, set | frozenset):
        items.sort()  # their own order changes from process to process
    return f"{type(value).__name__}({', '.join(items)})"


def _object(value: object, seen: tuple[int, ...]) -> str:
    text = repr(value)
    if " at 0x" not in text and type(value).__repr__ is not object.__repr__:
        return text
    attributes = ", ".join(f"{k}={_describe(v, seen)}" for k, v in getattr(value, "__dict__", {}).items())
    return f"{_qualified(type(value))}({attributes})"


def _qualified(value: Any) -> str:
    module = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", getattr(value, "__name__", type(value).__qualname__))
    return f"{module}.{name}" if module else name
