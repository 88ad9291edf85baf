"""Gradient Centralization: remove the mean of each filter's gradient.

Source: Yong, Huang, Hua, Zhang, "Gradient Centralization: A New Optimization Technique for Deep Neural Networks",
arXiv 2004.01461. A baseline: it acts within each filter, ChannelL2 across filters; the two commute.

    G = g - mean over (c_in, k_h, k_w) of g
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from weightspace.kernels.parameters import ParameterInfo
from weightspace.kernels.points import Channels
from weightspace.kernels.selection import Selection, convs, linears
from weightspace.kernels.stacking import Workspace
from weightspace.kernels.views import ViewName
from weightspace.metrics.base import Layout, Metric


@dataclass(frozen=True)
class GradientCentralization(Metric):
    """Projects every filter's gradient onto the plane of zero mean.

    Acts on convolutions and linear layers by default, as its authors do. A projection, not a metric: it has no inverse.
    Under plain SGD without weight decay the mean of a filter never moves.

    Args:
        keep_norm: Rescale each weight's gradient to its norm before the projection.
        on: Which parameters; convolutions and linear layers by default.

    Cost: reads the gradient twice and writes it once; a lent buffer for one mean a filter.

    Raises:
        RuleError: `keep_norm` is not a boolean.

    Example:
        >>> from weightspace.metrics import transform_gradient
        >>> transform_gradient(GradientCentralization(), torch.tensor([[1.0, 3.0], [5.0, 5.0]]))
        tensor([[-1.,  1.],
                [ 0.,  0.]])
    """

    default_on: ClassVar[Selection] = convs | linears
    declares: ClassVar[str] = "that every filter's gradient has mean zero and is otherwise unchanged"

    keep_norm: bool = False
    on: Selection | None = field(default=None, kw_only=True)

    @property
    def view(self) -> ViewName:
        """Within each output filter."""
        return "filter"

    def acts_on_rows(self, channels: Channels) -> bool:
        """Filters are rows, unless the norm of the whole gradient is kept."""
        return not self.keep_norm and channels == Channels()

    def refusal(self, info: ParameterInfo) -> str | None:
        """Also refuses filters of one element, whose gradient would vanish: they would be frozen without a word."""
        if info.parameter.ndim > 1 and info.parameter.numel() == info.shape[info.out_axis]:
            return "each filter has one element: centered, its gradient would be zero"
        return super().refusal(info)

    def transform(self, grad: torch.Tensor, out: torch.Tensor, layout: Layout, work: Workspace) -> None:
        """One reduction, one subtraction."""
        mean = work.lend("mean", (grad.shape[0], 1, grad.shape[2]), grad)
        torch.sub(grad, torch.mean(grad, dim=1, keepdim=True, out=mean), out=out)

    def stiffness(self, layout: Layout, length: int) -> float:
        """A projection enlarges nothing."""
        return 1.0

    def residual(self, grad: torch.Tensor, out: torch.Tensor, layout: Layout) -> torch.Tensor:
        """What `out` lacks of being the projection: its own mean, and any change that is not one number a filter."""
        change = grad - out
        return out.mean(dim=1, keepdim=True) + (change - change[:, :1])
