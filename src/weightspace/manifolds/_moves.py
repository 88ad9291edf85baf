"""One step on a manifold, written with its geometry alone: the reference of every faster step.

    d <- decay d + gain g                              momentum, ambient
    v = gradient(x, d);   R^2 = sum over a product of inner(x, v, v)
    x <- retract or geodesic (x, -(rate / r) v),        r = 1, or r(R)

r is the factor of the curvature step size [derived after Bonnabel 2013, theorem 2]:

    r = sqrt(max{1, R^2 max{(2 rho + R)^2, 1 + c (rho + R)}}),      c = sqrt(-lower bound of the curvature)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from weightspace.kernels.stacking import Workspace

if TYPE_CHECKING:
    from weightspace.manifolds.base import Manifold

StepSize = Literal["plain", "curvature"]


@dataclass
class Motion:
    """What a step needs besides point and direction.

    Attributes:
        rate: Learning rate.
        step_size: `"plain"` or `"curvature"`.
        distance_bound: rho: a bound on the distance to the minimum.
        geodesic: Follow the geodesic instead of the retraction.
        product: Leading dimensions that share one step size; empty: every point has its own.
        grad: If given, `d <- decay * d + gain * grad` first.
        decay: Momentum.
        gain: One minus dampening.
        factor: If given, `r` itself: it was found elsewhere (products of several manifolds share one).
        work: Lends temporary buffers.
        keeps_tangent: Leave in `d` its tangent part at the point before the step: momentum that forgets the rest.
        slack: `Moved.slack` of this weight's last step, None before the first: see `_stiefel_step`.
    """

    rate: float
    step_size: StepSize = "plain"
    distance_bound: float = 1.0
    geodesic: bool = False
    product: tuple[int, ...] = ()
    grad: torch.Tensor | None = None
    decay: float = 0.0
    gain: float = 1.0
    factor: torch.Tensor | None = None
    work: Workspace = field(default_factory=Workspace)
    slack: torch.Tensor | None = None
    keeps_tangent: bool = False

    def accumulate(self, d: torch.Tensor) -> torch.Tensor:
        """Momentum, in place: what to descend against."""
        return d if self.grad is None else self.add(d, self.grad)

    def add(self, d: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        """`decay * d + gain * grad` in `d`, in one pass over the memory where that is possible."""
        if self.gain == 1:
            return torch.add(grad, d, alpha=self.decay, out=d)
        return d.mul_(self.decay).add_(grad, alpha=self.gain)

    def factors(self, squared: torch.Tensor, lower_curvature: float) -> torch.Tensor | None:
        """r for squared gradient norms `(*lead)`, of a shape that broadcasts to `(*lead)`; None for a plain step."""
        if self.factor is not None or self.step_size == "plain":
            return self.factor
        if self.product:
            squared = squared.sum(self.product, keepdim=True)
        return curvature_factor(squared, self.distance_bound, lower_curvature)


@dataclass
class Moved:
    """What a step found.

    Attributes:
        squared: Squared gradient norm of each point `(*lead)`; None where it was not needed.
        factor: r, of a shape that broadcasts to `(*lead)`; None for a plain step.
        fallbacks: How many points the fast retraction could not handle and an exact one did.
        slack: Float32 `(2,)`, to be handed to the next step; None for manifolds that correct every step. A bound on
            `|X^T X - I|`, and the number of steps since the last correction.
    """

    squared: torch.Tensor | None = None
    factor: torch.Tensor | None = None
    fallbacks: int = 0
    slack: torch.Tensor | None = None


def curvature_factor(squared: torch.Tensor, distance_bound: float, lower_curvature: float) -> torch.Tensor:
    """r(R), at least 1, for squared gradient norms R^2; source: derived after Bonnabel 2013.

    Example:
        >>> curvature_factor(torch.tensor([0.04, 1.0]), 1.0, 0.0)  # damps from R = 0.414 on: here R (2 + R) = 3
        tensor([1., 3.])
    """
    norm = squared.clamp(min=0).sqrt()
    inner = (2 * distance_bound + norm).square()
    if lower_curvature < 0:
        inner = torch.maximum(inner, 1 + (-lower_curvature) ** 0.5 * (distance_bound + norm))
    return (squared.clamp(min=0) * inner).clamp(min=1).sqrt()


def move(manifold: Manifold, x: torch.Tensor, d: torch.Tensor, motion: Motion) -> Moved:
    """The step by the manifold's own geometry, in place; cost: that of its methods, with temporaries."""
    d = motion.accumulate(d)
    v = manifold.gradient(x, d)
    if motion.keeps_tangent:
        d.copy_(v)
    squared = None
    factor = motion.factor
    if motion.step_size == "curvature" and factor is None:
        squared = manifold.inner(x, v, v)
        factor = motion.factors(squared, manifold.lower_curvature(x.shape[-2], x.shape[-1]))
    step = v * (-motion.rate) if factor is None else v * (-motion.rate / factor)[..., None, None]
    end, fallbacks = (manifold.geodesic(x, step), 0) if motion.geodesic else manifold.retract_counted(x, step)
    x.copy_(end)
    return Moved(squared, factor, fallbacks)
