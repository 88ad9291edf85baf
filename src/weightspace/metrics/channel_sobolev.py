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
from typing import Literal

import torch

from weightspace.errors import RuleError
from weightspace.kernels.options import choice, positive_number, seed_or_none
from weightspace.kernels.selection import Selection
from weightspace.kernels.stacking import Workspace
from weightspace.metrics._constants import Boundary, kept
from weightspace.metrics._integrals import integrate
from weightspace.metrics._recurrence import BLOCK, FEW, multiply_safely, solve
from weightspace.metrics.base import Axis, AxisMetric, Layout

Order = Literal["H1", "mean+derivative"]
# lambda = 4 couples about two neighbors to each side (decay 0.61 a channel); 0.1 is near 1/pi^2, where the lowest
# frequency of the second form keeps its size. Both are our choices.
DEFAULT_SMOOTHING = {"H1": 4.0, "mean+derivative": 0.1}

WIDEST_GRID = 36  # columns up to which repeated 3x3 grids get faster: 2.6 times at four of them


@dataclass(frozen=True)
class ChannelSobolev(AxisMetric):
    """Gradient under a Sobolev metric along an axis of the kernel.

    Unlike `ChannelL2` it imposes an order on channels that a network does not have; `permutation_seed` solves in a
    fixed random order instead, the control that shows whether the order matters.

    Args:
        smoothing: lambda from 1e-15 to 1e15, dimensionless; default 4.0 for `"H1"`, 0.1 for `"mean+derivative"`.
        order: `"H1"` or `"mean+derivative"`.
        boundary: `"neumann"` (free ends) or `"periodic"`.
        axis: `"out"`, `"in"` or `"spatial"`.
        keep_norm: Rescale each weight's gradient to its norm before the metric.
        permutation_seed: Solve along a random order of channels drawn from this seed; None: in their own order.
        on: Which parameters; dense convolutions without the head by default.

    Cost: linear in the number of parameters, at most about 64 multiply-adds each for `"H1"`; for `"mean+derivative"`
    some 35 where channels are a multiple of 32, else two cumulative sums. Lent buffers the size of the largest
    gradient: none to two along `"out"`, two to four along `"in"`, at most one for `"mean+derivative"`, two more for a
    permuted order.

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
        super().__post_init__()
        name = "ChannelSobolev"
        self._settle(
            order=choice(name, "order", self.order, DEFAULT_SMOOTHING),
            boundary=choice(name, "boundary", self.boundary, ("neumann", "periodic")),
            permutation_seed=seed_or_none(name, "permutation_seed", self.permutation_seed),
        )
        if self.smoothing is not None:
            self._settle(smoothing=positive_number(name, "smoothing", self.smoothing))
        if self.axis == "spatial" and self.permutation_seed is not None:
            raise RuleError(
                "ChannelSobolev got permutation_seed with axis='spatial'; taps are a grid: permute 'out' or 'in'."
            )

    @property
    def strength(self) -> float:
        """lambda in force: `smoothing`, or the default of the order."""
        return DEFAULT_SMOOTHING[self.order] if self.smoothing is None else self.smoothing

    def transform(self, grad: torch.Tensor, out: torch.Tensor, layout: Layout, work: Workspace) -> None:
        """A blocked recurrence (H1), two integrals (mean+derivative) or a small dense product (spatial)."""
        if self.axis == "spatial" and len(layout.grid) > 1:
            self._solve_grid(grad, out, layout, work)
            return
        if self.permutation_seed is None:
            self._solve(grad, out, work)
            return
        seed, length = self.permutation_seed, grad.shape[1]
        index = torch.empty(0, dtype=torch.int64, device=grad.device)
        forward = kept(work, f"order {seed} {length}", index, lambda: _order(seed, length))
        backward = kept(work, f"order back {seed} {length}", index, lambda: _order(seed, length).argsort())
        ordered = work.lend("ordered", tuple(grad.shape), grad)
        solved = work.lend("ordered solved", tuple(grad.shape), grad)
        torch.index_select(grad, 1, forward, out=ordered)
        self._solve(ordered, solved, work)
        out.copy_(torch.index_select(solved, 1, backward, out=ordered))

    def _solve_grid(self, grad: torch.Tensor, out: torch.Tensor, layout: Layout, work: Workspace) -> None:
        (batch, taps, inner), grid = grad.shape, layout.grid
        # Products with a 9x9 matrix are slow: slices of one weight, side by side, share one with the matrix repeated.
        of_one = batch // layout.count
        repeats = next((k for k in (4, 3, 2) if inner == 1 and k * taps <= WIDEST_GRID and of_one % k == 0), 1)
        tag = f"grid {self.strength!r} {self.order} {self.boundary} {grid} {repeats}"

        def inverse() -> torch.Tensor:
            return torch.block_diag(*[_grid_inverse(self.strength, self.order, self.boundary, grid)] * repeats)

        shape = (batch // repeats, repeats * taps, inner)
        multiply_safely(kept(work, tag, grad, inverse), grad.reshape(shape), out.view(shape), work)

    def _solve(self, grad: torch.Tensor, out: torch.Tensor, work: Workspace) -> None:
        if self.order == "H1":
            solve(grad, self.strength, self.boundary, out, work)
        else:
            _mean_and_derivative(grad, self.strength * grad.shape[1] ** 2, self.boundary, out, work)

    def stiffness(self, layout: Layout, length: int) -> float:
        """`D^T D` has norm at most 4 in each dimension."""
        largest = 4.0 * (len(layout.grid) if self.axis == "spatial" else 1)
        return 1.0 + largest * self.strength * (1.0 if self.order == "H1" else length**2)

    def residual(self, grad: torch.Tensor, out: torch.Tensor, layout: Layout) -> torch.Tensor:
        """The metric applied to `out`, by differences, minus `grad`."""
        length = grad.shape[1]
        if self.permutation_seed is not None:
            forward = _order(self.permutation_seed, length).to(grad.device)
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


def _mean_and_derivative(
    grad: torch.Tensor, strength: float, boundary: Boundary, out: torch.Tensor, work: Workspace
) -> None:
    """Integrates twice: `d = -cumsum(g - mean)/strength`, `G = [0, cumsum d]`, moved to the mean of g."""
    batch, length, inner = grad.shape
    if length % BLOCK == 0 and grad.is_contiguous() and (batch == 1 or inner == 1 or inner >= FEW):
        target = out
        if out.data_ptr() == grad.data_ptr() or not out.is_contiguous():
            target = work.lend("integral", tuple(grad.shape), grad)
        integrate(grad, strength, boundary, target, work)
        if target is not out:
            out.copy_(target)
        return
    mean = grad.mean(dim=1, keepdim=True)
    buffer = torch.sub(grad, mean, out=work.lend("integral", tuple(grad.shape), grad))
    torch.cumsum(buffer, dim=1, out=out)
    if boundary == "periodic":
        out.sub_(out.mean(dim=1, keepdim=True))
    # Into the buffer: a cumulative sum in place is slower than one from here to there.
    torch.cumsum(out[:, :-1], dim=1, out=buffer[:, 1:])
    buffer[:, 0] = 0
    torch.sub(buffer, buffer.mean(dim=1, keepdim=True), out=out).mul_(-1.0 / strength).add_(mean)


def _order(seed: int, length: int) -> torch.Tensor:
    return torch.randperm(length, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")


def _grid_inverse(strength: float, order: Order, boundary: Boundary, grid: tuple[int, ...]) -> torch.Tensor:
    """The inverse metric on a grid of taps as a dense matrix: at most 11 x 11 taps in practice."""
    taps = math.prod(grid)
    identity = torch.eye(taps, dtype=torch.float64, device="cpu")
    stiff = apply_laplacian(identity.unsqueeze(0), grid, boundary).squeeze(0)
    average = torch.full_like(identity, 1.0 / taps)
    # The mean passes unchanged in both forms; split off, it costs no accuracy for a large lambda.
    rest = identity - average + strength * stiff if order == "H1" else strength * taps**2 * stiff
    return average + torch.linalg.pinv(rest, hermitian=True)
