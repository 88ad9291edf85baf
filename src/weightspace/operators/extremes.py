"""The largest and the smallest singular value of a layer without its matrix, with what is proved about them.

The layer is applied to a few images, `lanczos.bidiagonalize` gives Ritz values: a lower bound of sigma_max, which it
meets to several digits after a few steps from the top wave of the torus, and an upper bound of sigma_min, which it does
not meet in general (small singular values of zero-padded layers are clustered far below what Krylov spaces reach).
`norm_bound` closes the interval of sigma_max from above. Small layers are solved exactly.

During training the result of the last step is the start of the next: two vectors that turn slowly, and an upper bound
that stays valid for a changed weight when the norm of the change is added to it,

    sigma_max(M(K)) <= bound(K_0) + ||M(K - K_0)||,
    ||M(D)|| <= sqrt(most reads of one input) * ||D||_flattened     (M(D) = D times the map that collects patches)

until that costs more than `drift`; then the bound is computed afresh.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Context

import torch
from torch import nn

from weightspace.errors import OperatorError
from weightspace.operators._arguments import as_operator
from weightspace.operators._numerics import compute_dtype
from weightspace.operators.bounds import bound_and_wave, stacked_norm_bounds
from weightspace.operators.conv import ConvOperator
from weightspace.operators.geometry import ConvGeometry
from weightspace.operators.lanczos import RitzTriplets, bidiagonalize
from weightspace.operators.spectrum import singular_values
from weightspace.precision import full_precision

EXACT_WORK = 200_000_000  # rows * columns * smaller side of a matrix that is solved exactly without being asked
COLD_STEPS, WARM_STEPS = 15, 2


@dataclass(frozen=True, eq=False)
class Extremes:
    """What is known about the extreme singular values of a layer; unpacks as `(sigma_max, sigma_min)`.

    Attributes:
        sigma_max: The best estimate, which is also a lower bound (but for rounding).
        sigma_max_bound: A certified upper bound.
        sigma_min: The smallest singular value if `is_sigma_min_exact`, else an upper bound of it.
        is_sigma_min_exact: Whether `sigma_min` is proved to be the value.
        method: "dense" (the matrix was solved), "all values" (`singular_values` was asked) or "lanczos".
        is_converged: The residual of `sigma_max` is below the tolerance. It then is a singular value, almost surely
            the largest one; the interval is what is certain.
        residual: `||A^T u - sigma_max v||`.
        iterations: Applications of the layer and its adjoint to a block of images.
        left: `(2, outputs)`: the left singular vectors of sigma_max and of sigma_min, as the layer writes them,
            flattened. One row if the layer has one singular value.
        right: `(2, inputs)`: the right ones, as the layer reads them.
        known_bound: An upper bound and its weight, from which the next one may follow.
    """

    sigma_max: float
    sigma_max_bound: float
    sigma_min: float
    is_sigma_min_exact: bool
    method: str
    is_converged: bool
    residual: float
    iterations: int
    left: torch.Tensor
    right: torch.Tensor
    known_bound: KnownBound

    def __iter__(self) -> Iterator[float]:
        yield self.sigma_max
        yield self.sigma_min

    def __str__(self) -> str:
        lower, upper = _digits(self.sigma_max, 4, up=False), _digits(self.sigma_max_bound, 4, up=True)
        smallest = _digits(self.sigma_min, 2 if not self.is_sigma_min_exact else 4, up=True)
        sign = "=" if self.is_sigma_min_exact else "<="
        return f"sigma_max in [{lower}, {upper}], sigma_min {sign} {smallest}"


@dataclass(frozen=True, eq=False)
class KnownBound:
    """An upper bound of the norm for one weight, from which those of nearby weights follow."""

    weight: torch.Tensor
    value: float


def extreme_singular_values(
    layer: nn.Module | ConvOperator,
    input_size: int | Sequence[int] | None = None,
    *,
    steps: int | None = None,
    start: Extremes | None = None,
    tolerance: float = 1e-3,
    drift: float = 0.01,
    exact: bool | None = None,
    generator: torch.Generator | None = None,
) -> Extremes:
    """sigma_max as a certified interval and sigma_min as a value or a bound, for every padding mode, stride, dilation.

    Cost: `steps` applications of the layer and its adjoint to two images, all vectors kept; and
    once, or whenever the weight has drifted, a `norm_bound`. Layers of up to about 500 inputs are solved exactly.

    Args:
        layer: A convolution, a transposed one, a linear layer, or an operator.
        input_size: Spatial sizes of the layer's input.
        steps: Lanczos steps; left out: 15, or 2 from a start.
        start: The result for the same layer a few optimizer steps ago: its vectors and its bound are reused.
        tolerance: Relative residual at which `is_converged` says so. It ends nothing early.
        drift: How much of the upper bound a reused one may lose to the change of the weight.
        exact: Compute all values: True insists (see `singular_values` for what it costs), False never does, left
            out: if the matrix is small.
        generator: Where a random first vector comes from (a fixed seed if left out); on the weight's device.

    Raises:
        OperatorError: The layer cannot be analyzed, `singular_values` cannot do what `exact` insists on, or `start`
            is of another shape.

    Example:
        >>> layer = nn.Conv2d(3, 3, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([3.0, 2.0, 0.5]))[:, :, None, None])
        >>> sigma_max, sigma_min = extreme_singular_values(layer, 8)
        >>> round(sigma_max, 5), round(sigma_min, 5)
        (3.0, 0.5)
    """
    operator = as_operator(layer, input_size)
    weight = operator.weight.detach()
    operator = operator.with_weight(weight.to(compute_dtype(weight)))
    _check(operator, steps, start)
    rows, columns = operator.shape
    with torch.no_grad(), full_precision():
        if exact is not False and rows * columns * min(rows, columns) <= EXACT_WORK:
            return _dense(operator)
        every = singular_values(operator) if exact else None
        result = _iterate(operator, steps, start, tolerance=tolerance, drift=drift, generator=generator)
        return result if every is None else _with_all_values(result, every)


def _check(operator: ConvOperator, steps: int | None, start: Extremes | None) -> None:
    if steps is not None and steps < 1:
        raise OperatorError(f"steps is {steps}; at least one is needed.")
    if start is not None and (start.left.shape[1], start.right.shape[1]) != operator.shape:
        raise OperatorError(
            f"start belongs to a layer of {start.left.shape[1]} outputs and {start.right.shape[1]} inputs, this one "
            f"has {operator.shape[0]} and {operator.shape[1]}; leave start out."
        )


def _dense(operator: ConvOperator) -> Extremes:
    """Everything from one SVD in float64, which is exact but for rounding."""
    matrix = operator.with_weight(operator.weight.to(torch.float64)).dense()
    U, values, Vt = torch.linalg.svd(matrix, full_matrices=False)
    ends = [0, -1] if len(values) > 1 else [0]
    largest, smallest = float(values[0]), float(values[-1])
    dtype = operator.weight.dtype
    slack = largest * sum(matrix.shape) * torch.finfo(torch.float64).eps
    return Extremes(
        sigma_max=largest,
        sigma_max_bound=largest + slack,
        sigma_min=smallest,
        is_sigma_min_exact=True,
        method="dense",
        is_converged=True,
        residual=float(torch.linalg.vector_norm(matrix.T @ U[:, 0] - largest * Vt[0])),
        iterations=0,
        left=U[:, ends].T.to(dtype),
        right=Vt[ends].to(dtype),
        known_bound=KnownBound(operator.weight.clone(), largest + slack),
    )


def _with_all_values(result: Extremes, every: torch.Tensor) -> Extremes:
    """The ends of a whole spectrum, which is good to 2e-6 of its largest value in float32, in place of Ritz values."""
    largest, smallest = float(every[0]), float(every[-1])
    slack = (4e-6 if every.dtype == torch.float32 else 1e-9) * largest
    return replace(
        result,
        sigma_max=max(result.sigma_max, largest - slack),
        sigma_max_bound=min(result.sigma_max_bound, largest + slack),
        sigma_min=smallest,
        is_sigma_min_exact=True,
        method="all values",
        is_converged=True,
    )


def _iterate(
    operator: ConvOperator,
    steps: int | None,
    start: Extremes | None,
    *,
    tolerance: float,
    drift: float,
    generator: torch.Generator | None,
) -> Extremes:
    rows, columns = operator.shape
    # On the smaller side the smallest Ritz value bounds sigma_min; on the larger one, a null space would be in the way.
    swapped = rows < columns
    known, bound, wave = _upper_bound(operator, None if start is None else start.known_bound, drift, start is None)
    if start is not None:
        vectors = (start.left if swapped else start.right)[: min(rows, columns)]
    else:
        vectors = _cold_start(operator, wave, min(rows, columns), swapped, generator)
    ritz = stacked_ritz(
        operator.weight[None],
        operator.geometry,
        swapped=swapped != operator.is_transposed,
        steps=steps or (COLD_STEPS if start is None else WARM_STEPS),
        start=vectors[None],
        keep=(0, -1),
    )
    left, right = (ritz.right[0], ritz.left[0]) if swapped else (ritz.left[0], ritz.right[0])
    largest, smallest = ritz.values[0].tolist()
    residual = float(ritz.residuals[0, 0])
    eps = torch.finfo(operator.weight.dtype).eps
    return Extremes(
        sigma_max=largest * (1 - 16 * eps),
        sigma_max_bound=bound,
        sigma_min=smallest + 16 * eps * largest,
        is_sigma_min_exact=False,
        method="lanczos",
        is_converged=residual <= tolerance * largest,
        residual=residual,
        iterations=ritz.iterations,
        left=left,
        right=right,
        known_bound=known,
    )


def stacked_ritz(
    weights: torch.Tensor,
    geometry: ConvGeometry,
    *,
    start: torch.Tensor,
    steps: int,
    swapped: bool = False,
    keep: Sequence[int] | None = None,
) -> RitzTriplets:
    """Ritz triplets of many layers of one geometry, which run as the groups of one convolution.

    Args:
        weights: `(layers, out_channels, in_channels / groups, *kernel_size)`.
        geometry: Their common geometry.
        start: `(layers, block, inputs)`.
        steps: Lanczos steps.
        swapped: Work on the adjoints: `left` and `right` change places, and start stands on the outputs.
        keep: Places of the triplets to return; left out: all.
    """
    layers = weights.shape[0]
    whole = (
        ConvOperator(
            weights.flatten(0, 1),
            replace(
                geometry,
                in_channels=layers * geometry.in_channels,
                out_channels=layers * geometry.out_channels,
                groups=layers * geometry.groups,
            ),
            is_transposed=swapped,
        )
        if geometry.dimensions
        else None
    )
    outputs = geometry.shape[1 if swapped else 0]

    def run(x: torch.Tensor, *, back: bool) -> torch.Tensor:
        if whole is None:
            return x @ (weights if back != swapped else weights.mT)
        images = x.transpose(0, 1).reshape(x.shape[1], *(whole.output_shape if back else whole.input_shape))
        result = whole.adjoint(images) if back else whole.apply(images)
        return result.reshape(x.shape[1], layers, -1).transpose(0, 1)

    return bidiagonalize(
        lambda x: run(x, back=False), lambda y: run(y, back=True), start.to(weights), outputs, steps=steps, keep=keep
    )


def _cold_start(
    operator: ConvOperator, wave: torch.Tensor, size: int, swapped: bool, generator: torch.Generator | None
) -> torch.Tensor:
    """`(2, size)`: the wave of the top frequency, and noise, in which no singular vector is missing."""
    weight = operator.weight
    if swapped != operator.is_transposed:  # the wave lives where the convolution of the geometry reads
        wave = operator.adjoint(wave) if operator.is_transposed else operator.apply(wave)
    if generator is None:
        generator = torch.Generator(weight.device).manual_seed(0)
    noise = torch.randn(1, size, generator=generator, dtype=weight.dtype, device=weight.device)
    return torch.cat([wave.reshape(1, -1).to(weight.dtype), noise])[:size]


def _upper_bound(
    operator: ConvOperator, known: KnownBound | None, drift: float, fresh: bool
) -> tuple[KnownBound, float, torch.Tensor]:
    """What to know next time, a certified bound (from a known one where the weight has moved little), and a wave."""
    weight, geometry = operator.weight, operator.geometry
    if known is not None and known.weight.shape == weight.shape:
        change = _crude_bound(weight - known.weight.to(weight), geometry, drift * known.value)
        if change <= drift * known.value:
            return known, (known.value + change) * (1 + torch.finfo(torch.float64).eps), weight
    if fresh:
        bounds, wave = bound_and_wave(weight[None], geometry)
    else:
        bounds, wave = stacked_norm_bounds(weight[None], geometry), weight
    return KnownBound(weight.clone(), float(bounds[0])), float(bounds[0]), wave


def _crude_bound(weight: torch.Tensor, geometry: ConvGeometry, enough: float) -> float:
    """`sqrt(reads) ||flattened||`, by the Frobenius norm of the weight or, if that is too much, of its Gram matrix."""
    reads = 1
    for axis in range(geometry.dimensions):
        sources, s, d = geometry.sources(axis), geometry.stride[axis], geometry.dilation[axis]
        windows, taps = range(geometry.output_length(axis)), range(geometry.kernel_size[axis])
        read = [sources[s * p + d * a] for a in taps for p in windows]
        counts = torch.bincount(torch.tensor(read, device="cpu") + 1)[1:]
        reads *= int(counts.max()) if len(counts) else 0
    flat = weight.reshape(geometry.groups, geometry.out_channels // geometry.groups, -1)
    factor = math.sqrt(reads) * (1 + torch.finfo(weight.dtype).eps * sum(flat.shape[1:]))
    norm = torch.linalg.vector_norm(flat, dim=(1, 2)).max()
    if factor * float(norm) > enough:
        gram = flat @ flat.mT
        norm = torch.linalg.vector_norm(gram, dim=(1, 2)).max().sqrt()
    return factor * float(norm)


def _digits(value: float, digits: int, *, up: bool) -> str:
    """A number rounded in one direction."""
    context = Context(prec=digits, rounding=ROUND_CEILING if up else ROUND_FLOOR)
    return f"{float(context.create_decimal(repr(value))):.{digits}g}"
