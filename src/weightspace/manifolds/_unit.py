"""Vectors of one norm: what Sphere, Oblique and ZeroMeanSphere share."""

from __future__ import annotations

import torch

Dims = tuple[int, ...]
# In units of the radius: what fast steps normalize; their sums of squares stay in float32's range
LENGTHS = (1e-3, 1e15)


def norm_of(x: torch.Tensor, dims: Dims) -> torch.Tensor:
    """Euclidean norms along `dims`, which are kept.

    By `sum`, which adds in a tree: `vector_norm` adds float32 squares one by one, and is wrong by 4e-5 for 2 million.
    """
    return x.square().sum(dims, keepdim=True).sqrt()


def unit(x: torch.Tensor, dims: Dims) -> torch.Tensor:
    """Vectors along `dims`, normalized; a zero vector becomes the constant one, NaN stays NaN.

    Divided by the largest entry first: squares of large or tiny entries leave the range of the dtype.
    """
    largest = x.abs().amax(dims, keepdim=True)
    is_zero = largest == 0
    scaled = torch.where(is_zero, torch.ones_like(x), x / torch.where(is_zero, torch.ones_like(largest), largest))
    return scaled / norm_of(scaled, dims)


def length_and_direction(v: torch.Tensor, dims: Dims) -> tuple[torch.Tensor, torch.Tensor]:
    """Norms along `dims` and vectors of norm 1; a zero vector has length 0 and direction 0.

    Like `unit`, it divides by the largest entry first.
    """
    largest = v.abs().amax(dims, keepdim=True)
    scaled = v / largest.masked_fill(largest == 0, 1.0)
    norm = norm_of(scaled, dims)
    return norm * largest, scaled / norm.masked_fill(norm == 0, 1.0)


def great_circle(x: torch.Tensor, v: torch.Tensor, radius: float, dims: Dims) -> torch.Tensor:
    """Where the great circle from `x` with velocity `v` is at time 1, normalized against rounding.

    The angle is at most `eps^(-1/2)`: beyond that it is lost in rounding, and the sine of infinity is NaN.
    """
    length, direction = length_and_direction(v, dims)
    angle = (length / radius).clamp(max=torch.finfo(v.dtype).eps ** -0.5)
    return unit(x * angle.cos() + direction * (angle.sin() * radius), dims) * radius


def gaussian(shape: tuple[int, ...], generator: torch.Generator | None) -> torch.Tensor:
    """Standard normal numbers in float64 on the CPU: alike for every device and dtype that they go to."""
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
