"""Penalties on the singular values of a layer, seen as the linear map from images to images.

| name | R | label |
|---|---|---|
| `GramSpectralNorm` | `max abs(sigma^2 - alpha)` | Guo & Ye 2019, arXiv 1906.04866 |
| `GramFrobenius` | `sum (sigma^2 - alpha)^2`, over the outputs of the grid | Guo 2019/2022, arXiv 1907.11235 |
| `LargestSingularValue` | `max(0, sigma_max - bound)^2` | ours |
| `SmallestSingularValue` | `max(0, bound - sigma_min)^2` | ours |
| `SingularValueBand` | `sum dist(sigma, [low, high])^2`, over the outputs of the grid | ours |
| `ConditionNumber` | `log sigma_max - log sigma_min` | ours |

"Ours" means: our reading of what is wanted there (values that are not large, not small, around one), in a form of our
own. Which three terms the later paper (arXiv 2102.04294) proposes was not at hand, and none is ascribed to it.

Three things hold for all. The Gram matrix is the smaller of `M^T M` and `M M^T`: the larger one has zero eigenvalues
that no weight moves. Sums over the spectrum are divided by the number of outputs of the grid (`h * w`), because they
and their gradients grow with it. Terms in sigma itself move a singular value away from zero; terms in sigma^2 have no
slope there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import ClassVar

import torch

from weightspace.errors import RuleError
from weightspace.kernels.options import number_from_zero, positive_number, whole_number
from weightspace.operators import ConvOperator
from weightspace.operators._numerics import compute_dtype
from weightspace.operators.extremes import stacked_ritz
from weightspace.operators.geometry import torus
from weightspace.operators.moments import stacked_moments, stochastic_moments
from weightspace.penalties._spectra import on_matrix
from weightspace.penalties.base import Memory, OperatorPenalty, PenaltyPadding
from weightspace.penalties.spectral import SpectralPenalty
from weightspace.precision import full_precision

COLD_STEPS = 20
FEW_VALUES, FEW_ENTRIES = 64, 64 * 1024  # of a matrix whose SVD costs less than Lanczos steps


@dataclass(frozen=True)
class GramSpectralNorm(SpectralPenalty):
    """`||G - alpha I||_2 = max abs(sigma^2 - alpha)` of the smaller Gram matrix G (Guo & Ye, arXiv 1906.04866).

    One singular value at a time feels it. A value that is exactly zero does not: the slope is `2 sigma`.

    Args:
        alpha: What every sigma^2 is compared with.
        frequencies, weight, every, gate, input_size, padding_mode, on: See `SpectralPenalty`.

    Example:
        >>> import torch
        >>> from weightspace.operators import operator_of
        >>> layer = torch.nn.Linear(2, 2)
        >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([2.0, 1.0])))
        >>> value, gradient = GramSpectralNorm().evaluate(operator_of(layer))  # 2^2 - 1, slope 2 * 2
        >>> round(float(value), 4), gradient.round(decimals=4).abs().tolist()
        (3.0, [[4.0, 0.0], [0.0, 0.0]])
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._settle(alpha=number_from_zero("GramSpectralNorm", "alpha", self.alpha))

    def phi(self, sigma: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`+-2 sigma` at the value that is farthest off."""
        off = sigma.square() - self.alpha
        place = off.abs().argmax()
        slope = 2 * sigma.view(-1)[place] * off.view(-1)[place].sign()
        return off.abs().max(), _slope_at(sigma, place, slope)


@dataclass(frozen=True)
class GramFrobenius(OperatorPenalty):
    """`||G - alpha I||_F^2 = sum (sigma^2 - alpha)^2` of the smaller Gram matrix, over the outputs of the grid.

    In closed form under the layer's own padding. The term is Guo's (2019/2022, arXiv 1907.11235), the closed form and
    the normalization are ours. With zero padding only kernels without any tap but the central one reach zero, and the
    term can empty the outer taps to get there. A singular value of zero feels no pull.

    Args:
        alpha: What every sigma^2 is compared with.
        probes: Estimate the sum from so many random images x by `||(M^T M - alpha I) x||^2` (Hutchinson), not by the
            closed form, drawn anew at each step, alike on every rank and after a resume: unbiased, far cheaper for many
            channels, and noisy. The gradient of one probe can be several times as long as the exact one.
        weight, every, gate, input_size, padding_mode, on: See `OperatorPenalty`. `"layer"` is the default
            and costs no more.

    Cost: about `3 t^2 c^3` multiplications for t taps, whatever the size of the image; with `probes`, two applications
    of the layer and one of its adjoint to that many images, and their backward pass.

    Example:
        >>> import torch
        >>> from weightspace.operators import operator_of
        >>> layer = torch.nn.Linear(2, 2)
        >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([2.0, 1.0])))
        >>> value, gradient = GramFrobenius().evaluate(operator_of(layer))  # (4 - 1)^2; slope 4 (4 - 1) 2
        >>> round(float(value), 4), gradient.round(decimals=4).tolist()
        (9.0, [[24.0, 0.0], [0.0, 0.0]])
    """

    alpha: float = 1.0
    probes: int | None = field(default=None, kw_only=True)
    padding_mode: PenaltyPadding = field(default="layer", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._settle(alpha=number_from_zero("GramFrobenius", "alpha", self.alpha))
        if self.probes is not None:
            self._settle(probes=whole_number("GramFrobenius", "probes", self.probes))

    def evaluate(self, operator: ConvOperator, memory: Memory | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """By the closed form of both moments, or by random probes of them."""
        geometry = operator.geometry if self.padding_mode == "layer" else torus(operator.geometry)
        dtype = compute_dtype(operator.weight)
        leaf = operator.weight.detach().to(dtype).clone().requires_grad_()
        with torch.enable_grad():
            if self.probes is None:
                s2, s4 = (total[0] for total in stacked_moments(leaf[None], geometry))
            else:
                generator = (memory or Memory()).generator()
                found = stochastic_moments(ConvOperator(leaf, geometry), probes=self.probes, generator=generator)
                s2, s4 = found.s2, found.s4
            total = s4 - 2 * self.alpha * s2 + self.alpha**2 * min(geometry.shape)
            value = total / math.prod(geometry.output_size)
        (gradient,) = torch.autograd.grad(value, leaf)
        # A distance of rounding only could come out below zero.
        return value.detach().clamp(min=0).to(dtype), gradient


@dataclass(frozen=True)
class LargestSingularValue(SpectralPenalty):
    """`max(0, sigma_max - bound)^2`: gains that are too large are pulled down, all others are left alone.

    Under the layer's own padding by a few Lanczos steps that start where the last evaluation ended: sigma_max is then
    slightly underestimated while the weight moves. `u v^T`, summed along the kernel's diagonals, is the gradient.

    Args:
        bound: What the largest singular value may be.
        steps: Lanczos steps of an evaluation with a start (the first one takes 20), a block of two vectors each.
        frequencies, weight, every, gate, input_size, padding_mode, on: See `SpectralPenalty`. `"layer"` is the default
            and the cheap one; `"circular"` looks at every frequency.

    Cost: `steps` applications of the layer and its adjoint to two images, and one weight gradient.

    Example:
        >>> import torch
        >>> from weightspace.operators import operator_of
        >>> layer = torch.nn.Linear(2, 2)
        >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([3.0, 1.0])))
        >>> value, gradient = LargestSingularValue(bound=2.0).evaluate(operator_of(layer))
        >>> round(float(value), 4), gradient.round(decimals=4).abs().tolist()
        (1.0, [[2.0, 0.0], [0.0, 0.0]])
    """

    bound: float = 1.0
    steps: int = field(default=2, kw_only=True)
    padding_mode: PenaltyPadding = field(default="layer", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        name = "LargestSingularValue"
        self._settle(bound=number_from_zero(name, "bound", self.bound), steps=whole_number(name, "steps", self.steps))

    def phi(self, sigma: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The slope is `2 (sigma_max - bound)` at the largest value."""
        place = sigma.argmax()
        excess = (sigma.view(-1)[place] - self.bound).clamp(min=0)
        return excess.square(), _slope_at(sigma, place, 2 * excess)

    def evaluate(self, operator: ConvOperator, memory: Memory | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """By Lanczos vectors (or a small dense matrix) under the layer's own padding, or by all frequencies."""
        if self.padding_mode == "circular":
            return super().evaluate(operator, memory)
        weight = operator.weight.detach().to(compute_dtype(operator.weight))
        plain = replace(operator, weight=weight, is_transposed=False)
        with torch.no_grad(), full_precision():
            if min(plain.shape) <= FEW_VALUES and math.prod(plain.shape) <= FEW_ENTRIES:
                return on_matrix(plain, self.phi)
            sigma, u, v = self._top(plain, Memory() if memory is None else memory)
            value, slope = self.phi(sigma.to(torch.float64)[None, None], sigma)
            return value.to(weight.dtype), slope.to(weight.dtype) * _outer(plain, u, v)

    def _top(self, operator: ConvOperator, memory: Memory) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The largest singular value, its left and its right vector; two vectors of the smaller side are remembered."""
        rows, columns = operator.shape
        swapped = rows < columns  # on the larger side vectors would spend steps on leaving the null space
        shape = (2, min(rows, columns))
        start = memory.vectors.get("start")
        steps = self.steps
        if start is None or start.shape != shape:
            # Of a fixed seed: the first search depends on nothing.
            generator = torch.Generator("cpu").manual_seed(0)
            start = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
            steps = max(COLD_STEPS, steps)
        ritz = stacked_ritz(
            operator.weight[None],
            operator.geometry,
            start=start.to(operator.weight)[None],
            steps=steps,
            swapped=swapped,
            keep=(0, 1),
        )
        memory.vectors["start"] = ritz.right[0]
        left, right = ritz.left[0, 0], ritz.right[0, 0]
        return (ritz.values[0, 0], right, left) if swapped else (ritz.values[0, 0], left, right)


@dataclass(frozen=True)
class SmallestSingularValue(SpectralPenalty):
    """`max(0, bound - sigma_min)^2`: the smallest singular value is pushed up, one at a time.

    On the torus by default: under zero padding sigma_min is often hundreds of times smaller whatever the weight is.

    Args:
        bound: What the smallest singular value should be at least.
        frequencies, weight, every, gate, input_size, padding_mode, on: See `SpectralPenalty`.

    Example:
        >>> import torch
        >>> from weightspace.operators import operator_of
        >>> layer = torch.nn.Linear(2, 2)
        >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([3.0, 0.0])))
        >>> value, gradient = SmallestSingularValue(bound=0.5).evaluate(operator_of(layer))
        >>> round(float(value), 4), gradient.round(decimals=4).abs().tolist()  # it moves even from zero
        (0.25, [[0.0, 0.0], [0.0, 1.0]])
    """

    bound: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._settle(bound=positive_number("SmallestSingularValue", "bound", self.bound))

    def phi(self, sigma: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The slope is `-2 (bound - sigma_min)` at the smallest value."""
        place = sigma.argmin()
        lack = (self.bound - sigma.view(-1)[place]).clamp(min=0)
        return lack.square(), _slope_at(sigma, place, -2 * lack)


@dataclass(frozen=True)
class SingularValueBand(SpectralPenalty):
    """`sum dist(sigma, [low, high])^2` over the outputs of the grid; `low = high = 1` is `sum (sigma - 1)^2`.

    The whole spectrum feels it, values at zero too.

    Args:
        low: Values below are pushed up.
        high: Values above are pulled down.
        frequencies, weight, every, gate, input_size, padding_mode, on: See `SpectralPenalty`.

    Raises:
        RuleError: `low` is above `high`, or an option is out of its range.

    Example:
        >>> import torch
        >>> from weightspace.operators import operator_of
        >>> layer = torch.nn.Linear(2, 2)
        >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([3.0, 0.5])))
        >>> value, gradient = SingularValueBand(1.0, 2.0).evaluate(operator_of(layer))
        >>> round(float(value), 4), gradient.round(decimals=4).tolist()
        (1.25, [[2.0, 0.0], [0.0, -1.0]])
    """

    is_sum: ClassVar[bool] = True
    low: float = 0.5
    high: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        name = "SingularValueBand"
        self._settle(low=number_from_zero(name, "low", self.low), high=number_from_zero(name, "high", self.high))
        if self.low > self.high:
            raise RuleError(f"SingularValueBand got low={self.low} above high={self.high}; swap them.")

    def phi(self, sigma: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The slope is twice the signed distance."""
        distance = sigma - sigma.clamp(self.low, self.high)
        return (share * distance.square()).sum(), 2 * share * distance


@dataclass(frozen=True)
class ConditionNumber(SpectralPenalty):
    """`log(sigma_max / sigma_min)`: indifferent to the scale of the weight, so it may stand beside any of the others.

    The slope `1 / sigma_min` has no bound; below `floor * sigma_max` the logarithm goes on along its tangent.

    Args:
        floor: Share of sigma_max below which the slope grows no more.
        frequencies, weight, every, gate, input_size, padding_mode, on: See `SpectralPenalty`.

    Example:
        >>> import math, torch
        >>> from weightspace.operators import operator_of
        >>> layer = torch.nn.Linear(2, 2)
        >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([4.0, 0.5])))
        >>> value, gradient = ConditionNumber().evaluate(operator_of(layer))
        >>> round(math.exp(value), 3), gradient.round(decimals=4).tolist()
        (8.0, [[0.25, 0.0], [0.0, -2.0]])
    """

    floor: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._settle(floor=positive_number("ConditionNumber", "floor", self.floor))
        if self.floor >= 1:
            raise RuleError(f"ConditionNumber got floor={self.floor}; it is a share of sigma_max, below 1.")

    def phi(self, sigma: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`1 / sigma_max` at the largest, `-1 / sigma_min` at the smallest value; zero for a zero weight."""
        flat = sigma.view(-1)
        top, bottom = flat.argmax(), flat.argmin()
        largest = flat[top].clamp(min=torch.finfo(torch.float64).tiny)
        ratio = flat[bottom] / largest
        steep = ratio.clamp(min=self.floor)
        value = -steep.log() + (steep - ratio) / self.floor
        slopes = torch.zeros_like(sigma)
        slopes.view(-1)[top] += ratio / steep / largest
        slopes.view(-1)[bottom] -= 1 / (steep * largest)
        is_zero = flat[top] == 0
        return torch.where(is_zero, 0.0, value), torch.where(is_zero, 0.0, slopes)


def _slope_at(sigma: torch.Tensor, place: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """A derivative by one value only, at a flat index."""
    slopes = torch.zeros_like(sigma)
    slopes.view(-1)[place] = slope
    return slopes


def _outer(operator: ConvOperator, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """`u v^T` summed along the places of each weight: the layer's weight gradient for input v, output gradient u."""
    leaf = operator.weight.clone().requires_grad_()
    with torch.enable_grad():
        y = operator.with_weight(leaf).apply(v.reshape(1, *operator.input_shape))
    (gradient,) = torch.autograd.grad(y, leaf, u.reshape(y.shape))
    return gradient


SPECTRAL_TERMS: Mapping[str, type[SpectralPenalty]] = MappingProxyType(
    {
        term.__name__: term
        for term in (GramSpectralNorm, LargestSingularValue, SmallestSingularValue, SingularValueBand, ConditionNumber)
    }
)
"""The penalties that need singular vectors, by name; `GramFrobenius` needs none."""
