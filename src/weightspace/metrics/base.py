"""The base of gradient metrics: linear maps of a gradient along one axis of a weight.

A metric turns the derivative of the loss (a covector `g`) into the gradient `G` that represents it under another inner
product: `<G, h>_metric = <g, h>` for every direction `h`. Every metric here works on blocks `(batch, length, inner)`
and acts along `length`; `weightspace.kernels.views` says how a weight becomes such a block.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from weightspace.kernels.options import boolean, choice
from weightspace.kernels.parameters import ParameterInfo
from weightspace.kernels.points import Channels
from weightspace.kernels.rule import Rule, Stage
from weightspace.kernels.selection import Selection, dense_convs, head
from weightspace.kernels.stacking import Workspace
from weightspace.kernels.views import ViewName

Axis = Literal["out", "in", "spatial"]
AXES: tuple[Axis, ...] = ("out", "in", "spatial")


@dataclass(frozen=True)
class Layout:
    """What a metric must know of a block besides its three sizes.

    Attributes:
        count: Number of weights stacked in the block; each is normalized on its own.
        grid: Sizes of the dimensions that `length` merges, e.g. `(3, 3)` for the taps of a 3x3 kernel.
    """

    count: int
    grid: tuple[int, ...]


class Metric(Rule):
    """A gradient metric. Subclasses are frozen dataclasses that write `transform` and `residual`."""

    stage: ClassVar[Stage] = Stage.METRIC
    default_on: ClassVar[Selection] = dense_convs & ~head
    # What `residual` measures, as a noun clause for `verify()`.
    declares: ClassVar[str] = "that the metric applied to its answer gives the loss gradient back"
    keep_norm: bool

    def __post_init__(self) -> None:
        self._settle(keep_norm=boolean(type(self).__name__, "keep_norm", self.keep_norm))

    @abstractmethod
    def transform(self, grad: torch.Tensor, out: torch.Tensor, layout: Layout, work: Workspace) -> None:
        """Writes the gradient under the metric into `out`.

        Args:
            grad: Loss gradient, `(count * batch, length, inner)`, float32 or float64.
            out: Where the result goes; same shape; may be `grad` itself.
            layout: Number of weights in the block and the grid of `length`.
            work: Lends temporary buffers.
        """

    @abstractmethod
    def residual(self, grad: torch.Tensor, out: torch.Tensor, layout: Layout) -> torch.Tensor:
        """What is left of the metric's defining equation: zero for an exact `out`; same units as `grad`.

        Written independently of `transform` (by applying the metric, not its inverse), it is what `verify()` measures.
        """

    @abstractmethod
    def stiffness(self, layout: Layout, length: int) -> float:
        """The largest factor by which applying the metric enlarges a gradient: scales the error of `residual`."""

    def apply(self, grad: torch.Tensor, out: torch.Tensor, layout: Layout, work: Workspace) -> None:
        """`transform` with the house rules around it: 16-bit gradients are computed in float32, `keep_norm` holds."""
        if is_16_bit(grad):
            wide = work.lend("wide", tuple(grad.shape), torch.empty(0, dtype=torch.float32, device=grad.device))
            wide.copy_(grad)
            self.apply(wide, wide, layout, work)
            out.copy_(wide)
            return
        if not self.keep_norm:
            self.transform(grad, out, layout, work)
            return
        before = _norms(grad, layout.count)
        self.transform(grad, out, layout, work)
        after = _norms(out, layout.count)
        # What is left of a gradient that the metric removes is rounding noise: it must not be blown up.
        floor = 8 * torch.finfo(grad.dtype).eps * before
        scale = torch.where(after > floor, before / after, torch.ones_like(after))
        out.view(layout.count, -1).mul_(scale[:, None])

    @property
    @abstractmethod
    def view(self) -> ViewName:
        """The view of a gradient that the metric acts on."""

    def refusal(self, info: ParameterInfo) -> str | None:
        """Grouped kernels have no common channel axis, and one channel leaves nothing to measure."""
        if info.groups > 1 and self.view in ("out", "in"):
            return f"grouped kernel ({info.groups} groups): its channels do not share inputs"
        return super().refusal(info)


class AxisMetric(Metric):
    """A metric along one of the named axes of a kernel."""

    axis: Axis

    def __post_init__(self) -> None:
        super().__post_init__()
        self._settle(axis=choice(type(self).__name__, "axis", self.axis, AXES))

    def acts_on_rows(self, channels: Channels) -> bool:
        """Along input channels and taps, unless the norm of the whole gradient is kept."""
        return self.axis != "out" and not self.keep_norm and channels == Channels()

    @property
    def view(self) -> ViewName:
        """The axis is the view."""
        return self.axis

    def refusal(self, info: ParameterInfo) -> str | None:
        """Also refuses an axis of one element."""
        reason = super().refusal(info)
        if reason is not None or info.parameter.ndim < 2:
            return reason
        axes = {"out": (info.out_axis,), "in": (info.in_axis,), "spatial": info.spatial_axes}[self.axis]
        if axes and math.prod(info.shape[a] for a in axes) == 1:
            return f"the {self.axis} axis has one element: nothing to act along"
        return None


def is_16_bit(tensor: torch.Tensor) -> bool:
    """True for the dtypes that rules compute in float32."""
    return tensor.dtype in (torch.float16, torch.bfloat16)


def _norms(block: torch.Tensor, count: int) -> torch.Tensor:
    return torch.linalg.vector_norm(block.reshape(count, -1), dim=1)


def mean_energy(grad: torch.Tensor, count: int) -> torch.Tensor:
    """rho: the share of each gradient's squared norm that lies in its mean along `length`; 1/length for white noise.

    Args:
        grad: `(count * batch, length, inner)`.
        count: Number of weights in the block.

    Returns:
        `(count,)` in [0, 1]; 0 where the gradient is zero.

    Example:
        >>> mean_energy(torch.tensor([[[3.0], [1.0]]]), 1)  # mean 2: 2 * 2^2 of 3^2 + 1^2
        tensor([0.8000])
    """
    total = _norms(grad, count)
    mean = _norms(grad.mean(dim=1), count) * math.sqrt(grad.shape[1])
    ratio = torch.where(total > 0, mean / total, torch.zeros_like(total))
    return ratio.square().clamp(max=1.0)
