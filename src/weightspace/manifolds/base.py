"""The base of manifolds: where the weights of a layer may live, and how one moves there.

A manifold acts on points `(..., n, p)`, any number of them at once: a vector is a matrix of one row. Which numbers of a
weight form a point is its grouping (`weightspace.kernels.points`). 16-bit points are computed in float32: what comes
back has the dtype that came, numbers (`inner`, `distance`) are float32. Three operations are kept apart, because to
confuse them is a classic defect: a *vector* is projected (`project_tangent`), a *derivative* is converted (`gradient`),
and a tangent vector is followed (`retract`, `geodesic`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import torch

from weightspace.errors import RuleError, SelectionError
from weightspace.kernels.options import choice
from weightspace.kernels.parameters import ParameterInfo
from weightspace.kernels.points import GROUPINGS, Channels, Grouping, PointView, lies_in_rows, point_view
from weightspace.kernels.rule import Rule, Stage
from weightspace.kernels.selection import Selection, convs, head
from weightspace.kernels.stacking import Workspace
from weightspace.manifolds._flows import SOLVER, Flow, FlowMethod, Solver
from weightspace.manifolds._free_steps import Adaptive, FreeStep, adapt, follow
from weightspace.manifolds._moves import Motion, Moved, move
from weightspace.manifolds._row_blocks import Sizes, free_rows
from weightspace.manifolds._widened import NUMBERS, VECTORS, widened
from weightspace.manifolds.pieces import Piece

Update = Literal["retraction", "geodesic"]
# Groupings whose points are matrices, not vectors.
MATRICES: tuple[Grouping, ...] = ("matrix", "slice", "input", "output", "both")


@dataclass(frozen=True)
class Manifold(Rule):
    """Points `(..., n, p)` that satisfy an equation. Subclasses are frozen dataclasses, one a module.

    Args:
        grouping: Which numbers of a weight form one point: see `weightspace.kernels.points`.
        on: Which parameters carry the constraint; convolutions without the head by default.

    Raises:
        RuleError: An option is out of its range.
    """

    stage: ClassVar[Stage] = Stage.MANIFOLD
    default_on: ClassVar[Selection] = convs & ~head
    groupings: ClassVar[tuple[Grouping, ...]] = tuple(g for g in GROUPINGS if g != "entry")

    grouping: Grouping = "matrix"
    on: Selection | None = field(default=None, kw_only=True)

    def __init_subclass__(cls) -> None:
        """Lets every geometric method of a manifold take 16-bit points: see `weightspace.manifolds._widened`."""
        super().__init_subclass__()
        for name in (*VECTORS, *NUMBERS):
            if name in cls.__dict__:
                setattr(cls, name, widened(cls.__dict__[name]))

    def __post_init__(self) -> None:
        name = type(self).__name__
        self._settle(grouping=choice(name, "grouping", self.grouping, self.groupings))

    # ------------------------------------------------------------------ geometry

    @abstractmethod
    def project(self, x: torch.Tensor) -> torch.Tensor:
        """The nearest point of the manifold to any `x` `(..., n, p)`; where it is not unique, one of them.

        Points that no direction is known of (zeros, for a sphere) go to a fixed point, never to NaN.
        """

    @abstractmethod
    def project_tangent(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """The tangent vector at `x` nearest to `u` in the Frobenius norm. Idempotent and self-adjoint."""

    @abstractmethod
    def retract(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """A point near `x + v` for a tangent `v`: agrees with the geodesic to first order or better."""

    @abstractmethod
    def geodesic(self, x: torch.Tensor, v: torch.Tensor, t: float = 1.0) -> torch.Tensor:
        """Where the geodesic from `x` with velocity `v` is at time `t`."""

    @abstractmethod
    def random_uniform(
        self, shape: tuple[int, ...], *, generator: torch.Generator | None = None, like: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Points of shape `(..., n, p)`, uniformly distributed.

        They are drawn in float64 on the CPU, then given the dtype and device of `like` (default: torch's own).
        """

    @abstractmethod
    def dim(self, n: int, p: int) -> int:
        """Dimension of the manifold of one point."""

    @abstractmethod
    def violation(self, x: torch.Tensor) -> torch.Tensor:
        """How far each point is from the manifold, relative to its size: `(...)`, float64, dimensionless.

        A vector's is the relative error of its norm, a matrix's the largest error of a singular value that should be
        one (or of a row's norm); a NaN in the point gives NaN.
        """

    @abstractmethod
    def degenerate(self, n: int, p: int) -> str | None:
        """Why points of this size cannot live here, or None: no dimension is left to move in, or none exists."""

    @abstractmethod
    def flow(
        self,
        x: torch.Tensor,
        v: torch.Tensor,
        t: float,
        method: FlowMethod = "auto",
        solver: Solver = SOLVER,
    ) -> Flow:
        """Free motion in the embedded metric: where `x` and its tangent velocity `v` are after a time `t` above 0.

        `"geodesic"` is exact, `"rattle"` of second order; `"auto"` is exact where that is cheap. Points in float32 or
        float64.
        """

    @abstractmethod
    def stein_field(self, x: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A tangent vector field at `x` that points away from a fixed `a`, and its divergence `(...)`.

        For a law `exp(-V / tau)` with respect to surface measure `E <grad V, field> = tau E divergence` (integration by
        parts): a thermometer that looks at positions only. On flat space the field is `x - a`, elsewhere the tangent
        part of `-a`. NaN where the divergence has no closed form.
        """

    def gradient(self, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """The Riemannian gradient at `x` of a function whose derivative is `g`: `inner(x, gradient, v) = <g, v>`."""
        return self.project_tangent(x, g)

    def retract_counted(self, x: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, int]:
        """`retract`, and how many points needed an exact method because the fast one could not handle them."""
        return self.retract(x, v), 0

    @widened
    def inner(self, x: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """The metric: `(...)` for tangent vectors `u`, `v` at `x`; the Frobenius product where not overridden."""
        return (u * v).sum((-2, -1))

    @widened
    def transport(self, x: torch.Tensor, v: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """A tangent `u` at `x`, carried to `retract(x, v)` by projection."""
        return self.project_tangent(self.retract(x, v), u)

    def distance(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Length of the shortest geodesic `(...)`, where it is known in closed form.

        Raises:
            RuleError: No closed form is known for this manifold.
        """
        raise RuleError(f"{self.text()} has no closed form of the distance; use the Frobenius norm of x - y instead.")

    def random_tangent(self, x: torch.Tensor, *, generator: torch.Generator | None = None) -> torch.Tensor:
        """Standard normal tangent vectors at `x`."""
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64, device="cpu").to(x)
        return self.project_tangent(x, noise)

    def lower_curvature(self, n: int, p: int) -> float:
        """A lower bound, at most 0, on the sectional curvatures: the curvature step size depends on it."""
        return 0.0

    def bound(self, dtype: torch.dtype, n: int, p: int) -> float:
        """What `violation` must not exceed for weights kept in `dtype`: rounding of entries and of arithmetic."""
        eps = torch.finfo(dtype).eps
        arithmetic = {torch.float64: 1e-12}.get(dtype, 1e-6)
        if eps < 1e-5:  # rounding of float32 and float64 entries is within the arithmetic's
            return arithmetic
        small, large = sorted((n, p))
        # Entries rounded by eps/2 move a matrix of `small` unit vectors by at most eps/2 sqrt(small); by independent
        # errors it is some eps/3.5 (1 + sqrt(small / large)), here with a margin of 3.5.
        return arithmetic + eps * min(0.5 * small**0.5, 1 + (small / large) ** 0.5)

    # ------------------------------------------------------------------ a step

    def move(self, x: torch.Tensor, d: torch.Tensor, motion: Motion) -> Moved:
        """One step from `x` along `-gradient(x, d)`, in place; see `weightspace.manifolds._moves`.

        Args:
            x: Points `(*lead, n, p)` in float32 or float64.
            d: The direction to descend against, ambient; overwritten where `motion` accumulates into it.
            motion: Rate, step size, momentum.
        """
        return move(self, x, d, motion)

    def vectors(self, n: int, p: int) -> Sizes | None:
        """Which vectors of points `(n, p)` have one norm, for manifolds that ask nothing else but centering."""
        del n, p

    def gradient_into(self, x: torch.Tensor, g: torch.Tensor, out: torch.Tensor, work: Workspace) -> None:
        """Writes `gradient(x, g)` into `out`, which may be `g`; points in float32 or float64."""
        del work
        rows = free_rows(self, x, g, out)
        if rows is None:
            out.copy_(self.gradient(x, g))
        else:
            rows.gradient_into(g, out)

    def follow(self, x: torch.Tensor, y: torch.Tensor, free: FreeStep) -> int:
        """Moves `y`, where a free step from `x` led, and momenta onto the manifold; see `_free_steps.follow`."""
        rows = free_rows(self, x, y, *free.momenta)
        return follow(self, x, y, free) if rows is None else rows.follow(y, free)

    def adapt(self, x: torch.Tensor, m: torch.Tensor, g: torch.Tensor, adaptive: Adaptive) -> int:
        """A step along first moments `m` with one second moment a point, in place; see `_free_steps.adapt`."""
        rows = None if adaptive.geodesic else free_rows(self, x, m, g)
        return adapt(self, x, m, g, adaptive) if rows is None else rows.adapt(m, g, adaptive)

    # ------------------------------------------------------------------ slack variables

    @property
    def slack_count(self) -> int:
        """How many slack variables stand beside each point. The methods above then act on points with them.

        Such points are rows `(..., 1, n*p + slack_count)`: the weight's numbers, then the slack.
        """
        return 0

    def lift(self, x: torch.Tensor) -> torch.Tensor:
        """The point with its slack variables over the numbers `(..., n, p)` of a weight."""
        return x

    def resolved(self, weight: torch.Tensor) -> Manifold:
        """The manifold with every option that is left to the weight settled by it."""
        del weight
        return self

    def shadow_violation(self, x: torch.Tensor) -> torch.Tensor:
        """`violation` as far as the numbers of the weight alone tell it."""
        return self.violation(x)

    def shadow_project(self, x: torch.Tensor) -> torch.Tensor:
        """`project`, of the numbers of the weight alone."""
        return self.project(x)

    # ------------------------------------------------------------------ on a weight

    @property
    def has_own_metric(self) -> bool:
        """True if gradients are not tangent projections: another metric than that of the surrounding space."""
        return False

    @property
    def is_slack(self) -> bool:
        """True if weights may leave the manifold a little between corrections; steps carry a bound along."""
        return False

    @property
    def is_changing(self) -> bool:
        """True if the manifold of a weight depends on the step: products that are drawn anew."""
        return False

    def epoch(self, step: int) -> int:
        """Which assignment of manifolds is in force at a step; only products change theirs."""
        return 0

    def pieces(self, like: torch.Tensor, channels: Channels, name: str, epoch: int) -> Sequence[Piece]:
        """The parts of a weight and the manifolds that they live on: the whole weight on this one."""
        return (Piece(self, self.points_of(like, channels, name)),)

    def acts_on_rows(self, channels: Channels) -> bool:
        """Whether rows along dimension 0 are independent: points lie within rows, and nothing else connects them.

        Step sizes that points share may connect rows all the same: `weightspace.kernels.points.steps_in_rows`.
        """
        return lies_in_rows(self.grouping, channels) and not self.is_slack and not self.is_changing

    # ------------------------------------------------------------------ as a rule

    @property
    def view(self) -> Grouping:
        """The grouping."""
        return self.grouping

    def view_for(self, info: ParameterInfo) -> PointView:
        """How this parameter becomes points.

        Raises:
            SelectionError: It cannot, or the manifold of such points is degenerate.
        """
        return self.points_of(info.parameter, Channels(info.out_axis, info.groups), info.name)

    def points_of(self, tensor: torch.Tensor, channels: Channels, name: str = "The weight") -> PointView:
        """How a tensor becomes points of this manifold; raises SelectionError as `view_for` does."""
        if tensor.is_complex() or not tensor.numel():
            what = "is complex" if tensor.is_complex() else f"of shape {tuple(tensor.shape)} holds no numbers"
            raise SelectionError(f"{name} {what}; {self.text()} is of real weights: leave it free.")
        view = point_view(tensor, self.grouping, channels, name)
        reason = self.degenerate(*view.shape[-2:])
        if reason is not None:
            raise SelectionError(
                f"{name}: {self.text()} cannot hold points of {view.shape[-2]} x {view.shape[-1]}: {reason}."
            )
        return view

    def refusal(self, info: ParameterInfo) -> str | None:
        """Also refuses what is no weight of a layer."""
        if info.parameter.ndim < 2:
            return f"{info.kind} {info.role}: a vector is no kernel"
        return super().refusal(info)

    @classmethod
    def from_text(cls, arguments: list[Any], options: dict[str, Any]) -> Manifold:
        """What `text()` wrote, from its parts; `weightspace.manifolds.parse` calls it."""
        return cls(*arguments, **options)

    def text(self) -> str:
        """The manifold as it is kept in a `state_dict`: `"stiefel(matrix, retraction=polar)"`. `on` is no part of it.

        `weightspace.manifolds.parse` reads it back.
        """
        options = [
            f"{f.name}={getattr(self, f.name)}"
            for f in fields(self)
            if f.name not in ("grouping", "on") and getattr(self, f.name) != f.default
        ]
        return f"{type(self).__name__.lower()}({', '.join([self.grouping, *options])})"
