"""What the weights of one layer say about it as a linear map, at one input size and at a chosen cost."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from weightspace.errors import OperatorError
from weightspace.operators import (
    ConvOperator,
    circular_spectrum,
    extreme_singular_values,
    singular_value_moments,
    singular_values,
)
from weightspace.operators.extremes import Extremes
from weightspace.operators.geometry import ConvGeometry, torus
from weightspace.operators.moments import stacked_second_moments
from weightspace.precision import full_precision

Detail = Literal["moments", "extremes", "spectra", "exact"]
"""How closely a layer's singular values are looked at; see `weightspace.inspect`."""
DETAILS: tuple[Detail, ...] = ("moments", "extremes", "spectra", "exact")
"""All values of `Detail`."""

SMALL = 1024 * 1024  # entries of a matrix whose singular values take less than a second
DEAD_MODE = 1e-3  # share of sigma_max below which a singular value counts as dead
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True, eq=False)
class LayerSpectrum:
    """Figures of one linear map. N_in and N_out are the numbers of entries that it reads and writes.

    Attributes:
        shape: `(N_out, N_in)`.
        rank_bound: Largest rank that the geometry allows: a 1x1 kernel with stride 2 does not read most of its input.
        s2: Sum of sigma^2, under the layer's own padding.
        s4: Sum of sigma^4.
        full_s2: What `s2` would be if every window read all its taps: more than `s2` where zero padding loses some.
        flattened_norm: Largest singular value of the weight as a matrix `(c_out, rest)`, which is what
            `torch.nn.utils.parametrizations.spectral_norm` looks at.
        extremes: The interval of sigma_max, and sigma_min or a bound of it; None below "extremes".
        values: All singular values, descending; None below "spectra".
        is_true_padding: Whether `values` are those under the layer's own padding, or of its circular counterpart.
        frequency_map: Largest singular value at every frequency of the torus, `(rows, columns)`, entry 0 the constant
            wave; None for what is no two-dimensional convolution.
        problems: What could not be computed, and why.
        seconds: Time spent.
    """

    shape: tuple[int, int]
    rank_bound: int
    s2: float
    s4: float
    full_s2: float
    flattened_norm: float
    extremes: Extremes | None
    values: torch.Tensor | None
    is_true_padding: bool
    frequency_map: torch.Tensor | None
    problems: tuple[str, ...]
    seconds: float

    @property
    def forward_gain(self) -> float:
        """`sqrt(S2 / N_in)`: factor on the Euclidean norm of a white input."""
        return math.sqrt(self.s2 / self.shape[1])

    @property
    def backward_gain(self) -> float:
        """`sqrt(S2 / N_out)`: factor on the norm of a white gradient on its way back."""
        return math.sqrt(self.s2 / self.shape[0])

    @property
    def variance(self) -> float:
        """Variance of sigma^2 over the singular values."""
        count = min(self.shape)
        return max(0.0, self.s4 / count - (self.s2 / count) ** 2)

    @property
    def isometry_defect(self) -> float:
        """`sqrt(||G - I||_F^2 / n)` for the smaller Gram matrix G, n x n: root mean square of sigma^2 - 1."""
        count = min(self.shape)
        return math.sqrt(max(0.0, (self.s4 - 2 * self.s2 + count) / count))

    @property
    def participation_rank(self) -> float:
        """`S2^2 / S4`: number of equal singular values with these moments."""
        return self.s2**2 / self.s4 if self.s4 else 0.0

    @property
    def padding_loss(self) -> float:
        """Share of the variance of a white input that is lost because windows reach into the zeros around it."""
        return max(0.0, 1 - self.s2 / self.full_s2) if self.full_s2 else 0.0

    @property
    def stable_rank(self) -> float | None:
        """`S2 / sigma_max^2`, at most the rank."""
        top = self.extremes.sigma_max if self.extremes is not None else 0.0
        return self.s2 / top**2 if top else None

    @property
    def condition_number(self) -> tuple[float, bool] | None:
        """`sigma_max / sigma_min` and whether it is a value; if not, the condition number is at least that."""
        found = self.extremes
        if found is None or not found.sigma_max:
            return None
        return (found.sigma_max / found.sigma_min if found.sigma_min else math.inf), found.is_sigma_min_exact

    @property
    def flattened_ratio(self) -> float | None:
        """How many times larger sigma_max is than the norm of the flattened weight."""
        if self.extremes is None or not self.flattened_norm:
            return None
        return self.extremes.sigma_max / self.flattened_norm

    @property
    def dead_modes(self) -> float | None:
        """Share of singular values below a thousandth of the largest, among those that the geometry leaves room for."""
        if self.values is None or not self.rank_bound or not len(self.values):
            return None
        # Descending: those beyond the rank are zero whatever the weight is. A torus has room for as many or more.
        room = self.values[: self.rank_bound]
        return float((room <= DEAD_MODE * room[0]).double().mean())

    def room(self) -> torch.Tensor:
        """The finite singular values that the geometry leaves room for, descending; empty where they are not known."""
        if self.values is None:
            return torch.zeros(0, dtype=torch.float64)
        # Descending: those beyond the rank are zero whatever the weight is.
        values = self.values.detach()[: self.rank_bound].to("cpu", torch.float64)
        return values[values.isfinite()]

    def quantiles(self) -> tuple[float, ...] | None:
        """The quantiles `QUANTILES` of `room`."""
        values = self.room().flip(0)
        return tuple(values[round(q * (len(values) - 1))].item() for q in QUANTILES) if len(values) else None


def layer_spectrum(operator: ConvOperator, detail: Detail) -> LayerSpectrum:
    """The figures of a linear map up to a level of detail; what fails is named in `problems`.

    Cost: see `operators`: closed forms, a cold `extreme_singular_values`, and all singular values (of the circular
    counterpart, unless the matrix is small or "exact" insists).
    """
    begin = time.perf_counter()
    level, problems = DETAILS.index(detail), list[str]()
    with torch.no_grad():
        s2, s4 = _moments(operator, problems)
        extremes = _extremes(operator, exact=level == 3, problems=problems) if level >= 1 else None
        if extremes is not None and _rank_bound(operator) < min(operator.shape):
            extremes = replace(extremes, sigma_min=0.0, is_sigma_min_exact=True)  # whatever the weight is
        values, true_padding, frequency_map = None, False, None
        if level >= 2:
            values, true_padding, frequency_map = _values(operator, insist=level == 3, problems=problems)
        return LayerSpectrum(
            shape=operator.shape,
            rank_bound=_rank_bound(operator),
            s2=s2,
            s4=s4,
            full_s2=_full_s2(operator),
            flattened_norm=_flattened_norm(operator),
            extremes=extremes,
            values=values,
            is_true_padding=true_padding,
            frequency_map=frequency_map,
            problems=tuple(problems),
            seconds=time.perf_counter() - begin,
        )


def folded(operator: ConvOperator, scale: torch.Tensor) -> ConvOperator | None:
    """The layer followed by a fixed factor for each output channel, as one linear map; None for grouped transposed."""
    weight = operator.weight
    if operator.is_transposed:
        if operator.geometry.groups > 1:
            return None
        return operator.with_weight(weight * scale.to(weight).view(1, -1, *[1] * (weight.ndim - 2)))
    return operator.with_weight(weight * scale.to(weight).view(-1, *[1] * (weight.ndim - 1)))


def folded_s2(operator: ConvOperator, scale: torch.Tensor) -> float | None:
    """Sum of sigma^2 of the folded map; None where it is not known."""
    whole = folded(operator, scale)
    if whole is None:
        return None
    try:
        return float(stacked_second_moments(whole.weight[None], whole.geometry)[0])
    except OperatorError:
        return None


def describe_layer(module: nn.Module) -> str:
    """The layer in one short line.

    Example:
        >>> describe_layer(nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1))
        'Conv2d 3→8, 3x3, stride 2, pad 1'
    """
    layer: Any = module
    if isinstance(module, nn.Linear):
        return f"Linear {module.in_features}→{module.out_features}"
    kind = type(module).__name__.removeprefix("Parametrized")
    words = [f"{kind} {layer.in_channels}→{layer.out_channels}", "x".join(map(str, layer.kernel_size))]
    for label, value, usual in (("stride", layer.stride, 1), ("dilation", layer.dilation, 1)):
        if any(v != usual for v in value):
            words.append(f"{label} {_number(value)}")
    if isinstance(layer.padding, str):
        words.append(f"pad {layer.padding}")
    elif any(layer.padding):
        words.append(f"pad {_number(layer.padding)}")
    if layer.padding_mode != "zeros":
        words[-1] += f" {layer.padding_mode}"
    if layer.groups > 1:
        words.append(f"groups {layer.groups}")
    return ", ".join(words)


# ------------------------------------------------------------------------------------------------------ parts of it


def _moments(operator: ConvOperator, problems: list[str]) -> tuple[float, float]:
    try:
        moments = singular_value_moments(operator)
    except OperatorError as error:
        problems.append(str(error))
        return math.nan, math.nan
    return float(moments.s2), float(moments.s4)


def _extremes(operator: ConvOperator, *, exact: bool, problems: list[str]) -> Extremes | None:
    try:
        return extreme_singular_values(operator, exact=True if exact else None)
    except OperatorError as error:
        if not exact:
            problems.append(str(error))
            return None
        problems.append(f"sigma_min is a bound: {error}")
        return _extremes(operator, exact=False, problems=problems)


def _values(
    operator: ConvOperator, *, insist: bool, problems: list[str]
) -> tuple[torch.Tensor | None, bool, torch.Tensor | None]:
    """All singular values, whether they are those under the true padding, and the largest at every frequency.

    True padding where that is cheap or insisted on. One pass over the frequencies serves values and map.
    """
    geometry: ConvGeometry = operator.geometry
    has_map, is_circulant = geometry.dimensions == 2, geometry.is_block_circulant()
    values = None
    if math.prod(operator.shape) <= SMALL or insist or (is_circulant and not has_map):
        try:
            values = singular_values(operator)
        except OperatorError as error:
            problems.append(str(error))
    is_true = values is not None or is_circulant
    counterpart = ConvOperator(operator.weight, torus(geometry), is_transposed=operator.is_transposed)
    try:
        if has_map:
            spectrum = circular_spectrum(counterpart)
            return spectrum.all_values() if values is None else values, is_true, spectrum.on_grid()[..., 0]
        return singular_values(counterpart) if values is None else values, is_true, None
    except OperatorError as error:
        problems.append(str(error))
        return values, values is not None, None


def _rank_bound(operator: ConvOperator) -> int:
    """The matrix has a row block for each window, of rank at most its outputs or the entries that it reads."""
    geometry = operator.geometry
    entries = math.prod(geometry.weight_shape[1:])
    blocks = geometry.groups * math.prod(geometry.output_size)
    return min(*operator.shape, blocks * min(geometry.out_channels // geometry.groups, entries))


def _full_s2(operator: ConvOperator) -> float:
    windows = math.prod(operator.geometry.output_size)
    return float(operator.weight.double().square().sum()) * windows


def _flattened_norm(operator: ConvOperator) -> float:
    weight = operator.weight.detach()
    if operator.is_transposed and weight.ndim > 2:
        weight = weight.transpose(0, 1)  # output channels first, as torch's spectral_norm has it
    with full_precision():
        flat = weight.reshape(weight.shape[0], -1).double()
        gram = flat @ flat.T if flat.shape[0] <= flat.shape[1] else flat.T @ flat
        return math.sqrt(max(0.0, float(torch.linalg.eigvalsh(gram)[-1]))) if gram.numel() else 0.0


def _number(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))
