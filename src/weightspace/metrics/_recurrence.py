"""Solves `(I + lambda D^T D) x = g` along an axis in linear time: exponential kernels by blocks.

The Green's function of the infinite problem is `r^|i-j| / sqrt(1 + 4 lambda)` with
`r = (1 + 2 lambda - sqrt(1 + 4 lambda)) / (2 lambda)`. Both ends are exact too: Neumann ends are the mirrored, periodic
ends the repeated sequence. So x splits into a small dense product within each block and two numbers a block that carry
everything to its left and to its right: `O(length * block)` work and no loop over channels. [derived]
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch

Boundary = Literal["neumann", "periodic"]
BLOCK = 32
DENSE_UP_TO = 64  # one dense product is faster up to here (benchmarks/metrics.py)


def decay(smoothing: float) -> float:
    """The ratio r of the exponential kernel, in (0, 1).

    Example:
        >>> decay(2.0)
        0.5
    """
    # The textbook form (1 + 2a - sqrt(1 + 4a)) / 2a cancels for small a; this one does not.
    return 2.0 * smoothing / (1.0 + 2.0 * smoothing + math.sqrt(1.0 + 4.0 * smoothing))


@lru_cache(maxsize=256)
def _kernel(
    smoothing: float, length: int, boundary: Boundary | None, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Dense Green's function on `length` points; `boundary=None`: the infinite one, cut out."""
    r = decay(smoothing)
    i = torch.arange(length, dtype=torch.float64)
    distance = (i[:, None] - i[None, :]).abs()
    kernel = r**distance
    if boundary == "periodic":
        kernel = (kernel + r ** (length - distance)) / (1.0 - r**length)
    elif boundary == "neumann":
        # Images of j at -1-j and 2L-1-j, and all of them repeated with period 2L.
        images = r ** (i[:, None] + i[None, :] + 1) + r ** (2 * length - 1 - i[:, None] - i[None, :])
        kernel = (kernel + r ** (2 * length - distance) + images) / (1.0 - r ** (2 * length))
    return (kernel / math.sqrt(1.0 + 4.0 * smoothing)).to(dtype=dtype, device=device)


@lru_cache(maxsize=256)
def _powers(r: float, length: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """`(2, length)`: weights that gather a block into its right-going and its left-going carry."""
    i = torch.arange(length, dtype=torch.float64)
    return torch.stack([r ** (length - 1 - i), r**i]).to(dtype=dtype, device=device)


def _product(matrix: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """`matrix @ block` along dimension 1 of `(batch, length, inner)`, by the one gemm that fits the sizes."""
    if block.shape[2] == 1:
        return torch.matmul(block.squeeze(2), matrix.T).unsqueeze(2)
    if block.shape[0] == 1:
        return torch.mm(matrix, block.squeeze(0)).unsqueeze(0)
    return torch.matmul(matrix, block)


def solve(grad: torch.Tensor, smoothing: float, boundary: Boundary, out: torch.Tensor) -> None:
    """Writes `(I + smoothing * D^T D)^-1 grad` along dimension 1 into `out`.

    Args:
        grad: `(batch, length, inner)`, float32 or float64; may be `out` itself: a block is read before it is written.
        smoothing: lambda above 0.
        boundary: Ends of the difference operator D.
        out: Same shape as `grad`.

    Cost: `O(batch * length * inner * BLOCK)` multiply-adds.

    Example:
        >>> x = torch.empty(1, 2, 1)
        >>> solve(torch.tensor([[[3.0], [0.0]]]), 1.0, "neumann", x)  # [[2,-1],[-1,2]] x = [3,0]
        >>> x.flatten()
        tensor([2., 1.])
    """
    length = grad.shape[1]
    if length <= DENSE_UP_TO:
        out.copy_(_product(_kernel(smoothing, length, boundary, grad.dtype, grad.device), grad))
        return
    r = decay(smoothing)
    pieces = list(zip(grad.split(BLOCK, dim=1), out.split(BLOCK, dim=1), strict=True))
    gathered = [_product(_powers(r, g.shape[1], g.dtype, g.device), g) for g, _ in pieces]
    rightward, leftward = _carries(gathered, [g.shape[1] for g, _ in pieces], r, length, boundary)
    scale = 1.0 / math.sqrt(1.0 + 4.0 * smoothing)
    for (g, target), right, left in zip(pieces, rightward, leftward, strict=True):
        kernel = _kernel(smoothing, g.shape[1], None, g.dtype, g.device)
        # Row i of the spread: r^(i+1) for what comes from the left, r^(block-i) for what comes from the right.
        spread = _powers(r, g.shape[1], g.dtype, g.device).flip(0).T * (r * scale)
        torch.add(_product(kernel, g), _product(spread, torch.cat([right, left], dim=1)), out=target)


def _carries(
    gathered: list[torch.Tensor], sizes: list[int], r: float, length: int, boundary: Boundary
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """For each block what arrives from its left (weighted as seen one place before it) and from its right."""
    zero = torch.zeros_like(gathered[0][:, :1])
    right_end, left_end = zero, zero
    for block, size in zip(gathered, sizes, strict=True):
        right_end = block[:, :1] + r**size * right_end
    for block, size in zip(reversed(gathered), reversed(sizes), strict=True):
        left_end = block[:, 1:] + r**size * left_end
    # right_end: the sequence as seen from its last place; left_end: from its first. The repeated (mirrored) copies
    # outside are geometric series of these two.
    if boundary == "periodic":
        whole = -math.expm1(length * math.log(r))
        enter_left, enter_right = right_end / whole, left_end / whole
    else:
        whole = -math.expm1(2 * length * math.log(r))
        enter_left = (left_end + r**length * right_end) / whole
        enter_right = (right_end + r**length * left_end) / whole
    rightward, leftward = [enter_left], [enter_right]
    for block, size in zip(gathered[:-1], sizes[:-1], strict=True):
        rightward.append(block[:, :1] + r**size * rightward[-1])
    for block, size in zip(reversed(gathered[1:]), reversed(sizes[1:]), strict=True):
        leftward.append(block[:, 1:] + r**size * leftward[-1])
    return rightward, leftward[::-1]
