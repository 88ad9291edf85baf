"""Slack variables of weights: made from the weights, and checked against them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from weightspace.manifolds import Circle, Constraint


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
