"""The base of every rule: what it selects, under which view it sees a weight, and at which stage of a step it acts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from enum import IntEnum
from typing import ClassVar, cast

from weightspace.kernels.parameters import ParameterInfo
from weightspace.kernels.points import Channels, Grouping, PointView
from weightspace.kernels.selection import Selection
from weightspace.kernels.views import View, ViewName, view_of


class Stage(IntEnum):
    """When a rule acts within a step; the order is canonical, whatever order the rules are given in."""

    METRIC = 0
    PENALTY = 1
    MANIFOLD = 2


class Rule(ABC):
    """Something that acts on selected weights between `backward()` and the next forward pass.

    Concrete rules are frozen dataclasses with value equality, so that two runs can be compared and a `state_dict`
    can hold them as text. They hold no tensors.
    """

    stage: ClassVar[Stage]
    default_on: ClassVar[Selection]
    on: Selection | None

    @property
    def selection(self) -> Selection:
        """What `on=` selects, or the rule's default."""
        return self.default_on if self.on is None else self.on

    @property
    @abstractmethod
    def view(self) -> ViewName | Grouping:
        """The view of a weight that this rule acts on."""

    def view_for(self, info: ParameterInfo) -> View | PointView:
        """How this parameter is seen by the rule.

        Raises:
            SelectionError: It has no such view.
        """
        return view_of(info, cast("ViewName", self.view))

    def acts_on_rows(self, channels: Channels) -> bool:
        """Whether rows of a weight, along dimension 0, are independent: each gets what it would get without the others.

        Then processes that hold some rows each act on their own and send nothing.
        """
        del channels
        return False

    def refusal(self, info: ParameterInfo) -> str | None:
        """Why a selected parameter cannot carry this rule, or None if it can."""
        if info.is_parametrized:
            return "is the inner tensor of a parametrization: the rule would not see the weight that the layer uses"
        if info.parameter.is_complex():
            return "is complex"
        return None

    def why_not_selected(self, info: ParameterInfo) -> str:
        """One short reason why `on=` leaves a parameter out, for the routing table."""
        if self.on is not None:
            return f"not in on={self.on}"
        if info.is_kernel:
            return f"grouped kernel ({info.groups} groups)" if info.groups > 1 else "head: last weight layer"
        return f"{info.kind} {info.role}".replace("other ", "")

    def _settle(self, **values: object) -> None:
        """Keeps checked options: the only writing to a frozen rule, at its construction."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        changed = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]  # type: ignore[arg-type]  # subclasses are dataclasses
        return f"{type(self).__name__}({', '.join(changed)})"
