"""Solves `lambda L^2 D^T D G = g - mean(g)`, `mean(G) = mean(g)` along an axis in linear time: two integrals by blocks.

With u = g - mean(g), G_i is, up to its mean, `-1 / (lambda L^2)` times the sum of `(i - j) u_j` over all j before i
[derived]. Within a block of `BLOCK` places that is one small product, for which the block's own mean is taken out, so
that what is summed stays small; the rest of a block's answer is a polynomial of degree two in the place, whose three
coefficients follow from sums over the blocks. The first two places of a product are known without it: their rows hold
sums instead.
"""

from __future__ import annotations

import torch

from weightspace.kernels.stacking import Workspace
from weightspace.metrics._constants import Boundary, kept, places
from weightspace.metrics._recurrence import BLOCK, multiply


def integrate(grad: torch.Tensor, strength: float, boundary: Boundary, out: torch.Tensor, work: Workspace) -> None:
    """Writes G into `out`.

    Args:
        grad: `(batch, length, inner)`, contiguous, float32 or float64; length is a multiple of `BLOCK`.
        strength: `lambda L^2`.
        boundary: Ends of the difference operator D.
        out: Same shape, contiguous; must not overlap `grad`.
        work: Keeps the constants.

    Cost: `O(batch * length * inner * BLOCK)` multiply-adds; `grad` is read once, `out` written and read once more.
    """
    batch, length, inner = grad.shape
    blocks = length // BLOCK
    flat = (batch * blocks, BLOCK, inner)
    factor = -1 / strength
    matrix = kept(work, f"integrals {strength!r} {BLOCK}", grad, lambda: _matrix(factor))
    multiply(matrix, grad.view(flat), out.view(flat))
    y = out.view(batch, blocks, BLOCK, inner)
    sums, totals, last = y[:, :, 0].clone(), y[:, :, 1].clone(), y[:, :, -1]
    mean = sums.sum(1, keepdim=True) / length
    y[:, :, 0] = 0
    first = grad.view(batch, blocks, BLOCK, inner)[:, :, 0]
    torch.mul(torch.sub(first, sums, alpha=1 / BLOCK), factor, out=y[:, :, 1])
    excess = (sums - mean * BLOCK).mul_(factor)
    slope = excess.cumsum(1) - excess  # the sum before the block: what the first integral enters it with
    gain = last + BLOCK * slope + (BLOCK + 1) / 2 * excess
    level = gain.cumsum(1) - gain
    if boundary == "periodic":
        trend = gain.sum(1, keepdim=True) / length
        slope = slope - trend
        level = level - trend * kept(work, f"block starts {blocks}", grad, lambda: places(blocks)[:, None] * BLOCK)
    whole = BLOCK * level + BLOCK * (BLOCK - 1) / 2 * slope + (BLOCK**2 - 1) / 6 * excess + totals
    level = level - whole.sum(1, keepdim=True) / length + mean
    pairs = torch.stack([level, slope, excess], 2).view(batch * blocks, 3, inner)
    spread = kept(work, f"powers {BLOCK}", grad, _powers)
    target = out.view(flat)
    if inner == 1:
        target.squeeze(2).addmm_(pairs.squeeze(2), spread.T)
    else:
        target.baddbmm_(spread.expand(batch * blocks, BLOCK, 3), pairs)


def _matrix(factor: float) -> torch.Tensor:
    """Row i: `factor (i - j)_+` less its mean over j; row 0: ones; row 1: the sum of all rows as they were."""
    i = places(BLOCK)
    matrix = (i[:, None] - i[None, :]).clamp(min=0)
    matrix = (matrix - matrix.mean(1, keepdim=True)) * factor
    total = matrix.sum(0)
    matrix[0], matrix[1] = 1.0, total
    return matrix


def _powers() -> torch.Tensor:
    """1, i and `i (i + 1) / (2 BLOCK)`: what a constant of one, a slope and a sum of one add at place i."""
    i = places(BLOCK)
    return torch.stack([torch.ones_like(i), i, i * (i + 1) / (2 * BLOCK)], 1)
