"""The fastest known Langevin step of points of a manifold, in place; `point_step` is the reference of all of them."""

from __future__ import annotations

import torch

from weightspace.manifolds import Manifold
from weightspace.optim import _langevin_stiefel
from weightspace.optim._langevin_pace import Pace
from weightspace.optim._langevin_steps import point_step


def step_points(  # noqa: PLR0917  # state, force, noise, numbers
    m: Manifold, x: torch.Tensor, v: torch.Tensor, g: torch.Tensor, noise: torch.Tensor | None, pace: Pace
) -> int:
    """One step of points `(*lead, n, p)` and their velocities, in place; returns the solver's failures."""
    if _langevin_stiefel.is_covered(m, x, pace):
        return _langevin_stiefel.stiefel_step(m, x, v, g, noise, pace)
    flow = point_step(m, x, v, g, noise, pace)
    x.copy_(flow.point)
    v.copy_(flow.velocity)
    return flow.fallbacks
