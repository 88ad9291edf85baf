"""Orthogonal: square matrices with X^T X = I. Rotations stay rotations, reflections stay reflections.

    M = {X : X^T X = I},   T_X M = {X W : W = -W^T},   dim = n(n-1)/2,   curvature in [0, 1/4]

| operation | formula, with W = X^T V antisymmetric |
|---|---|
| project | the polar factor |
| project_tangent | X skew(X^T U) |
| retract | the polar factor of X + V = X (I + W); of second order |
| geodesic | X exp(t W) |
| distance | root of the sum of squared angles of the eigenvalues of X^T Y; infinite between determinants +1 and -1 |

For 2 x 2 and 3 x 3 all of these are rotations by closed forms: exp(t W) turns by `t a`, the polar factor of I + W by
`arctan a` about the same axis, a = abs(W) / sqrt(2) [derived from Rodrigues' formula]; elementwise arithmetic, no call
of LAPACK for each point. Source: textbook (Edelman, Arias, Smith, 1998; Absil, Mahony, Sepulchre, 2008).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from weightspace.errors import RuleError
from weightspace.kernels.points import Grouping
from weightspace.manifolds._flows import SOLVER, Flow, FlowMethod, Solver, stiefel_flow
from weightspace.manifolds._geodesics import deviation, haar, rotation, shortened, skew
from weightspace.manifolds._moves import Motion, Moved, move
from weightspace.manifolds._polar import polar
from weightspace.manifolds._slices import step_small
from weightspace.manifolds._small_rotations import closed_form
from weightspace.manifolds._unit import length_and_direction, norm_of
from weightspace.manifolds.base import MATRICES, Manifold

_CLOSED = (2, 3)


@dataclass(frozen=True)
class Orthogonal(Manifold):
    """Every point is an orthogonal matrix; each keeps the determinant, +1 or -1, that it begins with.

    The same points as `Stiefel` on square matrices. What this adds: closed forms for 2 x 2 and 3 x 3, distances, and a
    determinant that no step, however long, can change.

    Args:
        grouping: Which numbers form one point: slices, or `"matrix"`; points must be square.
        on: Which parameters; convolutions without the head by default.

    Raises:
        RuleError: An option is out of its range, or points are vectors: use `Sphere`.

    Example:
        >>> Orthogonal().project(torch.tensor([[0.0, 2.0], [2.0, 0.0]]))  # a reflection
        tensor([[0., 1.],
                [1., 0.]])
        >>> quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
        >>> Orthogonal().distance(torch.eye(2), quarter) / torch.pi  # sqrt(2) times the angle
        tensor(0.7071)
    """

    groupings: ClassVar[tuple[Grouping, ...]] = MATRICES

    grouping: Grouping = "slice"

    def __post_init__(self) -> None:
        if self.grouping in ("filter", "kernel"):
            raise RuleError(
                f"Orthogonal got grouping={self.grouping!r}, whose points are vectors; use Sphere({self.grouping!r})."
            )
        super().__post_init__()

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """The polar factor; of a singular matrix some completion of it."""
        return polar(x)[0]

    def project_tangent(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """`X skew(X^T U)`."""
        return x @ skew(x.mT @ u)

    def retract(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """The polar factor of `x + v`, with the determinant of `x` for a `v` of any length."""
        return self.retract_counted(x, v)[0]

    def retract_counted(self, x: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, int]:
        """`retract`, and how many points were too far away for its fast way; closed forms have no far."""
        if x.shape[-1] not in _CLOSED:
            return polar(x + shortened(v))  # short enough for x + v to know x, and so its determinant
        angle, axis = _angle_and_axis(x, v)
        return polar(x @ rotation(axis, angle.atan()))

    def geodesic(self, x: torch.Tensor, v: torch.Tensor, t: float = 1.0) -> torch.Tensor:
        """`X exp(t W)`; the nearest orthogonal matrix is taken at the end, so that rounding does not add up."""
        if x.shape[-1] not in _CLOSED:
            return polar(x @ torch.matrix_exp(skew(x.mT @ shortened(v * t))))[0]
        angle, axis = _angle_and_axis(x, v * t)
        return polar(x @ rotation(axis, angle))[0]

    def flow(
        self, x: torch.Tensor, v: torch.Tensor, t: float, method: FlowMethod = "auto", solver: Solver = SOLVER
    ) -> Flow:
        """`X exp(t W)`; with `"rattle"`, or by itself above 3 x 3, the solver of `Stiefel`."""
        if method == "rattle" or (method == "auto" and x.shape[-1] not in _CLOSED):
            return stiefel_flow(x, v, t, solver)
        end = self.geodesic(x, v, t)
        return Flow(end, end @ skew(x.mT @ v))

    def stein_field(self, x: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The tangent part of `-a`, of divergence `(n - 1) / 2 <a, x>`."""
        return -self.project_tangent(x, a), (a * x).sum((-2, -1)) * ((x.shape[-1] - 1) / 2)

    def distance(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """`|log(X^T Y)|`, in the Frobenius norm as the metric is; infinite between the two components."""
        turn = x.mT @ y
        broken = ~turn.isfinite().all(-1).all(-1)
        turn = torch.where(broken[..., None, None], torch.eye(turn.shape[-1], dtype=x.dtype, device=x.device), turn)
        if turn.shape[-1] in _CLOSED:
            sine = norm_of(skew(turn), (-2, -1))[..., 0, 0] / 2**0.5
            cosine = (turn.diagonal(dim1=-2, dim2=-1).sum(-1) - (turn.shape[-1] - 2)) / 2
            length = torch.atan2(sine, cosine) * 2**0.5
        else:
            length = torch.linalg.vector_norm(torch.linalg.eigvals(turn).angle(), dim=-1)
        return length.masked_fill(torch.linalg.det(turn) < 0, torch.inf).masked_fill(broken, torch.nan)

    def random_uniform(
        self, shape: tuple[int, ...], *, generator: torch.Generator | None = None, like: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Haar-distributed over both components: half of them are reflections."""
        return haar(shape, generator).to(like if like is not None else torch.empty(0))

    def dim(self, n: int, p: int) -> int:
        """`n(n-1)/2`."""
        return n * (n - 1) // 2

    def violation(self, x: torch.Tensor) -> torch.Tensor:
        """The largest error of a singular value; many points: an upper bound, see `deviation`."""
        return deviation(x)

    def move(self, x: torch.Tensor, d: torch.Tensor, motion: Motion) -> Moved:
        """The reference's step; of many 2 x 2 or 3 x 3 points by components, see `step_small`."""
        step = closed_form(x, "geodesic" if motion.geodesic else "polar")
        return move(self, x, d, motion) if step is None else step_small(self, step, x, d, motion)

    def degenerate(self, n: int, p: int) -> str | None:
        """Not square, or a single number."""
        if n != p:
            return "orthogonal matrices are square; use Stiefel"
        return "a single number on it is +1 or -1" if n == 1 else None


def _angle_and_axis(x: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`a` and `W/a` for W = X^T V of 2 x 2 and 3 x 3 points; no axis (zeros) for no angle."""
    length, direction = length_and_direction(skew(x.mT @ shortened(v)), (-2, -1))
    return length / 2**0.5, direction * 2**0.5
