"""Many small points at once: components first, in blocks that stay in a CPU's cache, without a call for each point.

`N` points `(n, p)` are copied block by block to `(n, p, C)`, so that every operation is elementwise arithmetic on `C`
points; the new points are written back from there. On accelerators all points are one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from weightspace.manifolds._moves import Motion

BLOCK = 1 << 16  # points of a block on a CPU: some 30 vectors of so many numbers are in use at a time
SMALL = 16  # numbers of a point up to which operations along a point cost more than copying it


@dataclass(frozen=True)
class Block:
    """Points `start:stop` of the flattened leading dimensions.

    Attributes:
        start: The first.
        stop: One after the last.
        x: Their components `(n, p, C)`, a copy.
        d: What to descend against, likewise.
        target: The points themselves, as a view `(n, p, *of C points)`.
    """

    start: int
    stop: int
    x: torch.Tensor
    d: torch.Tensor
    target: torch.Tensor

    def put(self, row: int, column: int, values: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Writes the product of two vectors `(C)` as one component."""
        out = self.target[row, column]
        torch.mul(values[0].view(out.shape), values[1].view(out.shape), out=out)


def blocks(x: torch.Tensor, d: torch.Tensor, motion: Motion, *, accumulates: bool = True) -> Iterator[Block]:
    """Copies of points `(*lead, n, p)` by components, block by block, after momentum was accumulated into `d`.

    Args:
        x: Points; `x.view(-1, I, n, p)` must exist for `I = lead[-1]`.
        d: Directions, of the same shape.
        motion: Momentum; lends the buffers, which are lent again for the next block.
        accumulates: False in a second pass.
    """
    n, p = x.shape[-2:]
    grad = motion.grad if accumulates else None
    inner = 1 if x.is_contiguous() else x.shape[-3]
    points, against, grads = (None if t is None else _lines(t, inner) for t in (x, d, grad))
    assert points is not None and against is not None
    count = len(points)
    step = max(1, BLOCK // inner) if x.device.type == "cpu" else count
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        size = (part.stop - start) * inner
        if grads is not None:
            accumulate(against[part], grads[part], motion)
        copy = motion.work.lend("points", (2, n, p, part.stop - start, inner), x)
        target = points[part].permute(2, 3, 0, 1)
        copy[0].copy_(target)
        copy[1].copy_(against[part].permute(2, 3, 0, 1))
        flat = copy.view(2, n, p, size)
        yield Block(start * inner, start * inner + size, flat[0], flat[1], target)


def accumulate(d: torch.Tensor, grad: torch.Tensor, motion: Motion) -> None:
    """Momentum, in place and in one pass where that is possible."""
    if motion.gain == 1:
        torch.add(grad, d, alpha=motion.decay, out=d)
    else:
        d.mul_(motion.decay).add_(grad, alpha=motion.gain)


def _lines(t: torch.Tensor, inner: int) -> torch.Tensor:
    return t.view(-1, inner, *t.shape[-2:])
