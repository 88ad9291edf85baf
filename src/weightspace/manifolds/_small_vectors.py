"""Steps of many short unit vectors by components: spatial slices on spheres, or the columns of spatial slices."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from weightspace.manifolds._moves import Motion
from weightspace.manifolds._slices import Block, root_
from weightspace.manifolds._unit import LENGTHS


@dataclass
class ShortVectors:
    """The step of points `(n, p)` that are one vector of norm `radius`, or whose columns are.

    Attributes:
        radius: The norm.
        by_column: Columns are vectors; R^2 of a point is the sum over its columns.
        is_centered: The entries of a vector sum to zero.
        is_geodesic: Follow the great circle.
    """

    radius: float = 1.0
    by_column: bool = False
    is_centered: bool = False
    is_geodesic: bool = False
    _scratch: Tensor = field(default_factory=lambda: torch.empty(0))
    _sums: Tensor = field(default_factory=lambda: torch.empty(0))

    def direction(self, block: Block, motion: Motion) -> None:
        """Makes `block.d` tangent."""
        self._scratch = self._vectors(block.scratch("vectors", block.x.shape[0] * block.x.shape[1], motion), block)
        self._sums = block.scratch("sums", 3 * self._scratch.shape[1], motion).view(3, *self._scratch.shape[1:])
        x, d, along = self._vectors(block.x, block), self._vectors(block.d, block), self._sums[0]
        if self.is_centered:
            _center(d, along)
        torch.mul(x, d, out=self._scratch)
        torch.sum(self._scratch, 0, out=along)
        along.div_(self.radius**2)
        d.addcmul_(x, along, value=-1)

    def squared(self, block: Block, out: Tensor) -> None:
        """Sums of squares over all entries of a point."""
        d = self._vectors(block.d, block)
        torch.mul(d, d, out=self._scratch)
        torch.sum(self._scratch.view(-1, out.numel()), 0, out=out)

    def advance(self, block: Block, motion: Motion, rate: float | Tensor) -> bool:
        """Adds, and normalizes what comes out."""
        x, d = self._vectors(block.x, block), self._vectors(block.d, block)
        size, other = self._sums[0], self._sums[1]
        if self.is_geodesic:
            length = self._norms(d, other)
            angle = torch.mul(length, rate, out=size).div_(self.radius).clamp_(max=torch.finfo(x.dtype).eps ** -0.5)
            x.mul_(torch.cos(angle, out=self._sums[2]))
            shortest = torch.finfo(x.dtype).tiny
            d.mul_(angle.sin_().mul_(-self.radius).div_(length.clamp_(min=shortest)))
            x.add_(d)
        elif isinstance(rate, Tensor):
            x.addcmul_(d, rate, value=-1)
        else:
            x.add_(d, alpha=-rate)
        if self.is_centered:
            _center(x, size)
        self._norms(x, size)
        shortest, longest = (float(v) for v in torch.aminmax(size))
        if not (shortest > LENGTHS[0] * self.radius and longest < LENGTHS[1] * self.radius):  # also NaN
            return False
        torch.mul(size.reciprocal_(), self.radius, out=size)
        x.mul_(size)
        block.put(block.x)
        return True

    def _vectors(self, t: Tensor, block: Block) -> Tensor:
        """`(length, vectors of a point, C)`."""
        n, p, count = block.x.shape
        return t.view(n, p, count) if self.by_column else t.view(n * p, 1, count)

    def _norms(self, vectors: Tensor, out: Tensor) -> Tensor:
        torch.mul(vectors, vectors, out=self._scratch)
        return root_(torch.sum(self._scratch, 0, out=out))


def _center(vectors: Tensor, scratch: Tensor) -> None:
    torch.sum(vectors, 0, out=scratch)
    vectors.sub_(scratch.div_(vectors.shape[0]))
