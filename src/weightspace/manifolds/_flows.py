"""Free motion: where a point and its velocity are after a time, when nothing but the constraint acts.

The exact answer is the geodesic, and its velocity at the end. On matrices it needs matrix exponentials; RATTLE is the
cheaper answer of second order, reversible and volume preserving, so that samplers built on it have no other bias than
that of their time step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from weightspace.manifolds._geodesics import as_given, stiefel_geodesic_flow, tall
from weightspace.manifolds._unit import Dims, norm_of

FlowMethod = Literal["auto", "geodesic", "rattle"]
FLOW_METHODS: tuple[FlowMethod, ...] = ("auto", "geodesic", "rattle")
_MOST_HALVINGS = 4


@dataclass(frozen=True)
class Solver:
    """How the equations of RATTLE are solved.

    Attributes:
        tolerance: The largest residual of the constraint that counts as solved; None: rounding of the dtype.
        iterations: After so many without success the time step is halved, up to four times; then the geodesic is taken.
    """

    tolerance: float | None = None
    iterations: int = 30

    def tolerance_for(self, dtype: torch.dtype) -> float:
        """The tolerance in a dtype.

        Example:
            >>> Solver().tolerance_for(torch.float64) < 1e-12 < Solver().tolerance_for(torch.float32) < 1e-5
            True
        """
        return max(self.tolerance or 0.0, 16 * torch.finfo(dtype).eps)


SOLVER = Solver()


@dataclass(frozen=True)
class Flow:
    """Where free motion led.

    Attributes:
        point: `(..., n, p)`.
        velocity: Tangent at `point`, of the speed it had.
        fallbacks: Points for which the solver failed and shorter steps, or the exact geodesic, were taken.
    """

    point: torch.Tensor
    velocity: torch.Tensor
    fallbacks: int = 0


def great_circle_flow(x: torch.Tensor, v: torch.Tensor, t: float, radius: float, dims: Dims) -> Flow:
    """Exact motion on spheres along `dims`; speeds are kept to rounding.

    Example:
        >>> flow = great_circle_flow(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), torch.pi / 2, 2.0, (-1,))
        >>> flow.point.round(), flow.velocity.round()  # a quarter turn at angular velocity 1
        (tensor([[-0., 2.]]), tensor([[-2., -0.]]))
    """
    speed = norm_of(v, dims)
    angle = speed * (t / radius)
    cosine, sine = angle.cos(), angle.sin()
    along = sine * (radius / speed.masked_fill(speed == 0, 1.0))
    y = torch.addcmul(x * cosine, v, along)
    y = y * (radius / norm_of(y, dims))
    w = torch.addcmul(v * cosine, x, speed * sine, value=-1.0 / radius)
    return Flow(y, w - (y * w).sum(dims, keepdim=True) / radius**2 * y)


def stiefel_flow(x: torch.Tensor, v: torch.Tensor, t: float, solver: Solver) -> Flow:
    """RATTLE on matrices with orthonormal columns (rows, if wide), in p x p algebra.

        X' = Q - X L,   Q = X + t V,   L symmetric such that X'^T X' = I;      V' = V - (X + X') L / t

    L solves `F = Q^T Q - I - Q^T X L - L X^T Q + L^2 = 0`, by `L <- L + F / 2`, which converges for |t V| below about
    1: the iteration `Q <- Q - X (Q^T Q - I) / 2`, carried out on L. Q^T Q and X^T Q are measured, so an error of the
    constraint does not grow from step to step. Source: Andersen 1983 (RATTLE); the p x p form and the closed form of V'
    are derived.

    Cost: `8 n p^2` flops and some `6 p^3` an iteration; three or four iterations at thermal speeds.
    """
    return with_fallbacks(x, v, t, solver, _solve_stiefel, exact_stiefel_flow)


def _solve_stiefel(
    x: torch.Tensor, v: torch.Tensor, t: float, solver: Solver
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    at, along = tall(x), tall(v)
    q = at + t * along
    b = at.mT @ q
    gram = q.mT @ q
    gram.diagonal(dim1=-2, dim2=-1).sub_(1.0)
    multiplier, solved = solve_multiplier(gram, b, solver)
    y = q - at @ multiplier
    w = along - ((at + y) @ multiplier) / t
    return as_given(y, x), as_given(w, x), solved


def solve_multiplier(excess: torch.Tensor, overlap: torch.Tensor, solver: Solver) -> tuple[torch.Tensor, torch.Tensor]:
    """L of `excess - overlap^T L - L overlap + L^2 = 0`, and which points it was found for.

    Args:
        excess: `Q^T Q - I`, `(..., p, p)`.
        overlap: `X^T Q`, near the identity.
        solver: Tolerance and most iterations.
    """
    tolerance = solver.tolerance_for(excess.dtype)
    multiplier = excess / 2
    solved = torch.zeros(excess.shape[:-2], dtype=torch.bool, device=excess.device)
    for _ in range(solver.iterations):
        # L b + (L b)^T - L^2 as one product: L (2 b - L), symmetrized
        product = multiplier @ (2 * overlap - multiplier)
        residual = excess - (product + product.mT) / 2
        solved = residual.abs().amax((-2, -1)) <= tolerance
        if bool(solved.all()):
            break
        multiplier = multiplier + residual / 2
    return multiplier, solved


def exact_stiefel_flow(x: torch.Tensor, v: torch.Tensor, t: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The geodesic of the embedded metric, and its velocity, of tall or wide points."""
    y, w = stiefel_geodesic_flow(tall(x), tall(v), t)
    return as_given(y, x), as_given(w, x)


Solve = Callable[[torch.Tensor, torch.Tensor, float, Solver], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
Exact = Callable[[torch.Tensor, torch.Tensor, float], tuple[torch.Tensor, torch.Tensor]]


def with_fallbacks(  # noqa: PLR0917  # of one step, in the order of every other function here
    x: torch.Tensor, v: torch.Tensor, t: float, solver: Solver, solve: Solve, exact: Exact, halvings: int = 0
) -> Flow:
    """A solved step; points for which the solver failed go in two steps of half the time, at last exactly."""
    y, w, solved = solve(x, v, t, solver)
    if bool(solved.all()):
        return Flow(y, w)
    hard = ~solved
    count = int(hard.sum())
    if halvings == _MOST_HALVINGS:
        end, velocity = exact(x[hard], v[hard], t)
    else:
        half = with_fallbacks(x[hard], v[hard], t / 2, solver, solve, exact, halvings + 1)
        half = with_fallbacks(half.point, half.velocity, t / 2, solver, solve, exact, halvings + 1)
        end, velocity = half.point, half.velocity
    y[hard], w[hard] = end, velocity
    return Flow(y, w, count)
