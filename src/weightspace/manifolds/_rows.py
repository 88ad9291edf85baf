"""Steps of vectors of one norm, chosen by layout: long rows in blocks that stay in cache, short ones by components.

A row is read from memory once a step: momentum, tangent part, norm, update and normalization are done block by block.
The new point itself is measured and normalized, so that no rounding adds up over steps, however long they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from weightspace.manifolds._moves import Motion, Moved, curvature_factor, move
from weightspace.manifolds._row_blocks import Sizes, needs_care, normalize, parts, tangent
from weightspace.manifolds._slices import MANY, own_factor, step_small
from weightspace.manifolds._small_vectors import ShortVectors

if TYPE_CHECKING:
    from weightspace.manifolds.base import Manifold

SHORT = 16  # numbers of a vector up to which components first is faster than rows


def step_vectors(manifold: Manifold, sizes: Sizes, x: torch.Tensor, d: torch.Tensor, motion: Motion) -> Moved:
    """The step of `weightspace.manifolds._moves.move` on spheres and products of spheres, in place.

    Args:
        manifold: Whose step it is: its own geometry serves what no fast way covers.
        sizes: Which vectors have which norm.
        x: Points `(*lead, n, p)`.
        d: What to descend against; momentum is accumulated into it.
        motion: Rate, step size, momentum.

    Cost: long rows on a CPU read and write memory as SGD with momentum does; a step size shared by the rows of a point
    reads `x` and `d` once more. Temporary memory: some blocks.
    """
    n, p = x.shape[-2:]
    count = x.numel() // max(1, n * p)
    length = sizes.length(x)
    if n * p <= 4 * SHORT and length <= SHORT and sizes.dims != (-1,) and count >= MANY:
        by_column = sizes.dims == (-2,)
        step = ShortVectors(sizes.radius, by_column, sizes.is_centered, motion.geodesic)
        return step_small(manifold, step, x, d, motion)
    if sizes.fits(x) and not motion.product:
        return _step_long_rows(manifold, sizes, x, d, motion)
    return move(manifold, x, d, motion)


def _step_long_rows(manifold: Manifold, sizes: Sizes, x: torch.Tensor, d: torch.Tensor, motion: Motion) -> Moved:
    against = d if d.is_contiguous() else d.contiguous()
    grad = None if motion.grad is None else motion.grad.contiguous()
    length = sizes.length(x)
    lead = x.shape[:-2]
    factor = None if motion.factor is None else motion.factor.expand(lead).reshape(-1)
    dense = replace(motion, grad=grad, factor=factor)
    rows = _Rows(sizes, dense, x.view(-1, length), against.view(-1, length), lead.numel())
    moved = rows.step()
    if rows.needs_care():
        x.copy_(manifold.project(x))
    if against is not d and grad is not None:
        d.copy_(against)
    if moved.squared is None or moved.factor is None:
        return Moved(None, motion.factor)
    return Moved(moved.squared.view(lead), moved.factor.view(lead))


@dataclass
class _Rows:
    """One step of contiguous rows `(count, length)`; `points` equal runs of rows share a step size."""

    sizes: Sizes
    motion: Motion
    x: torch.Tensor
    d: torch.Tensor
    points: int

    def __post_init__(self) -> None:
        count = len(self.x)
        vectors = self.motion.work.lend("rows", (4, count, 1), self.x)
        self._radii, self._norms, self._lengths, self._rates = vectors.unbind(0)
        self._radii.fill_(self.sizes.radius)

    def step(self) -> Moved:
        """Moves the rows."""
        motion = self.motion
        squared = factor = None
        if motion.step_size == "curvature" and motion.factor is None:
            squared = self.x.new_empty(self.points)
            factor = self.x.new_empty(self.points)
            if self.points != len(self.x):
                return self._step_shared(squared, factor)
        elif motion.factor is not None:
            self._rates.view(self.points, -1).copy_(motion.rate / motion.factor.view(-1, 1))
        for part in parts(self.x):
            x, d = self.x[part], self._momentum(part)
            v, _ = tangent(self.sizes, x, d, self._radii[part])
            if motion.keeps_tangent:
                d.copy_(v)
            if squared is not None and factor is not None:
                length = self._measured(v, part)
                torch.mul(length, length, out=squared[part].view(-1, 1))
                own_factor(squared[part], motion.distance_bound, factor[part])
                torch.div(motion.rate, factor[part].view(-1, 1), out=self._rates[part])
            elif motion.geodesic:
                self._measured(v, part)
            if motion.geodesic:
                self._turn(x, v, part, has_rates=motion.factor is not None or factor is not None)
            elif motion.factor is not None or factor is not None:
                x.addcmul_(v, self._rates[part], value=-1)
            else:
                x.add_(v, alpha=-motion.rate)
            normalize(self.sizes, x, self._norms[part])
        return Moved(squared, factor)

    def needs_care(self) -> bool:
        """True if a new point was too short or too long to be normalized by its plain sum of squares."""
        return needs_care(self.sizes, self._norms)

    def _momentum(self, part: slice) -> torch.Tensor:
        d, grad = self.d[part], self.motion.grad
        return d if grad is None else self.motion.add(d, grad.view(self.x.shape)[part])

    def _measured(self, v: torch.Tensor, part: slice) -> torch.Tensor:
        return torch.linalg.vector_norm(v, dim=1, keepdim=True, out=self._lengths[part])

    def _turn(self, x: torch.Tensor, v: torch.Tensor, part: slice, *, has_rates: bool) -> None:
        """The great circle; angles are bounded as in `great_circle`."""
        length, info = self._lengths[part], torch.finfo(x.dtype)
        rate = self._rates[part] if has_rates else self.motion.rate
        angle = (length * rate).div_(self.sizes.radius).clamp_(max=info.eps**-0.5)
        x.mul_(angle.cos())
        x.addcmul_(v, angle.sin_().mul_(self.sizes.radius).div_(length.clamp_(min=info.tiny)), value=-1)

    def _step_shared(self, squared: torch.Tensor, factor: torch.Tensor) -> Moved:
        """Rows of a point share the step size: their gradients are measured first, and the memory is read again."""
        motion, radius = self.motion, self.sizes.radius
        alongs: list[torch.Tensor] = []
        for part in parts(self.x):
            x, d = self.x[part], self._momentum(part)
            v, along = tangent(self.sizes, x, d, self._radii[part])
            self._measured(v, part)
            if motion.keeps_tangent:
                d.copy_(v)
                along = torch.zeros_like(along)
            alongs.append(along)
        torch.sum(self._lengths.view(self.points, -1).square(), 1, out=squared)
        factor.copy_(curvature_factor(squared, motion.distance_bound, 0.0))
        self._rates.view(self.points, -1).copy_((motion.rate / factor).view(-1, 1))
        for part, along in zip(parts(self.x), alongs, strict=True):
            x, d = self.x[part], self.d[part]
            # x + v for v = -rate (d - along x / r): two numbers a row, with x and d.
            of_x, of_d = self._coefficients(part)
            of_x.addcmul_(of_d, along, value=-1 / radius)
            x.mul_(of_x).addcmul_(d, of_d)
            normalize(self.sizes, x, self._norms[part])
        return Moved(squared, factor)

    def _coefficients(self, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """The new point, up to its size, as `a x + b v`."""
        if not self.motion.geodesic:
            return torch.ones_like(self._rates[part]), -self._rates[part]
        length, info, radius = self._lengths[part], torch.finfo(self.x.dtype), self.sizes.radius
        angle = (length * self._rates[part]).div_(radius).clamp_(max=info.eps**-0.5)
        return angle.cos(), angle.sin().mul_(-radius).div_(length.clamp(min=info.tiny))
