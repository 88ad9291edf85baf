"""Langevin steps on Stiefel in place, in p x p algebra; `point_step` is the reference.

A drift of time t from X along the tangent part of an ambient u, written for tall X (n, p), E = X^T X - I measured:

    M = X^T u,  W = u^T u,  S = sym M,  N = M - (I + E) S                  v = P_X u = u - X S,  N = X^T v
    F = E + t (N + N^T) + t^2 (W - Y - Y^T),  Y = S (M - (I + E) S / 2)      F = Q^T Q - I,  Q = X + t v
    L: F = b^T L + L b - L^2,  b = I + E + t N                             RATTLE, by `L <- L + residual / 2`
    w = u - X (S + L / t),  X' = X + t w                                   the step, *added*: rounded once
    v' = w - X' L / t                                                      the velocity, tangent at X'

v' and w differ by X' times a symmetric matrix, which the next projection at X' removes: so between two drifts of one
step w stands for v', and after them v' is formed once [derived]. E is measured at every step, so that errors of the
constraint end with it.

Cost of one drift, in units of n p^2: 2 (M), 1 to 2 (W), 1 to 2 (E), 2 (w), 2 (v'): 8 to 10; of BAOA with noise, whose
second drift measures no E and whose first forms no v': 13 to 16. `SubmanifoldSGD` takes 7 to 8.
"""

from __future__ import annotations

import torch

from weightspace.manifolds import Manifold, Stiefel
from weightspace.manifolds._flows import Solver
from weightspace.manifolds._stiefel_step import Rows
from weightspace.optim._langevin_pace import Pace
from weightspace.optim._langevin_steps import kicks

_CHECK_FROM, _CHECK_EVERY = 3, 3  # iterations of the solver between looks, where a look waits for the device
_LONGEST = 1.0  # t |u_i| beyond which F would lose digits to parts that cancel


def is_covered(m: Manifold, x: torch.Tensor, pace: Pace) -> bool:
    """Whether `stiefel_step` takes points `(*lead, n, p)`: matrices under RATTLE."""
    return isinstance(m, Stiefel) and min(x.shape[-2:]) > 1 and x.numel() > 0 and pace.is_rattle


def stiefel_step(  # noqa: PLR0917  # state, force, noise, numbers
    m: Manifold, x: torch.Tensor, v: torch.Tensor, g: torch.Tensor, noise: torch.Tensor | None, pace: Pace
) -> int:
    """The step of `point_step` in place, for what `is_covered`.

    Args:
        m: Stiefel; it answers for points that this cannot solve.
        x: Points `(*lead, n, p)`.
        v: Tangent velocities.
        g: Derivatives.
        noise: Standard normal numbers, or None.
        pace: The numbers of the step.

    Returns:
        How many points the solver failed for.
    """
    h, c, d = pace.h, pace.decay, pace.noise
    lead = x.shape[:-2]
    shape = (*((lead.numel(),) if lead.numel() > 1 else ()), *x.shape[-2:])
    at, u, g = (tensor.reshape(shape) for tensor in (x, v, g))
    drift = _Drift(m, Rows(is_wide=x.shape[-2] < x.shape[-1]), pace)
    if pace.scheme != "BAOA":
        u.mul_(c).add_(g, alpha=-h * kicks(pace))
        if noise is not None:
            u.add_(noise.reshape(shape), alpha=d)
        failed = drift(at, u, h)
    elif noise is None:
        failed = drift(at, u.add_(g, alpha=-h), h * (1 + c) / 2)
        u.mul_(c)
    else:
        failed = drift(at, u.add_(g, alpha=-h), h / 2, is_last=False)
        u.mul_(c).add_(noise.reshape(shape), alpha=d)
        failed += drift(at, u, h / 2, is_measured=failed > 0)
    for tensor, own in ((x, at), (v, u)):
        if tensor.data_ptr() != own.data_ptr():  # leading dimensions that cannot be viewed as one
            tensor.copy_(own.reshape(tensor.shape))
    return failed


class _Drift:
    """Drifts of points `(n, p)` or `(batch, n, p)`."""

    def __init__(self, m: Manifold, rows: Rows, pace: Pace) -> None:
        self._m, self._rows, self._pace = m, rows, pace

    def __call__(
        self, x: torch.Tensor, u: torch.Tensor, t: float, *, is_measured: bool = True, is_last: bool = True
    ) -> int:
        """Moves `x`; `u` becomes the velocity, up to `x` times a symmetric matrix if others follow."""
        rows = self._rows
        product = rows.product(x, u)
        normal = (product + product.mT) / 2
        square = rows.gram_excess(u)
        square.diagonal(dim1=-2, dim2=-1).add_(1.0)
        length = square.diagonal(dim1=-2, dim2=-1).amax()
        if is_measured:
            excess = rows.gram_excess(x)
            inner = torch.matmul(excess, normal).add_(normal)
        else:
            excess, inner = None, normal
        along = product - inner
        half = normal @ (product - inner / 2)
        square.sub_(half).sub_(half.mT)
        residual = (along + along.mT).mul_(t).add_(square, alpha=t * t)
        overlap = along.mul_(t)
        if excess is not None:
            residual.add_(excess)
            overlap.add_(excess)
        overlap.diagonal(dim1=-2, dim2=-1).add_(1.0)
        multiplier, solved = solve(residual, overlap, self._pace.solver)
        if not bool(solved & (length * t * t <= _LONGEST)):
            return self._refer(x, u, t)
        self._subtract(u, normal.add_(multiplier, alpha=1 / t), x)
        x.add_(u, alpha=t)
        if is_last:
            self._subtract(u, multiplier.div_(t), x)
        return 0

    def _subtract(self, u: torch.Tensor, matrix: torch.Tensor, x: torch.Tensor) -> None:
        """`u - x matrix` in place, for a symmetric matrix."""
        self._rows.remainder(u, matrix, x, u)

    def _refer(self, x: torch.Tensor, u: torch.Tensor, t: float) -> int:
        """The reference's drift: points that fail go in shorter steps."""
        flow = self._m.flow(x, self._m.project_tangent(x, u), t, self._pace.flow, self._pace.solver)
        x.copy_(flow.point)
        u.copy_(flow.velocity)
        return flow.fallbacks


def solve(excess: torch.Tensor, overlap: torch.Tensor, solver: Solver) -> tuple[torch.Tensor, torch.Tensor]:
    """L of `excess = overlap^T L + L overlap - L^2`, and whether it was found for all points, as a tensor.

    The residual is looked at on the host at every iteration on a CPU, every third one elsewhere, where looking waits;
    what was found is improved by the residual that was last seen.
    """
    tolerance = solver.tolerance_for(excess.dtype)
    multiplier = excess / 2
    solved = torch.zeros((), dtype=torch.bool, device=excess.device)
    is_near = excess.device.type == "cpu"
    for k in range(1, solver.iterations + 1):
        product = multiplier @ (2 * overlap - multiplier)
        residual = torch.sub(excess, product + product.mT, alpha=0.5)
        is_seen = is_near or k == solver.iterations or (k >= _CHECK_FROM and k % _CHECK_EVERY == 0)
        if is_seen:
            solved = residual.abs().amax() <= tolerance
        multiplier.add_(residual, alpha=0.5)
        if is_seen and bool(solved):
            break
    return multiplier, solved
