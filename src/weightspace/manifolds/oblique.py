"""Oblique: matrices whose rows (filters) or columns all have norm 1, a product of unit spheres.

    M = {X : |x_i| = 1},   T_X M = {V : <x_i, v_i> = 0},   dim = n(p-1) by filter, p(n-1) by column,
    curvature in [0, 1]

| operation | formula, for each row or column x |
|---|---|
| project | x / abs(x) |
| project_tangent | u - <x, u> x |
| retract | (x + v) / abs(x + v); the nearest point; of second order |
| geodesic | x cos(a t) + (v/a) sin(a t), a = abs(v) |
| distance | root of the sum of squared angles |

Source: textbook (Absil, Mahony, Sepulchre, Optimization Algorithms on Matrix Manifolds, 2008; the oblique manifold of
Absil, Gallivan, 2006). One point is one product: its rows share the step size of `"curvature"`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from weightspace.errors import RuleError
from weightspace.kernels.options import choice
from weightspace.kernels.points import SLICES, Channels, Grouping
from weightspace.manifolds._flows import SOLVER, Flow, FlowMethod, Solver, great_circle_flow
from weightspace.manifolds._moves import Motion, Moved
from weightspace.manifolds._row_blocks import Sizes
from weightspace.manifolds._rows import step_vectors
from weightspace.manifolds._unit import gaussian, great_circle, norm_of, unit
from weightspace.manifolds.base import MATRICES, Manifold

_BY = ("filter", "column")


@dataclass(frozen=True)
class Oblique(Manifold):
    """Every row or every column of a point has norm 1.

    `Oblique()` normalizes the filters of a kernel, which then share one step size; with `Sphere("filter")` each has its
    own. `Oblique("slice")` normalizes the columns of each spatial slice.

    Args:
        grouping: Which numbers form one point: `"matrix"`, or slices.
        by: `"filter"`: rows have norm 1, the default of `"matrix"`. `"column"`: columns have, the default of slices,
            whose rows are no filters.
        on: Which parameters; convolutions without the head by default.

    Raises:
        RuleError: An option is out of its range, or slices are asked for by filter.

    Cost: a step by filter reads and writes what SGD with momentum does, and reads once more for `"curvature"`; large
    points by column take some passes over the memory and `3 np` temporary numbers.

    Example:
        >>> Oblique().project(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 1.0000]])
        >>> Oblique(by="column").project(torch.tensor([[3.0, 4.0], [0.0, 3.0]]))
        tensor([[1.0000, 0.8000],
                [0.0000, 0.6000]])
    """

    groupings: ClassVar[tuple[Grouping, ...]] = MATRICES

    grouping: Grouping = "matrix"
    by: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        by = choice("Oblique", "by", self.by, _BY) if self.by is not None else None
        if by == "filter" and self.grouping in SLICES:
            raise RuleError(
                f"Oblique got by='filter' for grouping={self.grouping!r}, whose rows are rows of pixels; "
                "use by='column', or grouping='matrix' for filters."
            )
        self._settle(by=by or ("column" if self.grouping in SLICES else "filter"))

    @property
    def _along(self) -> tuple[int, ...]:
        """The dimension of one unit vector."""
        return (-1,) if self.by == "filter" else (-2,)

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """Each vector in the same direction; a zero one becomes the constant one."""
        return unit(x, self._along)

    def project_tangent(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """Removes the radial part of each vector."""
        return u - (x * u).sum(self._along, keepdim=True) * x

    def retract(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Normalizes `x + v`."""
        return self.project(x + v)

    def geodesic(self, x: torch.Tensor, v: torch.Tensor, t: float = 1.0) -> torch.Tensor:
        """A great circle for each vector, normalized against rounding."""
        return great_circle(x, v * t, 1.0, self._along)

    def flow(
        self, x: torch.Tensor, v: torch.Tensor, t: float, method: FlowMethod = "auto", solver: Solver = SOLVER
    ) -> Flow:
        """A great circle for each vector, whatever the method: it is cheaper than any solver."""
        return great_circle_flow(x, v, t, 1.0, self._along)

    def stein_field(self, x: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The tangent part of `-a`; its divergence is `<a, x>` times the dimension of one vector's sphere."""
        length = x.shape[self._along[0]]
        return -self.project_tangent(x, a), (a * x).sum((-2, -1)) * (length - 1)

    def distance(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The root of the sum of squared angles, each by its half chord."""
        angles = 2 * torch.atan2(norm_of(x - y, self._along), norm_of(x + y, self._along))
        return torch.linalg.vector_norm(angles, dim=(-2, -1))

    def random_uniform(
        self, shape: tuple[int, ...], *, generator: torch.Generator | None = None, like: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Normalized Gaussian vectors."""
        return self.project(gaussian(shape, generator)).to(like if like is not None else torch.empty(0))

    def dim(self, n: int, p: int) -> int:
        """One less than its length for each vector."""
        return n * (p - 1) if self.by == "filter" else p * (n - 1)

    def violation(self, x: torch.Tensor) -> torch.Tensor:
        """The largest error of a norm."""
        return (norm_of(x.double(), self._along) - 1).abs().amax((-2, -1))

    def vectors(self, n: int, p: int) -> Sizes | None:
        """Rows, or columns."""
        return Sizes(1.0, self._along)

    def move(self, x: torch.Tensor, d: torch.Tensor, motion: Motion) -> Moved:
        """The reference's step in fewer passes over the memory; see `step_vectors`."""
        return step_vectors(self, Sizes(1.0, self._along), x, d, motion)

    def acts_on_rows(self, channels: Channels) -> bool:
        """Also filters of a matrix, each of which is a sphere: only a step size connects them."""
        is_filters = self.by == "filter" and channels.groups == 1 and channels.out_axis == 0
        return is_filters or super().acts_on_rows(channels)

    def degenerate(self, n: int, p: int) -> str | None:
        """A single number has no direction."""
        length, kind = (p, "row") if self.by == "filter" else (n, "column")
        return f"each {kind} is a single number, +1 or -1" if length < 2 else None
