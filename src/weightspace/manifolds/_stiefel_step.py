"""A step on Stiefel in place, in economy algebra, and steps that leave the manifold by no more than a bound.

Written for orthonormal rows Y (s, m), s <= m; the points of a tall X are Y = X^T. With D the momentum, a = rate / r:

    P = D Y^T                                    2 m s^2 flops
    V = D - A Y                                  2 m s^2     A = sym(P) embedded, P^T canonical
    Y <- Y - a V
    E = Y Y^T - I                                1.3 m s^2   symmetric: blocks above the diagonal are not computed
    Y <- Y + ((I + E)^(-1/2) - I) Y              2 m s^2     polar; QR: (L^-1 - I) Y, L triangular: 1.3 m s^2

The corrections are *added*: an entry of Y is rounded twice a step, not once for each of the s terms of a product.

Steps without the last two lines [derived]. With F = Y Y^T - I before a step, exactly

    F <- F + a (A F + F A^T) + a^2 V V^T,   so   |F| <= |F| (1 + 2 a |A|) + a^2 |V|^2,

because sym(V Y^T) = sym(P - A - A F) and sym(P - A) = 0 in both metrics. The bound, to which rounding is added, is
carried from step to step. When it exceeds what is allowed, E is measured: if it is below half of that, the step stays
as it is and the measured norm is carried; else it is corrected. A singular value's error |sigma - 1| is at most t if
|F| <= t (2 - t).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from weightspace.manifolds._moves import Motion, Moved
from weightspace.manifolds._polar import NEAR, inverse_root, lower_inverse, polar, qr_positive

if TYPE_CHECKING:
    from weightspace.manifolds.stiefel import Stiefel

BLOCK = 64  # smallest side of the blocks of a symmetric or triangular product; smaller ones run below a CPU's full rate
SAFE = 0.5  # |Y Y^T - I| that `every=k` may reach; farther out, a correction would need the slow path


def stiefel_move(manifold: Stiefel, x: torch.Tensor, d: torch.Tensor, motion: Motion) -> Moved | None:
    """The step of `weightspace.manifolds._moves.move`; None for what only the reference does (geodesics).

    Args:
        manifold: Gives metric, retraction, `tolerance` and `every`.
        x: Points `(*lead, n, p)`, overwritten.
        d: Momentum or direction; overwritten where `motion` accumulates into it.
        motion: Rate, step size, momentum; `slack` of the step before, if `tolerance` or `every` is set.

    Returns:
        Squared gradient norms, r, fallbacks, and the new `slack`. A NaN in `x` or `d` gives NaN.

    Cost: see the module; `4 m s^2` flops for a step without correction. Temporary memory: one more `x`, some `(s, s)`.
    """
    if motion.geodesic or x.numel() == 0:
        return None
    d = motion.accumulate(d)
    lead = x.shape[:-2]
    at = x.reshape(-1, *x.shape[-2:]) if lead.numel() > 1 else x.reshape(x.shape[-2:])
    rows = Rows(is_wide=x.shape[-2] < x.shape[-1])
    step = motion.work.lend("stiefel", tuple(at.shape), at)
    mixing = gradient(manifold, rows, at, d.reshape(at.shape), step)
    if motion.keeps_tangent:
        d.copy_(step.reshape(d.shape))
    squared, factor = None, motion.factor
    if motion.step_size == "curvature" and factor is None:
        squared = squared_norm(manifold, mixing, step).reshape(lead)
        factor = motion.factors(squared, manifold.lower_curvature(*x.shape[-2:]))
    rate = _rate(motion.rate, factor, lead)
    if isinstance(rate, torch.Tensor):
        at.addcmul_(step, rate, value=-1)
    else:
        at.add_(step, alpha=-rate)
    moved = Moved(squared, factor)
    correction = Correction(manifold, rows, at, step)
    if manifold.tolerance is None and manifold.every == 1:
        moved.fallbacks = correction.retract(rows.gram_excess(at))
    else:
        slack = Slack.read(motion.slack).grown(mixing, step, rate)
        slack, moved.fallbacks = correction.retract_if_due(slack)
        moved.slack = slack.written()
    if at.data_ptr() != x.data_ptr():  # leading dimensions that cannot be viewed as one
        x.copy_(at.reshape(x.shape))
    return moved


@dataclass(frozen=True)
class Rows:
    """Products of points `(n, p)` or `(batch, n, p)`, written for orthonormal rows; tall points are transposed."""

    is_wide: bool

    def product(self, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """`U V^T`, `(..., s, s)`."""
        return u @ v.mT if self.is_wide else u.mT @ v

    def mixed(self, matrix: torch.Tensor, u: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """`M U` into `out`."""
        return torch.matmul(matrix, u, out=out) if self.is_wide else torch.matmul(u, matrix.mT, out=out)

    def remainder(self, d: torch.Tensor, matrix: torch.Tensor, u: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """`D - M U` into `out`."""
        left, right = (matrix, u) if self.is_wide else (u, matrix.mT)
        add = torch.addmm if d.ndim == 2 else torch.baddbmm
        return add(d, left, right, alpha=-1, out=out)

    def part(self, u: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Some of the rows of one point."""
        return u[start:stop] if self.is_wide else u[:, start:stop]

    def gram_excess(self, u: torch.Tensor) -> torch.Tensor:
        """`U U^T - I`."""
        if _is_split(u, self.size(u)):
            result = u.new_empty(self.size(u), self.size(u))
            self._gram(u, result)
        else:
            result = self.product(u, u)
        result.diagonal(dim1=-2, dim2=-1).sub_(1)
        return result

    def size(self, u: torch.Tensor) -> int:
        """s."""
        return u.shape[-2] if self.is_wide else u.shape[-1]

    def _gram(self, u: torch.Tensor, out: torch.Tensor) -> None:
        size = len(out)
        if size < 2 * BLOCK:
            torch.mm(*((u, u.mT) if self.is_wide else (u.mT, u)), out=out)
            return
        half = size // 2
        upper, lower = self.part(u, 0, half), self.part(u, half, size)
        self._gram(upper, out[:half, :half])
        self._gram(lower, out[half:, half:])
        torch.mm(*((lower, upper.mT) if self.is_wide else (lower.mT, upper)), out=out[half:, :half])
        out[:half, half:].copy_(out[half:, :half].mT)

    def lower_mixed(self, matrix: torch.Tensor, u: torch.Tensor, out: torch.Tensor) -> None:
        """`L U` into `out` for a lower triangular matrix."""
        size = self.size(u)
        if size < 2 * BLOCK or not _is_split(u, size):
            self.mixed(matrix, u, out)
            return
        half = size // 2
        upper, lower = self.part(u, 0, half), self.part(u, half, size)
        self.lower_mixed(matrix[:half, :half], upper, self.part(out, 0, half))
        self.lower_mixed(matrix[half:, half:], lower, self.part(out, half, size))
        corner = matrix[half:, :half]
        self.part(out, half, size).addmm_(*((corner, upper) if self.is_wide else (upper, corner.mT)))


def _is_split(u: torch.Tensor, size: int) -> bool:
    # On an accelerator a launch costs more than the flops saved.
    return u.ndim == 2 and u.device.type == "cpu" and size >= 2 * BLOCK


def gradient(manifold: Stiefel, rows: Rows, x: torch.Tensor, d: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Writes V into `out`; returns A of V = D - A Y."""
    product = rows.product(d, x)
    mixing = (product + product.mT).mul_(0.5) if manifold.metric == "embedded" else product.mT
    rows.remainder(d, mixing, x, out)
    return mixing


def squared_norm(manifold: Stiefel, mixing: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Squared norm of V in the metric; canonical: |V|^2 - |V Y^T|^2 / 2 with V Y^T = P - P^T."""
    squared = torch.linalg.matrix_norm(v).square()
    if manifold.metric == "canonical":
        squared = squared - torch.linalg.matrix_norm(mixing - mixing.mT).square() / 2
    return squared


def _rate(rate: float, factor: torch.Tensor | None, lead: torch.Size) -> float | torch.Tensor:
    if factor is None:
        return float(rate)
    if lead.numel() == 1:
        return rate / float(factor)
    return (rate / factor).expand(lead).reshape(-1, 1, 1)


@dataclass(frozen=True)
class Slack:
    """What is known of `|Y Y^T - I|` between corrections.

    Attributes:
        bound: A bound on its Frobenius norm for every point of a call; infinite if nothing is known.
        age: Steps since the last correction.
    """

    bound: float
    age: int

    @staticmethod
    def read(slack: torch.Tensor | None) -> Slack:
        """From `Motion.slack`."""
        if slack is None:
            return Slack(float("inf"), 0)
        bound, age = slack.tolist()
        return Slack(bound, int(age))

    def written(self) -> torch.Tensor:
        """For `Moved.slack`; the bound is rounded up, for which 2^-22 is more than enough."""
        return torch.tensor([self.bound * (1 + 2**-22), self.age], dtype=torch.float32)

    def grown(self, mixing: torch.Tensor, v: torch.Tensor, rate: float | torch.Tensor) -> Slack:
        """After a step along V with mixing A: the bound of the module, and rounding."""
        along = torch.linalg.matrix_norm(mixing) * _flat(rate)
        length = torch.linalg.matrix_norm(v) * _flat(rate)
        bound = self.bound * (1 + 2 * along) + length.square() + rounding(mixing) * (1 + along + length)
        return Slack(float(bound.amax()), self.age + 1)


def rounding(small: torch.Tensor) -> float:
    """What rounding adds to `|Y Y^T - I|` in a step, or to its measurement, for `(..., s, s)`: `4 eps sqrt(s)`.

    Rounded entries of s unit rows change it by at most `eps sqrt(s)`; a step rounds twice, and a product adds its own.
    """
    return 4 * torch.finfo(small.dtype).eps * small.shape[-1] ** 0.5


def _flat(rate: float | torch.Tensor) -> float | torch.Tensor:
    return rate.flatten().abs() if isinstance(rate, torch.Tensor) else abs(rate)


@dataclass(frozen=True)
class Correction:
    """Brings points back, in place.

    Attributes:
        manifold: Says how and when.
        rows: Products.
        x: The points.
        buffer: As large; overwritten.
    """

    manifold: Stiefel
    rows: Rows
    x: torch.Tensor
    buffer: torch.Tensor

    def retract(self, excess: torch.Tensor) -> int:
        """Retracts points whose `Y Y^T - I` is `excess`; returns how many were too far for the fast way."""
        is_polar = self.manifold.retraction == "polar"
        norm = float(torch.linalg.matrix_norm(excess).amax())
        if not norm <= NEAR:  # also NaN
            result, count = (polar if is_polar else qr_positive)(self.x)
            self.x.copy_(result)
            return count
        if is_polar:
            self.rows.mixed(inverse_root(excess, norm), self.x, self.buffer)
        else:
            self.rows.lower_mixed(lower_inverse(excess, norm), self.x, self.buffer)
        self.x.add_(self.buffer)
        return 0

    def retract_if_due(self, slack: Slack) -> tuple[Slack, int]:
        """Retracts when `every` or `tolerance` ask for it; returns what is known afterwards, and the fallbacks."""
        tolerance = self.manifold.tolerance
        limit = SAFE if tolerance is None else tolerance * (2 - tolerance)
        is_due = self.manifold.every > 1 and slack.age >= self.manifold.every
        if slack.bound <= limit and not is_due:
            return slack, 0
        excess = self.rows.gram_excess(self.x)
        measured = float(torch.linalg.matrix_norm(excess).amax()) + rounding(excess)
        if measured <= limit / 2 and not is_due:
            return Slack(measured, slack.age), 0
        fallbacks = self.retract(excess)
        return Slack(rounding(excess), 0), fallbacks
