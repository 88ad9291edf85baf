"""Gradients of spectral functions by their formula: `dR = Re <U diag(phi') V^H, dA>`, then a linear map to the weight.

For `R = phi(sigma_1, ..., sigma_n)` and `A = U diag(sigma) V^H` the gradient by A is `U diag(dphi/dsigma) V^H`,
finite for zero and repeated values wherever phi' is. A is a linear function of the kernel (a matrix of the
layer, or its Fourier symbols), so the rest is the adjoint of that linear map. Nothing is differentiated through an SVD,
whose own backward pass divides by differences of singular values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

from weightspace.errors import OperatorError
from weightspace.operators import ConvGeometry, ConvOperator
from weightspace.operators._numerics import compute_dtype
from weightspace.operators._parallel import workers
from weightspace.operators.geometry import torus
from weightspace.operators.spectrum import LARGEST_MATRIX
from weightspace.operators.symbol import SymbolGrid, symbol_grid

# Singular values `(matrices, values)` and the share of each matrix `(matrices, 1)`, to R and its derivative by each.
SpectralFunction = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

CHUNK = 2**20  # entries of the symbols that are held at a time, together with their singular vectors


@dataclass(frozen=True)
class Sample:
    """Some random frequencies in place of all: how many, and where the choice comes from."""

    count: int
    generator: torch.Generator


@lru_cache(maxsize=64)
def _grid(geometry: ConvGeometry) -> SymbolGrid:
    return symbol_grid(geometry)


def on_torus(
    operator: ConvOperator, function: SpectralFunction, *, is_sum: bool, sample: Sample | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A spectral function of the layer's circular counterpart, and its gradient.

    Args:
        operator: The layer.
        function: Gets the values of some frequencies and, for each frequency, how many it stands for, divided by the
            number of outputs of the grid.
        is_sum: The function is a sum over frequencies, so it can be taken chunk by chunk, all vectors at once. Else it
            depends on few values: these come first, then the vectors of the frequencies that have a derivative.
        sample: Look at some frequencies only; those stand for all.

    Cost: one SVD of a `(c_out, c_in)` matrix for each frequency, twice the time of its values alone.
    """
    geometry = torus(operator.geometry)
    grid = _grid(geometry)
    dtype = compute_dtype(operator.weight)
    share = grid.multiplicity.to(torch.float64) / math.prod(geometry.output_size)
    chosen = torch.arange(len(share), device="cpu")
    if sample is not None and sample.count < len(share):
        chosen = torch.randperm(len(share), generator=sample.generator, device="cpu")[: sample.count].sort().values
        share = share * (len(share) / sample.count)
    symbols = _Symbols(operator.weight, grid, dtype, share)
    chunks = symbols.chunks(chosen)
    if is_sum:
        return symbols.total(function, chunks)
    return symbols.extreme(function, chunks)


class _Symbols:
    """The symbols of one weight, chunk by chunk, and the way back from them to the weight."""

    def __init__(self, weight: torch.Tensor, grid: SymbolGrid, dtype: torch.dtype, share: torch.Tensor) -> None:
        self.weight = weight.detach().to(torch.float64)
        self.grid = grid
        self.dtype = dtype
        self.share = share
        self.gradient = torch.zeros_like(self.weight)

    def chunks(self, chosen: torch.Tensor) -> list[torch.Tensor]:
        """The chosen frequencies in parts; real symbols apart from complex ones."""
        entries = self.grid.geometry.groups * math.prod(self.grid.symbol_shape)
        real = chosen < self.grid.real_count
        return [c for part in (chosen[real], chosen[~real]) for c in part.split(max(1, CHUNK // entries)) if len(c)]

    def total(self, function: SpectralFunction, chunks: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """A sum over frequencies."""
        value = torch.zeros((), dtype=torch.float64, device=self.weight.device)
        for chunk in chunks:
            leaf, A = self._at(chunk)
            U, sigma, Vh = _svd(A.detach().flatten(0, 2))
            part, slopes = function(self._rows(sigma, chunk), self._shares(chunk))
            value += part
            self._add(leaf, A, U, slopes, Vh)
        return value.to(self.dtype), self.gradient.to(self.dtype)

    def extreme(self, function: SpectralFunction, chunks: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """A function of few values: all values first, then the vectors where they matter."""
        rows = [self._rows(_svdvals(self._at(c)[1].detach().flatten(0, 2)), c) for c in chunks]
        chosen = torch.cat(chunks)
        value, slopes = function(torch.cat(rows), self._shares(chosen))
        active = slopes.ne(0).any(dim=1).nonzero()[:, 0].cpu()
        for place in active:
            leaf, A = self._at(chosen[place : place + 1])
            U, _, Vh = _svd(A.detach().flatten(0, 2))
            self._add(leaf, A, U, slopes[place : place + 1], Vh)
        return value.to(self.dtype), self.gradient.to(self.dtype)

    def _at(self, chunk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = self.weight.clone().requires_grad_()
        with torch.enable_grad():
            return leaf, self.grid.symbols(leaf[None], chunk, self.dtype)

    def _rows(self, sigma: torch.Tensor, chunk: torch.Tensor) -> torch.Tensor:
        return sigma.to(torch.float64).view(len(chunk), -1)

    def _shares(self, chunk: torch.Tensor) -> torch.Tensor:
        return self.share[chunk].to(self.weight.device)[:, None]

    def _add(
        self, leaf: torch.Tensor, A: torch.Tensor, U: torch.Tensor, slopes: torch.Tensor, Vh: torch.Tensor
    ) -> None:
        G = (U * slopes.reshape(len(U), 1, -1).to(self.dtype)) @ Vh
        (part,) = torch.autograd.grad(A, leaf, G.reshape(A.shape))
        self.gradient += part


def on_matrix(operator: ConvOperator, function: SpectralFunction) -> tuple[torch.Tensor, torch.Tensor]:
    """A spectral function of the layer under its own padding, by its dense matrix in float64, and its gradient.

    Inputs that no window reads and outputs that read zeros only make zero singular values that no weight changes; they
    are left out.

    Raises:
        OperatorError: The matrix is too large.
    """
    geometry = operator.geometry
    rows, columns = geometry.shape
    if rows * columns > LARGEST_MATRIX:
        raise OperatorError(
            f"padding_mode='layer' takes the dense matrix of a layer, here {rows:,} x {columns:,}, and the limit is "
            f"{LARGEST_MATRIX:,} entries; use padding_mode='circular', LargestSingularValue or GramFrobenius."
        )
    leaf = operator.weight.detach().to(torch.float64).requires_grad_()
    plain = ConvOperator(leaf, geometry)
    with torch.enable_grad():
        M = plain.dense()
    reads = plain.with_weight(torch.ones_like(leaf, requires_grad=False)).dense() != 0
    used = (reads.any(dim=1), reads.any(dim=0))
    U, sigma, Vh = torch.linalg.svd(M.detach()[used[0]][:, used[1]], full_matrices=False)
    share = torch.full((1, 1), 1 / math.prod(geometry.output_size), dtype=torch.float64, device=leaf.device)
    value, slopes = function(sigma[None], share)
    G = torch.zeros_like(M)
    G[used[0].nonzero(), used[1].nonzero()[:, 0]] = (U * slopes) @ Vh
    (gradient,) = torch.autograd.grad(M, leaf, G)
    dtype = compute_dtype(operator.weight)
    return value.to(dtype), gradient.to(dtype)


def _svd(matrices: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """U, the values and V^H, batched and economic."""
    return _spread(lambda part: tuple(torch.linalg.svd(part, full_matrices=False)), matrices)


def _svdvals(matrices: torch.Tensor) -> torch.Tensor:
    return _spread(lambda part: (torch.linalg.svdvals(part),), matrices)[0]


def _spread(
    factorize: Callable[[torch.Tensor], tuple[torch.Tensor, ...]], matrices: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """On single-threaded workers: many threads on one small matrix are slow."""
    if not matrices.is_cpu:
        return factorize(matrices)
    with workers() as pool:
        parts = pool.map(
            factorize,
            matrices.chunk(pool.count),
            side=min(matrices.shape[-2:]),
            spread=matrices[0].numel() * len(matrices) > _SMALL,
        )
    return tuple(torch.cat(same) for same in zip(*parts, strict=True))


_SMALL = 2**15  # entries below which a second worker is not worth waking
