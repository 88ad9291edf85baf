"""Langevin steps on circles (theta, xi), in place: rotations without a sine, in blocks that stay in cache.

A rotation by an angle 2a is three shears, exactly, whatever t is:

    x <- x - t y,   y <- y + 2t / (1 + t^2) x,   x <- x - t y,      t = tan a.

A step turns by little, so both factors are cubic polynomials to rounding of float32; larger turns take the tangent, or
sine and cosine. Rounding changes the radius by parts in 10^7 a step: every `RENEW_EVERY` steps it is set anew, at steps
of a fixed number, so that a resumed run does as an uninterrupted one. `angle_step` is the reference, in angles.

Cost: on a CPU some 10 passes over blocks in cache, memory traffic of SGD with one more number a weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from weightspace.kernels.stacking import Workspace
from weightspace.optim._langevin_pace import Pace
from weightspace.optim._langevin_steps import kicks

BLOCK = 1 << 17  # numbers: eight blocks are in use at a time
RENEW_EVERY = 8
# Half angles up to which a + a^3/3 is the tangent, and a - 2a^3/3 half the sine of 2a: their next terms, 2a^5/15, are
# below rounding of 1 in float32.
_CUBIC = 0.045
_SHEARS = 0.75  # half angles up to which shears do not lengthen what they turn much


def circle_step(  # noqa: PLR0917  # state, force, noise, numbers
    x: torch.Tensor,
    y: torch.Tensor,
    u: torch.Tensor,
    g: torch.Tensor,
    noise: Sequence[torch.Tensor],
    pace: Pace,
    radius: float,
    work: Workspace,
    *,
    renew: bool,
) -> None:
    """One step of weights x and slack variables y on circles.

    Args:
        x: theta.
        y: xi, of the same layout, dtype and device as all that follow.
        u: Speed along the circle, counterclockwise.
        g: Derivative of the loss by theta.
        noise: Of each number; two of them in the overdamped scheme; none at temperature 0.
        pace: The numbers of the step.
        radius: r.
        work: Lends temporary blocks.
        renew: Set the radius anew.
    """
    for x_, y_, u_, g_, *noise_ in _blocks([x, y, u, g, *noise]):
        if pace.is_overdamped:
            x_.sub_(g_, alpha=pace.h)
            for part, own in zip((x_, y_), noise_, strict=False):
                part.add_(own, alpha=pace.noise)
        else:
            half = work.lend("half angle", tuple(x_.shape), x_)
            _push(y_, u_, g_, noise_, pace, radius, half)
            _turn(x_, y_, half, work)
        if renew or pace.is_overdamped:
            _renew(x_, y_, radius, work)


def _push(  # noqa: PLR0917
    y: torch.Tensor,
    u: torch.Tensor,
    g: torch.Tensor,
    noise: Sequence[torch.Tensor],
    pace: Pace,
    radius: float,
    half: torch.Tensor,
) -> None:
    """The new speed, and half the angle to turn by."""
    h, c, d = pace.h, pace.decay, pace.noise
    if pace.scheme != "BAOA":
        u.mul_(c).addcmul_(g, y, value=h * kicks(pace) / radius)
        for own in noise:
            u.add_(own, alpha=d)
        torch.mul(u, h / (2 * radius), out=half)
        return
    u.addcmul_(g, y, value=h / radius)
    torch.mul(u, h * (1 + c) / (4 * radius), out=half)
    u.mul_(c)
    for own in noise:
        half.add_(own, alpha=h * d / (4 * radius))
        u.add_(own, alpha=d)


def _turn(x: torch.Tensor, y: torch.Tensor, half: torch.Tensor, work: Workspace) -> None:
    """Turns by twice the half angles, which are overwritten."""
    tangent, other = work.lend("circles", (2, *x.shape), x).unbind(0)
    largest = _largest(half)
    if not largest <= _SHEARS:  # also on accelerators, where nobody looked
        half.mul_(2)
        torch.cos(half, out=other)
        torch.sin(half, out=tangent)
        torch.mul(x, tangent, out=half)
        x.mul_(other).addcmul_(y, tangent, value=-1)
        y.mul_(other).add_(half)
        return
    torch.mul(half, half, out=other)
    if largest <= _CUBIC and x.dtype == torch.float32:
        torch.addcmul(half, half, other, value=1 / 3, out=tangent)
        half.addcmul_(half, other, value=-2 / 3)
    else:
        torch.tan(half, out=tangent)
        torch.mul(tangent, tangent, out=other).add_(1)
        torch.div(tangent, other, out=half)
    x.addcmul_(tangent, y, value=-1)
    y.addcmul_(half, x, value=2)
    x.addcmul_(tangent, y, value=-1)


def _largest(half: torch.Tensor) -> float:
    """The largest half angle; NaN where looking would wait for the device."""
    if half.device.type != "cpu" or not half.numel():
        return float("nan")
    low, high = torch.aminmax(half)
    return max(-float(low), float(high))


def _renew(x: torch.Tensor, y: torch.Tensor, radius: float, work: Workspace) -> None:
    scale = work.lend("half angle", tuple(x.shape), x)
    torch.mul(x, x, out=scale).addcmul_(y, y)
    scale.clamp_(min=torch.finfo(x.dtype).tiny).rsqrt_().mul_(radius)
    x.mul_(scale).clamp_(-radius, radius)
    y.mul_(scale)


def _blocks(tensors: list[torch.Tensor]) -> Iterator[Sequence[torch.Tensor]]:
    """Parts of tensors of one layout: all of them where memory has gaps, or where a launch costs more than memory."""
    first = tensors[0]
    if first.device.type != "cpu" or first.numel() <= BLOCK:
        return iter([tensors])
    if all(t.is_contiguous() for t in tensors):
        flat = [t.view(-1) for t in tensors]
    elif all(t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last) for t in tensors):
        flat = [t.permute(0, 2, 3, 1).view(-1) for t in tensors]
    else:
        return iter([tensors])
    return zip(*(t.split(BLOCK) for t in flat), strict=True)
