"""`weightspace.manifolds._free_steps` on Stiefel, in place and in economy algebra.

Written for orthonormal rows Y (s, m), s <= m, as `_stiefel_step`; products, in flops:

| | products |
|---|---|
| gradient into a stand-in | `D Y^T`, `A Y`: 4 m s^2 |
| following a tangent step | Gram matrix 1.3 m s^2, correction 2 m s^2, each momentum 4 m s^2 |
| following any step | 4 m s^2 more, and as many for each momentum that is not tangent |
| an adaptive step | gradient 4 m s^2, Gram matrix and correction 3.3 m s^2, momentum 4 m s^2 |

That is all: no other product can be left out while the stored momentum is tangent and errors are measured at each step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from weightspace.kernels.stacking import Workspace
from weightspace.manifolds._free_steps import Adaptive, FreeStep
from weightspace.manifolds._stiefel_step import Correction, Rows, gradient, squared_norm

if TYPE_CHECKING:
    from weightspace.manifolds.stiefel import Stiefel


class FreeStiefel:
    """Free steps of points `(*lead, n, p)`, all contiguous.

    Args:
        manifold: Gives metric and retraction.
        x: The points.
        work: Lends a buffer as large as they are.
    """

    def __init__(self, manifold: Stiefel, x: torch.Tensor, work: Workspace) -> None:
        self._manifold = manifold
        self._rows = Rows(is_wide=x.shape[-2] < x.shape[-1])
        self._shape = tuple(x.shape[-2:]) if x.shape[:-2].numel() == 1 else (-1, *x.shape[-2:])
        self._x = x.view(self._shape)
        self._buffer = work.lend("stiefel", tuple(self._x.shape), self._x)

    @staticmethod
    def fits(*tensors: torch.Tensor) -> bool:
        """Whether memory and dtypes are such that products can write into them."""
        x = tensors[0]
        return x.numel() > 0 and all(t.is_contiguous() and t.dtype == x.dtype for t in tensors)

    def gradient_into(self, g: torch.Tensor, out: torch.Tensor) -> None:
        """Riemannian gradients of `g`, which may be `out`."""
        gradient(self._manifold, self._rows, self._x, g.view(self._shape), out.view(self._shape))

    def follow(self, y: torch.Tensor, free: FreeStep) -> int:
        """Retracts to where the tangent part of `y - x` leads, and carries momenta there."""
        y, *momenta = (t.view(self._shape) for t in (y, *free.momenta))
        if not free.is_tangent:
            v = torch.sub(y, self._x, out=self._buffer)
            self._rows.remainder(y, self._part_of(v, self._x), self._x, y)
        fallbacks = self._put_on(y)
        for m in momenta:
            if not free.has_tangent_momenta:
                self._make_tangent(m, self._x)
            self._make_tangent(m, y)
        return fallbacks

    def adapt(self, m: torch.Tensor, g: torch.Tensor, adaptive: Adaptive) -> int:
        """An adaptive step by the retraction."""
        m, g = m.view(self._shape), g.view(self._shape)
        mixing = gradient(self._manifold, self._rows, self._x, g, self._buffer)
        m.lerp_(self._buffer, 1 - adaptive.beta1)
        dim = max(1, self._manifold.dim(*self._x.shape[-2:]))
        squares = squared_norm(self._manifold, mixing, self._buffer).reshape(adaptive.s.shape[:-2])
        rates = adaptive.rates(squares / dim)
        self._x.addcmul_(
            m, rates.view(-1, *[1] * (self._x.ndim - 1))
        )  # no number is read: an accelerator is not waited for
        fallbacks = self._put_on(self._x)
        self._make_tangent(m, self._x)
        return fallbacks

    def _put_on(self, y: torch.Tensor) -> int:
        return Correction(self._manifold, self._rows, y, self._buffer).retract(self._rows.gram_excess(y))

    def _make_tangent(self, u: torch.Tensor, x: torch.Tensor) -> None:
        self._rows.remainder(u, self._part_of(u, x), x, u)

    def _part_of(self, u: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`sym(U X^T)`: what is not tangent."""
        product = self._rows.product(u, x)
        return (product + product.mT).mul_(0.5)
