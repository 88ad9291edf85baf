"""Polar factor and QR with positive diagonal, against scipy and numpy, over all shapes, scales, ranks and conditions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightspace.manifolds import _polar
from weightspace.manifolds._polar import inverse_root, lower_inverse, polar, qr_positive, residual_bound

Solver = Callable[[torch.Tensor], tuple[torch.Tensor, int]]
SOLVERS: tuple[Solver, ...] = (polar, qr_positive)
DTYPES = (torch.float32, torch.float64)


def conditioned(n: int, p: int, condition: float, seed: int, dtype: torch.dtype) -> torch.Tensor:
    """A matrix with singular values between 1 and 1 / condition."""
    random = np.random.default_rng(seed)
    small = min(n, p)
    left = np.linalg.qr(random.standard_normal((n, small)))[0]
    right = np.linalg.qr(random.standard_normal((p, small)))[0]
    return torch.from_numpy(left * np.geomspace(1, 1 / condition, small) @ right.T).to(dtype)


def orthonormality(q: torch.Tensor) -> float:
    """|Q^T Q - I| in the spectral norm, over a batch, in float64; rows of wide matrices."""
    q = q.double()
    small = q @ q.mT if q.shape[-2] < q.shape[-1] else q.mT @ q
    return torch.linalg.matrix_norm(small - torch.eye(small.shape[-1], dtype=q.dtype), ord=2).max().item()


def numpy_qr(x: np.ndarray) -> np.ndarray:
    """Q with positive diagonal of R, by columns; wide matrices by rows."""
    if x.shape[0] < x.shape[1]:
        return numpy_qr(x.T).T
    q, r = np.linalg.qr(x)
    return q * np.where(np.diag(r) < 0, -1.0, 1.0)


@given(
    n=st.integers(1, 12),
    p=st.integers(1, 12),
    decades=st.floats(0, 12),
    scale=st.sampled_from([1e-25, 1e-3, 1.0, 7.0, 1e25]),
    seed=st.integers(0, 99),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=200, deadline=None)
def test_agree_with_scipy_and_numpy(
    n: int, p: int, decades: float, scale: float, seed: int, dtype: torch.dtype
) -> None:
    x = conditioned(n, p, 10**decades, seed, torch.float64).mul(scale).to(dtype)
    eps = torch.finfo(dtype).eps
    exact = np.asarray(x.double())
    # Of what is left of a matrix of condition c, an entrywise rounding moves the factors by c eps.
    allowed = 200 * (eps + 2e-16 * 10**decades)
    for solve, reference in ((polar, lambda a: scipy.linalg.polar(a)[0]), (qr_positive, numpy_qr)):
        result, _ = solve(x)
        assert result.dtype == dtype
        assert result.shape == x.shape
        assert orthonormality(result) < 20 * eps
        if np.linalg.cond(exact) < 1e11:  # else scipy's own rounding decides the sign of the last direction
            allowed = 200 * (eps + 2e-16 * np.linalg.cond(exact))
            assert np.abs(result.double().numpy() - reference(exact)).max() < allowed


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "p"), [(130, 70), (70, 130), (90, 90)])
def test_large_matrices_of_every_condition(solve: Solver, dtype: torch.dtype, n: int, p: int) -> None:
    x = torch.stack([conditioned(n, p, c, 0, dtype) for c in (1.0, 1.001, 1.05, 2.0, 1e2, 1e4, 1e7, 1e12)])
    result, count = solve(x)
    assert orthonormality(result) < 10 * torch.finfo(dtype).eps
    assert count == 5


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5), (1, 6), (6, 1)])
def test_hard_matrices_in_one_batch(solve: Solver, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    big, small = torch.finfo(dtype).max / 4, torch.finfo(dtype).smallest_normal
    x = torch.randn(9, *shape, dtype=dtype).clamp(-2, 2)
    x[0] = 0
    x[1, 0, 0] = torch.nan
    x[2, 0, 0] = torch.inf
    x[3] *= big
    x[4] *= small
    x[5] = torch.outer(x[5, :, 0], x[5, 0])  # rank one
    x[6] = 1
    x[7] = small / 8 * x[7].sign()  # subnormal numbers
    before = x.clone()
    result, count = solve(x)
    assert torch.equal(x.nan_to_num(7.0), before.nan_to_num(7.0))
    assert result[1:3].isnan().all()
    finite = torch.tensor([0, 3, 4, 5, 6, 7, 8])
    assert orthonormality(result[finite]) < 20 * torch.finfo(dtype).eps
    assert count >= 8  # by chance, the ordinary one may be near
    for i in finite.tolist():  # a matrix does not depend on its batch
        alone, _ = solve(x[i])
        torch.testing.assert_close(alone, result[i], rtol=0, atol=50 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("solve", SOLVERS)
def test_empty_batches_and_leading_dimensions(solve: Solver) -> None:
    assert solve(torch.zeros(0, 3, 2))[0].shape == (0, 3, 2)
    x = torch.randn(2, 3, 1, 5, 4).transpose(0, 1)
    result, _ = solve(x)
    torch.testing.assert_close(result[2, 1, 0], solve(x[2, 1, 0])[0])


def test_known_answers() -> None:
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    torch.testing.assert_close(polar(turn @ torch.tensor([[2.0, 0.5], [0.5, 1.0]]))[0], turn)
    torch.testing.assert_close(qr_positive(turn @ torch.tensor([[2.0, 0.5], [0.0, 1.0]]))[0], turn)


def test_points_of_the_manifold_stay() -> None:
    x = polar(torch.randn(50, 20, dtype=torch.float64))[0]
    for solve in SOLVERS:
        again, count = solve(x)
        assert count == 0
        torch.testing.assert_close(again, x, rtol=0, atol=1e-14)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("norm", [1e-3, 1e-2, 0.1, 0.3, _polar.NEAR])
def test_the_residual_bound_holds_and_is_sharp(order: int, norm: float) -> None:
    e = torch.linspace(-norm, norm, 2001, dtype=torch.float64)
    root = 1 + _polar._polynomial(torch.diag_embed(e[:, None]), order)[:, 0, 0]
    residual = (root.square() * (1 + e) - 1).abs()
    if order == 1:  # what one Newton-Schulz step leaves
        torch.testing.assert_close(residual, (-0.75 * e**2 + 0.25 * e**3).abs(), rtol=0, atol=1e-14)
    bound = residual_bound(norm, order)
    assert residual.max() <= bound + 1e-15
    assert residual.max() >= bound * (1 - 2 * norm)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [0.0, 1e-9, 1e-6, 1e-4, 1e-3, 1e-2, 0.1, 0.3, _polar.NEAR])
def test_inverse_root_is_exact_to_rounding(dtype: torch.dtype, norm: float) -> None:
    torch.manual_seed(1)
    noise = torch.randn(3, 12, 12, dtype=torch.float64)
    # One eigenvalue alone at the end where the series converges worst, and a full spectrum.
    noise[0] = -torch.outer(noise[0, 0], noise[0, 0])
    excess = noise + noise.mT
    excess = (excess / torch.linalg.matrix_norm(excess)[:, None, None] * norm).to(dtype)
    values, vectors = torch.linalg.eigh(excess.double())
    exact = vectors @ torch.diag_embed((1 + values).rsqrt() - 1) @ vectors.mT
    root = inverse_root(excess, norm)
    error = torch.linalg.matrix_norm(root.double() - exact, ord=2).max()
    assert error <= 4 * torch.finfo(dtype).eps * max(norm, 0.25)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [0.0, 1e-9, 1e-8, 1e-5, 1.6e-4, 1e-3, 0.1, _polar.NEAR])
def test_lower_inverse_is_the_inverse_cholesky_factor(dtype: torch.dtype, norm: float) -> None:
    noise = torch.randn(3, 9, 9, dtype=torch.float64)
    excess = noise + noise.mT
    excess = (excess / torch.linalg.matrix_norm(excess)[:, None, None] * norm).to(dtype)
    eye = torch.eye(9, dtype=torch.float64)
    exact = torch.linalg.inv(torch.linalg.cholesky(excess.double() + eye)) - eye
    result = lower_inverse(excess, norm)
    assert torch.equal(result, result.tril())
    error = torch.linalg.matrix_norm(result.double() - exact, ord=2).max()
    assert error <= 4 * torch.finfo(dtype).eps * max(norm, 0.25)


def test_lower_inverse_of_a_known_factor() -> None:
    excess = torch.tensor([[0.21, 0.11], [0.11, 0.01]], dtype=torch.float64)  # L = [[1.1, 0], [0.1, 1]]
    expected = torch.linalg.inv(torch.tensor([[1.1, 0.0], [0.1, 1.0]], dtype=torch.float64))
    torch.testing.assert_close(lower_inverse(excess, 0.3) + torch.eye(2), expected)


def test_near_the_manifold_no_decomposition_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.linalg.qr(torch.randn(40, 10, dtype=torch.float64))[0] + 1e-3 * torch.randn(40, 10, dtype=torch.float64)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    for name in ("svd", "qr", "eigh"):
        monkeypatch.setattr(torch.linalg, name, refuse)
    assert polar(x)[1] == qr_positive(x)[1] == 0
