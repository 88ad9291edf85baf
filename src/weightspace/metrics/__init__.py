"""Gradient metrics: which gradient represents the derivative of the loss.

`ChannelL2` and `ChannelSobolev` are the method of channel-directed gradients; `GradientCentralization` and
`LaplacianSmoothing` are baselines. Attach any of them to a torch optimizer with `weightspace.attach`.
"""

import torch

from weightspace.errors import RuleError
from weightspace.kernels.parameters import ParameterInfo
from weightspace.kernels.stacking import Workspace
from weightspace.kernels.views import view_of
from weightspace.metrics.base import Layout, Metric, mean_energy
from weightspace.metrics.centralization import GradientCentralization
from weightspace.metrics.channel_l2 import ChannelL2
from weightspace.metrics.channel_sobolev import ChannelSobolev
from weightspace.metrics.laplacian import LaplacianSmoothing
from weightspace.precision import full_precision

__all__ = [
    "ChannelL2",
    "ChannelSobolev",
    "GradientCentralization",
    "LaplacianSmoothing",
    "Layout",
    "Metric",
    "mean_energy",
    "transform_gradient",
]


@full_precision()
def transform_gradient(metric: Metric, grad: torch.Tensor) -> torch.Tensor:
    """The gradient under `metric` of one weight: for a look, for tests, for training loops without an optimizer.

    Args:
        metric: The metric; its `on=` is not consulted.
        grad: Gradient of a dense kernel `(c_out, c_in, ...)` or of a matrix `(out, in)`.

    Returns:
        A new tensor with the shape, dtype and strides of `grad`.

    Raises:
        RuleError: The tensor is no matrix or kernel, or is not of a floating type.
    """
    if grad.ndim < 2 or not grad.is_floating_point():
        raise RuleError(
            f"A metric acts on real matrices and kernels of 2 to 5 dimensions; "
            f"got {grad.dtype} of shape {tuple(grad.shape)}."
        )
    kind = "conv" if grad.ndim > 2 else "linear"
    info = ParameterInfo(
        "gradient", torch.nn.Parameter(grad.detach(), requires_grad=False), (), kind, "weight", 1, False, False
    )
    view = view_of(info, metric.view)
    out = torch.empty_like(grad)
    metric.apply(view(grad.detach()), view(out), Layout(1, view.grid), Workspace())
    return out
