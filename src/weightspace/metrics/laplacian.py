"""Laplacian smoothing gradient descent: the H1 metric, periodic, on the flattened tensor.

Source: Osher, Wang, Yin, Luo, Barekat, Pham, Lin, "Laplacian Smoothing Gradient Descent", arXiv 1806.06317. A baseline:
it smooths along the order in which the numbers lie in memory.

    (I + sigma D^T D) G = g,  D the forward difference along the whole tensor, its last number next to its first

Its authors divide the spectrum by `1 + 4 sigma sin^2(w/2)`; the same answer comes faster from blocks of the exponential
kernel (`_recurrence.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from weightspace.kernels.options import positive_number
from weightspace.kernels.selection import Selection, convs, linears
from weightspace.kernels.stacking import Workspace
from weightspace.kernels.views import ViewName
from weightspace.metrics._recurrence import solve
from weightspace.metrics.base import Layout, Metric
from weightspace.metrics.channel_sobolev import apply_laplacian


@dataclass(frozen=True)
class LaplacianSmoothing(Metric):
    """Smooths each weight's gradient as one periodic sequence.

    A channels_last weight is smoothed along its own memory order.

    Args:
        smoothing: sigma, dimensionless, from 1e-15 to 1e15; its authors use 1 to 3.
        keep_norm: Rescale each weight's gradient to its norm before smoothing.
        on: Which parameters; convolutions and linear layers by default.

    Cost: linear, about 36 multiply-adds for each element whatever sigma is. A lent buffer the size of the gradient if
    that is overwritten in place or not a multiple of 32 elements long (then two).

    Raises:
        RuleError: `smoothing` or `keep_norm` is out of its range.

    Example:
        >>> from weightspace.metrics import transform_gradient
        >>> transform_gradient(LaplacianSmoothing(smoothing=1.0), torch.tensor([[3.0, 0.0, 0.0]]))  # sum is kept
        tensor([[1.5000, 0.7500, 0.7500]])
    """

    default_on: ClassVar[Selection] = convs | linears

    smoothing: float = 1.0
    keep_norm: bool = False
    on: Selection | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._settle(smoothing=positive_number("LaplacianSmoothing", "smoothing", self.smoothing))

    @property
    def view(self) -> ViewName:
        """The whole tensor, flattened."""
        return "kernel"

    def transform(self, grad: torch.Tensor, out: torch.Tensor, layout: Layout, work: Workspace) -> None:
        """A blocked recurrence along the whole tensor."""
        solve(grad, self.smoothing, "periodic", out, work)

    def stiffness(self, layout: Layout, length: int) -> float:
        """`D^T D` has norm at most 4."""
        return 1.0 + 4.0 * self.smoothing

    def residual(self, grad: torch.Tensor, out: torch.Tensor, layout: Layout) -> torch.Tensor:
        """`G + sigma D^T D G - g`, by differences."""
        return out + self.smoothing * apply_laplacian(out, (grad.shape[1],), "periodic") - grad
