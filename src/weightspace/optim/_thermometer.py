"""Two thermometers for weights: what temperature do their velocities, and their positions, really have?

    kinetic:          E |v|^2 = tau dim M
    configurational:  E <grad V, field> = tau E div field,   for a vector field tangent to M (`Manifold.stein_field`)

The first tells whether noise and friction balance, the second whether the *positions* follow the law that was asked
for: too long a time step, noise of minibatches and burn-in show there. Source: textbook (Rugh 1997 for configurational
temperatures); the fields on manifolds are derived.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from weightspace.manifolds import Constraint

State = dict[str, Any]
# Sums over a window of measurements: their count, |v|^2, |v|^4, <g, field>, divergence. Two windows: the measurements
# since the last power of two, and those since the one before. Fields are built on where the weights were at the
# beginning, so what was measured before they forgot it must not count for ever.
_SIZE = 5


@dataclass(frozen=True)
class Temperature:
    """Temperatures of a parameter or group, in the units of `temperature` (of tau where there is no `num_data`).

    Attributes:
        name: Of the parameter, or the manifold of the group.
        target: What was asked for.
        kinetic: Of the velocities, averaged over the measurements; NaN for the overdamped scheme.
        kinetic_error: Standard error of `kinetic`, as if the measurements were independent.
        configurational: Of the positions: a ratio of sums over the measurements; NaN where no field is known.
        dimension: Degrees of freedom.
        measurements: How many these are: the latest half of all at least.
    """

    name: str
    target: float
    kinetic: float
    kinetic_error: float
    configurational: float
    dimension: int
    measurements: int

    def is_off(self, tolerance: float = 0.2) -> bool:
        """Whether the kinetic temperature is off its target by more than the tolerance and four standard errors."""
        gap = abs(self.kinetic - self.target)
        return self.measurements > 1 and gap > tolerance * self.target + 4 * self.kinetic_error


def new_thermometer(parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """State of one weight before its first measurement: two windows and the count of all, and where the weight is."""
    return {
        "thermometer": torch.zeros(2 * _SIZE + 1, dtype=torch.float64),
        "reference": parameter.detach().clone(memory_format=torch.preserve_format),
    }


def measured(state: State, x: torch.Tensor, constraint: Constraint | None, gradient: torch.Tensor) -> torch.Tensor:
    """A measurement of one weight: `(|v|^2, <g, field>, divergence)`, float64; those of its parts add up.

    Its velocity is that before the kick, its derivative that where it is.
    """
    squared = state["velocity"].double().square().sum()
    if "slack_velocity" in state:
        squared = squared + state["slack_velocity"].double().square().sum()
    if constraint is None:
        work = (gradient * (x - state["reference"])).double().sum()
        divergence = torch.tensor(float(x.numel()), dtype=torch.float64)
    else:
        work, divergence = _of_positions(state, x, constraint, gradient)
    return torch.stack([e.detach().to("cpu", torch.float64) for e in (squared, work, divergence)])


def add(state: State, measurement: torch.Tensor) -> None:
    """Adds a measurement of a whole weight to its state."""
    squared, work, divergence = measurement
    sums: torch.Tensor = state["thermometer"]
    sums[-1] += 1
    seen = int(sums[-1])
    if seen & (seen - 1) == 0:  # a power of two
        sums[_SIZE:-1] = sums[:_SIZE]
        sums[:_SIZE] = 0
    sums[:_SIZE] += torch.stack([torch.ones_like(squared), squared, squared.square(), work, divergence])


def _of_positions(
    state: State, x: torch.Tensor, constraint: Constraint, gradient: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`<g, field>` and the field's divergence, over all points of a weight."""
    work = divergence = torch.zeros((), dtype=torch.float64)
    for piece in constraint.pieces(int(state["step"])):
        at, reference, g = (piece.read(t) for t in (x, state["reference"], gradient))
        k = piece.manifold.slack_count
        if k:  # the field's part along the weight does not depend on the direction of its slack
            at, reference, g = (t.flatten(-2).unsqueeze(-2) for t in (at, reference, g))
            reference = torch.cat([reference, reference.new_zeros((*reference.shape[:-1], k))], -1)
            field, along = piece.manifold.stein_field(piece.manifold.lift(at), reference)
            field = field[..., :-k]
        else:
            field, along = piece.manifold.stein_field(at, reference)
        work = work + (g * field).double().sum().cpu()
        divergence = divergence + along.double().sum().cpu()
    return work, divergence


def dimension_of(parameter: torch.Tensor, constraint: Constraint | None, step: int) -> int:
    """Degrees of freedom of a weight's velocities."""
    if constraint is None:
        return parameter.numel()
    total = 0
    for piece in constraint.pieces(step):
        *lead, n, p = piece.view.shape
        k = piece.manifold.slack_count
        total += math.prod(lead) * (piece.manifold.dim(1, n * p + k) if k else piece.manifold.dim(n, p))
    return total


def read(name: str, states: Iterable[tuple[State, int]], group: Mapping[str, Any]) -> Temperature:
    """The temperatures of some weights together.

    Args:
        name: For the result.
        states: Their states, each with the dimension of its manifold.
        group: Their parameter group.
    """
    target, scale = float(group["temperature"]), float(group["num_data"] or 1.0)
    has_velocity = group["scheme"] != "overdamped"
    total, dimension, variance, count = torch.zeros(_SIZE, dtype=torch.float64), 0, 0.0, 0
    for state, dim in states:
        both: torch.Tensor = state["thermometer"]
        sums = both[:_SIZE] + both[_SIZE:-1]
        here = int(sums[0])
        if not here:  # a weight without a gradient so far
            continue
        total = total + sums / here
        dimension += dim
        count = max(count, here)
        if here > 1:  # weights are independent of each other, so their variances add
            variance += max(0.0, float(sums[2]) / here - (float(sums[1]) / here) ** 2) / (here - 1)
    if not count or not dimension:
        return Temperature(name, target, math.nan, math.nan, math.nan, dimension, count)
    divergence = float(total[4])
    return Temperature(
        name,
        target,
        scale * float(total[1]) / dimension if has_velocity else math.nan,
        scale * math.sqrt(variance) / dimension if has_velocity else math.nan,
        scale * float(total[3]) / divergence if divergence else math.nan,
        dimension,
        count,
    )
