"""Problems on manifolds whose optimum is known in closed form: Rayleigh quotient, weighted PCA, Procrustes.

The unknown is a matrix `W` `(k, d)`, the weight of a layer. All instances (one a seed) are kept in one batch `(seeds,
...)` in float64. Every loss is a mean over samples, so that a minibatch gives an unbiased, noisy gradient.

| problem | loss, mean over samples | manifold | minimum |
|---|---|---|---|
| Rayleigh quotient | -(w.a)^2 / 2 | unit sphere | -l_1 / 2 |
| weighted PCA | -sum_i D_i (w_i.a)^2 / 2 | Frobenius sphere | -D_1 l_1 / 2 |
| the same | | Oblique: unit rows | -(sum_i D_i) l_1 / 2 |
| the same (Brockett's function) | | Stiefel: orthonormal rows | -sum_i D_i l_i / 2 |
| Procrustes | abs(W^T z - y)^2 / 2 | Stiefel, Orthogonal | constant - sum of singular values of mean z y^T |

`l_1 >= l_2 >= ...` are the eigenvalues of the second moment of the samples `a`, `D_1 >= D_2 >= ...` the weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

import weightspace as ws

SAMPLES = 256
SPECTRUM = (1.0, 0.8, 0.6, 0.4, 0.15, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05, 0.02, 0.02, 0.02, 0.02)
WEIGHTS = (1.0, 0.75, 0.5, 0.25)
NOISE = 0.3  # of the targets in Procrustes; without it the gradient noise would vanish at the optimum


@dataclass
class Problem(ABC):
    """Instances of one problem on one manifold.

    Attributes:
        name: For tables.
        manifold: Where `W` lives.
        start: First points `(seeds, k, d)`, uniform on the manifold.
        scale: Factor of loss and gradient.
    """

    name: str
    manifold: ws.manifolds.Manifold
    start: Tensor
    scale: float

    @abstractmethod
    def gradient(self, w: Tensor, batch: Tensor | None = None) -> Tensor:
        """Derivative of the loss at `w` `(seeds, k, d)`; of all samples, or of those of `batch` `(seeds, size)`."""

    @abstractmethod
    def loss(self, w: Tensor) -> Tensor:
        """Loss of all samples `(seeds,)`."""

    @abstractmethod
    def minimum(self) -> Tensor:
        """Smallest loss on the manifold `(seeds,)`, by `eigh` or `svd`."""

    def model(self) -> nn.Conv1d:
        """A layer that holds the starts of all instances: a convolution with a group for each."""
        seeds, k, d = self.start.shape
        rows, columns = _shape(self.manifold, k, d)
        layer = nn.Conv1d(seeds * columns, seeds * rows, 1, groups=seeds, bias=False, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(self.start.reshape(layer.weight.shape))
        return layer


@dataclass
class WeightedPCA(Problem):
    """`samples` `(seeds, N, d)` and `weights` `(k,)`, in decreasing order."""

    samples: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        self._moment = self.samples.mT @ self.samples / self.samples.shape[1]

    def gradient(self, w: Tensor, batch: Tensor | None = None) -> Tensor:
        """-D W A."""
        if batch is None:
            return -self.scale * self.weights[:, None] * (w @ self._moment)
        chosen = _rows(self.samples, batch)
        return -self.scale / batch.shape[1] * self.weights[:, None] * ((w @ chosen.mT) @ chosen)

    def loss(self, w: Tensor) -> Tensor:
        """-tr(D W A W^T) / 2."""
        return 0.5 * (w * self.gradient(w)).sum((-2, -1))

    def minimum(self) -> Tensor:
        """See the table of the module."""
        values = torch.linalg.eigvalsh(self._moment).flip(-1)
        match self.manifold:
            case ws.manifolds.Stiefel():
                best = values[:, : len(self.weights)] @ self.weights
            case ws.manifolds.Oblique():
                best = values[:, 0] * self.weights.sum()
            case _:
                best = values[:, 0] * self.weights[0]
        return -0.5 * self.scale * best


@dataclass
class Procrustes(Problem):
    """`inputs` `(seeds, N, k)` and `targets` `(seeds, N, d)`: `W^T` maps one to the other and keeps lengths."""

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        size = self.inputs.shape[1]
        self._moment = self.inputs.mT @ self.inputs / size
        self._cross = self.inputs.mT @ self.targets / size
        self._constant = 0.5 * self.targets.square().sum((-2, -1)) / size

    def gradient(self, w: Tensor, batch: Tensor | None = None) -> Tensor:
        """mean z (W^T z - y)^T."""
        if batch is None:
            return self.scale * (self._moment @ w - self._cross)
        z, y = _rows(self.inputs, batch), _rows(self.targets, batch)
        return self.scale / batch.shape[1] * (z.mT @ (z @ w - y))

    def loss(self, w: Tensor) -> Tensor:
        """Mean of abs(W^T z - y)^2 / 2."""
        quadratic = 0.5 * (w * (self._moment @ w)).sum((-2, -1)) - (w * self._cross).sum((-2, -1))
        return self.scale * (quadratic + self._constant)

    def minimum(self) -> Tensor:
        """By the singular values of the cross moment: abs(W^T z) = abs(z) on the manifold."""
        trace = 0.5 * self._moment.diagonal(dim1=-2, dim2=-1).sum(-1)
        return self.scale * (trace + self._constant - torch.linalg.svdvals(self._cross).sum(-1))


def _rows(samples: Tensor, batch: Tensor) -> Tensor:
    return samples[torch.arange(len(samples))[:, None], batch]


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _shape(manifold: ws.manifolds.Manifold, k: int, d: int) -> tuple[int, int]:
    """Rows and columns of the weight that holds one `W`: a Sphere's is a single filter."""
    return (1, k * d) if isinstance(manifold, ws.manifolds.Sphere) else (k, d)


def _start(manifold: ws.manifolds.Manifold, k: int, d: int, generator: torch.Generator) -> Tensor:
    """A uniform point."""
    like = torch.zeros(0, dtype=torch.float64)
    return manifold.random_uniform(_shape(manifold, k, d), generator=generator, like=like).view(k, d)


def _samples(spectrum: Sequence[float], generator: torch.Generator) -> Tensor:
    """`(N, d)` whose second moment has exactly these eigenvalues, in random directions."""
    d = len(spectrum)
    gaussian = torch.randn(SAMPLES, d, generator=generator, dtype=torch.float64)
    white = torch.linalg.qr(gaussian).Q * SAMPLES**0.5
    turn = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    return white * torch.tensor(spectrum, dtype=torch.float64).sqrt() @ turn.mT


def weighted_pca(
    name: str,
    manifold: ws.manifolds.Manifold,
    seeds: Sequence[int],
    *,
    weights: Sequence[float] = WEIGHTS,
    scale: float = 1.0,
) -> WeightedPCA:
    """Instances of weighted PCA; one weight makes it the Rayleigh quotient."""
    generators = _generators(seeds)
    samples = torch.stack([_samples(SPECTRUM, g) for g in generators])
    start = torch.stack([_start(manifold, len(weights), len(SPECTRUM), g) for g in generators])
    return WeightedPCA(name, manifold, start, scale, samples, torch.tensor(weights, dtype=torch.float64))


def procrustes(
    name: str, manifold: ws.manifolds.Manifold, seeds: Sequence[int], *, k: int, d: int, scale: float = 1.0
) -> Procrustes:
    """Instances of Procrustes; square ones start in the component (of determinant 1 or -1) that holds the optimum."""
    inputs, targets, start = [], [], []
    for g in _generators(seeds):
        z = _samples([1.0 - 0.5 * i / k for i in range(k)], g)
        truth, first = _start(manifold, k, d, g), _start(manifold, k, d, g)
        y = z @ truth + NOISE * torch.randn(SAMPLES, d, generator=g, dtype=torch.float64)
        if k == d and torch.linalg.det(first) * torch.linalg.det(z.mT @ y) < 0:
            first[0].neg_()
        inputs.append(z)
        targets.append(y)
        start.append(first)
    return Procrustes(name, manifold, torch.stack(start), scale, torch.stack(inputs), torch.stack(targets))


def problems(seeds: Sequence[int], *, scale: float = 1.0) -> dict[str, Problem]:
    """All problems, each on its manifold."""
    m = ws.manifolds
    everywhere = ws.on.everything
    made = [
        weighted_pca("Rayleigh quotient, Sphere", m.Sphere(on=everywhere), seeds, weights=(1.0,), scale=scale),
        weighted_pca("weighted PCA, Sphere", m.Sphere(on=everywhere), seeds, scale=scale),
        weighted_pca("weighted PCA, Oblique", m.Oblique(on=everywhere), seeds, scale=scale),
        weighted_pca("weighted PCA, Stiefel", m.Stiefel(on=everywhere), seeds, scale=scale),
        procrustes("Procrustes, Stiefel", m.Stiefel(on=everywhere), seeds, k=4, d=16, scale=scale),
        procrustes("Procrustes, Orthogonal", m.Orthogonal("matrix", on=everywhere), seeds, k=8, d=8, scale=scale),
    ]
    return {problem.name: cast("Problem", problem) for problem in made}
