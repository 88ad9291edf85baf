"""The look of gates that compare with the sum, on accelerators: few launches for all layers, and no number is read.

    R = sign w (foreach)      S = g + s R (foreach)      |g|, |R|, |S| (foreach norms)
    <g, s R> = (|S|^2 - |g|^2 - |s R|^2) / 2

A difference of squares loses digits where one vector is much longer than the other: the cosine is right to about 1e-7
times the ratio of the longer to the shorter one, and gates are asked where the two are comparable. `dot` is the
reference. The sum is what an open gate lets through: one `where` a layer is all that is left to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from weightspace.kernels.parameters import has_same_layout
from weightspace.penalties import L1, WeightPenalty

_DTYPES = (torch.float32, torch.float64)
_torch: Any = torch  # foreach has no public name; torch's own optimizers use these


@dataclass(frozen=True, eq=False)
class Seen:
    """What was found for one weight; all on its device.

    Attributes:
        products: `<g, g>`, `<g, s R>`, `<s R, s R>`, 0-dimensional, float64 where the device has it.
        norm: `|g|`, finite only if the gradient is (and not enormous).
        sum: `g + s R`.
    """

    products: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    norm: torch.Tensor
    sum: torch.Tensor


def can_see(rule: WeightPenalty, weight: torch.Tensor, gradient: torch.Tensor) -> bool:
    """Whether foreach takes its fast path, with all digits that are needed."""
    same = gradient.dtype == weight.dtype and gradient.device == weight.device and has_same_layout(gradient, weight)
    return rule.is_elementwise and same and weight.dtype in _DTYPES and weight.numel() > 0


def see(
    rule: WeightPenalty, weights: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor], scale: float
) -> list[Seen]:
    """For weights of one penalty, device and dtype.

    Args:
        rule: An elementwise penalty.
        weights: Detached.
        gradients: Loss gradients after metrics.
        scale: What the penalty's gradient is multiplied with.

    Cost: about six launches for all of them, and memory for two copies of the weights while it runs.
    """
    if isinstance(rule, L1):
        own = list(_torch._foreach_sign(list(weights)))  # noqa: SLF001
    else:
        own = [rule.gradient_into(weight, torch.empty_like(weight)) for weight in weights]
    sums = _torch._foreach_add(list(gradients), own, alpha=scale)  # noqa: SLF001
    norms = [_torch._foreach_norm(list(vectors)) for vectors in (gradients, own, sums)]  # noqa: SLF001
    wide = torch.float32 if weights[0].device.type == "mps" else torch.float64
    gg, rr, ss = (torch.stack(list(numbers)).to(wide).square() for numbers in norms)
    rr = rr * scale**2
    gr = (ss - gg - rr) / 2
    return [
        Seen(products, norm, total)
        for products, norm, total in zip(zip(gg, gr, rr, strict=True), norms[0], sums, strict=True)
    ]
