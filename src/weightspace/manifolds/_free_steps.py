"""What surrounds steps that manifolds do not take themselves: of another optimizer, or along Adam's first moment.

Three operations, written with the geometry of a manifold alone: the reference of every faster one.

    gradient into a stand-in    out <- gradient(x, g)
    following a free step       y <- R_x(P_x(y - x));      momenta m <- P_y(P_x(m))
    an adaptive step            m <- beta1 m + (1 - beta1) G,  s <- beta2 s + (1 - beta2) <G, G> / dim,
                                x <- R_x(-rate m / (sqrt(s / correction) + eps)),   m <- P_x(m)

A projection that changes nothing (of a step or a momentum that is tangent already) is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from weightspace.kernels.stacking import Workspace

if TYPE_CHECKING:
    from weightspace.manifolds.base import Manifold


@dataclass
class FreeStep:
    """What is known of a step that an optimizer took without knowing of a manifold.

    Attributes:
        momenta: Sums of past gradients with the points' shape, made tangent at the new points in place.
        is_tangent: The step was tangent at the old points.
        has_tangent_momenta: The momenta are.
        work: Lends temporary buffers.
    """

    momenta: Sequence[torch.Tensor] = ()
    is_tangent: bool = False
    has_tangent_momenta: bool = False
    work: Workspace = field(default_factory=Workspace)


@dataclass
class Adaptive:
    """Adam's numbers at one step, and its second moments.

    Attributes:
        rate: Learning rate over the first moment's bias correction.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        correction: The second moment's bias correction.
        eps: Added to the root of the second moment.
        s: Second moments, one number a point: `(*lead, 1, 1)`, updated in place.
        largest: Their largest so far, if it is used (amsgrad), likewise.
        geodesic: Follow the geodesic instead of the retraction.
        work: Lends temporary buffers.
    """

    rate: float
    beta1: float
    beta2: float
    correction: float
    eps: float
    s: torch.Tensor
    largest: torch.Tensor | None = None
    geodesic: bool = False
    work: Workspace = field(default_factory=Workspace)

    def rates(self, square: torch.Tensor) -> torch.Tensor:
        """Takes in the mean squares of the newest gradients `(*lead)`; returns what multiplies m: `(*lead, 1, 1)`."""
        s = self.s
        s.mul_(self.beta2).add_(square[..., None, None], alpha=1 - self.beta2)
        if self.largest is not None:
            s = torch.maximum(self.largest, s, out=self.largest)
        return -self.rate / (s / self.correction).sqrt_().add_(self.eps)


def follow(manifold: Manifold, x: torch.Tensor, y: torch.Tensor, free: FreeStep) -> int:
    """Moves `y`, where a free step from `x` led, to where its tangent part leads on the manifold, and the momenta.

    Returns:
        How many points needed an exact retraction.
    """
    v = y - x
    if not free.is_tangent:
        v = manifold.project_tangent(x, v)
    end, fallbacks = manifold.retract_counted(x, v)
    y.copy_(end)
    for m in free.momenta:
        carried = m if free.has_tangent_momenta else manifold.project_tangent(x, m)
        m.copy_(manifold.project_tangent(end, carried))
    return fallbacks


def adapt(manifold: Manifold, x: torch.Tensor, m: torch.Tensor, g: torch.Tensor, adaptive: Adaptive) -> int:
    """An adaptive step from `x` with first moments `m` and derivatives `g`; `x` and `m` are updated in place.

    Returns:
        How many points needed an exact retraction.
    """
    gradient = manifold.gradient(x, g)
    m.mul_(adaptive.beta1).add_(gradient, alpha=1 - adaptive.beta1)
    dim = max(1, manifold.dim(*x.shape[-2:]))
    v = m * adaptive.rates(manifold.inner(x, gradient, gradient) / dim)
    end, fallbacks = (manifold.geodesic(x, v), 0) if adaptive.geodesic else manifold.retract_counted(x, v)
    x.copy_(end)
    m.copy_(manifold.project_tangent(end, m))
    return fallbacks
