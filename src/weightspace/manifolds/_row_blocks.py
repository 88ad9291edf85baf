"""Contiguous vectors of one norm, as rows, in blocks that stay in cache: what the steps of `_rows` and others share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from weightspace.manifolds._free_steps import Adaptive, FreeStep
from weightspace.manifolds._unit import LENGTHS, Dims

if TYPE_CHECKING:
    from weightspace.manifolds.base import Manifold

# numbers of a block: x, d, gradient and tangent part take 8 MiB in float32, a share of a last-level cache
BLOCK = 1 << 19
LONG = 1 << 15  # numbers of a vector from which on one core a row, and float32 sums without a cascade, are too little


@dataclass(frozen=True)
class Sizes:
    """Which vectors of points `(n, p)` have one norm.

    Attributes:
        radius: The norm.
        dims: `(-2, -1)`: a point is one vector; `(-1,)`: its rows are; `(-2,)`: its columns are.
        is_centered: The entries of a vector sum to zero.
    """

    radius: float
    dims: Dims = (-2, -1)
    is_centered: bool = False

    def length(self, x: torch.Tensor) -> int:
        """Numbers of one vector."""
        return math.prod(x.shape[k] for k in self.dims)

    def fits(self, *tensors: torch.Tensor) -> bool:
        """Whether the vectors of all tensors are rows of contiguous memory that the fast ways serve."""
        x = tensors[0]
        if x.device.type != "cpu" or self.dims == (-2,) or not 1 < self.length(x) < LONG or x.numel() == 0:
            return False
        return all(t.is_contiguous() and t.dtype == x.dtype for t in tensors)


def parts(rows: torch.Tensor) -> Iterator[slice]:
    """Runs of rows that make up a block."""
    count, step = len(rows), max(1, BLOCK // rows.shape[1])
    return (slice(i, min(i + step, count)) for i in range(0, count, step))


def tangent(sizes: Sizes, x: torch.Tensor, d: torch.Tensor, radii: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`v = d - <x, d> x / r^2`, and `<x, d> / r`, in one pass over each row; `radii` `(rows, 1)` hold r.

    It is what differentiates the weight normalization `r x / |x|`; torch has that as one kernel.
    """
    v, along = torch.ops.aten._weight_norm_interface_backward(d, x, radii, radii, 0)  # noqa: SLF001
    if sizes.is_centered:
        v.sub_(v.mean(1, keepdim=True))
    return v, along


def normalize(sizes: Sizes, x: torch.Tensor, norms: torch.Tensor) -> None:
    """Gives rows their norm, in place; what they had goes to `norms` `(rows, 1)`: see `needs_care`."""
    if sizes.is_centered:
        x.sub_(x.mean(1, keepdim=True))
    torch.linalg.vector_norm(x, dim=1, keepdim=True, out=norms)
    info = torch.finfo(x.dtype)
    # Infinite norms of finite rows: the direction is kept for who takes care.
    norms.clamp_(min=info.tiny, max=info.max)
    x.mul_(sizes.radius / norms)


def needs_care(sizes: Sizes, norms: torch.Tensor) -> bool:
    """True if a row was too short or too long to be normalized by its plain sum of squares."""
    shortest, longest = (float(v) for v in torch.aminmax(norms))
    return shortest <= LENGTHS[0] * sizes.radius or longest >= LENGTHS[1] * sizes.radius


@dataclass
class FreeRows:
    """`weightspace.manifolds._free_steps` on rows: each is read from memory once, or twice if points share a scale.

    Attributes:
        manifold: Its own geometry takes care of rows too short or too long.
        sizes: Which vectors have which norm.
        x: Points; contiguous, as all others given.
    """

    manifold: Manifold
    sizes: Sizes
    x: torch.Tensor

    def gradient_into(self, g: torch.Tensor, out: torch.Tensor) -> None:
        """Tangent parts of `g`."""
        x, g, out = self._rows(self.x, g, out)
        radii = self._radii(x)
        for part in parts(x):
            out[part] = tangent(self.sizes, x[part], g[part], radii[part])[0]

    def follow(self, y: torch.Tensor, free: FreeStep) -> int:
        """Normalizes where the tangent part of `y - x` leads, and carries momenta there."""
        x, y, *momenta = self._rows(self.x, y, *free.momenta)
        radii = self._radii(x)
        for part in parts(x):
            start, end, radius = x[part], y[part], radii[part]
            if not free.is_tangent:
                v, _ = tangent(self.sizes, start, end.sub_(start), radius)
                torch.add(start, v, out=end)
            self._put_on(end)
            for m in momenta:
                u = m[part] if free.has_tangent_momenta else tangent(self.sizes, start, m[part], radius)[0]
                m[part] = tangent(self.sizes, end, u, radius)[0]
        return 0

    def adapt(self, m: torch.Tensor, g: torch.Tensor, adaptive: Adaptive) -> int:
        """An adaptive step; rows of one point share their second moment, and are then read twice."""
        dim = max(1, self.manifold.dim(*self.x.shape[-2:]))
        points = adaptive.s.numel()
        x, m, g = self._rows(self.x, m, g)
        radii = self._radii(x)
        if points == len(x):
            for part in parts(x):
                squares = self._accumulate(x[part], m[part], g[part], radii[part], adaptive.beta1)
                rates = _part_of(adaptive, part).rates(squares.view(-1) / dim)
                self._advance(x[part], m[part], radii[part], rates.view(-1, 1))
            return 0
        squares = x.new_empty(len(x), 1)
        for part in parts(x):
            squares[part] = self._accumulate(x[part], m[part], g[part], radii[part], adaptive.beta1)
        total = squares.view(points, -1).sum(1).view(adaptive.s.shape[:-2])
        rates = adaptive.rates(total / dim).view(points, 1).expand(points, len(x) // points).reshape(-1, 1)
        for part in parts(x):
            self._advance(x[part], m[part], radii[part], rates[part])
        return 0

    def _accumulate(
        self, x: torch.Tensor, m: torch.Tensor, g: torch.Tensor, radii: torch.Tensor, beta1: float
    ) -> torch.Tensor:
        """Takes gradients into the first moments; returns the squares of their norms `(rows, 1)`."""
        gradient, _ = tangent(self.sizes, x, g, radii)
        m.lerp_(gradient, 1 - beta1)
        return torch.linalg.vector_norm(gradient, dim=1, keepdim=True).square_()

    def _advance(self, x: torch.Tensor, m: torch.Tensor, radii: torch.Tensor, rates: torch.Tensor) -> None:
        x.addcmul_(m, rates)
        self._put_on(x)
        m.copy_(tangent(self.sizes, x, m, radii)[0])

    def _put_on(self, x: torch.Tensor) -> None:
        norms = x.new_empty(len(x), 1)
        normalize(self.sizes, x, norms)
        if needs_care(self.sizes, norms):
            x.copy_(self.manifold.project(x.view(-1, 1, x.shape[1])).view(x.shape))

    def _rows(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        length = self.sizes.length(self.x)
        return [t.view(-1, length) for t in tensors]

    def _radii(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.new_full((len(rows), 1), self.sizes.radius)


def free_rows(manifold: Manifold, x: torch.Tensor, *others: torch.Tensor) -> FreeRows | None:
    """The fast way of free steps, where there is one."""
    sizes = manifold.vectors(x.shape[-2], x.shape[-1])
    return FreeRows(manifold, sizes, x) if sizes is not None and sizes.fits(x, *others) else None


def _part_of(adaptive: Adaptive, part: slice) -> Adaptive:
    """The same for some of the points, in the memory of all."""
    largest = None if adaptive.largest is None else adaptive.largest.view(-1, 1, 1)[part]
    return replace(adaptive, s=adaptive.s.view(-1, 1, 1)[part], largest=largest)
