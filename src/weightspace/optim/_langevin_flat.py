"""Steps of free weights in one pass over the memory, by the kernel of torch's fused SGD.

That kernel does `v <- c v + k g`, `w <- w - a v`. So do OBA and OBABO, with c, k and a of their own, and with noise in
what it takes for the gradient; and so does BAOA, whose half steps are, for v' = c (v - h g) + d R [derived],

    v' = c v - c h (g - d/(c h) R),      w' = w + h (1 + c)/(2 c) v' - h d/(2 c) R.

`flat_step` is the reference, and does what this cannot: other dtypes and devices, weights with gaps, c near 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from weightspace.optim._langevin_pace import Pace
from weightspace.optim._langevin_steps import Tensors, flat_step, kicks

_torch: Any = torch  # fused kernels have no public name; torch's own optimizers use them
_LEAST_DECAY = 0.25  # below it 1 / c makes rounding of BAOA worse than the reference's
_LEAST_STEP = 1e-6  # the kernel is told k as 1 - (1 - k)


def free_step(x: Tensors, v: Tensors, g: Sequence[torch.Tensor], noise: Tensors | None, pace: Pace) -> None:
    """One step of free weights, in place. `noise` (None without temperature) is used up.

    Cost: on a CPU one pass for float32 weights, as `torch.optim.SGD(fused=True)`, and two more with noise.
    """
    if not all(can_fuse(*each) for each in zip(x, v, g, strict=True)) or not _fused(x, v, list(g), noise, pace):
        flat_step(x, v, g, noise, pace)


def can_fuse(x: torch.Tensor, v: torch.Tensor, g: torch.Tensor) -> bool:
    """Whether the kernel, which looks at memory and not at strides, takes these for what they are.

    Velocities leave no gaps, so weights and gradients of their strides do not either.
    """
    return (
        x.dtype == v.dtype == g.dtype == torch.float32
        and x.stride() == v.stride() == g.stride()
        and x.is_cpu
        and g.is_cpu
    )


def _fused(x: Tensors, v: Tensors, g: Tensors, noise: Tensors | None, pace: Pace) -> bool:
    h, c, d = pace.h, pace.decay, pace.noise
    if pace.is_overdamped or h < _LEAST_STEP or c == 0:  # without momentum the kernel takes no velocities
        return False
    kick, travel = h * kicks(pace), h
    if pace.scheme == "BAOA":
        if c < _LEAST_DECAY:
            return False
        kick, travel = c * h, h * (1 + c) / (2 * c)
        if noise is not None:
            _torch._foreach_add_(x, noise, alpha=-h * d / (2 * c))
    if noise is not None:
        _torch._foreach_mul_(noise, -d / kick)
        _torch._foreach_add_(noise, g)
        g = noise
    _torch._fused_sgd_(
        x,
        g,
        v,
        weight_decay=0.0,
        momentum=c,
        lr=-travel,
        dampening=1.0 + kick,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )
    torch.autograd.graph.increment_version(x)  # the kernel does not count as a write
    return True
