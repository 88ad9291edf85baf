"""The norm of convolutions on a torus: the largest singular value of many small matrices, one a frequency."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from weightspace.operators._parallel import workers
from weightspace.operators.symbol import ravel, unravel

LARGEST_BATCH = 2**23  # complex entries of all Gram matrices that are kept at once


@dataclass(frozen=True)
class TorusAxis:
    """One dimension of the torus: exponents `step * tap` over `frequencies`, `phases` inputs a window step.

    Attributes:
        frequencies: Number of them.
        step: What a tap adds to the exponent.
        phases: Entries between two windows that some tap reads; taps with equal index modulo it share one.
        factor: What the torus norm is multiplied with, for this dimension.
    """

    frequencies: int
    step: int
    phases: int
    factor: float


def torus_norms(blocks: torch.Tensor, axes: Sequence[TorusAxis], wanted: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Upper bounds `(blocks,)` on the norm over all frequencies times the factors, and their gradients if wanted."""
    symbols, scale = scaled_symbols(blocks, axes)
    eigenvalues, frequencies = symbols.largest_eigenvalues()
    values = symbols.bounds(eigenvalues)
    if not wanted:
        return values * scale, blocks
    norms = eigenvalues.sqrt()
    slope = torch.where(norms > 0, values / norms, torch.zeros_like(norms))
    return values * scale, slope.reshape(-1, *[1] * (blocks.ndim - 1)) * symbols.gradients(frequencies)


def scaled_symbols(blocks: torch.Tensor, axes: Sequence[TorusAxis]) -> tuple[TorusSymbols, torch.Tensor]:
    """Symbols of the blocks over their largest entries, so that no square overflows or vanishes; those entries."""
    scale = blocks.abs().amax(dim=tuple(range(1, blocks.ndim)))
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return TorusSymbols(blocks / scale.reshape(-1, *[1] * (blocks.ndim - 1)), axes), scale


class TorusSymbols:
    """The matrices of one half of all frequencies (the other half are their conjugates).

    Args:
        blocks: `(blocks, rows, columns, *taps)`, real.
        axes: The dimensions of the torus.
    """

    def __init__(self, blocks: torch.Tensor, axes: Sequence[TorusAxis]) -> None:
        self.shape = blocks.shape
        self.taps = blocks.reshape(*blocks.shape[:3], -1)
        self.factor = math.prod(axis.factor for axis in axes)
        self.frequencies, angles = _angles(axes, blocks.shape[3:], blocks.device)
        self.phases = torch.polar(torch.ones_like(angles), angles)  # (frequencies, taps), complex128
        self.phases = self.phases.to(torch.complex128 if blocks.dtype == torch.float64 else torch.complex64)
        if bool((self.phases.imag == 0).all()):
            self.phases = self.phases.real
        self.small = min(blocks.shape[1:3])
        # Of sigma^2, relative: products of length max(rows, columns) and taps, and a factorization.
        self.rounding = torch.finfo(blocks.dtype).eps * (sum(blocks.shape[1:3]) + self.taps.shape[-1])
        entries = len(self.phases) * blocks.shape[0] * self.small**2
        self.chunks = torch.arange(len(self.phases), device=blocks.device).chunk(-(-entries // LARGEST_BATCH))
        self._kept: torch.Tensor | None = None

    def at(self, block: torch.Tensor, frequency: torch.Tensor) -> torch.Tensor:
        """The matrices `(count, rows, columns)` of pairs of a block and a frequency."""
        taps, phases = self.taps[block], self.phases[frequency]
        if not phases.is_complex():
            return torch.einsum("nijt,nt->nij", taps, phases)
        return torch.complex(*(torch.einsum("nijt,nt->nij", taps, part) for part in (phases.real, phases.imag)))

    def grams(self, frequency: torch.Tensor) -> torch.Tensor:
        """The smaller Gram matrices `(frequencies, blocks, c, c)`; kept if there is but one chunk."""
        if self._kept is not None:
            return self._kept
        flat, phases = self.taps.flatten(0, 2).T, self.phases[frequency]
        A = torch.complex(phases.real @ flat, phases.imag @ flat) if phases.is_complex() else phases @ flat
        G = _gram(A.reshape(len(frequency), *self.shape[:3]))
        if len(self.chunks) == 1:
            self._kept = G
        return G

    def largest_eigenvalues(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The largest eigenvalue of any Gram matrix of each block, and the frequency that has it.

        `t I - G` has a Cholesky factor if and only if t is above every eigenvalue of G, which costs a tenth of the
        eigenvalues themselves. So: eigenvalues where the largest is likely, a Cholesky attempt everywhere else, and
        eigenvalues again where it fails.
        """
        squares, traces = [], []
        for chunk in self.chunks:
            G = self.grams(chunk)
            real = torch.view_as_real(G) if G.is_complex() else G
            squares.append(real.flatten(2).square().sum(-1))
            traces.append(G.diagonal(dim1=-2, dim2=-1).real.sum(-1))
        above = torch.cat(squares).T.sqrt()  # (blocks, frequencies): Frobenius norms, not below the largest eigenvalue
        likely = (above.square() / torch.cat(traces).T).nan_to_num(0.0)
        blocks = torch.arange(len(above), device=above.device)
        best, where = likely.new_zeros(len(above)), torch.zeros_like(blocks)
        failed = torch.ones_like(above, dtype=torch.bool)
        while bool(failed.any()):
            count = min(2 if self.small >= 128 else 6, above.shape[1])
            candidates = torch.where(failed, likely, -1.0).topk(count, dim=1).indices
            pairs = failed.gather(1, candidates)
            block, frequency = blocks[:, None].expand_as(pairs)[pairs], candidates[pairs]
            found = _largest(_gram(self.at(block, frequency)))
            for b, f, value in zip(block, frequency, found, strict=True):
                if value > best[b]:
                    best[b], where[b] = value, f
            failed[block, frequency] = False
            level = best * (1 + self.rounding)
            failed = self._not_below(level, failed & (above > level[:, None]))
        return best, where

    def _not_below(self, level: torch.Tensor, pending: torch.Tensor) -> torch.Tensor:
        """Those of the pending `(blocks, frequencies)` whose Gram matrix is not certified to lie below the level."""
        failed = torch.zeros_like(pending)
        for chunk in self.chunks:
            frequency, block = pending[:, chunk].T.nonzero(as_tuple=True)
            if not len(block):
                continue
            H = -self.grams(chunk)[frequency, block]
            H.diagonal(dim1=-2, dim2=-1).add_(level[block, None])
            failed[block, chunk[frequency]] = _spread(lambda part: torch.linalg.cholesky_ex(part).info, H) != 0
        return failed

    def bounds(self, eigenvalues: torch.Tensor) -> torch.Tensor:
        """Upper bounds of the norm: rounding of Gram matrix, factorization and what follows covered."""
        raised = 1 + 2 * self.rounding
        return (eigenvalues * raised).sqrt() * (self.factor * raised)

    def vectors(self, block: torch.Tensor, frequency: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The left and right singular vectors `(count, rows, 1)`, `(count, columns, 1)` of the largest value."""
        A = self.at(block, frequency)
        wide = A.shape[1] <= A.shape[2]
        top = torch.linalg.eigh(_gram(A)).eigenvectors[..., -1:]
        other = (A.mH if wide else A) @ top
        other = other / torch.linalg.vector_norm(other, dim=(1, 2), keepdim=True).clamp(min=1e-30)
        return (top, other) if wide else (other, top)

    def gradients(self, frequency: torch.Tensor) -> torch.Tensor:
        """The derivative of each block's singular value at its frequency: `Re(u* dA v)`, like `blocks`."""
        u, v = self.vectors(torch.arange(len(frequency), device=frequency.device), frequency)
        outer = u.conj() @ v.mT
        phases = self.phases[frequency]
        products = [torch.einsum("nij,nt->nijt", outer.real, phases.real)]
        if phases.is_complex():
            products.append(torch.einsum("nij,nt->nijt", outer.imag, -phases.imag))
        return sum(products[1:], products[0]).reshape(self.shape)


def _angles(axes: Sequence[TorusAxis], taps: torch.Size, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """One of each two opposite frequencies, as flat indices; in float64 `(frequencies, taps)` the angle of each tap."""
    sizes = tuple(axis.frequencies for axis in axes)
    index = torch.arange(math.prod(sizes), device=device)
    index = index[index <= ravel(-unravel(index, sizes), sizes)]
    places = unravel(index, sizes)
    angles = torch.zeros(len(index), 1, dtype=torch.float64, device=device)
    for i, (axis, count) in enumerate(zip(axes, taps, strict=True)):
        turns = places[:, i, None] * torch.arange(count, device=device) * axis.step % axis.frequencies  # exact
        own = turns.to(torch.float64) * (2 * math.pi / axis.frequencies)
        angles = (angles[:, :, None] + own[:, None, :]).flatten(1)
    return index, angles


def _gram(A: torch.Tensor) -> torch.Tensor:
    return A @ A.mH if A.shape[-2] <= A.shape[-1] else A.mH @ A


def _largest(G: torch.Tensor) -> torch.Tensor:
    if G.shape[-1] == 1:
        return G[..., 0, 0].real
    return _spread(lambda part: torch.linalg.eigvalsh(part)[..., -1], G)


def _spread(function: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor) -> torch.Tensor:
    """A batched factorization, one single-threaded worker a core: many threads on one small matrix are slow."""
    if batch.device.type != "cpu" or len(batch) == 1 or torch.get_num_threads() == 1:
        return function(batch)
    with workers() as pool:
        return torch.cat(pool.map(function, batch.chunk(pool.count), side=batch.shape[-1]))
