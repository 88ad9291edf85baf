"""Where the weights of a model are, measured against where rules say that they live: after training, or from a file.

Nothing here asks the optimizer or the rules in force: the weights alone are looked at, so that a constraint that was
declared and not kept shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import weightspace
from weightspace.errors import RunError
from weightspace.files import JsonObject
from weightspace.kernels import ParameterInfo, Rule, describe, route
from weightspace.kernels.points import Channels
from weightspace.training.optimizers import constraints_of

_ROUNDING = 1e-6  # of float32, beside a carried bound, which is exact


@dataclass(frozen=True)
class ConstraintCheck:
    """One weight and its manifold.

    Attributes:
        parameter: The weight's name.
        manifold: The manifold as text; of a product, that of the part that exceeds its bound most.
        points: How many points the weight is (that part of it, for a product).
        broken: How many of them are further from the manifold than the bound.
        violation: The largest distance of a point, relative to its size: `weightspace.manifolds.Manifold.violation`.
        bound: What rounding (and the tolerance that the user allowed) explains.
    """

    parameter: str
    manifold: str
    points: int
    broken: int
    violation: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether every point is within the bound; NaN is not."""
        return self.violation <= self.bound


@dataclass(frozen=True)
class Measured:
    """What was found on a model.

    Attributes:
        checks: One for each constrained weight (for each part of a product), in the model's order.
        skipped: Weights that a manifold selects and cannot hold, with the reason.
        slack: What steps without a correction allowed, for weights where it counted.
    """

    checks: tuple[ConstraintCheck, ...]
    skipped: tuple[tuple[str, str], ...]
    slack: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def broken(self) -> tuple[ConstraintCheck, ...]:
        """Those that do not hold."""
        return tuple(check for check in self.checks if not check.holds)

    def to_json(self) -> JsonObject | None:
        """`{"number", "largest_violation", "bound", "verdict"}`, of the worst; None where nothing is constrained."""
        if not self.checks:
            return None
        worst = max(self.checks, key=_excess)
        found: JsonObject = {
            "number": len(self.checks),
            "largest_violation": worst.violation if math.isfinite(worst.violation) else None,
            "bound": worst.bound,
            "verdict": "hold" if not self.broken else f"{len(self.broken)} broken",
        }
        return {**found, "slack": dict(self.slack)} if self.slack else found


@torch.no_grad()
def measure_constraints(
    model: nn.Module, rules: Iterable[Rule], *, steps: int | None, slack: Mapping[str, float] | None = None
) -> Measured:
    """Measures how far every constrained weight is from its manifold.

    Args:
        model: The model.
        rules: Manifolds with their `on`; other rules among them are passed over.
        steps: Optimizer steps that were taken: products that are drawn anew while training depend on it.
        slack: For weights of manifolds that are corrected now and then only (`Stiefel(every=...)`): the bound on the
            violation that the optimizer carried along (`slack_in`). Allowed as well.

    Raises:
        RunError: A product depends on the steps, and they are not known.

    Cost: a singular value decomposition of every matrix on a Stiefel manifold, in float64; one pass for the others.
    """
    manifolds = constraints_of(rules)
    infos = describe(model)
    routes = route(manifolds, infos, [info.parameter for info in infos], strict=False)
    allowed = slack or {}
    checks: list[ConstraintCheck] = []
    skipped: list[tuple[str, str]] = []
    for entry in routes:
        for index, rule in enumerate(manifolds):
            if index in entry.rules:
                checks += _measure(entry.info, rule, steps, allowed.get(entry.info.name, 0.0))
            elif rule.selection(entry.info):
                skipped.append((entry.info.name, entry.reasons[index]))
    names = {check.parameter for check in checks}
    return Measured(tuple(checks), tuple(skipped), {k: v for k, v in allowed.items() if k in names})


def slack_in(optimizer: Mapping[str, Any]) -> dict[str, float]:
    """The violations that an optimizer on manifolds allows between two corrections, from its `state_dict`.

    Returns:
        Bound by the weight's name, rounding included; weights that are corrected at every step are not in it.
    """
    found: dict[str, float] = {}
    for group in optimizer["param_groups"]:
        for name, number in zip(group.get("param_names", ()), group["params"], strict=False):
            carried = optimizer["state"].get(number, {}).get("slack")
            if carried is not None and math.isfinite(float(carried[0])):
                found[name] = float(carried[0]) + _ROUNDING
    return found


def _measure(
    info: ParameterInfo, rule: weightspace.manifolds.Manifold, steps: int | None, slack: float
) -> Sequence[ConstraintCheck]:
    drawn_anew = rule.every if isinstance(rule, weightspace.manifolds.Product) else None
    if drawn_anew is not None and steps is None:
        raise RunError(
            f"{info.name}: {rule.text()} is drawn anew every {drawn_anew} steps, and how many were taken is not known "
            "here; give it with --steps"
        )
    weight = info.parameter.detach()
    constraint = weightspace.manifolds.Constraint(rule, weight, Channels(info.out_axis, info.groups), info.name)
    found: list[ConstraintCheck] = []
    for piece in constraint.pieces(steps or 0):  # weights are moved at the end of the step before a new draw
        violations = piece.manifold.shadow_violation(piece.read(weight)).flatten()
        bound = max(slack, piece.manifold.bound(weight.dtype, *piece.view.shape[-2:]))
        found.append(
            ConstraintCheck(
                info.name,
                piece.manifold.text(),
                violations.numel(),
                violations.numel() - int((violations <= bound).sum()),
                float(violations.max()) if violations.numel() else 0.0,
                bound,
            )
        )
    return found


def _excess(check: ConstraintCheck) -> float:
    return math.inf if math.isnan(check.violation) else check.violation / check.bound
