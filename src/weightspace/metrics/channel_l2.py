"""Re-weighted L2 metric along the output channels: keep the mean over channels, damp what deviates from it.

Source: Lao, Zhu, Wonka, Sundaramoorthi, "Channel-Directed Gradients for Optimization of Convolutional Neural Networks",
arXiv 2008.10766. The paper's idea is the metric along the output channels; its printed constants were not at hand, so
the weights below (1 on the mean, lambda on deviations) are a reconstruction.

    <h, k> = L * mean(h) * mean(k) + lambda * sum (h - mean h)(k - mean k)
    G      = mean(g) + (g - mean(g)) / lambda
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from weightspace.kernels.selection import Selection
from weightspace.kernels.stacking import Workspace
from weightspace.metrics.base import Axis, AxisMetric, Layout, _norms, check_axis, check_positive


@dataclass(frozen=True, repr=True)
class ChannelL2(AxisMetric):
    """Gradient under the re-weighted L2 (H^0) metric along an axis of the kernel.

    `smoothing > 1` damps the deviations from the mean over channels by that factor; 1 is the plain gradient. The step
    shrinks to `sqrt(rho + (1 - rho) / smoothing^2)` of its norm, where rho is the mean's share of the gradient's energy
    (about 1/channels for unrelated channels): sweep the learning rate or set `keep_norm` when you compare.

    Args:
        smoothing: lambda, dimensionless, above 0.
        axis: `"out"` (the paper's), `"in"` or `"spatial"`.
        keep_norm: Rescale each weight's gradient to its norm before the metric.
        on: Which parameters; dense convolutions without the head by default.

    Cost: reads the gradient twice and writes it once; O(parameters); one buffer the size of the gradient.

    Raises:
        RuleError: `smoothing` is not a finite number above 0, or `axis` is unknown.

    Example:
        >>> from weightspace.metrics import transform_gradient
        >>> transform_gradient(ChannelL2(smoothing=2.0), torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
        tensor([[1.5000, 0.0000],
                [2.5000, 0.0000]])
    """

    smoothing: float = 4.0
    axis: Axis = "out"
    keep_norm: bool = False
    on: Selection | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_positive("ChannelL2", "smoothing", self.smoothing)
        check_axis("ChannelL2", self.axis)

    def transform(self, grad: torch.Tensor, out: torch.Tensor, layout: Layout, work: Workspace) -> None:
        """One reduction for the mean, one fused multiply-add for the result."""
        # Three calls a weight: on small kernels the calls cost more than the arithmetic.
        weighted_mean = self._sum(grad, work).mul_((1.0 - 1.0 / self.smoothing) / grad.shape[1])
        torch.add(weighted_mean, grad, alpha=1.0 / self.smoothing, out=out)

    def apply(self, grad: torch.Tensor, out: torch.Tensor, layout: Layout, work: Workspace) -> None:
        """As the base class, but the norm is kept in the same pass: the norm after follows from rho."""
        if not self.keep_norm or grad.dtype not in (torch.float32, torch.float64):
            super().apply(grad, out, layout, work)
            return
        mean = self._sum(grad, work).div_(grad.shape[1])
        norm = _norms(grad, layout.count)
        ratio = _norms(mean, layout.count) * grad.shape[1] ** 0.5 / norm  # sqrt(rho)
        ratio = torch.where(norm > 0, ratio, torch.zeros_like(ratio)).clamp_(max=1.0)
        rho = ratio.square()
        scale = (rho + (1.0 - rho) / self.smoothing**2).rsqrt_()
        per_block = scale.repeat_interleave(grad.shape[0] // layout.count)[:, None, None]
        mean.mul_(per_block * (1.0 - 1.0 / self.smoothing))
        torch.addcmul(mean, grad, per_block / self.smoothing, out=out)

    def stiffness(self, layout: Layout, length: int) -> float:
        """Deviations from the mean are weighted by lambda."""
        return max(1.0, self.smoothing)

    def residual(self, grad: torch.Tensor, out: torch.Tensor, layout: Layout) -> torch.Tensor:
        """`mean(G) + lambda (G - mean G) - g`."""
        mean = out.mean(dim=1, keepdim=True)
        return mean + self.smoothing * (out - mean) - grad

    @staticmethod
    def _sum(grad: torch.Tensor, work: Workspace) -> torch.Tensor:
        total = work.lend("sum", (grad.shape[0], 1, grad.shape[2]), grad)
        return torch.sum(grad, dim=1, keepdim=True, out=total)
