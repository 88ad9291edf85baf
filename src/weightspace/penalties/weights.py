"""The base of penalties on the numbers of a weight: L1, L2, their sum, group norms, cautious decay.

They act in one of two ways, `application=`:

    "gradient"    the optimizer gets   g + weight * every * dR/dw
    "proximal"    after its step       w <- prox_a R(w) = argmin_u  a R(u) + |u - w|^2 / 2,    a = lr * weight * every

with the learning rate of the weight's parameter group. A subgradient of an L1 norm never makes a weight zero: with SGD
it chatters around zero at about `lr * weight / (1 - momentum)`. The proximal step makes exact zeros, and neither
momentum nor an adaptive optimizer's scaling touches it ("decoupled").
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from weightspace.kernels.options import choice
from weightspace.kernels.parameters import ParameterInfo
from weightspace.kernels.points import Channels
from weightspace.kernels.selection import Selection, convs, linears
from weightspace.penalties.base import Penalty

Application = Literal["gradient", "proximal"]
APPLICATIONS: tuple[Application, ...] = ("gradient", "proximal")
Amount = float | torch.Tensor  # a number, or a 0-dimensional tensor of the weight's device


@dataclass(frozen=True)
class WeightPenalty(Penalty):
    """A function of a weight's own numbers.

    Args:
        application: `"gradient"` adds the gradient before the optimizer's step, `"proximal"` takes the proximal step
            after it, see the module.
        on: Which parameters; weights of all convolutions and linear layers by default, the head included.
        weight, every, gate: See `Penalty`.

    Raises:
        RuleError: An option is out of its range.
    """

    default_on: ClassVar[Selection] = convs | linears
    is_elementwise: ClassVar[bool] = False
    needs_start: ClassVar[bool] = False

    application: Application = field(default="gradient", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._settle(application=choice(type(self).__name__, "application", self.application, APPLICATIONS))

    def acts_on_rows(self, channels: Channels) -> bool:
        """Where it acts on single numbers."""
        return self.is_elementwise

    @property
    def is_proximal(self) -> bool:
        """Whether it acts after the optimizer's step."""
        return self.application == "proximal"

    @abstractmethod
    def value(self, weight: torch.Tensor, channels: Channels) -> torch.Tensor:
        """R, 0-dimensional, without the factor `weight`.

        Args:
            weight: The weight, `(c_out, c_in / groups, ...)` (transposed convolutions: `(c_in, c_out / groups, ...)`).
            channels: Where it keeps its channels.
        """

    @abstractmethod
    def gradient(self, weight: torch.Tensor, channels: Channels) -> torch.Tensor:
        """dR/dw, of the weight's shape, without the factors; 0 where R has no derivative. A new tensor."""

    def gradient_into(self, weight: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """`gradient` of some of the weight's numbers without new memory, where `is_elementwise`.

        Args:
            weight: Any part of a weight.
            out: Of the same shape; it may be written to.

        Returns:
            `out`, or the weight itself where that is its gradient; to be read only.
        """
        return out.copy_(self.gradient(weight, Channels()))

    @abstractmethod
    def shrink_(
        self, weight: torch.Tensor, amount: Amount, channels: Channels, start: torch.Tensor | None = None
    ) -> None:
        """What happens after the optimizer's step, in place.

        Args:
            weight: The weight after the step.
            amount: `lr * weight * every`; 0 changes nothing.
            channels: Where it keeps its channels.
            start: The weight before the step, where `needs_start`.
        """

    def chatter(self, lr: float, momentum: float) -> float:
        """The size below which SGD with this penalty in gradient form cannot tell a weight from zero; 0 if it can."""
        del lr, momentum
        return 0.0

    def refusal(self, info: ParameterInfo) -> str | None:
        """Also refuses scalars: one number has no sparsity."""
        return "is a single number" if info.parameter.ndim == 0 else super().refusal(info)


def soft_threshold_(weight: torch.Tensor, amount: Amount) -> None:
    """`w <- sign(w) max(0, |w| - amount)` in place, exact zeros included; NaN stays NaN.

    Example:
        >>> weight = torch.tensor([-2.0, -0.25, 0.5, 3.0])
        >>> soft_threshold_(weight, 0.5)
        >>> weight.tolist()
        [-1.5, 0.0, 0.0, 2.5]
    """
    if isinstance(amount, torch.Tensor):
        weight.sub_(torch.clamp(weight, -amount, amount))
    elif amount > 0.0:
        torch.ops.aten.softshrink.out(weight, amount, out=weight)
        weight.add_(0.0)  # it leaves -0.0 where the weight was negative
