"""Which rule acts on which parameter, under which view, and why not on the others: decided once, printed on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from rich.markup import escape
from rich.table import Table
from torch import nn

from weightspace.errors import SelectionError
from weightspace.kernels.parameters import ParameterInfo
from weightspace.kernels.points import PointView
from weightspace.kernels.printing import as_text
from weightspace.kernels.rule import Rule
from weightspace.kernels.views import View


@dataclass(frozen=True)
class Route:
    """One line of the routing table.

    Attributes:
        info: The parameter.
        rules: Indices of the rules that act on it, in the order in which they act.
        views: The view of each.
        reasons: For each rule that does not act, by index, the reason.
    """

    info: ParameterInfo
    rules: tuple[int, ...]
    views: tuple[View | PointView, ...]
    reasons: dict[int, str]


@dataclass(frozen=True)
class RoutingTable:
    """All routes of a model. `print(table)` shows it; rich consoles show it in color."""

    rules: tuple[Rule, ...]
    routes: tuple[Route, ...]
    modes: dict[str, str]

    def __rich__(self) -> Table:
        table = Table(title=None, show_edge=False, pad_edge=False)
        for column in ("parameter", "shape", "rule", "view", "runs", "why not"):
            table.add_column(column, overflow="fold")
        for route in self.routes:
            names = "\n".join(escape(str(self.rules[i])) for i in route.rules)
            views = "\n".join(f"{v.name} ({' × '.join(map(str, v.shape))})" for v in route.views)
            reasons = dict.fromkeys(route.reasons.values())  # several rules often share a reason
            style = None if route.rules else "dim"
            table.add_row(
                "\n".join((route.info.name, *(f"= {a}" for a in route.info.aliases))),
                " × ".join(map(str, route.info.shape)) or "scalar",
                names or "–",
                views or "–",
                self.modes.get(route.info.name, "–"),
                escape("\n".join(reasons)),
                style=style,
            )
        return table

    def __str__(self) -> str:
        return as_text(self, width=160)

    @property
    def routed(self) -> tuple[Route, ...]:
        """The routes on which at least one rule acts."""
        return tuple(r for r in self.routes if r.rules)


def route(
    rules: Sequence[Rule], infos: Sequence[ParameterInfo], optimized: Sequence[torch.Tensor], *, strict: bool = True
) -> tuple[Route, ...]:
    """Decides for every parameter which rules act on it.

    Args:
        rules: In the order in which they act.
        infos: The model's parameters.
        optimized: The parameters that the optimizer holds; others are never touched.
        strict: Raise if a rule acts on nothing. Rerouting in the middle of a training, where layers may be frozen for
            a while, does not.

    Raises:
        SelectionError: A rule ends up acting on nothing; the sentence says what stood in the way.
    """
    held = {id(p) for p in optimized}
    routes = tuple(_route_one(rules, info, id(info.parameter) in held) for info in infos)
    for index, rule in enumerate(rules):
        if strict and not any(index in r.rules for r in routes):
            raise SelectionError(_nothing_selected(rule, index, routes))
    return routes


def _route_one(rules: Sequence[Rule], info: ParameterInfo, is_held: bool) -> Route:
    acting: list[int] = []
    views: list[View | PointView] = []
    reasons: dict[int, str] = {}
    for index, rule in enumerate(rules):
        reason, view = _verdict(rule, info, is_held)
        if view is None:
            reasons[index] = reason
        else:
            acting.append(index)
            views.append(view)
    return Route(info, tuple(acting), tuple(views), reasons)


def _verdict(rule: Rule, info: ParameterInfo, is_held: bool) -> tuple[str, View | PointView | None]:
    if not rule.selection(info):
        return rule.why_not_selected(info), None
    if not info.parameter.requires_grad:
        return "frozen (requires_grad is False)", None
    if not is_held:
        return "not in this optimizer", None
    refusal = rule.refusal(info)
    if refusal is not None:
        return refusal, None
    try:
        return "", rule.view_for(_whole(info))
    except SelectionError as error:
        return str(error), None


def _whole(info: ParameterInfo) -> ParameterInfo:
    """Views depend on the shape of the whole weight; of a DTensor no process need hold it."""
    weight = info.parameter
    if not hasattr(weight, "device_mesh"):
        return info
    like = torch.empty_strided(weight.shape, weight.stride(), dtype=weight.dtype, device="meta")
    return replace(info, parameter=nn.Parameter(like, requires_grad=weight.requires_grad))


def _nothing_selected(rule: Rule, index: int, routes: tuple[Route, ...]) -> str:
    chosen = [r for r in routes if rule.selection(r.info)]
    if chosen:
        reasons = "; ".join(f"{r.info.name}: {r.reasons[index]}" for r in chosen[:3])
        more = f" (and {len(chosen) - 3} more)" if len(chosen) > 3 else ""
        return f"{rule} selects {len(chosen)} parameters by on={rule.selection} but can act on none: {reasons}{more}."
    names = ", ".join(r.info.name for r in routes[:4])
    return (
        f"{rule} selects nothing: on={rule.selection} matches none of the {len(routes)} parameters "
        f"({names}, ...); pass on= with a selection such as ws.on.convs or ws.on.name('glob')."
    )
