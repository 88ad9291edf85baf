"""Laplacian smoothing gradient descent: the H1 metric, periodic, on the flattened tensor.

Source: Osher, Wang, Yin, Luo, Barekat, Pham, Lin, "Laplacian Smoothing Gradient Descent", arXiv 1806.06317. A baseline:
it smooths along the order in which the numbers lie in memory.

    (I + sigma D^T D) G = g,  solved by FFT
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import torch

from weightspace.kernels.selection import Selection, convs, linears
from weightspace.kernels.stacking import Workspace
from weightspace.kernels.views import ViewName
from weightspace.metrics.base import Layout, Metric, check_positive
from weightspace.metrics.channel_sobolev import apply_laplacian


@dataclass(frozen=True)
class LaplacianSmoothing(Metric):
    """Smooths each weight's gradient as one periodic sequence.

    A channels_last weight is smoothed along its own memory order.

    Args:
        smoothing: sigma above 0, dimensionless; its authors use 1 to 3.
        keep_norm: Rescale each weight's gradient to its norm before smoothing.
        on: Which parameters; convolutions and linear layers by default.

    Cost: two real FFTs, `O(n log n)` for a weight of n elements.

    Raises:
        RuleError: `smoothing` is not a finite number above 0.

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
        check_positive("LaplacianSmoothing", "smoothing", self.smoothing)

    @property
    def view(self) -> ViewName:
        """The whole tensor, flattened."""
        return "kernel"

    def transform(self, grad: torch.Tensor, out: torch.Tensor, layout: Layout, work: Workspace) -> None:
        """Divides the spectrum by `1 + 4 sigma sin^2(w/2)`."""
        length = grad.shape[1]
        symbol = _inverse_symbol(self.smoothing, length, grad.dtype, grad.device)
        spectrum = torch.fft.rfft(grad, dim=1) * symbol[:, None]
        out.copy_(torch.fft.irfft(spectrum, n=length, dim=1))

    def stiffness(self, layout: Layout, length: int) -> float:
        """`D^T D` has norm at most 4."""
        return 1.0 + 4.0 * self.smoothing

    def residual(self, grad: torch.Tensor, out: torch.Tensor, layout: Layout) -> torch.Tensor:
        """`G + sigma D^T D G - g`, by differences."""
        return out + self.smoothing * apply_laplacian(out, (grad.shape[1],), "periodic") - grad


@lru_cache(maxsize=256)
def _inverse_symbol(smoothing: float, length: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    half_angle = torch.arange(length // 2 + 1, dtype=torch.float64) * (math.pi / length)
    return (1.0 / (1.0 + 4.0 * smoothing * half_angle.sin().square())).to(dtype=dtype, device=device)
