"""Many small points at once: components first, in blocks that stay in a CPU's cache, without a call for each point.

`N` points `(n, p)` are copied block by block to `(n, p, C)`, so that every operation is elementwise arithmetic on the
`C` points of a block; the new points are written back from there. On accelerators all points are one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch

from weightspace.manifolds._moves import Motion, Moved, move

if TYPE_CHECKING:
    from weightspace.manifolds.base import Manifold

BLOCK = 1 << 16  # points of a block on a CPU: some 30 vectors of so many numbers are in use at a time
MANY = 16  # points from which on a block is worth its calls


@dataclass(frozen=True)
class Block:
    """Points `start:stop` of the flattened leading dimensions.

    Attributes:
        start: The first.
        stop: One after the last.
        x: Their components `(n, p, C)`, a copy.
        d: What to descend against, likewise; a step may overwrite it.
        target: The points themselves, as a view `(n, p, ...)` of C points.
        source: The directions themselves, likewise.
    """

    start: int
    stop: int
    x: torch.Tensor
    d: torch.Tensor
    target: torch.Tensor
    source: torch.Tensor

    def scratch(self, tag: str, count: int, motion: Motion) -> torch.Tensor:
        """`count` vectors of C numbers, uninitialised."""
        return motion.work.lend(tag, (count, self.x.shape[-1]), self.x)

    def put(self, points: torch.Tensor) -> None:
        """Writes `(n, p, C)` to the target."""
        self.target.copy_(points.view(self.target.shape))


class SmallStep(Protocol):
    """Closed forms of one manifold's step, for one block."""

    def direction(self, block: Block, motion: Motion) -> None:
        """Finds the coordinates of the tangent vector."""

    def squared(self, block: Block, out: torch.Tensor) -> None:
        """Squared norms `(C)` of the tangent vectors in the metric."""

    def advance(self, block: Block, motion: Motion, rate: float | torch.Tensor) -> bool:
        """Writes the points to which a step of size `rate` (one number, or `(C)`) leads into `block.target`.

        Returns:
            False if a point of the block needs the reference's care; nothing is written then.
        """
        ...


def step_small(manifold: Manifold, step: SmallStep, x: torch.Tensor, d: torch.Tensor, motion: Motion) -> Moved:
    """The step of `weightspace.manifolds._moves.move` by closed forms, in place.

    Args:
        manifold: Whose step it is: for what closed forms do not cover (huge steps, points far off the manifold).
        step: Its closed forms.
        x: Points `(*lead, n, p)` of a manifold without negative curvature.
        d: What to descend against; momentum is accumulated into it.
        motion: Rate, step size, momentum.

    Cost: that of some hundred numbers a point, elementwise; a shared step size reads everything twice.
    """
    if motion.keeps_tangent:  # closed forms never write the tangent part down
        return move(manifold, x, d, motion)
    inner = _inner(x, d, motion.grad)
    if inner is not None:
        return _step(manifold, step, x, d, motion, inner=inner)
    # Leading dimensions that cannot be viewed as two
    dense = replace(motion, grad=None if motion.grad is None else motion.grad.contiguous())
    points, against = x.contiguous(), d.contiguous()
    moved = _step(manifold, step, points, against, dense, inner=1)
    x.copy_(points)
    if motion.grad is not None:
        d.copy_(against)
    return moved


def _step(
    manifold: Manifold, step: SmallStep, x: torch.Tensor, d: torch.Tensor, motion: Motion, *, inner: int
) -> Moved:
    lead = x.shape[:-2]
    squared = factor = None
    if motion.step_size == "curvature" and motion.factor is None:
        squared = x.new_empty(lead)
        if motion.product:
            for block in _blocks(x, d, motion, inner):
                step.direction(block, motion)
                step.squared(block, squared.view(-1)[block.start : block.stop])
            motion = replace(motion, grad=None, factor=motion.factors(squared, 0.0))
    if motion.factor is not None:
        factor = motion.factor.expand(lead).reshape(-1)
    elif squared is not None:
        factor = x.new_empty(lead.numel())
    fallbacks = 0
    for block in _blocks(x, d, motion, inner):
        step.direction(block, motion)
        part = slice(block.start, block.stop)
        if squared is not None and motion.factor is None and factor is not None:
            step.squared(block, squared.view(-1)[part])
            own_factor(squared.view(-1)[part], motion.distance_bound, factor[part])
        rate = motion.rate if factor is None else motion.rate / factor[part]
        if not step.advance(block, motion, rate):
            fallbacks += _refer(manifold, block, motion, rate)
    whole = motion.factor if motion.factor is not None or factor is None else factor.view(lead)
    return Moved(squared, whole, fallbacks)


def own_factor(squared: torch.Tensor, distance_bound: float, out: torch.Tensor) -> None:
    """`curvature_factor` where curvature is nowhere negative: max(1, R^2 + 2 rho R)."""
    torch.rsqrt(squared, out=out).reciprocal_()
    torch.add(squared, out, alpha=2 * distance_bound, out=out).clamp_(min=1)


def root_(values: torch.Tensor) -> torch.Tensor:
    """Square roots, in place. torch hands `sqrt` to a library that is ten times slower than this on some CPUs."""
    return values.rsqrt_().reciprocal_()


def _inner(*tensors: torch.Tensor | None) -> int | None:
    """I for which all tensors `(*lead, n, p)` can be viewed as `(-1, I, n, p)`; 1 where all points are contiguous."""
    given = [t for t in tensors if t is not None]
    if all(t.is_contiguous() for t in given):
        return 1
    inner = given[0].shape[-3] if given[0].ndim > 2 else 1
    try:
        for t in given:
            t.view(-1, inner, *t.shape[-2:])
    except RuntimeError:
        return None
    return inner


def _blocks(x: torch.Tensor, d: torch.Tensor, motion: Motion, inner: int) -> Iterator[Block]:
    """Copies by components, block by block, after momentum was accumulated. The next block overwrites the last one."""
    n, p = x.shape[-2:]
    points, against = (t.view(-1, inner, n, p) for t in (x, d))
    grads = None if motion.grad is None else motion.grad.view(-1, inner, n, p)
    count = len(points)
    step = max(1, BLOCK // inner) if x.device.type == "cpu" else max(1, count)
    for start in range(0, count, step):
        stop = min(start + step, count)
        if grads is not None:
            motion.add(against[start:stop], grads[start:stop])
        size = (stop - start) * inner
        copies = motion.work.lend("slices", (2, n, p, size), x)
        # With four dimensions: between matrices, torch copies by a path for transposes that is three times slower here.
        split = copies.view(2, n, p, stop - start, inner)
        target, source = (t[start:stop].permute(2, 3, 0, 1) for t in (points, against))
        split[0].copy_(target)
        split[1].copy_(source)
        yield Block(start * inner, start * inner + size, copies[0], copies[1], target, source)


def _refer(manifold: Manifold, block: Block, motion: Motion, rate: float | torch.Tensor) -> int:
    """The reference's step for one block."""
    x, d = (t.permute(2, 3, 0, 1).contiguous().view(-1, *block.x.shape[:2]) for t in (block.target, block.source))
    factor = motion.rate / rate if isinstance(rate, torch.Tensor) else None
    plain = replace(motion, grad=None, factor=factor, product=(), step_size="plain")
    fallbacks = move(manifold, x, d, plain).fallbacks
    block.target.copy_(x.view(*block.target.shape[2:], *block.x.shape[:2]).permute(2, 3, 0, 1))
    return fallbacks
