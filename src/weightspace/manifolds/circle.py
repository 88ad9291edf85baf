"""Circle: every number of a weight is bounded, as the shadow of a point on a circle or sphere of its own.

    M = {(theta, xi) : theta^2 + |xi|^2 = r^2},   theta the number, xi in R^k its slack:   abs(theta) <= r

| k = `slack` | where a free number ends up (no loss) |
|---|---|
| 1 | arcsine law: density ~ (r^2 - theta^2)^(-1/2), most of it near the bounds |
| 2 | uniform on [-r, r] |
| k | density ~ (r^2 - theta^2)^(k/2 - 1) |

The geometry is that of spheres, one a row `(theta, xi)`. With k = 1 the point is an angle, theta = r cos(angle), and
its velocity one number; `ConstrainedLangevin` keeps it as the pair (theta, xi), turned exactly and set to its radius
anew every few steps, because that takes fewer operations than cosines (16-bit weights keep the angle).

Source: Leimkuhler, Vlaar, Pouchon, Storkey, arXiv 2006.10114 (the circle constraint, k = 1); other k, the angle as
state and the laws in the table are **derived**.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from weightspace.errors import RuleError, SelectionError
from weightspace.kernels.options import positive_number, whole_number
from weightspace.kernels.points import Channels, Grouping, PointView, point_view
from weightspace.manifolds._flows import SOLVER, Flow, FlowMethod, Solver, great_circle_flow
from weightspace.manifolds._unit import gaussian, great_circle, norm_of, unit
from weightspace.manifolds.base import Manifold

# Room that "auto" leaves: at the bound itself the tangent has no part along theta, and the number could not move.
_ROOM = 1.25


@dataclass(frozen=True)
class Circle(Manifold):
    """Every number of the weight stays in [-r, r], by slack variables that only `ConstrainedLangevin` keeps.

    Args:
        grouping: `"entry"`: each number for itself.
        radius: r; `"auto"`: 1.25 times the largest number of each weight when it is put there.
        slack: k, the number of slack variables of each number.
        on: Which parameters; convolutions without the head by default.

    Raises:
        RuleError: An option is out of its range.
        SelectionError: A number of the weight is beyond the radius.

    Cost: k = 1: a step reads and writes what SGD with momentum does and one number more for each, with the arithmetic
    of an exact rotation; other k: 2 (k + 1) numbers for each, position and velocity.

    Example:
        >>> Circle(radius=2.0).lift(torch.tensor([[[1.2]]]))  # theta, and the slack that completes it
        tensor([[[1.2000, 1.6000]]])
    """

    groupings: ClassVar[tuple[Grouping, ...]] = ("entry",)

    grouping: Grouping = "entry"
    radius: float | Literal["auto"] = "auto"
    slack: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        radius = self.radius
        if isinstance(radius, str) and radius != "auto":
            raise RuleError(f"Circle got radius={radius!r}; pass a number above 0, or 'auto'.")
        self._settle(
            radius="auto" if radius == "auto" else positive_number("Circle", "radius", radius),
            slack=whole_number("Circle", "slack", self.slack),
        )

    @property
    def r(self) -> float:
        """The radius as a number.

        Raises:
            RuleError: It is `"auto"` and no weight has settled it: see `resolved`.
        """
        if isinstance(self.radius, str):
            raise RuleError("Circle(radius='auto') has no radius before it is put on a weight; give it a number.")
        return self.radius

    # ------------------------------------------------------------------ slack

    @property
    def slack_count(self) -> int:
        """`slack`."""
        return self.slack

    def lift(self, x: torch.Tensor) -> torch.Tensor:
        """`(theta, sqrt(r^2 - theta^2), 0, ...)`: the first slack is positive."""
        first = (self.r - x).clamp(min=0).sqrt() * (self.r + x).clamp(min=0).sqrt()
        return torch.cat([x, first, *([torch.zeros_like(x)] * (self.slack - 1))], -1)

    def resolved(self, weight: torch.Tensor) -> Circle:
        """With `"auto"`, a circle with room for the weight's largest number."""
        if self.radius != "auto":
            return self
        largest = float(weight.detach().abs().max()) if weight.numel() else 0.0
        return Circle(radius=_ROOM * largest if largest > 0 else 1.0, slack=self.slack, on=self.on)

    def shadow_violation(self, x: torch.Tensor) -> torch.Tensor:
        """How far beyond r, relative to it."""
        if self.radius == "auto":  # nothing is promised before a weight settles it
            return torch.zeros(x.shape[:-2], dtype=torch.float64, device=x.device)
        return (x.double().abs() / self.r - 1).clamp(min=0)[..., 0, 0]

    def shadow_project(self, x: torch.Tensor) -> torch.Tensor:
        """Refuses: to cut numbers off would change what the network computes without a word."""
        raise SelectionError(
            f"{self.text()} was asked for a weight with numbers up to {float(x.abs().max()):.4g}; take radius='auto', "
            "a larger radius, or scale the weight first."
        )

    def acts_on_rows(self, channels: Channels) -> bool:
        """Each number is for itself, once the radius is known: `"auto"` looks at the whole weight."""
        return self.radius != "auto" and super().acts_on_rows(channels)

    def points_of(self, tensor: torch.Tensor, channels: Channels, name: str = "The weight") -> PointView:
        """Each number for itself."""
        return point_view(tensor, self.grouping, channels, name)

    # ------------------------------------------------------------------ geometry of rows (theta, slack)

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """Each row in the same direction; a zero one becomes the constant one."""
        return unit(x, (-1,)) * self.r

    def project_tangent(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """Removes the radial part of each row."""
        return u - (x * u).sum(-1, keepdim=True) / self.r**2 * x

    def retract(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Normalizes `x + v`."""
        return self.project(x + v)

    def geodesic(self, x: torch.Tensor, v: torch.Tensor, t: float = 1.0) -> torch.Tensor:
        """A great circle for each row, normalized against rounding."""
        return great_circle(x, v * t, self.r, (-1,))

    def flow(
        self, x: torch.Tensor, v: torch.Tensor, t: float, method: FlowMethod = "auto", solver: Solver = SOLVER
    ) -> Flow:
        """A rotation of each row, whatever the method."""
        return great_circle_flow(x, v, t, self.r, (-1,))

    def stein_field(self, x: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The tangent part of `-a`, of divergence `k <a, x> / r^2`."""
        return -self.project_tangent(x, a), (a * x).sum((-2, -1)) * (self.slack / self.r**2)

    def distance(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The root of the sum of squared arcs."""
        angles = 2 * torch.atan2(norm_of(x - y, (-1,)), norm_of(x + y, (-1,)))
        return self.r * torch.linalg.vector_norm(angles, dim=(-2, -1))

    def random_uniform(
        self, shape: tuple[int, ...], *, generator: torch.Generator | None = None, like: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Normalized Gaussian rows."""
        return self.project(gaussian(shape, generator)).to(like if like is not None else torch.empty(0))

    def dim(self, n: int, p: int) -> int:
        """k for each row."""
        return n * (p - 1)

    def violation(self, x: torch.Tensor) -> torch.Tensor:
        """The largest relative error of a row's norm."""
        return (norm_of(x.double(), (-1,)) / self.r - 1).abs().amax((-2, -1))

    def degenerate(self, n: int, p: int) -> str | None:
        """A row of other than 1 + k numbers."""
        return None if p == 1 + self.slack else f"a row has {1 + self.slack} numbers: theta and its slack"
