"""All singular values of a layer, exactly, by the cheapest route that its geometry allows.

- Linear: one SVD of the weight.
- Circular padding (or none that is read) and `output * stride = input`: one SVD a frequency, see `symbol.py`.
- Windows that neither overlap nor stick out (1x1, patches): one SVD of the weight, repeated for each window.
- Everything else: the dense float64 matrix of each group, up to `LARGEST_MATRIX` entries.

A transposed layer has the singular values of the convolution that it is the adjoint of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from weightspace.errors import OperatorError
from weightspace.operators._arguments import as_operator
from weightspace.operators._numerics import compute_dtype
from weightspace.operators._parallel import LARGE, Workers, workers
from weightspace.operators._small_svd import small_svdvals
from weightspace.operators.conv import ConvOperator
from weightspace.operators.geometry import ConvGeometry
from weightspace.operators.symbol import SymbolGrid, ravel, symbol_grid, unravel
from weightspace.precision import full_precision

LARGEST_MATRIX = 4096 * 4096  # entries of one group's dense matrix: 128 MiB in float64, tens of seconds
SMALLEST_WORK = 2**20  # entries times smaller side, a millisecond: with less than that a worker is not worth waking
CHUNK = 2**18  # entries of the symbols that one task holds at a time: 2 MiB in complex64


@dataclass(frozen=True, eq=False)
class CircularSpectrum:
    """The singular values of a block-circulant layer, frequency by frequency.

    Attributes:
        values: `(frequencies, values)`, descending in each row; computed dtype, on the weight's device.
        multiplicity: int64 `(frequencies,)`: how many frequencies of the output grid a row stands for.
        frequencies: int64 `(frequencies, dimensions)`, cycles over `period` output points.
        period: Frequencies along each dimension after which the values repeat.
        output_size: The output grid.
    """

    values: torch.Tensor
    multiplicity: torch.Tensor
    frequencies: torch.Tensor
    period: tuple[int, ...]
    output_size: tuple[int, ...]

    def all_values(self) -> torch.Tensor:
        """The values with multiplicity, descending, as `singular_values` gives them."""
        return (
            self.values.repeat_interleave(self.multiplicity.to(self.values.device), dim=0)
            .flatten()
            .sort(descending=True)
            .values
        )

    def on_grid(self) -> torch.Tensor:
        """The values on the whole grid, `(*output_size, values)`; entry 0 along a dimension is the constant wave.

        Example:
            >>> average = nn.Conv1d(1, 1, 3, padding=1, bias=False, padding_mode="circular")
            >>> _ = nn.init.constant_(average.weight, 1 / 3)
            >>> circular_spectrum(average, 4).on_grid()[:, 0].mul(3).round().tolist()  # |1 + 2 cos w|
            [3.0, 1.0, 1.0, 1.0]
        """
        row = torch.empty(math.prod(self.period), dtype=torch.int64, device="cpu")
        for sign in (1, -1):
            row[ravel(sign * self.frequencies, self.period)] = torch.arange(len(self.values), device="cpu")
        places = unravel(torch.arange(math.prod(self.output_size), device="cpu"), self.output_size)
        chosen = row[ravel(places, self.period)].to(self.values.device)
        return self.values[chosen].view(*self.output_size, -1)


def singular_values(
    layer: nn.Module | ConvOperator,
    input_size: int | Sequence[int] | None = None,
    *,
    padding_mode: Literal["circular"] | None = None,
    fast: bool = False,
) -> torch.Tensor:
    """All singular values of a layer's linear map, with multiplicity.

    Args:
        layer: A convolution, transposed convolution or Linear layer, or an operator.
        input_size: Spatial sizes of the input; needed for convolutions.
        padding_mode: `"circular"` analyzes the layer's counterpart on a torus instead: the classical approximation of a
            zero-padded layer, and neither an upper nor a lower bound of its values.
        fast: In float32, 1.2 to 1.5 times faster by Gram matrices. The largest and the smallest value stay good to
            5e-6 of the largest; values in between lose digits towards zero, up to 3e-4 of the largest. No
            effect in float64 and on dense routes.

    Returns:
        `(min(rows, columns),)`, descending, in the weight's dtype (float32 for 16-bit weights). Errors are below
        5e-6 of the largest value in float32 (about 1e-6 up to 256 channels) and below 1e-9 in float64. Not
        differentiable: for gradients take `singular_value_moments` or `norm_bound`.

    Cost: circular `m x m` output grids with `c` channels take `m^2 / 2` SVDs of `c x c` matrices, spread over
    single-threaded workers (`torch.get_num_threads()` is 1 for the whole process meanwhile, and restored). Memory
    beyond the result: a float64 copy of the weight and, for each worker, some 10 times `CHUNK` entries or one symbol.

    Raises:
        OperatorError: The layer cannot be analyzed, or it has no fast route and is too large for the dense one.

    Example:
        >>> shift = nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular", bias=False)
        >>> shift.weight.data = torch.tensor([[[1.0, 0.0, 0.0]]])
        >>> singular_values(shift, 5).tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    return singular_values_of([as_operator(layer, input_size)], padding_mode=padding_mode, fast=fast)[0]


def singular_values_of(
    layers: Sequence[ConvOperator], *, padding_mode: Literal["circular"] | None = None, fast: bool = False
) -> list[torch.Tensor]:
    """`singular_values` of several operators; those of equal geometry are computed together.

    Raises:
        OperatorError: As `singular_values`; before anything is computed.
    """
    if padding_mode not in (None, "circular"):
        raise OperatorError(f"padding_mode is {padding_mode!r}; it may be 'circular' or left out.")
    batches: dict[object, list[int]] = {}
    operators = [layer.circular() if padding_mode else layer for layer in layers]
    for i, operator in enumerate(operators):
        _check_size(operator.geometry)
        weight = operator.weight
        batches.setdefault((operator.geometry, compute_dtype(weight), weight.device), []).append(i)
    result: dict[int, torch.Tensor] = {}
    with torch.no_grad(), full_precision(), workers() as pool:
        for members in batches.values():
            dtype = compute_dtype(operators[members[0]].weight)
            weights = torch.stack([operators[i].weight.detach().to(torch.float64) for i in members])
            values = _all_values(weights, operators[members[0]].geometry, dtype, pool, fast=fast)
            result.update(zip(members, values, strict=True))
    return [result[i] for i in range(len(operators))]


def circular_spectrum(
    layer: nn.Module | ConvOperator, input_size: int | Sequence[int] | None = None, *, fast: bool = False
) -> CircularSpectrum:
    """The singular values of a layer, or of its circular counterpart, frequency by frequency.

    Each row holds `min(out_channels, in_channels * prod(stride))` values, groups together. `fast` as in
    `singular_values`.

    Raises:
        OperatorError: The layer cannot be analyzed, or its stride does not divide its input.
    """
    operator = as_operator(layer, input_size)
    if not operator.geometry.is_block_circulant():
        operator = operator.circular()
    grid = symbol_grid(operator.geometry)
    with torch.no_grad(), full_precision(), workers() as pool:
        weights = operator.weight.detach().to(torch.float64)[None]
        values = _symbol_values(weights, grid, compute_dtype(operator.weight), pool, fast=fast)[0]
    return CircularSpectrum(values, grid.multiplicity, grid.frequencies, grid.period, operator.geometry.output_size)


# ---------------------------------------------------------------------------------------- routes, on stacked weights


def _all_values(
    weights: torch.Tensor, geometry: ConvGeometry, dtype: torch.dtype, pool: Workers, *, fast: bool
) -> list[torch.Tensor]:
    """One descending vector a layer, from float64 weights `(layers, *weight_shape)`."""
    if geometry.is_block_circulant():
        grid = symbol_grid(geometry)
        values = _symbol_values(weights, grid, dtype, pool, fast=fast)
        repeats = grid.multiplicity.to(weights.device)
        flat = [v.repeat_interleave(repeats, dim=0).flatten() for v in values]
    else:
        windows = _whole_windows(geometry)
        if windows is None:
            values = _dense_values(weights, geometry, pool)
        else:
            values = _window_values(weights, geometry, windows)
        flat = list(values.to(dtype))
    return [v.sort(descending=True).values for v in flat]


def _symbol_values(
    weights: torch.Tensor, grid: SymbolGrid, dtype: torch.dtype, pool: Workers, *, fast: bool
) -> torch.Tensor:
    """`(layers, frequencies, values)`, descending along the last dimension."""
    g = grid.geometry
    # Powers of two: squares neither overflow nor vanish, and no digit changes.
    largest = weights.flatten(1).abs().amax(dim=1) if weights[0].numel() else weights.new_zeros(len(weights))
    scale = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent)
    weights = weights / scale.view(-1, *[1] * (weights.ndim - 1))

    def compute(chosen: torch.Tensor, *, fast: bool = fast) -> torch.Tensor:
        symbols = grid.symbols(weights, chosen, dtype)
        return small_svdvals(symbols.flatten(0, 2), fast=fast).view(*symbols.shape[:3], -1)

    side = min(grid.symbol_shape)
    tasks = _chunks(grid, weights, pool.count)
    spread = len(tasks) > 2 or side >= LARGE  # two small tasks: the real symbols and the others
    values = torch.cat(
        pool.map(compute, tasks, side=side, spread=spread)[::-1]
    )  # (frequencies, layers, groups, values)
    if fast and dtype == torch.float32:
        chosen = _where_smallest(values)
        again = chosen.to("cpu").split(len(tasks[0]))
        values[chosen] = torch.cat(pool.map(lambda c: compute(c, fast=False), again, side=side))
    # Residues that no tap reads are columns of zeros; so are the singular values that they add.
    full = min(g.out_channels // g.groups, g.in_channels // g.groups * math.prod(g.stride))
    values = torch.nn.functional.pad(values, (0, full - values.shape[-1])).flatten(2).transpose(0, 1)
    return values.sort(dim=-1, descending=True).values * scale.to(dtype).view(-1, 1, 1)


def _chunks(grid: SymbolGrid, weights: torch.Tensor, workers: int) -> list[torch.Tensor]:
    """Index ranges of frequencies for one task each, last ones first: complex symbols take longest."""
    total = len(grid.frequencies)
    entries = max(1, len(weights) * grid.geometry.groups * math.prod(grid.symbol_shape))
    if weights.is_cpu:
        # Enough tasks to keep every worker busy to the end, none too small.
        enough = SMALLEST_WORK // (entries * min(grid.symbol_shape))
        size = max(1, min(CHUNK // entries, max(total // (8 * workers), enough)))
    else:
        size = max(1, 64 * CHUNK // entries)
    index = torch.arange(total, device="cpu")
    return [c for part in (index[: grid.real_count], index[grid.real_count :]) for c in part.split(size) if len(c)][
        ::-1
    ]


def _where_smallest(values: torch.Tensor) -> torch.Tensor:
    """Frequencies where a layer's smallest value may be, given the noise of Gram matrices in single precision."""
    squares = values.square()
    noise = 1e-7 * squares.amax(dim=(0, 2, 3), keepdim=True)
    is_candidate = squares <= squares.amin(dim=(0, 2, 3), keepdim=True) + noise
    return is_candidate.flatten(1).any(dim=1).nonzero()[:, 0]


def _whole_windows(geometry: ConvGeometry) -> int | None:
    """How many windows read input, if every one reads all its taps from inputs of its own, or nothing but zeros."""
    count = 1
    for axis in range(geometry.dimensions):
        sources = geometry.sources(axis)
        read: list[int] = []
        inside = 0
        for window in range(geometry.output_length(axis)):
            first = window * geometry.stride[axis]
            taps = [s for s in sources[first : first + geometry.reach(axis) : geometry.dilation[axis]] if s >= 0]
            if len(taps) not in (0, geometry.kernel_size[axis]):
                return None
            inside += bool(taps)
            read += taps
        if len(set(read)) < len(read):
            return None
        count *= inside
    return count


def _window_values(weights: torch.Tensor, geometry: ConvGeometry, windows: int) -> torch.Tensor:
    """The matrix of a group is the weight, as `(outputs, inputs * taps)`, once for each window; the rest is zero."""
    blocks = weights.reshape(len(weights) * geometry.groups, geometry.out_channels // geometry.groups, -1)
    values = small_svdvals(blocks).view(len(weights), -1).repeat(1, windows)
    return torch.nn.functional.pad(values, (0, min(geometry.shape) - values.shape[1]))


def _dense_values(weights: torch.Tensor, geometry: ConvGeometry, pool: Workers) -> torch.Tensor:
    """`(layers, min(rows, columns))` by the float64 matrix of each group."""
    part = _one_group(geometry)
    blocks = weights.reshape(-1, *part.weight_shape)
    values = pool.map(
        lambda block: torch.linalg.svdvals(ConvOperator(block, part).dense()), list(blocks), side=min(part.shape)
    )
    return torch.stack(values).view(len(weights), -1)


def _one_group(geometry: ConvGeometry) -> ConvGeometry:
    inputs, outputs = geometry.in_channels // geometry.groups, geometry.out_channels // geometry.groups
    return replace(geometry, in_channels=inputs, out_channels=outputs, groups=1)


def _check_size(geometry: ConvGeometry) -> None:
    if geometry.is_block_circulant() or _whole_windows(geometry) is not None:
        return
    rows, columns = _one_group(geometry).shape
    if rows * columns > LARGEST_MATRIX:
        raise OperatorError(
            f"All singular values of this layer take a dense matrix of {rows:,} x {columns:,} entries, and the limit "
            f"is {LARGEST_MATRIX:,}; use extreme_singular_values() or singular_value_moments(), or "
            "padding_mode='circular' for the layer's counterpart on a torus."
        )
