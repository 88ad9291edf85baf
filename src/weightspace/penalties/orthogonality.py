"""Orthogonality penalties of the literature, as baselines for the singular-value terms.

- `SoftOrthogonality`: Bansal, Chen, Wang, "Can We Gain More from Orthogonality Regularizations in Training Deep CNNs?",
  arXiv 1810.09102, on the kernel flattened to `K (c_out, c_in k_h k_w)`, which is not the operator:

      SO    ||K K^T - I||_F^2
      DSO   ||K K^T - I||_F^2 + ||K^T K - I||_F^2
      SRIP  ||K K^T - I||_2            (they approximate it by two power iterations, here it is exact)

- `SelfConvolution`: Wang, Chen, Chakraborty, Yu, "Orthogonal Convolutional Neural Networks", arXiv 1911.12207:

      ||Conv(K, K, padding, stride) - I||_F^2,        padding = floor((k - 1) / s) s

  the rows of the operator on an infinite grid: every filter is orthogonal to all others and to its own shifts.

For SO and SelfConvolution the other Gram matrix has the same gradient and another constant; SRIP takes the smaller one,
as the larger has an eigenvalue of -1 that no weight moves (with more filters than entries of a filter).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch.nn import functional

from weightspace.errors import RuleError
from weightspace.kernels.options import choice
from weightspace.operators import ConvOperator
from weightspace.operators._numerics import compute_dtype
from weightspace.penalties.base import Memory, OperatorPenalty
from weightspace.precision import full_precision

Variant = Literal["SO", "DSO", "SRIP"]
VARIANTS: tuple[Variant, ...] = ("SO", "DSO", "SRIP")


@dataclass(frozen=True)
class _FlatPenalty(OperatorPenalty):
    """A penalty that needs no image."""

    needs_size: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.input_size is not None or self.padding_mode != "circular":
            raise RuleError(f"{type(self).__name__} depends on no image; leave input_size and padding_mode out.")


@dataclass(frozen=True)
class SoftOrthogonality(_FlatPenalty):
    """Distance of the flattened kernel from orthogonal rows (Bansal et al.), a group at a time.

    Args:
        variant: `"SO"`, `"DSO"` or `"SRIP"`, see the module.
        weight, every, gate, on: See `Penalty`. The paper's weights decay over training; a rule's weight is constant.

    Cost: two products of the Gram matrix's size; SRIP: one SVD of the flattened kernel.

    Example:
        >>> import torch
        >>> from weightspace.operators import operator_of
        >>> layer = torch.nn.Linear(2, 1)
        >>> _ = layer.weight.data.copy_(torch.tensor([[2.0, 0.0]]))
        >>> value, gradient = SoftOrthogonality().evaluate(operator_of(layer))
        >>> value.item(), gradient.tolist()  # (2^2 - 1)^2 and 4 (2^2 - 1) 2
        (9.0, [[24.0, 0.0]])
    """

    variant: Variant = "SO"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._settle(variant=choice("SoftOrthogonality", "variant", self.variant, VARIANTS))

    def evaluate(self, operator: ConvOperator, memory: Memory | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """By the formulas `4 (K K^T - I) K` and `2 sigma u v^T`."""
        weight = operator.weight.detach()
        K = weight.to(compute_dtype(weight)).reshape(operator.geometry.groups, -1, math.prod(weight.shape[1:]))
        with torch.no_grad(), full_precision():
            if self.variant == "SRIP":
                value, gradient = _gram_norm(K)
            else:
                defect = K @ K.mT - torch.eye(K.shape[1], dtype=K.dtype, device=K.device)
                value, gradient = defect.square().sum(), 4 * defect @ K
                if self.variant == "DSO":
                    # ||K^T K - I||^2 = ||K K^T - I||^2 + columns - rows: the same gradient once more.
                    value, gradient = 2 * value + len(K) * (K.shape[2] - K.shape[1]), 2 * gradient
        return value, gradient.reshape(weight.shape)


def _gram_norm(K: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum over groups of `max abs(sigma^2 - 1)` and its gradient."""
    U, sigma, Vh = torch.linalg.svd(K, full_matrices=False)
    off = sigma.square() - 1
    place = off.abs().argmax(dim=1, keepdim=True)
    slope = 2 * (sigma * off.sign()).gather(1, place)
    rows = torch.arange(len(K), device=K.device)
    gradient = slope[..., None] * U[rows, :, place[:, 0], None] * Vh[rows, place[:, 0], None, :]
    return off.abs().amax(dim=1).sum(), gradient


@dataclass(frozen=True)
class SelfConvolution(_FlatPenalty):
    """Orthogonality of a filter to all others and to its own shifts by the stride (Wang et al.), any size of image.

    The padding is the one that reaches every shift at which two windows overlap; code in use pads otherwise, and then
    finds fault with exact isometries of stride 2. A dilation is taken into account.

    Args:
        weight, every, gate, on: See `Penalty`.

    Cost: forward and backward pass of the layer on `c_out` images of the kernel's own size.

    Example:
        >>> import torch
        >>> from weightspace.operators import operator_of
        >>> layer = torch.nn.Conv1d(1, 1, 2, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[[1.0, 1.0]]]))
        >>> SelfConvolution().evaluate(operator_of(layer, 4))[0].item()  # autocorrelation 1, 2, 1 against 0, 1, 0
        3.0
    """

    def evaluate(self, operator: ConvOperator, memory: Memory | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """By one convolution of the kernel with itself; its derivative is two more."""
        g, weight = operator.geometry, operator.weight.detach()
        leaf = weight.to(compute_dtype(weight)).clone().requires_grad_()
        with torch.enable_grad(), full_precision():
            defect = _self_convolution(leaf, g.groups, _spacings(operator))
            value = defect.square().sum()
            (gradient,) = torch.autograd.grad(value, leaf)
        return value.detach(), gradient


def _spacings(operator: ConvOperator) -> list[int]:
    """Taps between those that a shift of the window by one output brings together."""
    g = operator.geometry
    return [s // math.gcd(s, d) for s, d in zip(g.stride, g.dilation, strict=True)]


def _self_convolution(weight: torch.Tensor, groups: int, stride: list[int]) -> torch.Tensor:
    """`Conv(K, K) - I`: `(c_out / groups, c_out, *shifts)`, each filter's products with all of its group."""
    per_group = weight.shape[0] // groups
    taps = weight.shape[2:]
    images = weight.reshape(groups, per_group, *weight.shape[1:]).transpose(0, 1).flatten(1, 2)
    if not taps:
        products = functional.linear(images, weight)
    else:
        convolution = (functional.conv1d, functional.conv2d, functional.conv3d)[len(taps) - 1]
        padding = [(k - 1) // s * s for k, s in zip(taps, stride, strict=True)]
        products = convolution(images, weight, None, stride, padding, 1, groups)
    identity = torch.zeros_like(products, requires_grad=False)
    own = torch.arange(per_group, device=weight.device)
    middle = [(k - 1) // s for k, s in zip(taps, stride, strict=True)]
    for group in range(groups):
        identity[(own, group * per_group + own, *middle)] = 1.0
    return products - identity
