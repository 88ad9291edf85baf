"""Which parameters a rule applies to: predicates that combine with `&`, `|`, `~` and print as they are written."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from weightspace.errors import SelectionError
from weightspace.kernels._identity import identity
from weightspace.kernels.expressions import SHOWN, read_expression
from weightspace.kernels.parameters import ParameterInfo

_MOST = 100  # each is a call within a call when a parameter is looked at


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
    made_by: tuple[Callable[..., Any], tuple[Any, ...]] | None = None  # what pickle calls, since lambdas have no name

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

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.made_by or (Selection, (self.text, self.matches, self.binding))

    def _inside(self, binding: int) -> str:
        return self.text if self.binding >= binding else f"({self.text})"

    def __and__(self, other: Selection) -> Selection:
        text = f"{self._inside(1)} & {_operand(self, '&', other)._inside(1)}"
        return Selection(text, lambda i: self(i) and other(i), 1, (operator.and_, (self, other)))

    def __or__(self, other: Selection) -> Selection:
        text = f"{self._inside(0)} | {_operand(self, '|', other)._inside(0)}"
        return Selection(text, lambda i: self(i) or other(i), 0, (operator.or_, (self, other)))

    def __rand__(self, other: object) -> Selection:
        return _operand(self, "&", other) & self

    def __ror__(self, other: object) -> Selection:
        return _operand(self, "|", other) | self

    def __invert__(self) -> Selection:
        return Selection(f"~{self._inside(2)}", lambda i: not self(i), 2, (operator.invert, (self,)))

    def __bool__(self) -> bool:
        # `on.convs and on.head` would silently be `on.head`.
        raise TypeError(f"Selections combine with &, | and ~, not with and, or, not: got bool({self.text}).")


def _operand(selection: Selection, symbol: str, other: object) -> Selection:
    if not isinstance(other, Selection):
        raise SelectionError(
            f"{selection} was combined by {symbol} with {other!r}, which is no selection; "
            "write ws.on.head or ws.on.name('glob'), or read text with ws.on.parse('...')."
        )
    return other


def name(pattern: str) -> Selection:
    """Parameters whose qualified name, owner's name or alias matches a shell pattern (`*`, `?`, `[...]`).

    Example:
        >>> name("layer3.*")
        name('layer3.*')
    """

    def matches(info: ParameterInfo) -> bool:
        names = (info.name, *info.aliases)
        return any(fnmatchcase(n, pattern) or fnmatchcase(n.rpartition(".")[0], pattern) for n in names)

    if not isinstance(pattern, str):
        raise SelectionError(f"name() got {pattern!r}; pass a shell pattern such as 'layer3.*'.")
    return Selection(f"name({pattern!r})", matches, made_by=(name, (pattern,)))


def where(predicate: Callable[[ParameterInfo], bool]) -> Selection:
    """Parameters for which `predicate(info)` is true; `info` is a `weightspace.kernels.ParameterInfo`.

    It prints with the predicate's identity: a function of a module by its name, a lambda or inner function also by a
    fingerprint of its code and of the values that it closes over, a `functools.partial` by function and arguments.

    Raises:
        SelectionError: The predicate cannot be called.

    Example:
        >>> where(lambda info: info.groups == 2) == where(lambda info: info.groups == 4)
        False
    """
    if not callable(predicate):
        raise SelectionError(f"where() got {predicate!r}; pass a function of a ParameterInfo that returns a bool.")
    return Selection(f"where({identity(predicate)})", predicate, made_by=(where, (predicate,)))


def _word(text: str, matches: Callable[[ParameterInfo], bool]) -> Selection:
    return Selection(text, matches, made_by=(_word_again, (text,)))


def _word_again(text: str) -> Selection:
    return WORDS[text]


convs: Selection = _word("convs", lambda i: i.is_kernel)
"""Weights of convolutions, transposed and grouped ones included."""
linears: Selection = _word("linears", lambda i: i.kind == "linear" and i.role == "weight")
"""Weights of `nn.Linear`."""
dense_convs: Selection = _word("dense_convs", lambda i: i.is_kernel and i.groups == 1)
"""Weights of convolutions in one group."""
grouped_convs: Selection = _word("grouped_convs", lambda i: i.is_kernel and i.groups > 1)
"""Weights of convolutions in two groups or more, depthwise ones included."""
norms: Selection = _word("norms", lambda i: i.kind == "norm")
"""Weights and biases of normalization layers."""
biases: Selection = _word("biases", lambda i: i.role == "bias")
"""Biases of all layers."""
embeddings: Selection = _word("embeddings", lambda i: i.kind == "embedding")
"""Tables of `nn.Embedding`."""
head: Selection = _word("head", lambda i: i.is_head)
"""The weight of the last convolution or linear layer in registration order."""
everything: Selection = _word("everything", lambda _: True)
"""Every parameter."""

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

    def build(node: ast.expr) -> Selection:
        if sum(isinstance(part, ast.BinOp | ast.UnaryOp) for part in ast.walk(node)) > _MOST:
            raise SelectionError(f"The selection {text[:SHOWN]!r}... has more than {_MOST} of &, | and ~.")
        return _build(node, text)

    return read_expression(text, "selection", "convs & ~head", build, SelectionError)


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
