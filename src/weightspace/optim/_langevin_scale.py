"""Preconditioned Langevin steps of free weights: larger steps where gradients are small.

With s = (root mean square of the gradient + epsilon)^(-1/2) the step is taken in coordinates y = q / s, in which masses
are one:   g_y = s g,   q <- q + s (step of y).   While s adapts the law is biased; once it is frozen the law is exact
again, whatever s is. Source: the running mean of Li et al., Preconditioned SGLD, arXiv 1512.07666; freezing is derived.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from weightspace.optim._langevin_pace import Pace
from weightspace.optim._langevin_steps import flat_step

_torch: Any = torch  # foreach has no public name; torch's own optimizers use it


def new_scale(velocity: torch.Tensor) -> dict[str, torch.Tensor]:
    """State of one weight, in the dtype and layout of its velocity."""
    return {"square_avg": torch.zeros_like(velocity, memory_format=torch.preserve_format)}


def adapt(  # noqa: PLR0917  # of one step, as in `flat_step`
    x: list[torch.Tensor],
    states: Sequence[Mapping[str, torch.Tensor]],
    g: Sequence[torch.Tensor],
    noise: list[torch.Tensor] | None,
    pace: Pace,
    group: Mapping[str, Any],
) -> None:
    """One preconditioned step in place; the scale adapts during the first `adapt_steps` steps."""
    beta, epsilon = group["preconditioner_decay"], group["preconditioner_epsilon"]
    scales: list[torch.Tensor] = []
    for state, grad in zip(states, g, strict=True):
        step, squares = int(state["step"]), state["square_avg"]
        if step < group["adapt_steps"]:
            squares.mul_(beta).addcmul_(grad, grad, value=1 - beta)
        seen = 1 - beta ** min(step + 1, max(1, group["adapt_steps"]))
        scales.append((squares / seen).sqrt_().add_(epsilon).rsqrt_())
    moves = [torch.zeros_like(p) for p in x]
    flat_step(moves, [s["velocity"] for s in states], _torch._foreach_mul(list(g), scales), noise, pace)  # noqa: SLF001
    _torch._foreach_addcmul_(x, moves, scales)
