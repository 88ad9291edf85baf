"""Cautious weight decay: decay only where it pulls the way that the optimizer goes anyway.

    w <- w + step;    w <- w - lr * weight * w_before * [step * w_before <= 0],      entry by entry

that is, entries whose update moves them towards zero (or not at all) decay, the others do not.

Source: Chen et al., "Cautious Weight Decay", arXiv 2510.12402: `x - lr (u + weight * 1[u x >= 0] x)`, u the update.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from weightspace.errors import RuleError
from weightspace.kernels.points import Channels
from weightspace.penalties.elementwise import L2
from weightspace.penalties.weights import Amount, Application


@dataclass(frozen=True)
class CautiousWeightDecay(L2):
    """Decoupled weight decay on the entries that the optimizer moves towards zero: a gate for every single number.

    A baseline for gates that look at a layer's gradient. It acts after the step and works with every optimizer; leave
    the optimizer's own `weight_decay` at 0.

    Args:
        weight: Strength, as AdamW's `weight_decay`.
        every, gate, on: See `WeightPenalty`. `application` is `"proximal"`: it has no gradient form.

    Cost: a copy of each weight before the step, four passes after it.

    Example:
        >>> before, after = torch.tensor([1.0, 1.0]), torch.tensor([0.5, 1.5])
        >>> CautiousWeightDecay(0.1).shrink_(after, 0.1, Channels(), before)
        >>> [round(w, 6) for w in after.tolist()]
        [0.4, 1.5]
    """

    needs_start: ClassVar[bool] = True
    application: Application = field(default="proximal", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.is_proximal:
            raise RuleError("CautiousWeightDecay acts after the step, on what it did; leave application= out.")

    def shrink_(
        self, weight: torch.Tensor, amount: Amount, channels: Channels, start: torch.Tensor | None = None
    ) -> None:
        """Decay by `amount` times the weight before the step, where the step went towards zero."""
        del channels
        if start is None:
            raise RuleError("CautiousWeightDecay needs the weight before the step.")
        opposed = (weight - start).mul_(start) <= 0
        weight.sub_(start * opposed * amount)
