"""Certified upper bounds on the largest singular value of a layer, differentiable in its weight.

Every convolution is a piece of one on a torus, and dimension by dimension: its tap matrices are `R_a = S C_a E`, where
`C_a` are those of a convolution with the same stride on a torus of N entries, and S and E select or copy entries. So
`sigma_max(M) <= prod ||S|| ||E|| * sigma_max(torus)`, and the torus falls into one small matrix a frequency.

- Zero padding (P, P'): the input stands at entries 0..n-1 of a torus of `N = n + max(P, P')` entries, zeros elsewhere.
  A window that reads entry -j (1 <= j <= P) reads N - j >= n, a zero; one that reads n + j (j < P') reads less than N,
  a zero, or at N the entry 0 only if j = N - n >= P'. So nothing wraps into the input, and two windows that fall on
  the same place of the torus are N apart and read zeros only. S and E select: `||S|| = ||E|| = 1`. With stride s all
  windows start at multiples of s from the first one, so N is rounded up to a multiple of s. N = n is *no* bound.
- Circular padding: with g = gcd(stride, n) the windows start at places `g Z` of the torus of n entries, and each of the
  n / g places occurs at most `m = ceil(outputs g / n)` times: `||S|| = sqrt(m)`, which is 1 for common layers.
- Any padding: pad first, then convolve without padding. `E^T E` is diagonal and holds how often an entry is copied, so
  `||E|| = sqrt(most copies)`; N is the padded length, rounded up to a multiple of s.

The first is the interlacing argument of the literature on Toeplitz and circulant matrices; strides, repetition and
copies are our derivation [derived].

For every size at once [derived]: the frequencies of any torus lie on the circle. Along one dimension the matrix of a
frequency is, after shifting the origin of each phase, a polynomial of degree `t - 1` in `e^{i w}`, so `Re(u* A(w) v)`
times a phase is a trigonometric polynomial of degree `(t - 1) / 2`. By M. Riesz such a polynomial of degree m with its
maximum 1 at w0 is at least `cos(m (w - w0))` for `|w - w0| <= pi / m`, and some point of a grid of G points is within
pi / G of w0. Hence the maximum over the circle is at most `1 / cos(pi (t - 1) / (2 G))` times that over the grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from weightspace.errors import OperatorError
from weightspace.operators._arguments import as_operator
from weightspace.operators._numerics import compute_dtype, with_gradient
from weightspace.operators._torus_norm import TorusAxis, scaled_symbols, torus_norms
from weightspace.operators.conv import ConvOperator, fitting_size
from weightspace.operators.geometry import ConvGeometry
from weightspace.operators.symbol import unravel
from weightspace.precision import full_precision


def norm_bound(
    layer: nn.Module | ConvOperator,
    input_size: int | Sequence[int] | None = None,
    *,
    tolerance: float | None = None,
) -> torch.Tensor:
    """A number that the layer's largest singular value provably does not exceed, in the weight's dtype.

    Exact for circular padding with a stride that divides the size, for linear layers and for windows that do not
    overlap. For zero padding it is usually within a few percent of sigma_max, for reflect and replicate padding within
    the factor that copies cost (2 for a padding of 1 in two dimensions). Rounding is covered: the value is raised by
    about `3 channels` units in the last place.

    The gradient is that of the matrix of the top frequency; finite everywhere, and one of the valid ones where the
    top value is repeated. Differentiating twice raises an error.

    Cost: one Gram matrix and one Cholesky factorization, about `10 c^3` multiplications, for each of half the
    frequencies, at most about `(1.6 t / sqrt(tolerance))^dimensions` of them for t taps.

    Args:
        layer: A convolution, a transposed one, a linear layer, or an operator.
        input_size: Spatial sizes of the layer's input; left out, the bound holds for every size.
        tolerance: How much may be lost, as a fraction, by looking at fewer frequencies than a large image has. Left
            out: 0.005 (3 taps: sizes up to 44 lose nothing), and 0.05 if the bound is for every size.

    Raises:
        OperatorError: The layer cannot be analyzed, or the tolerance is not positive.

    Example:
        An averaging filter keeps a constant image, whatever the size:

        >>> layer = nn.Conv2d(1, 1, 3, padding=1, bias=False, dtype=torch.float64)
        >>> _ = nn.init.constant_(layer.weight, 1 / 9)
        >>> round(norm_bound(layer, 8).item(), 6), 1.0 <= norm_bound(layer).item() <= 1.05
        (1.0, True)
    """
    every_size = input_size is None and not isinstance(layer, ConvOperator)
    if every_size and isinstance(layer, nn.Module):
        input_size = fitting_size(layer) or None  # any will do
    operator = as_operator(layer, input_size)
    return stacked_norm_bounds(operator.weight[None], operator.geometry, every_size=every_size, tolerance=tolerance)[0]


def stacked_norm_bounds(
    weights: torch.Tensor, geometry: ConvGeometry, *, every_size: bool = False, tolerance: float | None = None
) -> torch.Tensor:
    """The bounds of many layers of one geometry: `(layers, *weight_shape)` to `(layers,)`.

    With `every_size` the bounds hold for every input size, not only for that of the geometry.
    """
    tolerance = (0.05 if every_size else 0.005) if tolerance is None else tolerance
    if not tolerance > 0:
        raise OperatorError(f"tolerance is {tolerance}; it must be positive, for example 0.01.")
    weights = weights.to(compute_dtype(weights))
    axes = [_torus(geometry, axis, every_size, tolerance) for axis in range(geometry.dimensions)]
    blocks = _polyphase(weights, geometry, axes)
    wanted = torch.is_grad_enabled() and weights.requires_grad
    with torch.no_grad(), full_precision():
        values, gradients = torus_norms(blocks.detach(), axes, wanted)
    if wanted:
        values = with_gradient(blocks, values, gradients)
    return values.reshape(weights.shape[0], geometry.groups).max(dim=1).values


def bound_and_wave(weights: torch.Tensor, geometry: ConvGeometry) -> tuple[torch.Tensor, torch.Tensor]:
    """The bounds, and an image a layer that the top frequency of its torus amplifies most.

    With zero padding the wave is multiplied with a sine window, as the top eigenvectors of Toeplitz matrices are: a
    few Lanczos steps from there reach what 20 to 30 reach from noise.

    Args:
        weights: `(layers, out_channels, in_channels / groups, *kernel_size)`.
        geometry: Their common geometry.

    Returns:
        Bounds `(layers,)` and images `(layers, in_channels, *input_size)`, zero but in the channels of a group.
    """
    layers, groups, width = weights.shape[0], geometry.groups, geometry.in_channels // geometry.groups
    axes = [_torus(geometry, axis, every_size=False, tolerance=0.005) for axis in range(geometry.dimensions)]
    with torch.no_grad(), full_precision():
        symbols, scale = scaled_symbols(_polyphase(weights, geometry, axes), axes)
        eigenvalues, frequencies = symbols.largest_eigenvalues()
        bounds, group = (symbols.bounds(eigenvalues) * scale).view(layers, groups).max(dim=1)
        block = torch.arange(layers, device=weights.device) * groups + group
        v = symbols.vectors(block, frequencies[block])[1].view(layers, width, *(axis.phases for axis in axes))
        places = unravel(symbols.frequencies[frequencies[block]], tuple(axis.frequencies for axis in axes))
        waves = torch.stack([_wave(v[i], places[i].tolist(), geometry, axes) for i in range(layers)])
        images = waves.new_zeros(layers, groups, *waves.shape[1:])
        images[torch.arange(layers, device=weights.device), group] = waves
    return bounds, images.flatten(1, 2)


# ------------------------------------------------------------------------------------------- one dimension at a time


def _torus(geometry: ConvGeometry, axis: int, every_size: bool, tolerance: float) -> TorusAxis:
    """A torus whose norm times a factor bounds that of the layer along one dimension; see the module's docstring."""
    taps, dilation = geometry.kernel_size[axis], geometry.dilation[axis]
    length, stride, factor = (_every_torus if every_size else _sized_torus)(geometry, axis)
    shared = math.gcd(stride, dilation)
    phases, step = stride // shared, dilation // shared
    degree = -(-taps // phases) - 1
    if degree == 0:  # one tap a phase: the frequency changes no singular value
        return TorusAxis(1, 0, phases, factor)
    grid = math.ceil(math.pi * degree / (2 * math.acos(1 / (1 + tolerance / geometry.dimensions))))
    grid = max(grid, degree + 1)
    if length is not None and length // stride <= grid:
        return TorusAxis(length // stride, step, phases, factor)
    return TorusAxis(grid, 1, phases, factor / math.cos(math.pi * degree / (2 * grid)))


def _sized_torus(geometry: ConvGeometry, axis: int) -> tuple[int | None, int, float]:
    """Entries and stride of a torus, and the factor, for the input size of the geometry."""
    n, stride, (before, _) = geometry.input_size[axis], geometry.stride[axis], geometry.padding[axis]
    padded = geometry.padded_length(axis)
    after, sources = padded - before - n, geometry.sources(axis)
    if geometry.is_circulant_along(axis):
        return n, stride, 1.0  # a torus already
    if geometry.padding_mode == "zeros":
        seen = n + min(before, 0) + min(after, 0)  # negative padding cuts off
        return _round_up(max(seen, 1) + max(before, after, 0), stride), stride, 1.0
    copies = max(sources.count(q) for q in set(sources))
    if geometry.padding_mode == "circular":
        common = math.gcd(stride, n)
        repeats = -(-geometry.output_length(axis) * common // n)
        # White weights gain sqrt(stride / common) by the finer stride; take what looks smaller.
        if repeats * stride <= copies * common:
            return n, common, math.sqrt(repeats)
    return _round_up(padded, stride), stride, math.sqrt(copies)


def _every_torus(geometry: ConvGeometry, axis: int) -> tuple[int | None, int, float]:
    """The same for all input sizes that torch accepts with this padding: no length."""
    stride, (before, after) = geometry.stride[axis], geometry.padding[axis]
    if geometry.padding_mode == "zeros":
        return None, stride, 1.0
    if geometry.padding_mode == "replicate":
        return None, stride, math.sqrt(1 + before + after)
    copies = 1 + (before > 0) + (after > 0)
    # No more padding than the kernel's reach less 1: at most ceil(n / stride) windows, none of them twice.
    if geometry.padding_mode == "circular" and before + after < geometry.reach(axis) and stride <= copies:
        return None, 1, 1.0
    return None, stride, math.sqrt(copies)


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _polyphase(weights: torch.Tensor, geometry: ConvGeometry, axes: Sequence[TorusAxis]) -> torch.Tensor:
    """`(layers * groups, out, in * phases, *taps)`: a strided convolution is a plain one that reads more channels."""
    layers, groups = weights.shape[0], geometry.groups
    blocks = weights.reshape(layers * groups, geometry.out_channels // groups, -1, *geometry.kernel_size)
    for dim, (axis, taps) in enumerate(zip(axes, geometry.kernel_size, strict=True), start=3):
        missing = -taps % axis.phases
        blocks = functional.pad(blocks, [0, 0] * (len(axes) + 2 - dim) + [0, missing])
        # tap = phases * new tap + phase
        blocks = blocks.unflatten(dim, (-1, axis.phases)).movedim(dim + 1, 3).flatten(2, 3)
    return blocks


def _wave(v: torch.Tensor, place: list[int], geometry: ConvGeometry, axes: Sequence[TorusAxis]) -> torch.Tensor:
    """`Re v[., phase of x] e^{i w (x - phase) / stride}` on the input, for `v (inputs, *phases)` of one frequency."""
    image = v.to(torch.complex128 if v.dtype in (torch.float64, torch.complex128) else torch.complex64)
    for dim, axis in enumerate(axes):
        n, stride, dilation = geometry.input_size[dim], geometry.stride[dim], geometry.dilation[dim]
        x = torch.arange(n, device=v.device)
        y = x + geometry.padding[dim][0]  # the first window starts at 0
        phase, window = torch.zeros_like(x), torch.zeros(n, dtype=torch.float64, device=v.device)
        for p in range(axis.phases):
            phase = torch.where((y - dilation * p) % stride == 0, p, phase)
            window[(y - dilation * p) % stride == 0] = 1.0
        if geometry.padding_mode == "zeros":
            window = window * torch.sin(math.pi * (x + 1) / (n + 1))
        turns = place[dim] * axis.step / (axis.frequencies * (dilation // math.gcd(dilation, stride)))
        angles = 2 * math.pi * turns * ((y - dilation * phase) / stride).to(torch.float64)
        wave = torch.polar(window, angles).to(image.dtype)
        image = image.index_select(dim + 1, phase) * wave.view(-1, *[1] * (len(axes) - dim - 1))
    return image.real
