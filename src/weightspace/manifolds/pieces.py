"""Pieces of a weight: some or all of its channels or slices, as points of one manifold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from weightspace.kernels.points import PointView

if TYPE_CHECKING:
    from weightspace.manifolds.base import Manifold


@dataclass(frozen=True, eq=False)
class Piece:
    """Some channels or slices of a weight on one manifold.

    Attributes:
        manifold: Where its points live.
        view: How the (sub)tensor becomes points.
        dim: The dimension that `index` selects from; None for the whole weight, -1 for its slices.
        index: Which channels or slices.
    """

    manifold: Manifold
    view: PointView
    dim: int | None = None
    index: torch.Tensor | None = None

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        """The points `(*lead, n, p)`, in float32 or float64: memory of `tensor` itself where that is possible."""
        points = self.view.read(self._select(tensor))
        return points.float() if points.dtype.itemsize < 4 else points

    def write(self, tensor: torch.Tensor, points: torch.Tensor) -> None:
        """Puts points back; nothing to do where they are the tensor's own memory."""
        if self.index is None:
            self.view.write(tensor, points)
            return
        part = torch.empty_like(self._select(tensor))
        self.view.write(part, points)
        if self.dim == -1:
            whole = tensor.flatten(0, 1)
            whole[self.index] = part[:, 0]
            if whole.data_ptr() != tensor.data_ptr():  # a copy: strides that do not merge
                tensor.copy_(whole.view(tensor.shape))
        else:
            tensor.index_copy_(self.dim or 0, self.index, part)

    def _select(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.index is None:
            return tensor
        if self.dim == -1:
            return tensor.flatten(0, 1)[self.index].unsqueeze(1)
        return tensor.index_select(self.dim or 0, self.index)
