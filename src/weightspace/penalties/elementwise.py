"""L1, L2 and the elastic net: penalties that see every number of a weight alone.

    L1           R = sum |w|                    prox_a: sign(w) max(0, |w| - a)
    L2           R = sum w^2 / 2                prox_a: w / (1 + a)
    elastic net  R = r L1 + (1 - r) L2          prox_a: soft threshold by a r, divided by 1 + a (1 - r)

Source: textbook (Parikh and Boyd, "Proximal Algorithms", 2014; Zou and Hastie, 2005, in scikit-learn's parameters).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from weightspace.errors import RuleError
from weightspace.kernels.options import number_from_zero
from weightspace.kernels.points import Channels
from weightspace.penalties.weights import Amount, WeightPenalty, soft_threshold_


@dataclass(frozen=True)
class L1(WeightPenalty):
    """The sum of absolute values: pushes every number towards zero by the same amount.

    Args:
        weight: Strength: what each sign is multiplied with. Above a network's tolerance level it stops learning, see
            `weightspace tolerance`.
        application: `"gradient"` or `"proximal"`, which makes exact zeros; see `WeightPenalty`.
        every, gate, on: See `WeightPenalty`.

    Cost: `"gradient"`: one pass over the weight for its signs, one to add them; `"proximal"`: one pass in place.

    Example:
        >>> weight = torch.tensor([[3.0, 0.0, -1.0]])
        >>> L1(0.1).value(weight, Channels()).item(), L1(0.1).gradient(weight, Channels()).tolist()
        (4.0, [[1.0, 0.0, -1.0]])
    """

    is_elementwise: ClassVar[bool] = True
    weight: float = field(default=1e-4)

    def value(self, weight: torch.Tensor, channels: Channels) -> torch.Tensor:
        """The sum of absolute values, in at least float32."""
        del channels
        return torch.linalg.vector_norm(weight, 1, dtype=_wide(weight))

    def gradient(self, weight: torch.Tensor, channels: Channels) -> torch.Tensor:
        """The signs; 0 at 0."""
        del channels
        return torch.sign(weight)

    def gradient_into(self, weight: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """The signs."""
        return torch.sign(weight, out=out)

    def shrink_(
        self, weight: torch.Tensor, amount: Amount, channels: Channels, start: torch.Tensor | None = None
    ) -> None:
        """Soft threshold."""
        del channels, start
        soft_threshold_(weight, amount)

    def chatter(self, lr: float, momentum: float) -> float:
        """`lr * weight * every / (1 - momentum)`: the length of a step that the penalty alone makes."""
        return lr * self.weight * self.every / (1.0 - momentum)


@dataclass(frozen=True)
class L2(WeightPenalty):
    """Half the sum of squares: weight decay.

    With SGD, `"gradient"` is torch's `weight_decay` bit for bit. `"proximal"` divides by `1 + lr * weight`, which is
    decoupled weight decay (AdamW) to first order in `lr * weight` and stable at every strength.

    Args:
        weight: Strength: what the weight is multiplied with in the gradient.
        application, every, gate, on: See `WeightPenalty`.

    Cost: one pass.

    Example:
        >>> weight = torch.tensor([[3.0, 4.0]])
        >>> L2(0.5, application="proximal").shrink_(weight, 1.0, Channels())
        >>> weight.tolist(), L2().value(weight, Channels()).item()
        ([[1.5, 2.0]], 3.125)
    """

    is_elementwise: ClassVar[bool] = True
    weight: float = field(default=1e-4)

    def value(self, weight: torch.Tensor, channels: Channels) -> torch.Tensor:
        """Half the sum of squares, in at least float32."""
        del channels
        return torch.linalg.vector_norm(weight, dtype=_wide(weight)).square() / 2

    def gradient(self, weight: torch.Tensor, channels: Channels) -> torch.Tensor:
        """The weight itself."""
        del channels
        return weight.clone()

    def gradient_into(self, weight: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """The weight itself, not copied."""
        del out
        return weight

    def shrink_(
        self, weight: torch.Tensor, amount: Amount, channels: Channels, start: torch.Tensor | None = None
    ) -> None:
        """Division by `1 + amount`."""
        del channels, start
        weight.div_(1.0 + amount)


@dataclass(frozen=True)
class ElasticNet(WeightPenalty):
    """A mixture of L1 and L2.

    Args:
        weight: Strength of the whole.
        l1_ratio: Share of L1, from 0 (L2) to 1 (L1).
        application, every, gate, on: See `WeightPenalty`.

    Cost: two passes more than L1.

    Example:
        >>> ElasticNet(1.0, l1_ratio=0.5).gradient(torch.tensor([[4.0, -2.0]]), Channels()).tolist()
        [[2.5, -1.5]]
    """

    is_elementwise: ClassVar[bool] = True
    weight: float = field(default=1e-4)
    l1_ratio: float = field(default=0.5, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        ratio = number_from_zero("ElasticNet", "l1_ratio", self.l1_ratio)
        if ratio > 1.0:
            raise RuleError(f"ElasticNet got l1_ratio={self.l1_ratio!r}; it is a share: pass a number from 0 to 1.")
        self._settle(l1_ratio=ratio)

    def value(self, weight: torch.Tensor, channels: Channels) -> torch.Tensor:
        """`l1_ratio L1 + (1 - l1_ratio) L2`."""
        return self.l1_ratio * L1().value(weight, channels) + (1.0 - self.l1_ratio) * L2().value(weight, channels)

    def gradient(self, weight: torch.Tensor, channels: Channels) -> torch.Tensor:
        """`l1_ratio sign(w) + (1 - l1_ratio) w`."""
        del channels
        return torch.sign(weight).mul_(self.l1_ratio).add_(weight, alpha=1.0 - self.l1_ratio)

    def gradient_into(self, weight: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """The same in given memory."""
        return torch.sign(weight, out=out).mul_(self.l1_ratio).add_(weight, alpha=1.0 - self.l1_ratio)

    def shrink_(
        self, weight: torch.Tensor, amount: Amount, channels: Channels, start: torch.Tensor | None = None
    ) -> None:
        """Soft threshold, then division."""
        del channels, start
        soft_threshold_(weight, amount * self.l1_ratio)
        weight.div_(1.0 + amount * (1.0 - self.l1_ratio))

    def chatter(self, lr: float, momentum: float) -> float:
        """That of its L1 part."""
        return self.l1_ratio * lr * self.weight * self.every / (1.0 - momentum)


def _wide(weight: torch.Tensor) -> torch.dtype:
    return torch.float32 if weight.dtype.itemsize < 4 else weight.dtype
