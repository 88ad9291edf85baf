"""Matrices with orthonormal columns (of wide ones: rows) next to given ones: polar factor, QR with positive diagonal.

Everything is computed from the *actual* Gram matrix G of the smaller side, so that errors of earlier steps are
corrected and never accumulate. With E = G - I and e = |E|_F:

| regime | polar factor X G^(-1/2) | Q of X = Q R |
|---|---|---|
| near: e <= `NEAR` | Taylor polynomials of (I + E)^(-1/2), of the order a bound asks for | triangle of E, or Cholesky |
| far | coupled Newton-Schulz on G in float64, accepted by the residual of its result | Cholesky in float64, likewise |
| ill-conditioned, rank-deficient | SVD in float64 | Householder in float64 |

One Newton-Schulz step is the polynomial of order 1: it leaves N G N - I = -3/4 E^2 + 1/4 E^3; `residual_bound` has the
other orders [derived]. Sources: textbook (Higham, Functions of Matrices, 2008, chapters 6 and 8); Cholesky-QR:
Yamamoto, Nakatsukasa, Yanagisawa, Fukaya, 2015.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

NEAR = (
    0.6  # up to this |G - I|_F a condition number is below 2: one pass in the matrix's own dtype is exact to rounding
)
MAX_ORDER = 3  # beyond, a second polynomial for what the first left costs fewer products
_COEFFICIENTS = (1.0, -1 / 2, 3 / 8, -5 / 16, 35 / 128)  # of (1 + e)^(-1/2)
_NEWTON_STEPS = 40  # enough for condition numbers up to 1e6
_ACCEPTED = 100  # roundings a row that a residual may have: then the error of the root was no larger than these

_Near = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_Far = Callable[[torch.Tensor], torch.Tensor]


def polar(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The nearest matrices with orthonormal columns, or rows where there are fewer of them.

    Args:
        x: Matrices `(..., n, p)`, float32 or float64, of any scale and rank. Where the nearest is not unique
            (rank-deficient ones), one of them; a matrix with a NaN or an infinity gives NaN.

    Returns:
        The matrices, and how many were too far away for one pass in their own dtype.

    Cost: `4 n p^2` flops near the manifold (p the smaller side) and some `p^3`; far from it ten times that, or an SVD.

    Example:
        >>> polar(torch.tensor([[0.0, 2.0], [-3.0, 0.0]]))
        (tensor([[ 0.,  1.],
                [-1.,  0.]]), 1)
    """
    return _by_regime(x, _near_polar, _far_polar)


def qr_positive(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Q of `x = Q R` with a positive diagonal of R; of wide matrices Q of `x = L Q` with orthonormal rows.

    Args:
        x: Matrices `(..., n, p)`, float32 or float64, of any scale and rank. Of rank-deficient ones, one such Q; a
            matrix with a NaN or an infinity gives NaN.

    Returns:
        The matrices, and how many were too far away for one pass in their own dtype.

    Cost: `3 n p^2` flops near the manifold (p the smaller side) and some `p^3`; far from it ten times that.

    Example:
        >>> qr_positive(torch.tensor([[0.0, 2.0], [-3.0, 4.0]]))
        (tensor([[ 0.,  1.],
                [-1.,  0.]]), 1)
    """
    return _by_regime(x, _near_qr, _far_qr)


def gram_excess(y: torch.Tensor) -> torch.Tensor:
    """`Y Y^T - I` of matrices `(..., s, m)`."""
    excess = y @ y.mT
    excess.diagonal(dim1=-2, dim2=-1).sub_(1)
    return excess


def residual_bound(norm: float, order: int) -> float:
    """A bound on `|N (I + E) N - I|`, N the Taylor polynomial of order 1 to 3 of `(I + E)^(-1/2)`, `|E| <= norm < 1`.

    With c_j the coefficients, `2 |c_(q+1)| norm^(q+1) / (1 - norm)`, sharp for small norms [derived]:
    `|N^2 (1 + E) - 1| = sqrt(1 + E) |t| (1 + N sqrt(1 + E))` with t the rest of the series, which is largest at
    `E = -norm`, where its terms have one sign and both roots are below 1.

    Example:
        >>> round(residual_bound(1e-3, 1), 9)  # 3/4 norm^2 / (1 - norm)
        7.51e-07
    """
    return 2 * abs(_COEFFICIENTS[order + 1]) * norm ** (order + 1) / (1 - norm)


def inverse_root(excess: torch.Tensor, norm: float) -> torch.Tensor:
    """`(I + E)^(-1/2) - I`, to the rounding of the dtype.

    Args:
        excess: Symmetric E `(..., s, s)`.
        norm: A bound on their norms, at most `NEAR`.

    Cost: at most two products `(s, s) @ (s, s)` for norms below 2e-2 (float32) or 2e-4 (float64), some ten for `NEAR`.
    """
    enough = torch.finfo(excess.dtype).eps / 2
    order = next((q for q in range(1, MAX_ORDER) if residual_bound(norm, q) <= enough), MAX_ORDER)
    root = _polynomial(excess, order)
    bound = residual_bound(norm, order)
    if bound <= enough:
        return root
    # (I + K)(I + E)(I + K) = I + rest, where all factors commute; the next root is of that rest.
    half = root + excess + root @ excess
    rest = half + root + half @ root
    again = inverse_root(rest, bound)
    return root + again + root @ again


def _polynomial(excess: torch.Tensor, order: int) -> torch.Tensor:
    """The terms of degree 1 to `order`, by Horner's rule."""
    result = excess * _COEFFICIENTS[order]
    for q in range(order - 1, 0, -1):
        result.diagonal(dim1=-2, dim2=-1).add_(_COEFFICIENTS[q])
        result = result @ excess
    return result


def lower_inverse(excess: torch.Tensor, norm: float) -> torch.Tensor:
    """`L^-1 - I` for the Cholesky factor L of `I + E`, to the rounding of the dtype.

    Args:
        excess: Symmetric E `(..., s, s)`.
        norm: A bound on their Frobenius norms, at most `NEAR`.

    To first order it is -T, T the lower triangle of E with half of its diagonal. Since `T + T^T = E` and
    `|T| <= |E| / sqrt(2)`, `(I - T)(I + E)(I - T)^T - I = T T^T - T E - E T^T + T E T^T` is at most
    `2 |E|^2 + |E|^3 / 2` [derived]: with that below rounding no factorization is needed.
    """
    if 2 * norm**2 + norm**3 / 2 <= torch.finfo(excess.dtype).eps / 2:
        first = excess.tril().neg_()
        first.diagonal(dim1=-2, dim2=-1).mul_(0.5)
        return first
    eye = torch.eye(excess.shape[-1], dtype=excess.dtype, device=excess.device)
    lower, _ = torch.linalg.cholesky_ex(excess + eye)
    return torch.linalg.solve_triangular(lower, eye - lower, upper=False)


def _by_regime(x: torch.Tensor, near: _Near, far: _Far) -> tuple[torch.Tensor, int]:
    """Brings matrices into the shape `(batch, s, m)`, s <= m, and each to the solver of its regime."""
    if x.numel() == 0:
        return x.clone(), 0
    is_wide = x.shape[-2] < x.shape[-1]  # QR of a square matrix is by columns
    y = x if is_wide else x.mT
    y = y.reshape(-1, *y.shape[-2:])
    excess = gram_excess(y)
    is_near = torch.linalg.matrix_norm(excess) <= NEAR
    count = int((~is_near).sum())
    if count == 0:
        result = near(y, excess)
    elif count == len(y):
        result = _finite_only(far, y)
    else:
        result = torch.empty_like(y)
        result[is_near] = near(y[is_near], excess[is_near])
        result[~is_near] = _finite_only(far, y[~is_near])
    return (result if is_wide else result.mT).reshape(x.shape).contiguous(), count


def _finite_only(far: _Far, y: torch.Tensor) -> torch.Tensor:
    """NaN where `y` is not finite: LAPACK never sees such a matrix."""
    largest = y.abs().amax((-2, -1), keepdim=True)
    is_finite = largest.isfinite()[:, 0, 0]
    result = torch.full_like(y, torch.nan)
    if is_finite.any():
        # Largest entry one: squares stay within the range of float64.
        wide = y[is_finite].double() / largest[is_finite].double().clamp(min=torch.finfo(torch.float64).tiny)
        result[is_finite] = far(wide).to(y.dtype)
    return result


def _near_polar(y: torch.Tensor, excess: torch.Tensor) -> torch.Tensor:
    root = inverse_root(excess, torch.linalg.matrix_norm(excess).amax().item())
    return torch.baddbmm(y, root, y)


def _far_polar(y: torch.Tensor) -> torch.Tensor:
    """Float64 `(batch, s, m)` with entries up to one."""
    result = _newton_root(y @ y.mT) @ y
    return _finish(y, result, _near_polar, _svd_polar)


def _near_qr(y: torch.Tensor, excess: torch.Tensor) -> torch.Tensor:
    return torch.baddbmm(y, lower_inverse(excess, torch.linalg.matrix_norm(excess).amax().item()), y)


def _far_qr(y: torch.Tensor) -> torch.Tensor:
    lower, _ = torch.linalg.cholesky_ex(y @ y.mT)
    return _finish(y, torch.linalg.solve_triangular(lower, y, upper=False), _near_qr, _householder)


def _finish(y: torch.Tensor, result: torch.Tensor, near: _Near, exact: _Far) -> torch.Tensor:
    """Solves exactly where results are not orthonormal up to rounding; takes most of the rounding out of all."""
    excess = gram_excess(result)
    is_bad = ~(torch.linalg.matrix_norm(excess) <= _ACCEPTED * torch.finfo(y.dtype).eps * y.shape[-2])
    if is_bad.any():
        result[is_bad] = exact(y[is_bad])
        excess[is_bad] = gram_excess(result[is_bad])
    return near(result, excess)


def _newton_root(gram: torch.Tensor) -> torch.Tensor:
    """`G^(-1/2)` by the coupled Newton-Schulz iteration; of matrices that it does not converge for, anything.

    Step: T = (3 I - B A) / 2, A <- A T, B <- T B from A = G / |G|, B = I; then A -> G^(1/2), B -> G^(-1/2), scaled.
    """
    scale = torch.linalg.matrix_norm(gram)[:, None, None].clamp(min=torch.finfo(gram.dtype).tiny)
    a, b = gram / scale, torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device).expand_as(gram)
    for _ in range(_NEWTON_STEPS):
        t = (b @ a).mul_(-0.5)
        t.diagonal(dim1=-2, dim2=-1).add_(1.5)
        a, b = a @ t, t @ b
        t.diagonal(dim1=-2, dim2=-1).sub_(1)
        if bool((torch.linalg.matrix_norm(t) <= 1e-8).all()):  # quadratic: the next error is below 1e-15
            break
    return b / scale.sqrt()


def _svd_polar(y: torch.Tensor) -> torch.Tensor:
    u, _, vh = torch.linalg.svd(y, full_matrices=False)
    return u @ vh


def _householder(y: torch.Tensor) -> torch.Tensor:
    q, r = torch.linalg.qr(y.mT)
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    return q.mT * signs[..., None]
