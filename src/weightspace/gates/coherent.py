"""The coherent gate: a penalty acts only while the gradient keeps its direction in the penalty's presence.

`g` is the loss gradient of a weight (after metrics), `R` the penalty's gradient times its strength:

    against        open where
    "total"        cos(g, g + R) >= threshold
    "history"      cos(g, m) >= threshold,      m the moving average of earlier g
    "previous"     cos(g, g of the step before) >= threshold  (with `every=k`, of k steps before)
    "lookahead"    cos(g, g of the same batch at the weights that R alone would make) >= threshold

Source: Park et al., gradient-coherent strong regularization: "imposed only while gradients stay coherent in its
presence". Their exact test and threshold are not known here: these four are derived.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Real
from typing import Literal

import torch

from weightspace.errors import RuleError, shortened
from weightspace.gates.base import ComparingGate, LooksAt, Products
from weightspace.kernels.options import choice

Against = Literal["total", "history", "previous", "lookahead"]
"""What `Coherent` compares the loss gradient with; see `LooksAt`."""
_THRESHOLDS: dict[Against, float] = {"total": 0.5, "history": 0.2, "previous": 0.0, "lookahead": 0.5}


@dataclass(frozen=True, repr=False)
class Coherent(ComparingGate):
    """Open while the loss gradient is coherent.

    Args:
        against: What the gradient is compared with, see the module. `"total"` needs no memory. `"history"` keeps a
            moving average, `"previous"` the last gradient: one more copy of each penalized weight. `"lookahead"` runs
            the closure that `optimizer.step(closure)` must be given twice: a second forward and backward pass.
        threshold: Least cosine, from -1 to 1. Left out: 0.5 for total and lookahead, 0.2 for history, 0 for previous.
        decay: Of the moving average of `"history"`, from 0 to below 1: about `1 / (1 - decay)` steps are remembered.
        scope: `"layer"`: one decision for each weight; `"global"`: one for all weights of the penalty, on the cosine of
            the long vector.

    Where the gradient is zero or not finite, and at the first step of a memory, the gate is closed.

    Cost: three inner products for each weight, one for a penalty's constant norm less; a memory costs one update.

    Example:
        >>> gate = Coherent(threshold=0.5)
        >>> across = Products(gg=torch.tensor([1.0]), go=torch.tensor([0.0]), oo=torch.tensor([4.0]))
        >>> gate.judge(across.of_sum()).tolist()  # R is twice as long as g and orthogonal to it: cosine 0.447
        [False]
    """

    against: Against = "total"
    threshold: float | None = None
    decay: float = field(default=0.9, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        against = choice("Coherent", "against", self.against, tuple(_THRESHOLDS))
        self._settle(
            against=against,
            threshold=None if self.threshold is None else _within("threshold", self.threshold, 1.0),
            decay=_within("decay", self.decay, 1.0, low=0.0),
        )
        if self.decay == 1.0:
            raise RuleError("Coherent got decay=1.0; the average would never learn a gradient: pass a number below 1.")

    @property
    def looks_at(self) -> LooksAt:
        """`against`."""
        return self.against

    @property
    def least_cosine(self) -> float:
        """The threshold in force."""
        return _THRESHOLDS[self.against] if self.threshold is None else self.threshold

    @property
    def memory_decay(self) -> float:
        """`decay` of the moving average; 0 for `"previous"`."""
        return self.decay if self.against == "history" else 0.0

    def judge(self, products: Products) -> torch.Tensor:
        """Whether the cosine reaches the threshold; comparisons with NaN are false, which closes."""
        return products.cosine >= self.least_cosine


def _within(name: str, value: object, high: float, low: float = -1.0) -> float:
    # Compared before it is made a float, which an integer of 400 digits cannot be.
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high:  # pyright: ignore[reportOperatorIssue] - a real number
        raise RuleError(f"Coherent got {name}={shortened(value)}; pass a number from {low:g} to {high:g}.")
    return float(value)
