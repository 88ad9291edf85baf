"""Group L1: whole output channels, kernels or input channels are pushed towards zero together.

    R = sum over groups of  sqrt(n) |w_group|_2,         n the numbers in a group
    prox_a:  w_group <- w_group max(0, 1 - a sqrt(n) / |w_group|)

The factor `sqrt(n)` makes groups of all sizes comparable, and the strength comparable with that of L1: for a group of
equal numbers both are the same.

Source: Yuan and Lin, "Model selection and estimation in regression with grouped variables", 2006; the proximal step is
textbook (Parikh and Boyd, "Proximal Algorithms", 2014).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from weightspace.kernels.options import choice
from weightspace.kernels.parameters import ParameterInfo
from weightspace.kernels.points import Channels, whole
from weightspace.penalties.weights import Amount, WeightPenalty

Groups = Literal["out", "kernel", "in"]
GROUPS: tuple[Groups, ...] = ("out", "kernel", "in")
# The dimensions of (groups, out, in, *taps) that one group spans.
_SPANNED: dict[Groups, tuple[int, ...]] = {"out": (2,), "kernel": (), "in": (1,)}


@dataclass(frozen=True)
class GroupL1(WeightPenalty):
    """The sum of group norms: empties whole channels or kernels, which can then be removed.

    Args:
        weight: Strength.
        groups: `"out"`: all that makes one output channel; `"in"`: all that reads one input channel; `"kernel"`: one
            spatial kernel (one output channel, one input channel). Linear layers have no kernels.
        application: `"gradient"` or `"proximal"`, which makes exact zeros.
        every, gate, on: See `WeightPenalty`.

    Cost: two passes.

    Example:
        >>> weight = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
        >>> penalty = GroupL1(0.1, groups="out", application="proximal")
        >>> penalty.value(weight, Channels()).item()  # sqrt(2) * 5
        7.071067810058594
        >>> penalty.shrink_(weight, 1.0 / 2**0.5, Channels())
        >>> weight.tolist()
        [[2.4000000953674316, 3.200000047683716], [0.0, 0.0]]
    """

    weight: float = field(default=1e-4)
    groups: Groups = field(default="out", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._settle(groups=choice("GroupL1", "groups", self.groups, GROUPS))

    def acts_on_rows(self, channels: Channels) -> bool:
        """Groups of output channels and kernels do not share rows."""
        return self.groups != "in" and channels == Channels()

    def refusal(self, info: ParameterInfo) -> str | None:
        """Also refuses what has no channels, and linear layers for kernels."""
        if info.role != "weight" or not (info.is_kernel or info.kind == "linear"):
            return f"{info.kind} {info.role}: groups of channels are those of convolutions and linear layers"
        if self.groups == "kernel" and not info.is_kernel:
            return "a linear layer has no spatial kernels; use L1, or groups='out' or 'in'"
        return super().refusal(info)

    def value(self, weight: torch.Tensor, channels: Channels) -> torch.Tensor:
        """The sum of group norms times `sqrt(n)`."""
        norms, root = self._norms(weight, channels)
        return norms.sum() * root

    def gradient(self, weight: torch.Tensor, channels: Channels) -> torch.Tensor:
        """`sqrt(n) w / |w_group|`; 0 for a group of zeros."""
        norms, root = self._norms(weight, channels)
        scale = torch.where(norms > 0, root / norms, torch.zeros_like(norms))
        return self._scaled(torch.empty_like(weight).copy_(weight), scale, channels)

    def shrink_(
        self, weight: torch.Tensor, amount: Amount, channels: Channels, start: torch.Tensor | None = None
    ) -> None:
        """Every group's norm less `amount sqrt(n)`, at least 0."""
        del start
        norms, root = self._norms(weight, channels)
        # NaN stays NaN; a group of zeros stays zero.
        scale = torch.where(norms == 0, torch.zeros_like(norms), (1.0 - amount * root / norms).clamp_min(0.0))
        self._scaled(weight, scale, channels).add_(0.0)  # a negative number times 0 is -0.0

    def _norms(self, weight: torch.Tensor, channels: Channels) -> tuple[torch.Tensor, float]:
        """Norms of all groups, broadcastable over `(groups, out, in, *taps)`, and `sqrt(n)`."""
        parts = whole(weight, channels)
        spanned = (*_SPANNED[self.groups], *range(3, parts.ndim))
        wide = parts.float() if parts.dtype.itemsize < 4 else parts
        root = math.sqrt(math.prod(parts.shape[d] for d in spanned))
        if not spanned:
            return wide.abs(), root
        return torch.linalg.vector_norm(wide, dim=spanned, keepdim=True), root

    @staticmethod
    def _scaled(weight: torch.Tensor, scale: torch.Tensor, channels: Channels) -> torch.Tensor:
        whole(weight, channels).mul_(scale)
        return weight
