"""Sphere: points of one norm.

    M = {x : |x| = r},   T_x M = {v : <x, v> = 0},   dim = np - 1,   curvature 1/r^2

| operation | formula |
|---|---|
| project | r x / abs(x) |
| project_tangent | u - <x, u> x / r^2 |
| retract | r (x + v) / abs(x + v); the nearest point; of second order |
| geodesic | x cos(a t) + (v/a) sin(a t), a = abs(v)/r |
| distance | r times the angle |

Source: textbook (Absil, Mahony, Sepulchre, Optimization Algorithms on Matrix Manifolds, 2008, section 3.6).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from weightspace.kernels.options import positive_number
from weightspace.kernels.points import Grouping
from weightspace.manifolds._flows import SOLVER, Flow, FlowMethod, Solver, great_circle_flow
from weightspace.manifolds._moves import Motion, Moved
from weightspace.manifolds._row_blocks import Sizes
from weightspace.manifolds._rows import step_vectors
from weightspace.manifolds._unit import gaussian, great_circle, norm_of, unit
from weightspace.manifolds.base import Manifold


@dataclass(frozen=True)
class Sphere(Manifold):
    """Every point has Frobenius norm `radius`.

    `Sphere()` normalizes filters, `Sphere("slice")` spatial slices, `Sphere("kernel")` whole kernels.

    Args:
        grouping: Which numbers form one point, flattened: each output filter by default.
        radius: The norm.
        on: Which parameters; convolutions without the head by default.

    Cost: a step reads and writes what SGD with momentum does. Temporary memory: some blocks.

    Example:
        >>> Sphere(radius=2.0).project(torch.tensor([[3.0, 4.0]]))
        tensor([[1.2000, 1.6000]])
    """

    grouping: Grouping = "filter"
    radius: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._settle(radius=positive_number(type(self).__name__, "radius", self.radius))

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """The point in the same direction; zero goes to a fixed point."""
        return unit(x, (-2, -1)) * self.radius

    def project_tangent(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """Removes the radial part."""
        return u - (x * u).sum((-2, -1), keepdim=True) / self.radius**2 * x

    def retract(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Normalizes `x + v`."""
        return self.project(x + v)

    def geodesic(self, x: torch.Tensor, v: torch.Tensor, t: float = 1.0) -> torch.Tensor:
        """The great circle, normalized against rounding."""
        return great_circle(x, v * t, self.radius, (-2, -1))

    def flow(
        self, x: torch.Tensor, v: torch.Tensor, t: float, method: FlowMethod = "auto", solver: Solver = SOLVER
    ) -> Flow:
        """The great circle, whatever the method: it is cheaper than any solver."""
        return great_circle_flow(x, v, t, self.radius, (-2, -1))

    def stein_field(self, x: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The tangent part of `-a`, of divergence `dim <a, x> / r^2`."""
        dim = self.dim(x.shape[-2], x.shape[-1])
        return -self.project_tangent(x, a), (a * x).sum((-2, -1)) * (dim / self.radius**2)

    def distance(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Radius times the angle; by the half chord, which is exact for small angles too."""
        chord, sum_ = norm_of(x - y, (-2, -1)), norm_of(x + y, (-2, -1))
        return 2 * self.radius * torch.atan2(chord, sum_)[..., 0, 0]

    def random_uniform(
        self, shape: tuple[int, ...], *, generator: torch.Generator | None = None, like: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Normalized Gaussian vectors."""
        return self.project(gaussian(shape, generator)).to(like if like is not None else torch.empty(0))

    def dim(self, n: int, p: int) -> int:
        """One less than the numbers of a point."""
        return n * p - 1

    def violation(self, x: torch.Tensor) -> torch.Tensor:
        """Relative error of the norm."""
        return (norm_of(x.double(), (-2, -1))[..., 0, 0] / self.radius - 1).abs()

    def degenerate(self, n: int, p: int) -> str | None:
        """A single number has no direction."""
        return "a single number on a sphere is +r or -r" if n * p < 2 else None

    def vectors(self, n: int, p: int) -> Sizes | None:
        """Whole points."""
        return Sizes(self.radius)

    def move(self, x: torch.Tensor, d: torch.Tensor, motion: Motion) -> Moved:
        """The reference's step in fewer passes over the memory; see `step_vectors`."""
        return step_vectors(self, Sizes(self.radius), x, d, motion)
