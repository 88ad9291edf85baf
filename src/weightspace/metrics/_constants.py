"""Small matrices of the exponential kernel, made once for each workspace.

They live in the workspace of the rules that use them, so that they are freed with these rules and never pin memory of a
device that nothing uses any more. All are computed on the CPU in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch

from weightspace.kernels.stacking import Workspace

Boundary = Literal["neumann", "periodic"]


def kept(work: Workspace, tag: str, like: torch.Tensor, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The constant `tag` with the dtype (if both are real) and device of `like`; `make` is called once a workspace.

    Args:
        work: Who owns the constant.
        tag: Names the constant with everything it depends on; never lent.
        like: Whose dtype and device it gets.
        make: Computes it on the CPU, in float64 or as int64 indices.
    """

    def made() -> torch.Tensor:
        wide = make()
        if wide.is_floating_point():
            # Subnormal entries change no result but slow products down.
            wide = torch.where(wide.abs() < torch.finfo(like.dtype).tiny, 0.0, wide).to(like.dtype)
        return wide.to(like.device)

    return work.constant(tag, like, made)


def rate(smoothing: float) -> float:
    """theta above 0 with `exp(-theta)` the ratio r of the exponential kernel: accurate where r is close to 0 or 1.

    Example:
        >>> math.exp(-rate(2.0))
        0.5
    """
    return 2.0 * math.asinh(0.5 / math.sqrt(smoothing))


def places(length: int) -> torch.Tensor:
    """`0, 1, ..., length - 1` in float64 on the CPU, whatever torch's default device is."""
    return torch.arange(length, dtype=torch.float64, device="cpu")


def green(smoothing: float, length: int, boundary: Boundary | None) -> torch.Tensor:
    """`(I + smoothing D^T D)^-1` on `length` points, dense; `boundary=None`: cut out of the infinite one.

    Example:
        >>> green(1.0, 2, "neumann")  # the inverse of [[2, -1], [-1, 2]]
        tensor([[0.6667, 0.3333],
                [0.3333, 0.6667]], dtype=torch.float64)
    """
    theta = rate(smoothing)
    i = places(length)
    distance = (i[:, None] - i[None, :]).abs()
    kernel = torch.exp(-theta * distance)
    if boundary == "periodic":
        kernel = (kernel + torch.exp(-theta * (length - distance))) / -math.expm1(-theta * length)
    elif boundary == "neumann":
        # Images of j at -1-j and 2L-1-j, and all of them repeated with period 2L.
        both = i[:, None] + i[None, :]
        images = torch.exp(-theta * (both + 1)) + torch.exp(-theta * (2 * length - 1 - both))
        kernel = (kernel + torch.exp(-theta * (2 * length - distance)) + images) / -math.expm1(-2 * theta * length)
    return kernel / math.sqrt(1.0 + 4.0 * smoothing)


def prefix_matrix(theta: float, size: int) -> torch.Tensor:
    """`(size + 1, size)`: row b sums entry j < b with weight `exp(-theta (b - 1 - j))`; row 0 is zero.

    Example:
        >>> prefix_matrix(math.log(2.0), 2)
        tensor([[0.0000, 0.0000],
                [1.0000, 0.0000],
                [0.5000, 1.0000]], dtype=torch.float64)
    """
    behind = places(size + 1)[:, None] - 1.0 - places(size)[None, :]
    return torch.where(behind < 0, 0.0, torch.exp(-theta * behind.clamp(min=0.0)))
