"""Which parameters a rule applies to: predicates that combine with `&`, `|`, `~` and print as they are written."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from weightspace.errors import SelectionError
from weightspace.kernels.parameters import ParameterInfo


@dataclass(frozen=True)
class Selection:
    """A named predicate over `ParameterInfo`. Two selections are equal if they are written alike.

    Example:
        >>> from weightspace import on
        >>> str(on.name("layer3.*") & on.convs & ~on.head)
        "name('layer3.*') & convs & ~head"
    """

    text: str
    matches: Callable[[ParameterInfo], bool]
    binding: int = 3  # 3: a word or call, 2: negation, 1: and, 0: or; decides where parentheses are needed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Selection) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.text

    def __call__(self, info: ParameterInfo) -> bool:
        """True if the selection holds this parameter."""
        return self.matches(info)

    def _inside(self, binding: int) -> str:
        return self.text if self.binding >= binding else f"({self.text})"

    def __and__(self, other: Selection) -> Selection:
        return Selection(f"{self._inside(1)} & {other._inside(1)}", lambda i: self(i) and other(i), 1)

    def __or__(self, other: Selection) -> Selection:
        return Selection(f"{self._inside(0)} | {other._inside(0)}", lambda i: self(i) or other(i), 0)

    def __invert__(self) -> Selection:
        return Selection(f"~{self._inside(2)}", lambda i: not self(i), 2)

    def __bool__(self) -> bool:
        # `on.convs and on.head` would silently be `on.head`.
        raise TypeError(f"Selections combine with &, | and ~, not with and, or, not: got bool({self.text}).")


def name(pattern: str) -> Selection:
    """Parameters whose qualified name, owner's name or alias matches a shell pattern (`*`, `?`, `[...]`).

    Example:
        >>> name("layer3.*")
        name('layer3.*')
    """

    def matches(info: ParameterInfo) -> bool:
        names = (info.name, *info.aliases)
        return any(fnmatchcase(n, pattern) or fnmatchcase(n.rpartition(".")[0], pattern) for n in names)

    return Selection(f"name({pattern!r})", matches)


def where(predicate: Callable[[ParameterInfo], bool]) -> Selection:
    """Parameters for which `predicate(info)` is true; `info` is a `weightspace.kernels.ParameterInfo`."""
    return Selection(f"where({getattr(predicate, '__qualname__', repr(predicate))})", predicate)


convs = Selection("convs", lambda i: i.is_kernel)
linears = Selection("linears", lambda i: i.kind == "linear" and i.role == "weight")
dense_convs = Selection("dense_convs", lambda i: i.is_kernel and i.groups == 1)
grouped_convs = Selection("grouped_convs", lambda i: i.is_kernel and i.groups > 1)
norms = Selection("norms", lambda i: i.kind == "norm")
biases = Selection("biases", lambda i: i.role == "bias")
embeddings = Selection("embeddings", lambda i: i.kind == "embedding")
head = Selection("head", lambda i: i.is_head)
everything = Selection("everything", lambda _: True)

WORDS: dict[str, Selection] = {
    s.text: s for s in (convs, linears, dense_convs, grouped_convs, norms, biases, embeddings, head, everything)
}


def parse(text: str) -> Selection:
    """Reads a selection as it prints (recipes use this): words, `name('glob')`, `&`, `|`, `~`, parentheses.

    Raises:
        SelectionError: The text is not a selection.

    Example:
        >>> parse("dense_convs & ~head") == dense_convs & ~head
        True
    """
    try:
        return _build(ast.parse(text, mode="eval").body, text)
    except SyntaxError as error:
        raise SelectionError(f"The selection {text!r} cannot be read: {error.msg}.") from error


def _build(node: ast.expr, text: str) -> Selection:
    match node:
        case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
            return _build(left, text) & _build(right, text)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _build(left, text) | _build(right, text)
        case ast.UnaryOp(op=ast.Invert(), operand=operand):
            return ~_build(operand, text)
        case ast.Name(id=word) if word in WORDS:
            return WORDS[word]
        case ast.Call(func=ast.Name(id="name"), args=[ast.Constant(value=str(pattern))], keywords=[]):
            return name(pattern)
        case _:
            raise SelectionError(
                f"The selection {text!r} holds {ast.unparse(node)!r}; allowed are {', '.join(WORDS)}, "
                "name('glob'), &, | and ~."
            )
