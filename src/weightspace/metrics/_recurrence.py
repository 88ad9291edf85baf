"""Solves `(I + lambda D^T D) x = g` along an axis in linear time: exponential kernels by blocks.

The Green's function of the infinite problem is `r^|i-j| / sqrt(1 + 4 lambda)` with
`r = (1 + 2 lambda - sqrt(1 + 4 lambda)) / (2 lambda)`. Both ends are exact too: Neumann ends are the mirrored, periodic
ends the repeated sequence. So x splits into a small dense product within each block and two numbers a block that carry
everything to its left and to its right. The first and last row of the product already are what a block hands on, and
the carries obey a recurrence of the same kind over the blocks, which is solved by blocks again: no truncation, no loop
over the axis, `O(length * BLOCK)` work for any length. [derived]
"""

from __future__ import annotations

import math

import torch

from weightspace.kernels.stacking import Workspace
from weightspace.metrics._constants import Boundary, green, kept, places, prefix_matrix, rate

BLOCK = 32
CHUNK = 64  # blocks whose carries are summed by one dense product
DENSE_UP_TO = 64  # one dense product is as fast up to here
# Products with fewer columns than this are slow one by one: the axis is brought to the end first.
FEW = 32


def multiply(matrix: torch.Tensor, block: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Writes `matrix @ block` along dimension 1 into `out`, by the one matrix product that fits the sizes.

    Args:
        matrix: `(rows, length)`.
        block: `(batch, length, inner)`, contiguous.
        out: `(batch, rows, inner)`, contiguous; must not overlap `block`.
    """
    if block.shape[2] == 1:
        torch.mm(block.squeeze(2), matrix.T, out=out.squeeze(2))
    elif block.shape[0] == 1:
        torch.mm(matrix, block.squeeze(0), out=out.squeeze(0))
    else:
        torch.bmm(matrix.expand(block.shape[0], *matrix.shape), block, out=out)
    return out


def multiply_safely(matrix: torch.Tensor, grad: torch.Tensor, out: torch.Tensor, work: Workspace) -> None:
    """`multiply` for a square matrix where `out` may be `grad` or not contiguous: then by way of a lent buffer."""
    target = _target(grad, out, grad.shape[1], work)
    multiply(matrix, grad.contiguous(), target)
    if target is not out:
        out.copy_(target)


def solve(grad: torch.Tensor, smoothing: float, boundary: Boundary, out: torch.Tensor, work: Workspace) -> None:
    """Writes `(I + smoothing * D^T D)^-1 grad` along dimension 1 into `out`.

    Args:
        grad: `(batch, length, inner)`, float32 or float64.
        smoothing: lambda above 0.
        boundary: Ends of the difference operator D.
        out: Same shape as `grad`; may be `grad` itself.
        work: Lends buffers and keeps the constants.

    Cost: `O(batch * length * inner * BLOCK)` multiply-adds. Up to two lent buffers the size of `grad`: none if `out` is
    other memory and the length is at most `DENSE_UP_TO` or a multiple of `BLOCK`, unless the inner size is above 1 and
    below `FEW`.

    Example:
        >>> x = torch.empty(1, 2, 1)
        >>> solve(torch.tensor([[[3.0], [0.0]]]), 1.0, "neumann", x, Workspace())  # [[2,-1],[-1,2]] x = [3,0]
        >>> x.flatten()
        tensor([2., 1.])
    """
    batch, length, inner = grad.shape
    if batch == 1 or not 1 < inner < FEW:
        _solve(grad, smoothing, boundary, out, work)
        return
    rows = work.lend("rows", (batch, inner, length), grad)
    rows.copy_(grad.transpose(1, 2))
    solved = work.lend("solved rows", (batch, inner, length), grad)
    flat = (batch * inner, length, 1)
    _solve(rows.view(flat), smoothing, boundary, solved.view(flat), work)
    out.copy_(solved.transpose(1, 2))


def _solve(grad: torch.Tensor, smoothing: float, boundary: Boundary, out: torch.Tensor, work: Workspace) -> None:
    batch, length, inner = grad.shape
    if length <= DENSE_UP_TO:
        tag = f"green {smoothing!r} {length} {boundary}"
        matrix = kept(work, tag, grad, lambda: green(smoothing, length, boundary))
        multiply_safely(matrix, grad, out, work)
        return
    blocks = -(-length // BLOCK)
    whole = blocks * BLOCK
    source = grad.contiguous()
    if whole != length:
        source = work.lend("padded", (batch, whole, inner), grad)
        source[:, :length].copy_(grad)
        source[:, length:].zero_()
    target = _target(grad, out, whole, work)
    flat = (batch * blocks, BLOCK, inner)
    matrix = kept(work, f"green {smoothing!r} {BLOCK} None", grad, lambda: green(smoothing, BLOCK, None))
    multiply(matrix, source.view(flat), target.view(flat))
    _add_carries(target.view(batch, blocks, BLOCK, inner), rate(smoothing), length, boundary, work)
    if target is not out:
        out.copy_(target[:, :length])


def _target(grad: torch.Tensor, out: torch.Tensor, length: int, work: Workspace) -> torch.Tensor:
    """Where a product of `grad` can be written: `out`, or a lent buffer if that is short, strided or `grad` itself."""
    if length == out.shape[1] and out.data_ptr() != grad.data_ptr() and out.is_contiguous():
        return out
    return work.lend("product", (grad.shape[0], length, grad.shape[2]), grad)


def _add_carries(y: torch.Tensor, theta: float, length: int, boundary: Boundary, work: Workspace) -> None:
    """Completes products within blocks: adds to each block what arrives from its left and from its right.

    Args:
        y: `(batch, blocks, BLOCK, inner)`: each block times the infinite kernel. What lies beyond `length` was zero.
        theta: Rate of the kernel.
        length: Points of the axis.
        boundary: Ends.
        work: Keeps the constants.
    """
    batch, blocks, _, inner = y.shape
    last = length - (blocks - 1) * BLOCK  # points in the last block

    def falloff(first: int, step: int, count: int) -> torch.Tensor:
        """`(count, 1)`: exp(-theta (first + k step))."""
        tag = f"falloff {theta!r} {first} {step} {count}"
        return kept(work, tag, y, lambda: torch.exp(-theta * (first + step * places(count)))[:, None])

    # The last row of a block is its right-going sum, the first row its left-going one.
    sums = torch.cat([y[:, :, -1], y[:, :, 0].flip(1)])
    both = _prefix_sums(sums, theta * BLOCK, work).view(2, batch, blocks, inner)
    # carry[:, b]: what arrives at block b, as seen one place before it from the left and one place after it.
    carry = torch.stack([both[0], both[1].flip(1)], dim=2)
    right_end = y[:, -1, last - 1] + math.exp(-theta * last) * carry[:, -1, 0]
    left_end = y[:, 0, 0] + math.exp(-theta * BLOCK) * carry[:, 0, 1]
    # right_end: the sequence as seen from its last place; left_end: from its first. The repeated (mirrored) copies
    # outside are geometric series of these two.
    if boundary == "periodic":
        series = -math.expm1(-theta * length)
        from_left, from_right = right_end / series, left_end / series
    else:
        series = -math.expm1(-2 * theta * length)
        across = math.exp(-theta * length)
        from_left = (left_end + across * right_end) / series
        from_right = (right_end + across * left_end) / series
    carry[:, :, 0].addcmul_(falloff(0, BLOCK, blocks), from_left[:, None])
    carry[:, :-1, 1].addcmul_(falloff(last + (blocks - 2) * BLOCK, -BLOCK, blocks - 1), from_right[:, None])
    # Row i of the spread: r^(i+1) for what comes from the left, r^(BLOCK-i) for what comes from the right.
    spread = torch.cat([falloff(1, 1, BLOCK), falloff(BLOCK, -1, BLOCK)], dim=1)
    flat, pairs = y.view(batch * blocks, BLOCK, inner), carry.view(batch * blocks, 2, inner)
    if inner == 1:
        flat.squeeze(2).addmm_(pairs.squeeze(2), spread.T)
    else:
        flat.baddbmm_(spread.expand(batch * blocks, BLOCK, 2), pairs)
    y[:, -1, :last].addcmul_(falloff(last, -1, last), from_right[:, None])


def _prefix_sums(sums: torch.Tensor, theta: float, work: Workspace) -> torch.Tensor:
    """For each b the sum of all entries j < b along dimension 1, weighted by `exp(-theta (b - 1 - j))`.

    Chunk by chunk with one dense product; what enters the chunks is the same problem, 64 times shorter.
    """
    rows, count, inner = sums.shape
    size = min(count, CHUNK)
    chunks = -(-count // size)
    if chunks * size != count:
        sums = torch.cat([sums, sums.new_zeros(rows, chunks * size - count, inner)], dim=1)
    matrix = kept(work, f"prefix {theta!r} {size}", sums, lambda: prefix_matrix(theta, size))
    local = multiply(matrix, sums.view(rows * chunks, size, inner), sums.new_empty(rows * chunks, size + 1, inner))
    local = local.view(rows, chunks, size + 1, inner)
    within = local[:, :, :size]
    if chunks > 1:
        entering = _prefix_sums(local[:, :, size].contiguous(), theta * size, work)
        weights = kept(work, f"entering {theta!r} {size}", sums, lambda: torch.exp(-theta * places(size))[:, None])
        within = within.addcmul(weights, entering[:, :, None])
    return within.reshape(rows, chunks * size, inner)[:, :count]
