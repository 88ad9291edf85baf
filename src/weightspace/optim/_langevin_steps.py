"""The parts of a Langevin step: on flat groups, on points of a manifold, on angles.

    B: v <- P(v - h g)      O: v <- P(c v + d R), R standard normal      A: free motion for a time (`Manifold.flow`)

| scheme | order | gradients a step |
|---|---|---|
| BAOA | B(h) A(h/2) O(h) A(h/2) | one |
| OBA | O(h) B(h) A(h) | one |
| OBABO | O(h/2) B(h/2) A(h) B(h/2) O(h/2), kept as B(h/2) O(h) B(h/2) A(h): the same positions | one |
| overdamped | x <- nearest point (of its component) to x - h g + sqrt(2 tau h) R | one |

Where two parts follow each other at one point they are one projection here, for P is linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from weightspace.manifolds import Manifold, Orthogonal, Stiefel
from weightspace.manifolds._flows import Flow
from weightspace.optim._langevin_pace import Pace

Tensors = list[torch.Tensor]

_torch: Any = torch  # foreach has no public name; torch's own optimizers use it


def flat_step(x: Tensors, v: Tensors, g: Sequence[torch.Tensor], noise: Tensors | None, pace: Pace) -> None:
    """One step of free weights, in place, all of a group at once. `noise` (None without temperature) is used up."""
    grads = list(g)
    if pace.is_overdamped:
        _torch._foreach_add_(x, grads, alpha=-pace.h)
        if noise is not None:
            _torch._foreach_add_(x, noise, alpha=pace.noise)
        return
    if pace.scheme == "BAOA":
        _torch._foreach_add_(v, grads, alpha=-pace.h)
        _torch._foreach_add_(x, v, alpha=pace.h * (1 + pace.decay) / 2)
        _torch._foreach_mul_(v, pace.decay)
        if noise is not None:
            _torch._foreach_mul_(noise, pace.noise)
            _torch._foreach_add_(v, noise)
            _torch._foreach_add_(x, noise, alpha=pace.h / 2)
        return
    _torch._foreach_mul_(v, pace.decay)
    _torch._foreach_add_(v, grads, alpha=-pace.h * kicks(pace))
    if noise is not None:
        _torch._foreach_add_(v, noise, alpha=pace.noise)
    _torch._foreach_add_(x, v, alpha=pace.h)


def point_step(  # noqa: PLR0917  # state, force, noise, numbers
    m: Manifold, x: torch.Tensor, v: torch.Tensor, g: torch.Tensor, noise: torch.Tensor | None, pace: Pace
) -> Flow:
    """One step of points `(..., n, p)` and their tangent velocities; the reference of every faster one."""
    h, c, d = pace.h, pace.decay, pace.noise
    if pace.is_overdamped:
        y = x - h * g if noise is None else x - h * g + d * noise
        return Flow(_nearest(m, x, y), v)
    if pace.scheme != "BAOA":
        kicked = c * v - (h * kicks(pace)) * g
        v = m.project_tangent(x, kicked if noise is None else kicked + d * noise)
        return m.flow(x, v, h, pace.flow, pace.solver)
    v = m.project_tangent(x, v - h * g)
    if noise is None:  # one geodesic: O only slows it down
        flow = m.flow(x, v, h * (1 + c) / 2, pace.flow, pace.solver)
        return Flow(flow.point, c * flow.velocity, flow.fallbacks)
    first = m.flow(x, v, h / 2, pace.flow, pace.solver)
    v = m.project_tangent(first.point, c * first.velocity + d * noise)
    second = m.flow(first.point, v, h / 2, pace.flow, pace.solver)
    return Flow(second.point, second.velocity, first.fallbacks + second.fallbacks)


def _nearest(m: Manifold, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The point nearest to `y`; of square orthogonal matrices the nearest with the determinant of `x`.

    They have two components, rotations and reflections. A long noise would carry a point across, where free motion
    never goes: the law would be another one [derived].
    """
    z = m.project(y)
    if isinstance(m, Stiefel | Orthogonal) and x.shape[-2] == x.shape[-1]:
        crossed = torch.linalg.det(z) * torch.linalg.det(x) < 0
        if bool(crossed.any()):
            u, _, vh = torch.linalg.svd(y[crossed])
            u[..., -1] *= -1  # the direction of the smallest singular value
            z[crossed] = u @ vh
    return z


def angle_step(  # noqa: PLR0917  # state, force, noise, numbers
    angle: torch.Tensor, u: torch.Tensor, g: torch.Tensor, noise: torch.Tensor | None, pace: Pace, radius: float
) -> None:
    """One step on circles, in place: theta = r cos(angle), `u` the speed along the circle, `g` the derivative by theta.

    The force along the circle is `g sin(angle)`. The overdamped scheme needs noise in both coordinates: `(2, ...)`.
    """
    sine = angle.sin()
    if pace.is_overdamped:
        theta = torch.cos(angle).mul_(radius).sub_(g, alpha=pace.h)
        xi = sine.mul_(radius)
        if noise is not None:
            theta.add_(noise[0], alpha=pace.noise)
            xi.add_(noise[1], alpha=pace.noise)
        torch.atan2(xi, theta, out=angle)
        return
    h, c = pace.h, pace.decay
    if pace.scheme != "BAOA":
        u.mul_(c).addcmul_(g, sine, value=h * kicks(pace))
        if noise is not None:
            u.add_(noise, alpha=pace.noise)
        angle.add_(u, alpha=h / radius)
        return
    u.addcmul_(g, sine, value=h)
    angle.add_(u, alpha=h * (1 + c) / (2 * radius))
    u.mul_(c)
    if noise is not None:
        u.add_(noise, alpha=pace.noise)
        angle.add_(noise, alpha=pace.noise * h / (2 * radius))


def kicks(pace: Pace) -> float:
    """How much of a gradient the B parts before A add up to: those of OBABO have O between them."""
    return (1 + pace.decay) / 2 if pace.scheme == "OBABO" else 1.0
