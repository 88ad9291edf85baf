"""`param_groups`: which parameters of a model live on which manifold, as groups for an optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from weightspace.errors import RuleError, SelectionError
from weightspace.kernels import RoutingTable, Selection, describe, route
from weightspace.kernels.routing import Route
from weightspace.manifolds import Euclidean, Manifold


class ParamGroups(list[dict[str, Any]]):
    """Parameter groups for an optimizer, and the reasons for them. Made by `param_groups`."""

    def __init__(self, groups: list[dict[str, Any]], rules: tuple[Manifold, ...], routes: tuple[Route, ...]) -> None:
        super().__init__(groups)
        self._rules = rules
        self._routes = routes

    def table(self) -> RoutingTable:
        """Every parameter with its manifold and points, or the reason why it has none. Prints itself."""
        return RoutingTable(self._rules, self._routes, {})


def param_groups(model: nn.Module, manifolds: Mapping[Selection, Manifold]) -> ParamGroups:
    """Groups for `SubmanifoldSGD` and `SubmanifoldAdam`: selected weights on their manifolds, all others Euclidean.

    Args:
        model: Whose parameters are optimized; frozen ones are left out.
        manifolds: For each selection a manifold; a weight that two of them select is refused. What a selection holds
            but the manifold cannot (biases, 1x1 kernels as slices) is left Euclidean: `.table()` says why.

    Returns:
        A list of dictionaries with `params` (named), `manifold` (its text), `out_axis` and `groups`; add `lr`,
        `weight_decay` and the like to any of them. One group for each manifold and kind of layer.

    Raises:
        SelectionError: A selection constrains nothing, or two constrain one weight.
        RuleError: `manifolds` is no mapping from selections to manifolds.

    Example:
        >>> import weightspace as ws
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))
        >>> [(g["manifold"], g["params"][0][0]) for g in param_groups(model, {ws.on.convs: ws.manifolds.Sphere()})]
        [('sphere(filter)', '0.weight'), ('euclidean(kernel)', '0.bias')]
    """
    if not isinstance(manifolds, Mapping) or not manifolds:
        raise RuleError(f"param_groups() got {manifolds!r}; pass selections and manifolds: {{ws.on.convs: Sphere()}}.")
    rules: list[Manifold] = []
    for selection, manifold in manifolds.items():
        if not isinstance(selection, Selection) or not isinstance(manifold, Manifold):
            raise RuleError(
                f"param_groups() got {selection!r}: {manifold!r}; pass selections and manifolds: "
                "{ws.on.convs: ws.manifolds.Sphere()}."
            )
        rules.append(replace(manifold, on=selection))
    trained = [info for info in describe(model) if info.parameter.requires_grad]
    routes = route(rules, trained, [info.parameter for info in trained])
    refuse_two_constraints(rules, routes)
    groups: dict[tuple[str, int, int], dict[str, Any]] = {}
    for entry in sorted(routes, key=lambda r: not r.rules):  # constrained ones first
        info = entry.info
        manifold = rules[entry.rules[0]] if entry.rules else Euclidean()
        key = (manifold.text(), info.out_axis, info.groups) if entry.rules else (manifold.text(), 0, 1)
        group = groups.setdefault(key, {"params": [], "manifold": key[0], "out_axis": key[1], "groups": key[2]})
        group["params"].append((info.name, info.parameter))
    return ParamGroups(list(groups.values()), tuple(rules), routes)


def refuse_two_constraints(rules: list[Manifold] | tuple[Any, ...], routes: tuple[Route, ...]) -> None:
    """Raises SelectionError for a weight that two manifolds select."""
    for entry in routes:
        acting = [rules[i] for i in entry.rules if isinstance(rules[i], Manifold)]
        if len(acting) > 1:
            raise SelectionError(
                f"{entry.info.name} is on two manifolds, {acting[0]} and {acting[1]}; make their on= disjoint, or take "
                "a Product."
            )
