"""Fourier symbols: a convolution on a torus is one small matrix a frequency.

With circular padding, `y[p] = sum_a K_a x[s p + d a mod n]` (tap `a`, stride `s`, dilation `d`, `K_a` the matrix of
channels at that tap) commutes with shifts of the output grid of `m = n / s` points, so the Fourier transform splits its
matrix into blocks. Three facts keep the blocks few and small, one dimension at a time:

- *Polyphase.* Tap `a` reads inputs of the residue `d a mod s` only. There are `s' = s / gcd(s, d)` such residues; those
  that no tap reads (`kernel < s'`) are columns of zeros and are left out.
- *Period.* Within one residue the taps advance by `d / gcd(s, d)` output points, so the block depends on the frequency
  modulo a `period` that divides `m`. Residues of a single tap have period 1: a strided 1x1 kernel is one matrix.
- *Symmetry.* The weight is real, so opposite frequencies have conjugate blocks: one of each pair is computed and
  counts twice. The 2^D frequencies that are their own opposites (fewer for odd periods) have real blocks.

Padding only shifts the input, and a tap beyond `n` is the tap modulo `n`; neither needs work.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch

from weightspace.errors import OperatorError
from weightspace.operators.geometry import ConvGeometry


@dataclass(frozen=True, eq=False)
class SymbolGrid:
    """Which frequencies of a block-circulant convolution must be computed, and how often each counts.

    Attributes:
        geometry: The convolution.
        period: Frequencies along each dimension after which the symbols repeat.
        frequencies: int64 `(frequencies, dimensions)` in `[0, period)`, cycles over `period` output points; those with
            real symbols come first.
        multiplicity: int64 `(frequencies,)`; sums to the number of output points.
        real_count: How many of the first frequencies have real symbols.

    Both tensors are on the CPU.
    """

    geometry: ConvGeometry
    period: tuple[int, ...]
    frequencies: torch.Tensor
    multiplicity: torch.Tensor
    real_count: int

    @property
    def residues(self) -> list[tuple[int, ...]]:
        """The first tap of each residue that is read, along each dimension."""
        g = self.geometry
        return list(itertools.product(*(range(min(g.kernel_size[a], _spacing(g, a))) for a in range(g.dimensions))))

    @property
    def symbol_shape(self) -> tuple[int, int]:
        """Rows and columns of one group's symbol: output channels by input channels times residues that are read."""
        g = self.geometry
        return g.out_channels // g.groups, g.in_channels // g.groups * len(self.residues)

    def symbols(self, weights: torch.Tensor, chosen: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The symbols at some of the frequencies; differentiable.

        Args:
            weights: `(layers, out_channels, in_channels / groups, *kernel_size)`, float64.
            chosen: Indices into `frequencies`.
            dtype: Real dtype of the result's entries; float64 if not given. The sums are always taken in float64.

        Returns:
            `(chosen, layers, groups, *symbol_shape)`, complex; real if every chosen frequency has a real symbol. They
            are the blocks up to factors of modulus one for each column, which change no singular value.

        Cost: one real matrix product for each residue, `4 * chosen * weights.numel()` flops in all.
        """
        g = self.geometry
        is_real = bool((chosen < self.real_count).all())
        frequencies = self.frequencies[chosen]
        parts: list[torch.Tensor] = []
        for residue in self.residues:
            taps = weights[(..., *(slice(first, None, _spacing(g, a)) for a, first in enumerate(residue)))]
            counts = taps.shape[3:]
            columns = taps.reshape(-1, math.prod(counts)).T
            waves = self._waves(frequencies, counts, is_real=is_real).to(weights.device)
            parts.append((waves @ columns).to(dtype or torch.float64))
        shape = (len(chosen), weights.shape[0], g.groups, g.out_channels // g.groups)
        stacked = torch.stack(
            [part.view(-1, *shape, weights.shape[2]) for part in parts], dim=-2
        )  # (1 or 2, chosen, layers, groups, rows, residues, inputs)
        stacked = stacked.flatten(-2)
        return stacked[0] if is_real else torch.complex(stacked[0], stacked[1])

    def _waves(self, frequencies: torch.Tensor, counts: torch.Size, *, is_real: bool) -> torch.Tensor:
        """`e^{2 pi i <w, step b> / period}` at every frequency and tap `b`: real parts above imaginary ones."""
        g = self.geometry
        angle = torch.zeros(len(frequencies), *counts, dtype=torch.float64, device="cpu")
        for axis, count in enumerate(counts):
            step = g.dilation[axis] // math.gcd(g.stride[axis], g.dilation[axis])
            step //= math.gcd(step, g.output_length(axis))
            taps = torch.arange(count, device="cpu")
            # Whole numbers modulo the period: the angle is exact before its one rounding.
            turns = (frequencies[:, axis, None] * step * taps) % self.period[axis]
            view = [len(frequencies)] + [count if a == axis else 1 for a in range(g.dimensions)]
            angle = angle + (turns.to(torch.float64) / self.period[axis]).view(view)
        angle = angle.reshape(len(frequencies), math.prod(counts)) * (2 * math.pi)
        return angle.cos().round() if is_real else torch.cat([angle.cos(), angle.sin()])


def symbol_grid(geometry: ConvGeometry) -> SymbolGrid:
    """The exact half of the frequencies of a block-circulant convolution.

    Raises:
        OperatorError: The convolution is not block-circulant.

    Example:
        >>> g = ConvGeometry(3, 8, (6, 4), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), "circular")
        >>> grid = symbol_grid(g)
        >>> len(grid.frequencies), grid.real_count, int(grid.multiplicity.sum())
        (14, 4, 24)
    """
    if not geometry.is_block_circulant():
        raise OperatorError(
            f"A convolution with {geometry.padding_mode!r} padding {geometry.padding}, stride {geometry.stride} and "
            f"input {geometry.input_size} has no Fourier symbols; take its .circular() counterpart."
        )
    period = tuple(_period(geometry, axis) for axis in range(geometry.dimensions))
    total = math.prod(period)
    index = torch.arange(total, device="cpu")
    frequencies = unravel(index, period)
    opposite = ravel(-frequencies, period)
    kept = torch.cat([index[index == opposite], index[index < opposite]])
    repeats = math.prod(geometry.output_size) // total
    multiplicity = torch.where(kept == opposite[kept], repeats, 2 * repeats)
    return SymbolGrid(geometry, period, frequencies[kept], multiplicity, int((index == opposite).sum()))


def unravel(index: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    """Coordinates `(..., dimensions)` of flat row-major indices."""
    coordinates: list[torch.Tensor] = []
    for size in reversed(sizes):
        coordinates.append(index % size)
        index = index // size
    return torch.stack(coordinates[::-1], dim=-1) if sizes else index.new_zeros(*index.shape, 0)


def ravel(coordinates: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    """Flat row-major indices of coordinates `(..., dimensions)`, each taken modulo its size."""
    index = coordinates.new_zeros(coordinates.shape[:-1])
    for axis, size in enumerate(sizes):
        index = index * size + coordinates[..., axis] % size
    return index


def _spacing(geometry: ConvGeometry, axis: int) -> int:
    """Taps from one of a residue to the next of the same residue, which is also the number of residues."""
    return geometry.stride[axis] // math.gcd(geometry.stride[axis], geometry.dilation[axis])


def _period(geometry: ConvGeometry, axis: int) -> int:
    if geometry.kernel_size[axis] <= _spacing(geometry, axis):
        return 1
    step = geometry.dilation[axis] // math.gcd(geometry.stride[axis], geometry.dilation[axis])
    return geometry.output_length(axis) // math.gcd(step, geometry.output_length(axis))
