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

from weightspace.kernels.options import positive_number
from weightspace.kernels.selection import Selection
from weightspace.kernels.stacking import Workspace
from weightspace.metrics.base import Axis, AxisMetric, Layout, _norms

_WIDE = 4096  # columns from which a product sums faster on a CPU
_PARTS = 4


@dataclass(frozen=True, repr=True)
class ChannelL2(AxisMetric):
    """Gradient under the re-weighted L2 (H^0) metric along an axis of the kernel.

    `smoothing > 1` damps the deviations from the mean over channels by that factor; 1 is the plain gradient. The step
    shrinks to `sqrt(rho + (1 - rho) / smoothing^2)` of its norm, where rho is the mean's share of the gradient's energy
    (about 1/channels for unrelated channels): sweep the learning rate or set `keep_norm` when you compare.

    Args:
        smoothing: lambda, dimensionless, from 1e-15 to 1e15.
        axis: `"out"` (the paper's), `"in"` or `"spatial"`.
        keep_norm: Rescale each weight's gradient to its norm before the metric.
        on: Which parameters; dense convolutions without the head by default.

    Cost: reads the gradient twice and writes it once; O(parameters); one buffer the size of the gradient.

    Raises:
        RuleError: `smoothing`, `axis` or `keep_norm` is out of its range.

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
        super().__post_init__()
        self._settle(smoothing=positive_number("ChannelL2", "smoothing", self.smoothing))

    def transform(self, grad: torch.Tensor, out: torch.Tensor, layout: Layout, work: Workspace) -> None:
        """One reduction for the mean, one fused multiply-add for the result."""
        # Few calls a weight: on small kernels the calls cost more than the arithmetic.
        weighted_mean = weighted_sum(grad, (1.0 - 1.0 / self.smoothing) / grad.shape[1], work)
        torch.add(weighted_mean, grad, alpha=1.0 / self.smoothing, out=out)

    def apply(self, grad: torch.Tensor, out: torch.Tensor, layout: Layout, work: Workspace) -> None:
        """As the base class, but the norm is kept in the same pass: the norm after follows from rho."""
        if not self.keep_norm or grad.dtype not in (torch.float32, torch.float64):
            super().apply(grad, out, layout, work)
            return
        mean = weighted_sum(grad, 1.0 / grad.shape[1], work)
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


def weighted_sum(grad: torch.Tensor, weight: float, work: Workspace) -> torch.Tensor:
    """`weight * grad.sum(dim=1, keepdim=True)`, in a buffer of `work` that is valid until the next call.

    Args:
        grad: `(batch, length, inner)`.
        weight: Factor of the sum.
        work: Lends the buffers.

    Example:
        >>> weighted_sum(torch.tensor([[[1.0], [2.0]]]), 0.5, Workspace())
        tensor([[[1.5000]]])
    """
    batch, length, inner = grad.shape
    total = work.lend("sum", (batch, 1, inner), grad)
    if grad.device.type != "cpu" or inner < _WIDE or length % _PARTS or not grad.is_contiguous():
        return torch.sum(grad, dim=1, keepdim=True, out=total).mul_(weight)
    # torch.sum walks down narrow strips of columns, which on wide rows jumps from page to page; a product with a
    # constant row reads row after row: 1.3 to 1.7 times as fast from some 4,000 columns on.
    # In parts, because one such product runs on one thread.
    row = work.lend("row", (length // _PARTS,), grad).fill_(weight).expand(batch * _PARTS, 1, -1)
    parts = work.lend("parts", (batch * _PARTS, 1, inner), grad)
    torch.bmm(row, grad.view(batch * _PARTS, length // _PARTS, inner), out=parts)
    return torch.sum(parts.view(batch, _PARTS, inner), dim=1, keepdim=True, out=total)
