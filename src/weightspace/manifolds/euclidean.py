"""Euclidean space: no constraint. For parts of a product that stay free, and as the baseline of every comparison.

M = R^(n x p),   T_x M = R^(n x p),   dim = np,   curvature 0
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from weightspace.kernels.points import Channels, Grouping
from weightspace.manifolds._flows import SOLVER, Flow, FlowMethod, Solver
from weightspace.manifolds._unit import gaussian, norm_of
from weightspace.manifolds.base import Manifold


@dataclass(frozen=True)
class Euclidean(Manifold):
    """Weights are free; a plain step is that of SGD with momentum.

    Args:
        grouping: What one step size spans: the whole kernel by default. It matters to the curvature step size only.
        on: Which parameters; convolutions without the head by default.

    Example:
        >>> Euclidean().retract(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.0]]))
        tensor([[1.5000, 2.0000]])
    """

    grouping: Grouping = "kernel"

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """`x`: every matrix is a point."""
        return x

    def project_tangent(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """`u`: every matrix is a tangent vector."""
        return u

    def retract(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """`x + v`."""
        return x + v

    def geodesic(self, x: torch.Tensor, v: torch.Tensor, t: float = 1.0) -> torch.Tensor:
        """The straight line."""
        return x + t * v

    def flow(
        self, x: torch.Tensor, v: torch.Tensor, t: float, method: FlowMethod = "auto", solver: Solver = SOLVER
    ) -> Flow:
        """The straight line."""
        return Flow(x + t * v, v)

    def stein_field(self, x: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`x - a`, of divergence np."""
        return x - a, x.new_full(x.shape[:-2], x.shape[-2] * x.shape[-1])

    def distance(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The Frobenius norm of the difference."""
        return norm_of(x - y, (-2, -1))[..., 0, 0]

    def random_uniform(
        self, shape: tuple[int, ...], *, generator: torch.Generator | None = None, like: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Standard normal numbers: there is no uniform distribution on an unbounded space."""
        return gaussian(shape, generator).to(like if like is not None else torch.empty(0))

    def dim(self, n: int, p: int) -> int:
        """All numbers of a point."""
        return n * p

    def violation(self, x: torch.Tensor) -> torch.Tensor:
        """Zero; NaN for a point that holds NaN or infinity."""
        lead = x.shape[:-2]
        broken = ~x.isfinite().all(-1).all(-1)
        return torch.zeros(lead, dtype=torch.float64, device=x.device).masked_fill(broken, torch.nan)

    def acts_on_rows(self, channels: Channels) -> bool:
        """True: each number is for itself."""
        return channels.groups == 1

    def degenerate(self, n: int, p: int) -> str | None:
        """Never."""
        return None
