"""Slack variables of weights: made from the weights, checked against them, and moved together with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from weightspace.kernels.stacking import Workspace
from weightspace.manifolds import Circle, Constraint
from weightspace.optim._langevin_circle import RENEW_EVERY, circle_step
from weightspace.optim._langevin_noise import NoiseSource
from weightspace.optim._langevin_pace import Pace
from weightspace.optim._langevin_steps import angle_step, point_step

State = dict[str, Any]
# Angles are wrapped now and then: a large float32 angle is a coarse one.
_WRAP_EVERY = 256


def slack_of(parameter: torch.Tensor, constraint: Constraint, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The slack variables over a weight.

    `Circle` with one of them keeps nothing but it, in the layout of the weight; its angle where the weight's 16 bits
    would not hold theta. Others have velocities of their own.
    """
    manifold = constraint.manifold
    if isinstance(manifold, Circle) and manifold.slack == 1:
        theta = parameter.detach().to(dtype)
        first = (manifold.r - theta).clamp_(min=0).mul_(manifold.r + theta).clamp_(min=0).sqrt_()
        return {"slack_variables": first} if parameter.dtype == dtype else {"angle": torch.atan2(first, theta)}
    (piece,) = constraint.pieces(0)
    rows = piece.read(parameter.detach().to(dtype)).flatten(-2).unsqueeze(-2)
    slack = manifold.lift(rows)[..., -manifold.slack_count :].contiguous()
    return {"slack_variables": slack, "slack_velocity": torch.zeros_like(slack)}


def is_shadow(parameter: torch.Tensor, constraint: Constraint, state: Mapping[str, Any]) -> bool:
    """Whether a weight is still what its slack variables say, up to rounding: nobody else wrote to it."""
    manifold = constraint.manifold
    # 16-bit weights round by eps / 2 at most; in wider ones the arithmetic has its share.
    rounding = (16 if parameter.dtype.itemsize >= 4 else 1) * torch.finfo(parameter.dtype).eps
    if "angle" in state:
        shadow = state["angle"].cos().mul_(float(state["radius"]))
        return bool((parameter.detach().to(shadow.dtype) - shadow).abs().max() <= rounding * float(state["radius"]))
    if "slack_velocity" not in state:
        norm = torch.hypot(parameter.detach(), state["slack_variables"])
        return bool((norm / float(state["radius"]) - 1).abs().max() <= 4 * rounding)
    (piece,) = constraint.pieces(0)
    rows = piece.read(parameter.detach()).flatten(-2).unsqueeze(-2)
    whole = torch.cat([rows, state["slack_variables"].to(rows.dtype)], -1)
    return bool(manifold.violation(whole).max() <= rounding + manifold.bound(parameter.dtype, 1, whole.shape[-1]))


def step_on_circle(  # noqa: PLR0917  # weight, state, force, numbers, lenders
    parameter: torch.Tensor, state: State, gradient: torch.Tensor, pace: Pace, source: NoiseSource, work: Workspace
) -> None:
    """One step of a weight on `Circle` with one slack variable, in place."""
    radius, step = float(state["radius"]), int(state["step"])
    draws = 0 if not pace.noise else 2 if pace.is_overdamped else 1
    noise = source.like([state["velocity"]] * draws, [parameter] * draws)
    if "angle" not in state:
        slack, velocity = state["slack_variables"], state["velocity"]
        circle_step(parameter, slack, velocity, gradient, noise, pace, radius, work, renew=step % RENEW_EVERY == 0)
        return
    angle: torch.Tensor = state["angle"]
    drawn = None if not noise else torch.stack(noise) if pace.is_overdamped else noise[0]
    angle_step(angle, state["velocity"], gradient.to(angle.dtype), drawn, pace, radius)
    if step % _WRAP_EVERY == 0:
        angle.remainder_(2 * torch.pi)
    parameter.copy_(angle.cos().mul_(radius))


def step_lifted(  # noqa: PLR0917  # weight, state, force, numbers, lender
    parameter: torch.Tensor,
    state: State,
    constraint: Constraint,
    gradient: torch.Tensor,
    pace: Pace,
    source: NoiseSource,
) -> None:
    """One step of a weight with slack variables that are points of their own, in place."""
    k = constraint.manifold.slack_count
    for piece in constraint.pieces(0):
        rows = piece.view.shape
        theta, v, g = (piece.read(t).flatten(-2).unsqueeze(-2) for t in (parameter, state["velocity"], gradient))
        slack = state["slack_variables"]
        x, v = torch.cat([theta, slack], -1), torch.cat([v, state["slack_velocity"]], -1)
        g = torch.cat([g, torch.zeros_like(slack)], -1)
        noise = source.of_shape(tuple(x.shape), x, parameter) if pace.noise else None
        flow = point_step(constraint.manifold, x, v, g, noise, pace)
        piece.write(parameter, flow.point[..., :-k].reshape(rows))
        piece.write(state["velocity"], flow.velocity[..., :-k].reshape(rows))
        slack.copy_(flow.point[..., -k:])
        state["slack_velocity"].copy_(flow.velocity[..., -k:])
        if flow.fallbacks:
            state["fallbacks"] += flow.fallbacks
