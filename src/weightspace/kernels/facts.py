"""What a registry knows of one rule or gate: the rows that recipes, contract tests and tables read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Facts(Generic[T]):
    """One row.

    Attributes:
        factory: The class.
        summary: One line for tables.
        source: Paper, or "derived".
        page: Documentation page, relative to docs/.
        choose: When to take it.
        variants: Settings that the contract tests and benchmarks run, by label.
    """

    factory: type[T]
    summary: str
    source: str
    page: str
    choose: str
    variants: Mapping[str, Mapping[str, Any]]

    @property
    def name(self) -> str:
        """The name in recipes and tables."""
        return self.factory.__name__
