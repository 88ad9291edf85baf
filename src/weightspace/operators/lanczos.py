"""Golub-Kahan-Lanczos bidiagonalization: the outer singular values of a map that can only be applied.

Blocks of vectors `V_1, V_2, ...` (inputs) and `U_1, U_2, ...` (outputs) are orthonormal and satisfy

    A V = U T,        A^T U = V T^T + V_next R E^T,

with T upper triangular (block bidiagonal but for rounding, which is kept) and E the last block of unit vectors. The
singular values of T, the Ritz values, lie between those of A: the largest is a lower bound of sigma_max, and the
smallest is an upper bound of the smallest singular value of A as a map on its inputs. Everything is orthogonalized
against everything before (full reorthogonalization), so no copies of converged values appear.

Golub and Kahan (1965), Golub, Luk and Overton (1981).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from weightspace.errors import OperatorError

Map = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class RitzTriplets:
    """Approximate singular triplets, largest first: `A right = value * left` but for rounding.

    Attributes:
        values: `(layers, k)`.
        left: `(layers, k, outputs)`, orthonormal rows.
        right: `(layers, k, inputs)`, orthonormal rows.
        residuals: `(layers, k)`: `||A^T left - values * right||`. Some singular value of A lies within
            `residual / sqrt(2)` of each value; it says nothing about which one.
        iterations: Applications of A to a block, and as many of its adjoint.
    """

    values: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    residuals: torch.Tensor
    iterations: int


def bidiagonalize(
    apply: Map, adjoint: Map, start: torch.Tensor, outputs: int, *, steps: int, keep: Sequence[int] | None = None
) -> RitzTriplets:
    """Ritz triplets after some steps from a block of vectors, for many maps at once.

    Args:
        apply: `(layers, block, inputs)` to `(layers, block, outputs)`, linear in every vector.
        adjoint: Its adjoint.
        start: `(layers, block, inputs)`; any vectors, also dependent ones.
        outputs: Entries of an output.
        steps: Blocks to build; fewer are built if the space is full before.
        keep: Places of the triplets to return, largest first, negative ones from the smallest; left out: all
            `steps * block`.

    Cost: `steps` applications and adjoints to a block; `4 (inputs + outputs) (steps * block)^2` multiplications for the
    orthogonalization, which take over from the convolutions beyond about 50 vectors; all vectors are kept.

    Raises:
        OperatorError: There is no step, or the block is larger than the space.

    Example:
        >>> A = torch.diag(torch.arange(1.0, 6.0, dtype=torch.float64))[None]
        >>> start = torch.ones(1, 1, 5, dtype=torch.float64)
        >>> ritz = bidiagonalize(lambda x: x @ A.mT, lambda y: y @ A, start, 5, steps=5)
        >>> [round(value, 6) for value in ritz.values[0].tolist()]
        [5.0, 4.0, 3.0, 2.0, 1.0]
    """
    layers, block, inputs = start.shape
    if steps < 1 or block < 1 or block > min(inputs, outputs):
        raise OperatorError(
            f"bidiagonalize() got {steps} steps with a block of {block} vectors for a map of {inputs} inputs and "
            f"{outputs} outputs; it needs at least one step and no more vectors than either."
        )
    steps = min(steps, min(inputs, outputs) // block)
    # Vectors are rows, so that those built so far lie in one piece of memory.
    V = start.new_zeros(layers, steps * block, inputs)
    U = start.new_zeros(layers, steps * block, outputs)
    T = start.new_zeros(layers, steps * block, steps * block)
    following, _, rest = _orthonormalize(start, V[:, :0])
    for step in range(steps):
        old, new = step * block, (step + 1) * block
        V[:, old:new] = following
        U[:, old:new], T[:, :old, old:new], T[:, old:new, old:new] = _orthonormalize(apply(following), U[:, :old])
        following, _, rest = _orthonormalize(adjoint(U[:, old:new]), V[:, :new])
    P, values, Qt = torch.linalg.svd(T)
    places = list(range(steps * block) if keep is None else keep)
    left = P[:, :, places].mT
    residuals = torch.linalg.vector_norm(left[:, :, -block:] @ rest.mT, dim=2)
    return RitzTriplets(values[:, places], left @ U, Qt[:, places] @ V, residuals, steps)


def _orthonormalize(W: torch.Tensor, basis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`Q, H, R` with `W = H^T basis + R^T Q` (vectors are rows) and orthonormal rows of `[basis; Q]`.

    Twice is enough for vectors that leave the span of the basis, a third round serves those that nearly lie in it. What
    then is left of vectors inside it is noise: it gets a zero in R and a random direction in its place.
    """
    inside = W.new_zeros(W.shape[0], basis.shape[1], W.shape[1])
    factor = torch.eye(W.shape[1], dtype=W.dtype, device=W.device).expand(W.shape[0], -1, -1)
    size = torch.linalg.vector_norm(W, dim=(1, 2))[:, None]
    rows, left = W, size
    for round_number in range(3):
        if round_number == 2 and bool((left > 1e-3 * size).all()):
            return rows, inside, factor
        part = basis @ rows.mT
        rows, own = (_qr if round_number else _ranked)(rows - part.mT @ basis)
        inside = inside + part @ factor
        factor = own @ factor
        left = torch.linalg.vector_norm(factor, dim=2)
    noise = left <= 100 * torch.finfo(W.dtype).eps * size
    if bool(noise.any()):
        rows = _replace(rows, noise, basis)
        factor = torch.where(noise[:, :, None], torch.zeros_like(factor), factor)
    return rows, inside, factor


def _ranked(W: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`Q, R` with `W = R^T Q`, orthonormal rows of Q, and rows of R of descending length: what is noise comes last."""
    Q, R = _qr(W)
    if W.shape[1] == 1:
        return Q, R
    left, values, right = torch.linalg.svd(R)
    return left.mT @ Q, values[:, :, None] * right


def _replace(rows: torch.Tensor, noise: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Orthonormal rows with random ones, orthogonal to basis and the others, where they are noise."""
    generator = torch.Generator(rows.device).manual_seed(basis.shape[1])  # not one that an earlier call has used
    good = torch.where(noise[:, :, None], torch.zeros_like(rows), rows)
    known = torch.cat([basis, good], dim=1)
    fresh = torch.randn(rows.shape, dtype=rows.dtype, device=rows.device, generator=generator)
    for _ in range(3):
        fresh = fresh - (fresh @ known.mT) @ known
        rows, own = _qr(torch.where(noise[:, :, None], fresh, good))
        rows = rows * own.diagonal(dim1=1, dim2=2).sign()[:, :, None]  # so that the good ones stay what they are
        fresh = rows
    return rows


def _qr(W: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`Q, R` with `W = R^T Q`, orthonormal rows of Q and upper triangular R; that of one row without LAPACK."""
    if W.shape[1] > 1:
        Q, R = torch.linalg.qr(W.mT)
        return Q.mT, R
    length = torch.linalg.vector_norm(W, dim=2, keepdim=True)
    return torch.where(length > 0, W / length, W), length
