"""ZeroMeanSphere: points whose entries sum to zero and whose norm is r. A filter that answers nothing to a constant.

    M = {x : |x| = r, <x, 1> = 0},   T_x M = {v : <x, v> = 0, <v, 1> = 0},   dim = np - 2,   curvature 1/r^2

It is a sphere in the hyperplane of zero mean, so that its geodesics and distances are a sphere's; projections center
first. Source: derived; the centered, normalized weights themselves are textbook (weight standardization).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from weightspace.manifolds._flows import SOLVER, Flow, FlowMethod, Solver
from weightspace.manifolds._moves import Motion, Moved
from weightspace.manifolds._row_blocks import Sizes
from weightspace.manifolds._rows import step_vectors
from weightspace.manifolds._unit import norm_of, unit
from weightspace.manifolds.sphere import Sphere

_NOISE = 8  # units of rounding, relative to the largest entry, below which what centering leaves has no direction


@dataclass(frozen=True)
class ZeroMeanSphere(Sphere):
    """Every point has entries that sum to zero, and Frobenius norm `radius`.

    Args:
        grouping: Which numbers form one point, flattened: each output filter by default.
        radius: The norm.
        on: Which parameters; convolutions without the head by default.

    Cost: a step reads and writes what SGD with momentum does, and centers twice. Temporary memory: some blocks.

    Example:
        >>> filters = torch.tensor([[[4.0, 2.0, 0.0]], [[7.0, 7.0, 7.0]]])  # two points; the second has no direction
        >>> ZeroMeanSphere(radius=2**0.5).project(filters)[:, 0]
        tensor([[ 1.0000,  0.0000, -1.0000],
                [-1.0000,  0.0000,  1.0000]])
    """

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """Centers and normalizes; a constant point goes to a fixed one, an ascending ramp."""
        largest = x.abs().amax((-2, -1), keepdim=True)
        scaled = x / largest.masked_fill(largest == 0, 1.0)
        centered = _centered(scaled)
        is_constant = centered.abs().amax((-2, -1), keepdim=True) <= _NOISE * torch.finfo(x.dtype).eps
        count = x.shape[-2] * x.shape[-1]
        ramp = torch.linspace(-1, 1, count, dtype=x.dtype, device=x.device).view(x.shape[-2:])
        # Centered again once it has its final size: the mean of what normalizing rounds is of that size.
        return _centered(unit(torch.where(is_constant, ramp, centered), (-2, -1))) * self.radius

    def project_tangent(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """Removes the mean and the radial part."""
        return super().project_tangent(x, _centered(u))

    def flow(
        self, x: torch.Tensor, v: torch.Tensor, t: float, method: FlowMethod = "auto", solver: Solver = SOLVER
    ) -> Flow:
        """The great circle; centered at its end, for without that rounding of the mean grows from step to step."""
        flow = super().flow(x, v, t, method, solver)
        return Flow(_centered(flow.point), _centered(flow.velocity), flow.fallbacks)

    def dim(self, n: int, p: int) -> int:
        """Two less than the numbers of a point."""
        return n * p - 2

    def violation(self, x: torch.Tensor) -> torch.Tensor:
        """The larger of the relative errors: of the norm, and the part along the constant vector."""
        wide = x.double()
        along = wide.sum((-2, -1)).abs() / ((x.shape[-2] * x.shape[-1]) ** 0.5 * self.radius)
        return torch.maximum((norm_of(wide, (-2, -1))[..., 0, 0] / self.radius - 1).abs(), along)

    def degenerate(self, n: int, p: int) -> str | None:
        """Two numbers that sum to zero are known up to a sign."""
        return "fewer than three numbers that sum to zero leave nothing to move" if n * p < 3 else None

    def vectors(self, n: int, p: int) -> Sizes | None:
        """Whole points."""
        return Sizes(self.radius, is_centered=True)

    def move(self, x: torch.Tensor, d: torch.Tensor, motion: Motion) -> Moved:
        """The reference's step in fewer passes over the memory; see `step_vectors`."""
        return step_vectors(self, Sizes(self.radius, is_centered=True), x, d, motion)


def _centered(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean((-2, -1), keepdim=True)
