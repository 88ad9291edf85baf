"""Stiefel: matrices with orthonormal columns; of wide ones (fewer rows than columns) the rows are orthonormal.

    M = {X : X^T X = I},   T_X M = {V : X^T V + V^T X = 0},   dim = np - p(p+1)/2            (n >= p; wide: on X^T)

| operation | embedded metric | canonical metric |
|---|---|---|
| inner <u, v> | tr u^T v | tr u^T (I - X X^T / 2) v |
| gradient of a derivative G | G - X sym(X^T G) | G - X G^T X |
| project_tangent | U - X sym(X^T U), nearest in the Frobenius norm | the same |
| geodesic | Edelman et al., equation (2.7) | equation (2.42) |
| curvature | in [-1/2, 1] | in [0, 5/4] |

retract: `"polar"`, the nearest point to X + V, of second order in the embedded metric; `"qr"`, Q of X + V = Q R with
positive diagonal, of first order. In the canonical metric both are of first order.

Sources: Edelman, Arias, Smith, 1998; Absil, Mahony, Sepulchre, 2008; curvature: Zimmermann, Stoye, 2024 (the embedded
metric's lower bound) and, for the canonical metric, Rentmeesters, 2013.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from weightspace.errors import RuleError
from weightspace.kernels.options import choice, positive_number, whole_number
from weightspace.kernels.points import Grouping
from weightspace.kernels.stacking import Workspace
from weightspace.manifolds._flows import (
    SOLVER,
    Flow,
    FlowMethod,
    Solver,
    exact_stiefel_flow,
    great_circle_flow,
    stiefel_flow,
)
from weightspace.manifolds._free_steps import Adaptive, FreeStep
from weightspace.manifolds._geodesics import as_given, deviation, haar, stiefel_geodesic, symmetric, tall
from weightspace.manifolds._moves import Motion, Moved, move
from weightspace.manifolds._polar import polar, qr_positive
from weightspace.manifolds._row_blocks import Sizes
from weightspace.manifolds._rows import step_vectors
from weightspace.manifolds._slices import step_small
from weightspace.manifolds._small_rotations import closed_form
from weightspace.manifolds._stiefel_free import FreeStiefel
from weightspace.manifolds._stiefel_step import Slack, rounding, stiefel_move
from weightspace.manifolds.base import MATRICES, Manifold

_LARGEST_TOLERANCE = 0.1


@dataclass(frozen=True)
class Stiefel(Manifold):
    """Orthonormal columns, or rows where there are fewer of them.

    `Stiefel()` makes filters orthonormal to each other wherever a kernel has fewer of them than numbers in a filter;
    `Stiefel("slice")` makes each spatial slice orthogonal.

    Args:
        grouping: Which numbers form one point: `"matrix"`, or slices.
        retraction: `"polar"` or `"qr"`.
        metric: `"embedded"` or `"canonical"`: what gradients, geodesics and the norm R mean.
        tolerance: How far singular values may be from 1 between corrections, at most 0.1; None: correct at every step.
        every: Correct at each k-th step only; 1: at every step.
        on: Which parameters; convolutions without the head by default.

    Raises:
        RuleError: An option is out of its range, or points are vectors: use `Sphere`.

    Cost of a step: some `8 n p^2` flops (p the smaller side) near the manifold. No n x n matrix is ever formed.

    Example:
        >>> Stiefel().project(torch.tensor([[3.0, 0.0], [0.0, 0.5], [0.0, 0.0]]))
        tensor([[1., 0.],
                [0., 1.],
                [0., 0.]])
        >>> Stiefel().dim(3, 2), Stiefel().dim(2, 3)
        (3, 3)
    """

    groupings: ClassVar[tuple[Grouping, ...]] = MATRICES

    grouping: Grouping = "matrix"
    retraction: Literal["polar", "qr"] = "polar"
    metric: Literal["embedded", "canonical"] = "embedded"
    tolerance: float | None = None
    every: int = 1

    def __post_init__(self) -> None:
        if self.grouping in ("filter", "kernel"):
            raise RuleError(
                f"Stiefel got grouping={self.grouping!r}, whose points are vectors; use Sphere({self.grouping!r})."
            )
        super().__post_init__()
        self._settle(
            retraction=choice("Stiefel", "retraction", self.retraction, ("polar", "qr")),
            metric=choice("Stiefel", "metric", self.metric, ("embedded", "canonical")),
            every=whole_number("Stiefel", "every", self.every),
        )
        if self.tolerance is not None:
            self._settle(tolerance=positive_number("Stiefel", "tolerance", self.tolerance))
            if self.tolerance > _LARGEST_TOLERANCE:
                raise RuleError(f"Stiefel got tolerance={self.tolerance:g}; it must be at most {_LARGEST_TOLERANCE:g}.")

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """The polar factor; of a rank-deficient matrix some completion of it."""
        return polar(x)[0]

    def project_tangent(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """`U - X sym(X^T U)`, whatever the metric."""
        if _is_wide(x):  # not by transposing: sums of mixed strides are slow
            return u - symmetric(u @ x.mT) @ x
        return u - x @ symmetric(x.mT @ u)

    def gradient(self, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """Depends on the metric: see the table of the module."""
        if self.metric == "embedded":
            return self.project_tangent(x, g)
        return g - (x @ g.mT) @ x if _is_wide(x) else g - x @ (g.mT @ x)

    def inner(self, x: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Depends on the metric: see the table of the module."""
        product = (u * v).sum((-2, -1))
        if self.metric == "embedded":
            return product
        along_u, along_v = (x @ w.mT if _is_wide(x) else x.mT @ w for w in (u, v))
        return product - (along_u * along_v).sum((-2, -1)) / 2

    def retract(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """The polar factor or Q of `x + v`, whatever `tolerance` and `every` say: those are for steps."""
        return self.retract_counted(x, v)[0]

    def retract_counted(self, x: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, int]:
        """`retract`, and how many points were too far away for its fast way."""
        return (polar if self.retraction == "polar" else qr_positive)(x + v)

    def geodesic(self, x: torch.Tensor, v: torch.Tensor, t: float = 1.0) -> torch.Tensor:
        """The geodesic of the metric, in economy algebra: see `stiefel_geodesic`."""
        return as_given(stiefel_geodesic(tall(x), tall(v) * t, self.metric), x)

    def flow(
        self, x: torch.Tensor, v: torch.Tensor, t: float, method: FlowMethod = "auto", solver: Solver = SOLVER
    ) -> Flow:
        """RATTLE, or with `"geodesic"` the exact one, of the embedded metric; vectors take great circles."""
        if min(x.shape[-2:]) == 1:
            return great_circle_flow(x, v, t, 1.0, (-2, -1))
        if method == "geodesic":
            return Flow(*exact_stiefel_flow(x, v, t))
        return stiefel_flow(x, v, t, solver)

    def stein_field(self, x: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The tangent part of `-a`, of divergence `(n - (p + 1) / 2) <a, x>` for n >= p."""
        n, p = max(x.shape[-2:]), min(x.shape[-2:])
        return -self.project_tangent(x, a), (a * x).sum((-2, -1)) * (n - (p + 1) / 2)

    def random_uniform(
        self, shape: tuple[int, ...], *, generator: torch.Generator | None = None, like: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Haar-distributed: alike in all directions."""
        return haar(shape, generator).to(like if like is not None else torch.empty(0))

    def dim(self, n: int, p: int) -> int:
        """`np - p(p+1)/2`, p the smaller side."""
        small = min(n, p)
        return n * p - small * (small + 1) // 2

    def violation(self, x: torch.Tensor) -> torch.Tensor:
        """The largest error of a singular value; many small points: an upper bound, see `deviation`."""
        return deviation(x)

    @property
    def has_own_metric(self) -> bool:
        """True for the canonical metric."""
        return self.metric == "canonical"

    @property
    def is_slack(self) -> bool:
        """True with `tolerance` or `every`."""
        return self.tolerance is not None or self.every > 1

    def bound(self, dtype: torch.dtype, n: int, p: int) -> float:
        """The base's, and the tolerance. With `every` above 1 it holds after a correction, not between two."""
        return super().bound(dtype, n, p) + (self.tolerance or 0.0)

    def degenerate(self, n: int, p: int) -> str | None:
        """A single number."""
        return "a single number on it is +1 or -1" if n == p == 1 else None

    def lower_curvature(self, n: int, p: int) -> float:
        """-1/2 in the embedded metric; 0 in the canonical one, and for vectors and square matrices."""
        is_curved_below = self.metric == "embedded" and n != p and min(n, p) > 1
        return -0.5 if is_curved_below else 0.0

    def move(self, x: torch.Tensor, d: torch.Tensor, motion: Motion) -> Moved:
        """The reference's step in fewer flops, see `_stiefel_step`; geodesics are the reference's.

        Many 2 x 2 or 3 x 3 points have closed forms, which correct at every step, and vectors the sphere's.
        """
        if min(x.shape[-2:]) == 1 and self.tolerance is None and self.every == 1:
            return step_vectors(self, Sizes(1.0), x, d, motion)
        update = "geodesic" if motion.geodesic else self.retraction
        closed = closed_form(x, update, is_canonical=self.metric == "canonical")
        if closed is not None:
            moved = step_small(self, closed, x, d, motion)
            if self.tolerance is not None or self.every > 1:
                moved.slack = Slack(rounding(x), 0).written()
            return moved
        return stiefel_move(self, x, d, motion) or move(self, x, d, motion)

    def vectors(self, n: int, p: int) -> Sizes | None:
        """A single column or row."""
        return Sizes(1.0) if min(n, p) == 1 else None

    def gradient_into(self, x: torch.Tensor, g: torch.Tensor, out: torch.Tensor, work: Workspace) -> None:
        """The reference's without temporaries; see `FreeStiefel`."""
        if min(x.shape[-2:]) > 1 and FreeStiefel.fits(x, g, out):
            FreeStiefel(self, x, work).gradient_into(g, out)
        else:
            super().gradient_into(x, g, out, work)

    def follow(self, x: torch.Tensor, y: torch.Tensor, free: FreeStep) -> int:
        """The reference's in fewer flops; see `FreeStiefel`."""
        if min(x.shape[-2:]) > 1 and FreeStiefel.fits(x, y, *free.momenta):
            return FreeStiefel(self, x, free.work).follow(y, free)
        return super().follow(x, y, free)

    def adapt(self, x: torch.Tensor, m: torch.Tensor, g: torch.Tensor, adaptive: Adaptive) -> int:
        """Likewise; geodesics are the reference's."""
        if min(x.shape[-2:]) > 1 and not adaptive.geodesic and FreeStiefel.fits(x, m, g):
            return FreeStiefel(self, x, adaptive.work).adapt(m, g, adaptive)
        return super().adapt(x, m, g, adaptive)


def _is_wide(x: torch.Tensor) -> bool:
    return x.shape[-2] < x.shape[-1]
