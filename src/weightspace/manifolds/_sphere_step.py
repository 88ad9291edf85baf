"""A step on spheres and products of spheres, in place, block by block.

For every vector x of norm r, with D the momentum and a = rate / r(R):

    D <- decay D + gain G
    V = D - <X, D> X / r^2
    X <- X - a V,   then X <- r X / |X|          measured anew: rounding of one step never enters the next

A block of rows stays in a core's cache from the first line to the last, so that the memory is passed over once: read G,
D and X, write D and X, as SGD with momentum does. With the curvature step size of a product that spans several blocks
it is passed over twice. Sums over short vectors (slices of nine numbers) are products with a matrix of zeros and ones:
reductions of so few numbers cost five times as much.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from weightspace.manifolds._moves import Motion, Moved
from weightspace.manifolds._unit import Dims, great_circle, unit

BLOCK = 1 << 17  # numbers a thread: a block of X, D, G and one buffer fit into two megabytes in float32
SHORT = 32  # below that many numbers, sums are matrix products
_LARGEST_COLUMNS = 256  # numbers of a point whose columns are summed by a matrix product


def sphere_move(radius: float, dims: Dims, x: torch.Tensor, d: torch.Tensor, motion: Motion) -> Moved:
    """The step of `weightspace.manifolds._moves.move` for points whose vectors along `dims` have norm `radius`.

    Cost: 10 N numbers read or written, of which 5 N in memory and the rest in cache (CPU); 3 blocks temporarily. Other
    devices and layouts: some passes over the memory and `2 N` temporary numbers.
    """
    tensors = [x, d] if motion.grad is None else [x, d, motion.grad]
    rows = Rows.of(x, dims)
    if rows is None or x.numel() == 0 or not all(t.is_contiguous() and t.device.type == "cpu" for t in tensors):
        return _plain(radius, dims, x, d, motion)
    return _Step(radius, rows, x, d, motion).run()


def _plain(radius: float, dims: Dims, x: torch.Tensor, d: torch.Tensor, motion: Motion) -> Moved:
    d = motion.accumulate(d)
    v = d - (x * d).sum(dims, keepdim=True).div_(radius**2) * x
    squared = None
    factor = motion.factor
    if motion.step_size == "curvature" and factor is None:
        squared = v.square().sum((-2, -1))
        factor = motion.factors(squared, 0.0)
    step = v.mul_(-motion.rate if factor is None else (-motion.rate / factor)[..., None, None])
    if motion.geodesic:
        x.copy_(great_circle(x, step, radius, dims))
    else:
        x.copy_(unit(x + step, dims)).mul_(radius)
    return Moved(squared, factor)


@dataclass(frozen=True)
class Rows:
    """Points as rows of a matrix, with one or several vectors in a row.

    Attributes:
        length: Numbers of a row.
        vectors: Vectors of a row: more than one for columns, whose numbers are interleaved.
        per_point: Rows of a point.
    """

    length: int
    vectors: int
    per_point: int

    @staticmethod
    def of(x: torch.Tensor, dims: Dims) -> Rows | None:
        """How vectors along `dims` of points `(..., n, p)` lie in rows; None for long columns."""
        n, p = x.shape[-2:]
        if dims == (-2,):
            return Rows(n * p, p, 1) if n * p <= _LARGEST_COLUMNS else None
        return Rows(p, 1, n) if dims == (-1,) else Rows(n * p, 1, 1)

    @property
    def sums_by_product(self) -> bool:
        """True for short rows and for interleaved vectors."""
        return self.length < SHORT or self.vectors > 1

    def members(self, like: torch.Tensor) -> torch.Tensor:
        """Which number of a row belongs to which vector: zeros and ones `(length, vectors)`."""
        eye = torch.eye(self.vectors, dtype=like.dtype, device=like.device)
        return eye.repeat(self.length // self.vectors, 1)


class _Step:
    """One step: what its two halves, gradient and update, share."""

    def __init__(self, radius: float, rows: Rows, x: torch.Tensor, d: torch.Tensor, motion: Motion) -> None:
        self.radius, self.rows, self.motion = radius, rows, motion
        self.lead = x.shape[:-2]
        self.x, self.d = x.view(-1, rows.length), d.view(-1, rows.length)
        self.grad = None if motion.grad is None else motion.grad.view(-1, rows.length)
        self.step = min(len(self.x), max(1, BLOCK * torch.get_num_threads() // rows.length))
        self.buffer = motion.work.lend("sphere", (self.step, rows.length), x)
        self.members = motion.work.constant(f"members {rows}", x, lambda: rows.members(x))

    def run(self) -> Moved:
        """All blocks."""
        motion, rows = self.motion, self.rows
        if motion.step_size == "plain" or motion.factor is not None:
            rates = None if motion.factor is None else self._by_row(motion.rate / motion.factor)
            for block in self._blocks():
                v, _ = self._gradient(block)
                self._update(block, v, motion.rate if rates is None else rates[block])
            return Moved(None, motion.factor)
        squared = self.x.new_empty(len(self.x))
        if not motion.product and rows.per_point == 1:
            factor = torch.empty_like(squared)
            for block in self._blocks():
                v, _ = self._gradient(block)
                squared[block] = self._squared(v)
                found = motion.factors(squared[block], 0.0)
                factor[block] = found if found is not None else 1.0
                self._update(block, v, (motion.rate / factor[block])[:, None])
            return Moved(squared.view(self.lead), factor.view(self.lead))
        along: list[torch.Tensor] = []
        for block in self._blocks():
            v, found = self._gradient(block)
            along.append(found)
            squared[block] = self._squared(v)
        of_points = squared.view(*self.lead, -1).sum(-1)
        shared = motion.factors(of_points, 0.0)
        rates = self._by_row(motion.rate / shared) if shared is not None else None
        for block, found in zip(self._blocks(), along, strict=True):
            self._update(block, self._tangent(block, found), motion.rate if rates is None else rates[block])
        return Moved(of_points, shared)

    def _blocks(self) -> Iterator[slice]:
        for start in range(0, len(self.x), self.step):
            yield slice(start, min(start + self.step, len(self.x)))

    def _by_row(self, rate: torch.Tensor) -> torch.Tensor:
        """Rates of points, for each of their rows `(rows, 1)`."""
        return rate.expand(self.lead).reshape(-1, 1).expand(-1, self.rows.per_point).reshape(-1, 1)

    def _sum(self, products: torch.Tensor) -> torch.Tensor:
        """Sums over each vector `(rows, vectors)`."""
        return products @ self.members if self.rows.sums_by_product else products.sum(-1, keepdim=True)

    def _spread(self, values: torch.Tensor) -> torch.Tensor:
        """Values of vectors, for each of their numbers."""
        return values @ self.members.mT if self.rows.sums_by_product else values

    def _squared(self, v: torch.Tensor) -> torch.Tensor:
        return torch.linalg.vector_norm(v, dim=-1).square() if not self.rows.sums_by_product else v.square().sum(-1)

    def _gradient(self, block: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Momentum, then V in the buffer, and `<X, D> / r^2`."""
        d = self.d[block]
        if self.grad is not None and self.motion.gain == 1:  # one pass instead of two
            torch.add(self.grad[block], d, alpha=self.motion.decay, out=d)
        elif self.grad is not None:
            d.mul_(self.motion.decay).add_(self.grad[block], alpha=self.motion.gain)
        along = self._sum(torch.mul(self.x[block], d, out=self.buffer[: len(d)])).div_(self.radius**2)
        return self._tangent(block, along), along

    def _tangent(self, block: slice, along: torch.Tensor) -> torch.Tensor:
        d = self.d[block]
        return torch.addcmul(d, self.x[block], self._spread(along), value=-1, out=self.buffer[: len(d)])

    def _update(self, block: slice, v: torch.Tensor, rate: float | torch.Tensor) -> None:
        x = self.x[block]
        if self.motion.geodesic:
            self._turn(x, v.mul_(-rate))
            return
        if isinstance(rate, torch.Tensor):
            x.addcmul_(v, rate, value=-1)
        else:
            x.add_(v, alpha=-rate)
        if self.rows.sums_by_product:
            norms = self._sum(torch.mul(x, x, out=v)).sqrt_()
        else:
            norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        # Squares of larger or smaller numbers leave the range of float32; a NaN fails both comparisons.
        if float(norms.amax()) < 1e18 and float(norms.amin()) > 1e-18:
            x.mul_(self._spread(self.radius / norms))
        else:
            vectors = self._vectors(x)
            vectors.copy_(unit(vectors, (-2,))).mul_(self.radius)

    def _turn(self, x: torch.Tensor, step: torch.Tensor) -> None:
        vectors = self._vectors(x)
        vectors.copy_(great_circle(vectors, self._vectors(step), self.radius, (-2,)))

    def _vectors(self, x: torch.Tensor) -> torch.Tensor:
        """Rows as `(rows, numbers of a vector, vectors)`."""
        return x.view(len(x), -1, self.rows.vectors)
