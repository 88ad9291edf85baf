"""Geodesics of matrices with orthonormal columns, and what their manifolds share: size, Haar measure, distance to them.

Everything is economy algebra: products with n x p matrices, and functions of p x p and 2p x 2p ones. Source of the
geodesics: Edelman, Arias, Smith, The Geometry of Algorithms with Orthogonality Constraints, 1998, equations (2.7) and
(2.42); the form without a QR factorization that is used here is derived from them, see `stiefel_geodesic`.
"""

from __future__ import annotations

from typing import Literal

import torch

from weightspace.manifolds._polar import polar, qr_positive
from weightspace.manifolds._unit import gaussian, norm_of

Metric = Literal["embedded", "canonical"]

EXACT_BELOW = 256  # points; below it eigenvalues are cheap, above it a call of LAPACK for each point is not
_SQUARINGS = 6


def tall(x: torch.Tensor) -> torch.Tensor:
    """A view of the points with at least as many rows as columns."""
    return x.mT if x.shape[-2] < x.shape[-1] else x


def as_given(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Undoes `tall(x)` on a result."""
    return y.mT if x.shape[-2] < x.shape[-1] else y


def symmetric(a: torch.Tensor) -> torch.Tensor:
    """The symmetric part."""
    return (a + a.mT) / 2


def skew(a: torch.Tensor) -> torch.Tensor:
    """The antisymmetric part."""
    return (a - a.mT) / 2


def shortened(v: torch.Tensor) -> torch.Tensor:
    """Velocities, at most `eps^(-1/2)` long: beyond that the angle that they turn is lost in rounding."""
    limit = torch.finfo(v.dtype).eps ** -0.5
    largest = v.abs().amax((-2, -1), keepdim=True)
    v = v * (limit / largest.clamp(min=limit))  # now its squares can be summed
    return v * (limit / norm_of(v, (-2, -1)).clamp(min=limit))


def stiefel_geodesic(x: torch.Tensor, v: torch.Tensor, metric: Metric) -> torch.Tensor:
    """Where the geodesic from `x` with velocity `v` is at time 1; `(..., n, p)` with n >= p.

    With A = X^T V, K = V - X A = Q R and T = K^T K, in the embedded metric

        [X Q] exp [[2A, -R^T], [R, 0]] [I; 0] exp(-A)  =  [X K] exp [[2A, -T], [I, 0]] [I; 0] exp(-A)

    and in the canonical one the same with A for 2A and without exp(-A). The two sides are similar by diag(I, R)
    [derived]; the right one needs no factorization and no rank. The nearest point is taken at the end: it moves the
    result by rounding only, and rounding of one step never enters the next.

    Cost: `8 n p^2` flops, and one exponential of a 2p x 2p matrix (some 200 p^3).
    """
    first, a, k, _ = _frame(x, v, metric)
    y = torch.cat([x, k], -1) @ first[..., : a.shape[-1]]
    return polar(y @ torch.matrix_exp(-a) if metric == "embedded" else y)[0]


def stiefel_geodesic_flow(x: torch.Tensor, v: torch.Tensor, t: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the geodesic of the embedded metric is at time `t`, and its velocity there; `(..., n, p)` with n >= p.

    In the notation of `stiefel_geodesic` the derivative of `[X K] exp(M) [I; 0] exp(-A)` is `[X K] exp(M) [A; I]
    exp(-A)` [derived]. The velocity is made tangent at the end, where that moves it by rounding only.
    """
    first, a, k, size = _frame(x, v * t, "embedded")
    p = a.shape[-1]
    back = torch.matrix_exp(-a)
    eye = torch.eye(p, dtype=x.dtype, device=x.device).expand_as(a)
    ends = torch.cat([x, k], -1) @ (
        first @ torch.cat([torch.cat([eye, a], -1), torch.cat([0 * a, size * eye], -1)], -2)
    )
    y = polar(ends[..., :p] @ back)[0]
    w = ends[..., p:] @ back / t
    return y, w - y @ symmetric(y.mT @ w)


def _frame(
    x: torch.Tensor, v: torch.Tensor, metric: Metric
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """exp(M), A, and K divided by its scale, which is the last."""
    v = shortened(v)
    a = skew(x.mT @ v)
    k = v - x @ (x.mT @ v)
    # One scale for A, sqrt(T) and the identity block: squares of long velocities would hide short ones.
    size = norm_of(v, (-2, -1)).clamp(min=torch.finfo(v.dtype).tiny ** 0.5)
    k = k / size
    t = k.mT @ k
    eye = torch.eye(a.shape[-1], dtype=x.dtype, device=x.device).expand_as(a)
    inner = 2 * a if metric == "embedded" else a
    upper = torch.cat([inner, -t * size], -1)
    lower = torch.cat([eye * size, torch.zeros_like(a)], -1)
    return torch.matrix_exp(torch.cat([upper, lower], -2)), a, k, size


def rotation(axis: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Rodrigues' formula: turns by `angle` about `axis` (antisymmetric, 2 x 2 or 3 x 3, Frobenius norm sqrt(2))."""
    eye = torch.eye(axis.shape[-1], dtype=axis.dtype, device=axis.device)
    return eye + angle.sin() * axis + 2 * (angle / 2).sin().square() * (axis @ axis)


def haar(shape: tuple[int, ...], generator: torch.Generator | None) -> torch.Tensor:
    """Uniformly distributed matrices with orthonormal columns, or rows where there are fewer; float64 on the CPU.

    Source: QR of Gaussian matrices with positive diagonal (Mezzadri, How to Generate Random Matrices from the Classical
    Compact Groups, 2007).
    """
    return qr_positive(gaussian(shape, generator))[0]


def deviation(x: torch.Tensor) -> torch.Tensor:
    """The largest `abs(sigma_i - 1)` of each point `(...)`, float64, from the Gram matrix of its smaller side.

    Up to `EXACT_BELOW` points: by eigenvalues. More of them: an upper bound by repeated squaring, without a call of
    LAPACK for each point; a small deviation comes out larger by a factor of at most `p^(1/128)` (1.01 for p = 3, 1.05
    for p = 512).
    """
    columns = tall(x).double()
    excess = columns.mT @ columns
    excess.diagonal(dim1=-2, dim2=-1).sub_(1)
    broken = ~excess.isfinite().all(-1).all(-1)
    excess = excess.masked_fill(broken[..., None, None], 0.0)
    if excess[..., 0, 0].numel() <= EXACT_BELOW:
        values = torch.linalg.eigvalsh(excess)
        error = ((values + 1).clamp(min=0).sqrt() - 1).abs().amax(-1)
    else:
        error = _error_of(_norm_bound(excess))
    return error.masked_fill(broken, torch.nan)


def _norm_bound(e: torch.Tensor) -> torch.Tensor:
    """`|E^m|_F^(1/m)` with m = 2^6: at least the spectral norm of a symmetric E."""
    exponent = 1.0
    norm = torch.linalg.matrix_norm(e, keepdim=True)
    log = norm.log()
    for _ in range(_SQUARINGS):
        e = e / norm.masked_fill(norm == 0, 1.0)
        e = e @ e
        exponent /= 2
        norm = torch.linalg.matrix_norm(e, keepdim=True)
        log = log + exponent * norm.log()
    return log.exp()[..., 0, 0].nan_to_num(0.0)  # log 0 - log 0: E = 0


def _error_of(excess: torch.Tensor) -> torch.Tensor:
    """The largest error of a singular value whose square is off by at most `excess`, in either direction."""
    # 1 - sqrt(1 - e) without its cancellation; from e = 1 on the lower side is a zero singular value.
    below = excess / (1 + (1 - excess).clamp(min=0).sqrt())
    above = excess / (1 + (1 + excess).sqrt())
    return torch.maximum(below.clamp(max=1), above)
