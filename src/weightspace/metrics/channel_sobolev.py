"""Sobolev metrics along the output channels: neighboring channels move together.

Source: Lao, Zhu, Wonka, Sundaramoorthi, arXiv 2008.10766, uses a Sobolev metric along the output channels. Which of
the two forms below it prints, its ends and its constants were not at hand: both forms and both ends are offered, the
formulas are derived.

    order="H1":              (I + lambda D^T D) G = g
    order="mean+derivative": mean(G) = mean(g),  lambda L^2 D^T D G = g - mean(g)

D is the forward difference along the axis, L its length. The second form is scale-free in L; its kernel is
non-negative if and only if lambda >= 1/24. Along `axis="spatial"` D^T D is the Laplacian of the grid of taps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import torch

from weightspace.errors import RuleError
from weightspace.kernels.selection import Selection
from weightspace.kernels.stacking import Workspace
from weightspace.metrics._recurrence import Boundary, _product, solve
from weightspace.metrics.base import Axis, AxisMetric, Layout, check_axis, check_positive

Order = Literal["H1", "mean+derivative"]
# lambda = 4 couples about two neighbors to each side (decay 0.61 a channel); 0.1 is near 1/pi^2, where the lowest
# frequency of the second form keeps its size. Both are our choices.
DEFAULT_SMOOTHING = {"H1": 4.0, "mean+derivative": 0.1}


@dataclass(frozen=True)
class ChannelSobolev(AxisMetric):
    """Gradient under a Sobolev metric along an axis of the kernel.

    Unlike `ChannelL2` it imposes an order on channels that a network does not have; `permutation_seed` solves in a
    fixed random order instead, the control that shows whether the order matters.

    Args:
        smoothing: lambda above 0, dimensionless; default 4.0 for `"H1"`, 0.1 for `"mean+derivative"`.
        order: `"H1"` or `"mean+derivative"`.
        boundary: `"neumann"` (free ends) or `"periodic"`.
        axis: `"out"`, `"in"` or `"spatial"`.
        keep_norm: Rescale each weight's gradient to its norm before the metric.
        permutation_seed: Solve along a random order of channels drawn from this seed; None: in their own order.
        on: Which parameters; dense convolutions without the head by default.

    Cost: linear in the number of parameters, about 64 multiply-adds each for `"H1"`, two cumulative sums for
    `"mean+derivative"`; one buffer the size of the largest gradient.

    Raises:
        RuleError: A parameter is out of range.

    Example:
        >>> from weightspace.metrics import transform_gradient
        >>> transform_gradient(ChannelSobolev(smoothing=1.0), torch.tensor([[3.0], [0.0]]))  # [[2,-1],[-1,2]] G = g
        tensor([[2.],
                [1.]])
    """

    smoothing: float | None = None
    order: Order = "H1"
    boundary: Boundary = "neumann"
    axis: Axis = "out"
    keep_norm: bool = False
    permutation_seed: int | None = None
    on: Selection | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.order not in DEFAULT_SMOOTHING:
            raise RuleError(f"ChannelSobolev got order={self.order!r}; choose 'H1' or 'mean+derivative'.")
        if self.boundary not in ("neumann", "periodic"):
            raise RuleError(f"ChannelSobolev got boundary={self.boundary!r}; choose 'neumann' or 'periodic'.")
        if self.smoothing is not None:
            check_positive("ChannelSobolev", "smoothing", self.smoothing)
        check_axis("ChannelSobolev", self.axis)
        if self.axis == "spatial" and self.permutation_seed is not None:
            raise RuleError(
                "ChannelSobolev got permutation_seed with axis='spatial'; taps are a grid: permute 'out' or 'in'."
            )

    @property
    def strength(self) -> float:
        """lambda in force: `smoothing`, or the default of the order."""
        return DEFAULT_SMOOTHING[self.order] if self.smoothing is None else float(self.smoothing)

    def transform(self, grad: torch.Tensor, out: torch.Tensor, layout: Layout, work: Workspace) -> None:
        """A blocked recurrence (H1), two cumulative sums (mean+derivative) or a small dense product (spatial)."""
        length = grad.shape[1]
        if self.axis == "spatial" and len(layout.grid) > 1:
            matrix = _grid_inverse(self.strength, self.order, self.boundary, layout.grid, grad.dtype, grad.device)
            out.copy_(_product(matrix, grad))
            return
        source = grad
        if self.permutation_seed is not None:
            forward, backward = _permutation(self.permutation_seed, length, grad.device)
            source = grad.index_select(1, forward)
        if self.order == "H1":
            solve(source, self.strength, self.boundary, out)
        else:
            _mean_and_derivative(source, self.strength * length**2, self.boundary, out)
        if self.permutation_seed is not None:
            out.copy_(out.index_select(1, backward))  # type: ignore[possibly-undefined]  # set in the branch above

    def stiffness(self, layout: Layout, length: int) -> float:
        """`D^T D` has norm at most 4 in each dimension."""
        largest = 4.0 * (len(layout.grid) if self.axis == "spatial" else 1)
        return 1.0 + largest * self.strength * (1.0 if self.order == "H1" else length**2)

    def residual(self, grad: torch.Tensor, out: torch.Tensor, layout: Layout) -> torch.Tensor:
        """The metric applied to `out`, by differences, minus `grad`."""
        length = grad.shape[1]
        if self.permutation_seed is not None:
            forward, _ = _permutation(self.permutation_seed, length, grad.device)
            grad, out = grad.index_select(1, forward), out.index_select(1, forward)
        grid = layout.grid if self.axis == "spatial" else (length,)
        stiff = apply_laplacian(out, grid, self.boundary)
        if self.order == "H1":
            return out + self.strength * stiff - grad
        mean = out.mean(dim=1, keepdim=True)
        return mean + self.strength * length**2 * stiff - grad


def apply_laplacian(block: torch.Tensor, grid: tuple[int, ...], boundary: Boundary) -> torch.Tensor:
    """`D^T D` along dimension 1 of `(batch, length, inner)`, where length is a grid, by plain differences.

    Example:
        >>> apply_laplacian(torch.tensor([[[1.0], [0.0], [0.0]]]), (3,), "neumann").flatten()
        tensor([ 1., -1.,  0.])
    """
    x = block.unflatten(1, grid)
    total = torch.zeros_like(x)
    for axis in range(1, 1 + len(grid)):
        if boundary == "periodic":
            total += 2 * x - x.roll(1, axis) - x.roll(-1, axis)
        elif x.shape[axis] > 1:
            step = x.diff(dim=axis)
            total.narrow(axis, 0, x.shape[axis] - 1).sub_(step)
            total.narrow(axis, 1, x.shape[axis] - 1).add_(step)
    return total.flatten(1, len(grid))


def _mean_and_derivative(grad: torch.Tensor, strength: float, boundary: Boundary, out: torch.Tensor) -> None:
    """Integrates twice: `d = -cumsum(g - mean)/strength`, `G = [0, cumsum d]`, moved to the mean of g."""
    mean = grad.mean(dim=1, keepdim=True)
    inner = torch.cumsum(grad - mean, dim=1)
    if boundary == "periodic":
        inner -= inner.mean(dim=1, keepdim=True)
    out[:, 1:] = torch.cumsum(inner[:, :-1], dim=1)
    out[:, 0] = 0
    out.sub_(out.mean(dim=1, keepdim=True)).mul_(-1.0 / strength).add_(mean)


@lru_cache(maxsize=256)
def _permutation(seed: int, length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    forward = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    return forward.to(device), forward.argsort().to(device)


@lru_cache(maxsize=256)
def _grid_inverse(  # noqa: PLR0917  # cached by value: keyword-only arguments would only lengthen the one call
    strength: float,
    order: Order,
    boundary: Boundary,
    grid: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    """The inverse metric on a grid of taps as a dense matrix: at most 11 x 11 taps in practice."""
    taps = math.prod(grid)
    identity = torch.eye(taps, dtype=torch.float64)
    laplacian = apply_laplacian(identity.unsqueeze(0), grid, boundary).squeeze(0)
    if order == "H1":
        inverse = torch.linalg.inv(identity + strength * laplacian)
    else:
        average = torch.full_like(identity, 1.0 / taps)
        inverse = average + torch.linalg.pinv(strength * taps**2 * laplacian, hermitian=True)
    return inverse.to(dtype=dtype, device=device)
