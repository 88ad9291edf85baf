"""Sums of squares and fourth powers of all singular values, in closed form under the true padding.

With `a` a tap, `K_a` the `(c_out, c_in)` matrix of its weights and `R_a` the 0/1 matrix that says which input entry
each output reads through it, the matrix of a convolution is `M = sum_a R_a (x) K_a`, and `R_a` is a Kronecker product
over dimensions for every padding mode. Hence

    S2 = sum sigma^2 = ||M||_F^2     = sum <R_a, R_b> <K_a, K_b>            (a = b only, if padded with zeros)
    S4 = sum sigma^4 = ||M M^T||_F^2 = sum W[(a,b),(a',b')] <Q_ab, Q_a'b'>,        Q_ab = K_a K_b^T
    dS4/dK_a = 4 sum_b (W Q)_ab K_b

with the integers `W[(a,b),(a',b')] = <R_a R_b^T, R_a' R_b'^T>`, a Kronecker product over dimensions too. The same holds
with `R_a^T`, `K_a^T` in place of `R_a`, `K_a`; the cheaper of both is used. `W` couples only pairs of taps with equal
shifts (for reflect and replicate padding more), so it falls into small blocks, and a block and its mirror image
`(b,a)` give the same numbers. None of the tensors depends on the size of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from weightspace.errors import OperatorError
from weightspace.operators._arguments import as_operator
from weightspace.operators._numerics import compute_dtype, sum_dtype, with_gradient
from weightspace.operators._overlaps import cheaper_side, one_channel, tap_products
from weightspace.operators.conv import ConvOperator
from weightspace.operators.geometry import ConvGeometry
from weightspace.precision import full_precision

LARGEST_OVERLAPS = 20_000_000  # taps^3 times outputs along one dimension: seconds and half a gigabyte to count


@dataclass(frozen=True, eq=False)
class Moments:
    """The second and fourth moments of a layer's singular values.

    Attributes:
        s2: Sum of sigma^2, the squared Frobenius norm of the matrix; 0-dim, differentiable in the weight.
        s4: Sum of sigma^4; 0-dim, differentiable in the weight.
        rows: Outputs of the layer, `channels * sizes`.
        columns: Inputs of the layer.

    Both sums are float64 whatever the weight is: the variance of sigma^2 is a small difference of large numbers.
    A float32 weight is multiplied in float32, which leaves a relative error of about 1e-8 in `s4`.
    """

    s2: torch.Tensor
    s4: torch.Tensor
    rows: int
    columns: int

    @property
    def smaller_side(self) -> int:
        """Number of singular values."""
        return min(self.rows, self.columns)

    @property
    def forward_gain(self) -> torch.Tensor:
        """Mean of sigma^2 over inputs: how much larger the squared norm of an output is, for white inputs."""
        return self.s2 / self.columns

    @property
    def backward_gain(self) -> torch.Tensor:
        """Mean of sigma^2 over outputs: the same for gradients on their way back."""
        return self.s2 / self.rows

    @property
    def variance(self) -> torch.Tensor:
        """Variance of sigma^2 over all singular values (not below zero)."""
        mean = self.s2 / self.smaller_side
        return (self.s4 / self.smaller_side - mean * mean).clamp(min=0)

    @property
    def participation_rank(self) -> torch.Tensor:
        """`s2^2 / s4`: the number of equal singular values that would have the same moments; NaN for a zero weight."""
        return self.s2 * self.s2 / self.s4

    @property
    def isometry_defect(self) -> torch.Tensor:
        """`sqrt(||M^T M - I||_F^2 / columns)`: root mean square of sigma^2 - 1 over the inputs.

        Its derivative is not finite at an exact isometry; penalize `gram_distance` instead.
        """
        return (self.gram_distance(1.0, side="columns") / self.columns).clamp(min=0).sqrt()

    def gram_distance(self, alpha: float = 1.0, *, side: str = "smaller") -> torch.Tensor:
        """`||G - alpha I||_F^2` for a Gram matrix G of M.

        Args:
            alpha: What every sigma^2 is compared with.
            side: "columns" for `M^T M`, "rows" for `M M^T`, "smaller" for the smaller of them, whose distance can be
                zero: the other one has `abs(rows - columns)` zero eigenvalues, which add `alpha^2` each.

        Raises:
            OperatorError: The side has another name.
        """
        sizes = {"smaller": self.smaller_side, "rows": self.rows, "columns": self.columns}
        if side not in sizes:
            raise OperatorError(f"side is {side!r}; choose 'smaller', 'rows' or 'columns'.")
        return self.s4 - 2.0 * alpha * self.s2 + alpha * alpha * sizes[side]


def singular_value_moments(layer: nn.Module | ConvOperator, input_size: int | Sequence[int] | None = None) -> Moments:
    """Sums of sigma^2 and sigma^4 over all singular values of a layer, exactly, without computing one of them.

    Every padding mode and amount, stride, dilation, groups, 1 to 3 dimensions, transposed layers, linear layers.

    Cost: about `2 t^2 c^3` multiplications for t taps and c channels, half of it for the gradient; nothing depends on
    the image but integers that are counted once per geometry and kept.

    Args:
        layer: A convolution, a transposed one, a linear layer, or an operator.
        input_size: Spatial sizes of the layer's input.

    Raises:
        OperatorError: The layer cannot be analyzed, or its kernel is so long that counting overlaps takes too much;
            `stochastic_moments` is left then.

    Example:
        A shift by one entry, with zeros coming in: all singular values are 1 but for the entry that falls out.

        >>> layer = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[[1.0, 0.0, 0.0]]]))
        >>> moments = singular_value_moments(layer, 8)
        >>> moments.s2.item(), moments.s4.item(), moments.gram_distance(1.0).item()
        (7.0, 7.0, 1.0)
    """
    operator = as_operator(layer, input_size)
    s2, s4 = stacked_moments(operator.weight[None], operator.geometry)
    return Moments(s2[0], s4[0], *operator.shape)


def stacked_moments(weights: torch.Tensor, geometry: ConvGeometry) -> tuple[torch.Tensor, torch.Tensor]:
    """The two sums for many layers of one geometry.

    Args:
        weights: `(layers, out_channels, in_channels / groups, *kernel_size)`.
        geometry: Their common geometry.

    Returns:
        `s2` and `s4`, each `(layers,)` in float64, differentiable once.
    """
    _check_overlaps(geometry)
    weights = weights.to(compute_dtype(weights))
    wanted = torch.is_grad_enabled() and weights.requires_grad
    with torch.no_grad(), full_precision():
        scale = _scale(weights)
        s2, gradient2 = _second_moment(weights / scale, geometry)
        s4, gradient4 = _fourth_moment(weights / scale, geometry, wanted)
        factor = scale.flatten().to(s2.dtype)
        s2, s4 = s2 * factor**2, s4 * factor**4
    if not wanted:
        return s2, s4
    gradient2, gradient4 = gradient2 * scale, gradient4 * scale**3
    return with_gradient(weights, s2, gradient2), with_gradient(weights, s4, gradient4)


def stochastic_moments(
    layer: nn.Module | ConvOperator,
    input_size: int | Sequence[int] | None = None,
    *,
    probes: int = 8,
    generator: torch.Generator | None = None,
) -> Moments:
    """Unbiased estimates of the same sums from random signs x: `||M x||^2` and `||M^T M x||^2`, by convolutions alone.

    Where the closed form costs too much: many channels, long kernels. The values are good to about
    `1 / sqrt(probes * number of singular values)` for well-conditioned layers, the gradient of one probe is far
    noisier. `gram_distance` of the result is the same estimate of `||(M^T M - alpha I) x||^2`.

    Cost: two applications and one adjoint of the layer to a batch of `probes` images, and their backward pass.

    Args:
        layer: A convolution, a transposed one, a linear layer, or an operator.
        input_size: Spatial sizes of the layer's input.
        probes: Number of random vectors.
        generator: Where they come from, on any device; torch's global one if left out.

    Raises:
        OperatorError: The layer cannot be analyzed, or there is no probe.
    """
    if probes < 1:
        raise OperatorError(f"probes is {probes}; at least one random vector is needed.")
    operator = as_operator(layer, input_size)
    rows, columns = operator.shape
    operator = operator.with_weight(operator.weight.to(compute_dtype(operator.weight)))
    # The smaller side has less variance: no zero singular values are sampled there.
    oriented = operator if columns <= rows else replace(operator, is_transposed=not operator.is_transposed)
    weight = operator.weight
    source = weight.device if generator is None else generator.device
    signs = torch.randint(0, 2, (probes, *oriented.input_shape), generator=generator, device=source)
    with full_precision():
        y = oriented.apply((2 * signs - 1).to(weight))
        z = oriented.adjoint(y)
    dtype = sum_dtype(weight.device)
    return Moments(y.square().sum(dtype=dtype) / probes, z.square().sum(dtype=dtype) / probes, rows, columns)


# ---------------------------------------------------------------------------------------------- the two sums


def stacked_second_moments(weights: torch.Tensor, geometry: ConvGeometry) -> torch.Tensor:
    """The first of the two sums alone, which costs no product of channel matrices; not differentiable."""
    _check_overlaps(geometry)
    weights = weights.to(compute_dtype(weights))
    with torch.no_grad(), full_precision():
        scale = _scale(weights)
        s2, _ = _second_moment(weights / scale, geometry)
        return s2 * scale.flatten().to(s2.dtype) ** 2


def _check_overlaps(geometry: ConvGeometry) -> None:
    for axis, taps in enumerate(geometry.kernel_size):
        outputs = geometry.output_length(axis)
        if taps**3 * outputs > LARGEST_OVERLAPS:
            raise OperatorError(
                f"A kernel of {taps} taps with {outputs} outputs along dimension {axis} has too many overlaps to "
                "count; use stochastic_moments()."
            )


def _scale(weights: torch.Tensor) -> torch.Tensor:
    """The largest entry of each layer, so that no fourth power vanishes or overflows; 1 for a zero weight."""
    scale = weights.abs().amax(dim=tuple(range(1, weights.ndim)), keepdim=True)
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def _second_moment(weights: torch.Tensor, geometry: ConvGeometry) -> tuple[torch.Tensor, torch.Tensor]:
    """`S2` of every layer and its gradient `2 sum_b <R_a, R_b> K_b`."""
    weighted = weights
    for axis in range(geometry.dimensions):
        products = tap_products(one_channel(geometry), axis).to(weights)
        dim = 3 + axis
        weighted = (weighted.movedim(dim, -1) @ products).movedim(-1, dim)
    total = (weighted * weights).sum(dim=tuple(range(1, weights.ndim)), dtype=sum_dtype(weights.device))
    return total, 2 * weighted


def _fourth_moment(weights: torch.Tensor, geometry: ConvGeometry, wanted: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """`S4` of every layer and, if wanted, its gradient (else zeros of no use)."""
    layers, groups, taps = weights.shape[0], geometry.groups, math.prod(geometry.kernel_size)
    per_group = (geometry.out_channels // groups, geometry.in_channels // groups)
    transposed, blocks = cheaper_side(geometry)
    # (taps, layers * groups, rows, columns), rows on the side of the Gram matrices
    K = (
        weights.reshape(layers * groups, *per_group, taps)
        .permute((3, 0, 2, 1) if transposed else (3, 0, 1, 2))
        .contiguous()
    )
    total = torch.zeros(layers * groups, dtype=sum_dtype(weights.device), device=weights.device)
    gradient = torch.zeros_like(K) if wanted else K
    for block in blocks:
        first, second = block.first.to(K.device), block.second.to(K.device)
        A, B = K[first], K[second]
        Q = A @ B.mT
        T = block.couple(Q)
        total += block.copies * (T * Q).sum(dim=(0, 2, 3), dtype=total.dtype)
        if wanted:
            gradient.index_add_(0, first, T @ B)
            if block.copies == 2:
                gradient.index_add_(0, second, T.mT @ A)
    gradient = 4 * gradient.permute(1, 3, 2, 0) if transposed else 4 * gradient.permute(1, 2, 3, 0)
    return total.reshape(layers, groups).sum(1), gradient.reshape(weights.shape)
