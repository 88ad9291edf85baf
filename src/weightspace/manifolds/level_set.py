"""LevelSet: points that satisfy equations `g(q) = 0` of your own, given as a function of torch operations.

    M = {q : g(q) = 0},   J = dg/dq of full rank m,   T_q M = {v : J v = 0},   dim = np - m

| operation | formula |
|---|---|
| project | stationary point of the distance, by Gauss-Newton: y <- x - J^T l, J J^T l = g(y) + J (x - y), damped |
| project_tangent | u - J^T (J J^T)^-1 J u |
| retract | x + v - J(x)^T mu with g = 0: back along the normals of x; of second order |
| flow | RATTLE: y = x + t v - J(x)^T mu, g(y) = 0; the velocity is the tangent part at y of (y - x) / t |
| geodesic | many RATTLE steps, extrapolated in the square of the step |
| violation | abs(J^+ g) / abs(x): to first order the distance to M |

With slack variables s the equations are `g(q, s) = 0`, points are rows `(q, s)`, and only `ConstrainedLangevin` keeps
them. Source: Andersen 1983 (RATTLE); Zappa, Holmes-Cerfon, Goodman, arXiv 1702.08446 (back along the normals of x);
Leimkuhler et al., arXiv 2006.10114 (constraints of the user's own, slack for inequalities); the rest is derived.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from weightspace.errors import RuleError, SelectionError
from weightspace.kernels.options import whole_number
from weightspace.kernels.points import Channels, Grouping, PointView, point_view
from weightspace.kernels.selection import Selection
from weightspace.manifolds._equations import (
    Equation,
    Equations,
    completed,
    enter,
    function_of,
    length,
    nearest_points,
    normal_part,
    tangent_part,
)
from weightspace.manifolds._flows import SOLVER, Flow, FlowMethod, Solver, with_fallbacks
from weightspace.manifolds._level_set_motion import TOLERANCE, back, follow, rattle
from weightspace.manifolds.base import Manifold

_ITERATIONS = 200


@dataclass(frozen=True, init=False)
class LevelSet(Manifold):
    """Weights on the level set of a function.

    The function takes one point `(n, p)` and returns its residuals, a tensor of m numbers that are zero on the
    manifold. It is called under `torch.func.vmap`, in float64 (in float32 on devices without it): constants that it
    closes over follow with `.to(q)`. Its m equations must be independent: of a symmetric matrix return a triangle.

    Args:
        function: The function, or the name of one that was given before. A `state_dict` holds the name alone.
        grouping: Which numbers of a weight form one point. Columns come in memory order: of channels_last kernels the
            taps come before the input channels.
        name: What to call it; the function's own name by default.
        slack: k: the function is then called with the numbers of a point, `(n * p,)`, and k slack variables `(k,)`.
        on: Which parameters; convolutions without the head by default.

    Raises:
        RuleError: The name is taken or no word; the function fails, or does not return residuals.
        SelectionError: The equations leave a weight nothing to move in, or depend on each other.

    Cost: each iteration computes m rows of the Jacobian by autograd and solves m x m systems; linear equations take
    two. For a few equations; on spheres and orthonormal matrices `Sphere` and `Stiefel` are far faster.

    Example:
        >>> def unit_sums(q: torch.Tensor) -> torch.Tensor:
        ...     return q.sum(0) - 1.0
        >>> LevelSet(unit_sums).project(torch.tensor([[3.0, 0.0], [0.0, 0.0]]))
        tensor([[ 2.0000,  0.5000],
                [-1.0000,  0.5000]])
    """

    grouping: Grouping = "matrix"
    name: str = ""
    slack: int = 0

    def __init__(
        self,
        function: Equation | str | None = None,
        grouping: Grouping = "matrix",
        name: str | None = None,
        slack: int = 0,
        *,
        on: Selection | None = None,
    ) -> None:
        if isinstance(function, str):
            function, name = None, function
        if function is None:
            if not name:
                raise RuleError("LevelSet got no function; pass one of a point (n, p) that returns its residuals.")
            function = function_of(name)
        if not callable(function):
            raise RuleError(f"LevelSet got {function!r}; pass a function of a point (n, p) that returns its residuals.")
        called = name or getattr(function, "__name__", type(function).__name__)
        enter(called, function)
        self._settle(grouping=grouping, on=on, name=called, slack=whole_number("LevelSet", "slack", slack, least=0))
        self.__post_init__()

    @classmethod
    def from_text(cls, arguments: list[Any], options: dict[str, Any]) -> LevelSet:
        """`levelset(name, grouping=..., slack=...)`; the program must have defined the function."""
        if len(arguments) != 1 or not isinstance(arguments[0], str):
            raise RuleError(f"levelset() got {arguments!r}; write it as 'levelset(name)' with the name of a function.")
        return cls(arguments[0], **options)

    def text(self) -> str:
        """`"levelset(column_sums)"`: what is no default follows the name."""
        options = [] if self.grouping == "matrix" else [f"grouping={self.grouping}"]
        options += [f"slack={self.slack}"] if self.slack else []
        return f"levelset({', '.join([self.name, *options])})"

    # ------------------------------------------------------------------ rows

    def _equations(self, x: torch.Tensor) -> Equations:
        n, p = x.shape[-2:]
        return Equations(self.name, (n, p) if not self.slack else (1, n * p - self.slack), self.slack)

    def _rows(self, x: torch.Tensor) -> torch.Tensor:
        """Points as `(B, d)`, wide."""
        wide = torch.float64 if x.device.type != "mps" else torch.float32
        return x.detach().to(wide).reshape(-1, x.shape[-2] * x.shape[-1])

    def _check(self, found: torch.Tensor, what: str, rows: torch.Tensor, why: str = "") -> None:
        if bool(found.all()):
            return
        bad = rows[~found]
        why = (
            why
            or f"Newton's method did not reach g = 0 in {_ITERATIONS} iterations; is the Jacobian of full rank there?"
        )
        if not bool(bad.isfinite().all()):
            why = "they hold NaN or infinity."
        raise RuleError(f"{self.text()}: {what} failed for {len(bad)} of {len(rows)} points: {why}")

    # ------------------------------------------------------------------ geometry

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """A point to which the way from x is normal: the nearest one, where x is not far from the manifold.

        Raises:
            RuleError: No solution of the equations was found.
        """
        rows, equations = self._rows(x), self._equations(x)
        y, found = nearest_points(equations, rows, TOLERANCE, _ITERATIONS)
        if not bool(found.all()):  # a place where the Jacobian loses rank, such as zero on a sphere
            ramp = torch.linspace(0.5, 1.0, rows.shape[1], dtype=rows.dtype, device=rows.device)
            size = rows[~found].abs().amax(-1, keepdim=True).clamp(min=1.0)
            y[~found], found[~found] = nearest_points(equations, rows[~found] + ramp * size, TOLERANCE, _ITERATIONS)
        self._check(found, "the projection", rows)
        return y.view(x.shape).to(x.dtype)

    def project_tangent(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """`u - J^T (J J^T)^-1 J u`.

        Raises:
            RuleError: The Jacobian has not full rank at a point.
        """
        rows = self._rows(x)
        v = tangent_part(self._equations(x).at(rows)[1], self._rows(u))
        if not bool(v.isfinite().all()) and bool(rows.isfinite().all()) and bool(u.isfinite().all()):
            raise RuleError(
                f"{self.text()}: its Jacobian has not full rank at a point, so the tangent space there is not known; "
                "return independent equations only, and begin away from such points."
            )
        return v.view(u.shape).to(u.dtype)

    def retract(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Back from `x + v` along the normals of x."""
        return self.retract_counted(x, v)[0]

    def retract_counted(self, x: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, int]:
        """`retract`, and for how many points no way along the normals was found: those are projected."""
        rows, along, equations = self._rows(x), self._rows(v), self._equations(x)
        y, solved = back(equations, rows, along, TOLERANCE, 50)
        count = int((~solved).sum())
        if count:
            far = (rows + along)[~solved]
            ends, found = nearest_points(equations, far, TOLERANCE, _ITERATIONS)
            self._check(found, "the retraction", far)
            y[~solved] = ends
        return y.view(x.shape).to(x.dtype), count

    def geodesic(self, x: torch.Tensor, v: torch.Tensor, t: float = 1.0) -> torch.Tensor:
        """By RATTLE in ever smaller steps, extrapolated until two estimates agree to 1e-10.

        Raises:
            RuleError: They do not: the way is too long or too curved.
        """
        if not t:
            return x.clone()
        y, _, found = follow(self._equations(x), self._rows(x), self._rows(v), t)
        self._check(found, "the geodesic", self._rows(x), "the way is too long; go it in parts.")
        return y.view(x.shape).to(x.dtype)

    def flow(
        self, x: torch.Tensor, v: torch.Tensor, t: float, method: FlowMethod = "auto", solver: Solver = SOLVER
    ) -> Flow:
        """RATTLE, or with `"geodesic"` the extrapolated one.

        Where Newton's method fails, shorter steps are taken; where those fail too the point stays and its velocity
        turns round, like a rejected step of a sampler. All are counted.
        """
        equations, rows, along = self._equations(x), self._rows(x), self._rows(v)

        def exact(a: torch.Tensor, u: torch.Tensor, time: float) -> tuple[torch.Tensor, torch.Tensor]:
            if method != "geodesic":  # sixteen shorter steps have failed: so would more
                return a, -u
            y, w, found = follow(equations, a, u, time)
            return torch.where(found[:, None], y, a), torch.where(found[:, None], w, -u)

        def short(
            a: torch.Tensor, u: torch.Tensor, time: float, options: Solver
        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            return rattle(equations, a, u, time, max(options.tolerance or 0.0, TOLERANCE), options.iterations)

        if method == "geodesic":
            flow = Flow(*exact(rows, along, t))
        else:
            flow = with_fallbacks(rows, along, t, solver, short, exact)
        return Flow(flow.point.view(x.shape).to(x.dtype), flow.velocity.view(v.shape).to(v.dtype), flow.fallbacks)

    def stein_field(self, x: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The tangent part of `-a`; its divergence has no closed form: NaN."""
        return -self.project_tangent(x, a), torch.full(x.shape[:-2], torch.nan, dtype=x.dtype, device=x.device)

    def random_uniform(
        self, shape: tuple[int, ...], *, generator: torch.Generator | None = None, like: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Refuses: no law of all level sets is known."""
        raise RuleError(
            f"{self.text()} has no way to draw uniform points; start at project(x) and run ConstrainedLangevin with "
            "temperature=1 on zero gradients."
        )

    def dim(self, n: int, p: int) -> int:
        """np - m; with slack of the rows."""
        return n * p - self._equations(torch.empty(n, p, device="meta")).count()

    def violation(self, x: torch.Tensor) -> torch.Tensor:
        """Length of a Newton step to the manifold, relative to the point."""
        rows = self._rows(x)
        values, jacobian = self._equations(x).at(rows)
        off, size = length(normal_part(jacobian, values)), length(rows)
        on = (values == 0).all(-1)  # also where the Jacobian has lost rank
        relative = torch.where(on, torch.zeros_like(off), off / size)
        relative = torch.where(
            relative.isnan() & rows.isfinite().all(-1), torch.full_like(relative, torch.inf), relative
        )
        return relative.double().view(x.shape[:-2])

    def degenerate(self, n: int, p: int) -> str | None:
        """The equations leave nothing to move in, depend on each other, or cannot be computed."""
        equations = self._equations(torch.empty(n, p, device="meta"))
        try:
            m, rank = equations.count(), equations.rank()
        except RuleError as error:
            return str(error).rstrip(".")
        if not m:
            return "the function returned no residuals"
        if rank < m:
            return (
                f"its {m} equations depend on each other (the Jacobian has rank {rank}); return independent ones only"
            )
        return f"{m} equations leave {n * p} numbers nothing to move in" if m >= n * p else None

    # ------------------------------------------------------------------ slack

    @property
    def slack_count(self) -> int:
        """`slack`."""
        return self.slack

    def points_of(self, tensor: torch.Tensor, channels: Channels, name: str = "The weight") -> PointView:
        """As elsewhere; with slack a point is a row of its numbers and the slack."""
        if not self.slack:
            return super().points_of(tensor, channels, name)
        view = point_view(tensor, self.grouping, channels, name)
        n, p = view.shape[-2:]
        reason = self.degenerate(1, n * p + self.slack)
        if reason is not None:
            raise SelectionError(f"{name}: {self.text()} cannot hold points of {n} x {p}: {reason}.")
        return view

    def acts_on_rows(self, channels: Channels) -> bool:
        """False: an equation that cannot be solved at one point fails for all of a weight."""
        del channels
        return False

    def lift(self, x: torch.Tensor) -> torch.Tensor:
        """The numbers with slack variables that solve the equations, found from slack 1.

        Raises:
            RuleError: None were found: the numbers are beyond what the equations allow.
        """
        row = self._lifted(x)
        worst = float(self.violation(row).max()) if row.numel() else 0.0
        if worst > 1e-6 + torch.finfo(x.dtype).eps:
            raise RuleError(
                f"{self.text()}: no slack variables were found that complete the weight (relative violation "
                f"{worst:.2g}); scale the weight, or loosen the equations."
            )
        return row

    def _lifted(self, x: torch.Tensor) -> torch.Tensor:
        """Rows `(..., 1, n*p + k)` whose slack solves the equations as well as it can."""
        numbers = x.detach().reshape(*x.shape[:-2], 1, -1)
        rows = self._rows(numbers)
        slack = completed(Equations(self.name, (1, rows.shape[1]), self.slack), rows)
        return torch.cat([numbers, slack.view(*numbers.shape[:-1], self.slack).to(x.dtype)], -1)

    def shadow_violation(self, x: torch.Tensor) -> torch.Tensor:
        """How far the numbers are from having slack variables that complete them."""
        return self.violation(self._lifted(x)) if self.slack else self.violation(x)

    def shadow_project(self, x: torch.Tensor) -> torch.Tensor:
        """The numbers of the nearest point, slack included."""
        if not self.slack:
            return self.project(x)
        return self.project(self._lifted(x))[..., : -self.slack].reshape(x.shape)
