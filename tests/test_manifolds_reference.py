"""Manifolds against an independent reference: numpy, point by point, dense, from the equations of each manifold.

The reference knows of a manifold the equation `c(x) = 0`, its metric as a dense matrix, and its geodesics as the dense
exponential of an (np) or n x n matrix. Tangent spaces are null spaces of the Jacobian of c; nothing of the library's
formulas is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
import scipy.linalg
import torch

from manifold_cases import (
    CASES,
    CHECKS,
    Case,
    check_acceleration,
    check_canonical_equation,
    check_distance,
    check_uniform,
    name_of,
    points,
)
from weightspace.manifolds import Circle, Euclidean, Manifold, Oblique, Orthogonal, Sphere, Stiefel, ZeroMeanSphere
from weightspace.manifolds._geodesics import EXACT_BELOW, deviation
from weightspace.manifolds._moves import Motion, curvature_factor

cases = pytest.mark.parametrize("case", CASES, ids=name_of)
Array = np.ndarray


def equation(m: Manifold, x: Array) -> Array:
    """c(x), zero on the manifold."""
    match m:
        case ZeroMeanSphere():
            return np.array([sum(e * e for e in x.flat) - m.radius**2, sum(x.flat)])
        case Sphere() | Circle():
            return np.array([sum(e * e for e in x.flat) - m.radius**2])
        case Oblique():
            vectors = x if m.by == "filter" else x.T
            return np.array([sum(e * e for e in row) - 1 for row in vectors])
        case Stiefel() | Orthogonal():
            rows = x if x.shape[0] <= x.shape[1] else x.T
            return np.array([[sum(a * b for a, b in zip(r, s, strict=True)) for s in rows] for r in rows]) - np.eye(
                len(rows)
            )
        case _:
            return np.zeros(1)


def normal_projection(m: Manifold, x: Array) -> Array:
    """The projection onto the tangent space as a dense (np x np) matrix, by the Jacobian of c."""
    columns = []
    for k in range(x.size):
        e = np.zeros(x.size)
        e[k] = 1.0
        e = e.reshape(x.shape)
        # c is quadratic: central differences are exact, whatever their step.
        columns.append((equation(m, x + e) - equation(m, x - e)).ravel() / 2)
    jacobian = np.array(columns).T
    return np.eye(x.size) - np.linalg.pinv(jacobian, rcond=1e-9) @ jacobian


def metric_matrix(m: Manifold, x: Array) -> Array:
    """The metric on all of R^(np), dense."""
    if not (isinstance(m, Stiefel) and m.metric == "canonical"):
        return np.eye(x.size)
    if x.shape[0] >= x.shape[1]:
        return np.kron(np.eye(x.shape[0]) - x @ x.T / 2, np.eye(x.shape[1]))
    return np.kron(np.eye(x.shape[0]), np.eye(x.shape[1]) - x.T @ x / 2)


def gradient(m: Manifold, x: Array, g: Array) -> Array:
    """The tangent vector whose inner products with a basis of the tangent space are those of g."""
    values, vectors = np.linalg.eigh(normal_projection(m, x))
    basis = vectors[:, values > 0.5]
    weights = np.linalg.solve(basis.T @ metric_matrix(m, x) @ basis, basis.T @ g.ravel())
    return (basis @ weights).reshape(x.shape)


def great_circle(x: Array, v: Array, radius: float) -> Array:
    x, v = x.ravel(), v.ravel()
    return scipy.linalg.expm((np.outer(v, x) - np.outer(x, v)) / radius**2) @ x


def geodesic(m: Manifold, x: Array, v: Array) -> Array:  # noqa: PLR0911  # one for each equation
    match m:
        case Sphere() | Circle():
            return great_circle(x, v, m.radius).reshape(x.shape)
        case Oblique():
            if m.by == "column":
                return geodesic(replace(m, grouping="matrix", by="filter"), x.T, v.T).T
            return np.array([great_circle(row, along, 1.0) for row, along in zip(x, v, strict=True)])
        case Stiefel() | Orthogonal():
            if x.shape[0] < x.shape[1]:
                return geodesic(m, x.T, v.T).T
            if getattr(m, "metric", "embedded") == "canonical":
                half = np.eye(len(x)) - x @ x.T / 2
                return scipy.linalg.expm(half @ v @ x.T - x @ v.T @ half) @ x
            return scipy.linalg.expm(v @ x.T - x @ v.T) @ x @ scipy.linalg.expm(-x.T @ v)
        case _:
            return x + v


def project(m: Manifold, x: Array) -> Array:
    match m:
        case ZeroMeanSphere():
            centered = x - x.mean()
            return centered * m.radius / np.sqrt((centered**2).sum())
        case Sphere() | Circle():
            return x * m.radius / np.sqrt((x**2).sum())
        case Oblique():
            return x / np.sqrt((x**2).sum(1 if m.by == "filter" else 0, keepdims=True))
        case Stiefel() | Orthogonal():
            return scipy.linalg.polar(x)[0]
        case _:
            return x


def gram_schmidt(x: Array) -> Array:
    if x.shape[0] < x.shape[1]:
        return gram_schmidt(x.T).T
    done: list[Array] = []
    for column in x.T:
        rest = column.copy()
        for q in done:
            rest = rest - q * (q @ rest)
        done.append(rest / np.sqrt(rest @ rest))
    return np.array(done).T


def retract(m: Manifold, x: Array, v: Array) -> Array:
    return gram_schmidt(x + v) if getattr(m, "retraction", "polar") == "qr" else project(m, x + v)


def each(function: Callable[..., Array], m: Manifold, *operands: torch.Tensor) -> torch.Tensor:
    """The reference, point by point."""
    lead = operands[0].shape[:-2]
    arrays = [o.flatten(0, -3).numpy() for o in operands]
    return torch.stack([torch.from_numpy(np.array(function(m, *one))) for one in zip(*arrays, strict=True)]).view(
        *lead, *operands[0].shape[-2:]
    )


@cases
def test_against_the_reference(case: Case) -> None:
    m = case[0]
    x, g = points(case), torch.randn_like(points(case))
    v = m.random_tangent(x)

    def tangent(m: Manifold, x: Array, u: Array) -> Array:
        return (normal_projection(m, x) @ u.ravel()).reshape(x.shape)

    def check(got: torch.Tensor, expected: torch.Tensor) -> None:
        assert float((got - expected).abs().max()) < 1e-11

    check(m.project_tangent(x, g), each(tangent, m, x, g))
    check(m.gradient(x, g), each(gradient, m, x, g))
    check(m.project(g), each(project, m, g))
    check(m.retract(x, v), each(retract, m, x, v))
    check(m.geodesic(x, v), each(geodesic, m, x, v))
    check(m.geodesic(x, v, -2.5), each(geodesic, m, x, -2.5 * v))
    one, u = x[0, 0], v[0, 0].flatten().numpy()
    assert float(m.inner(one, v[0, 0], v[0, 0])) == pytest.approx(u @ metric_matrix(m, one.numpy()) @ u)
    assert float(np.abs(equation(m, m.project(g)[1, 2].numpy())).max()) < 1e-12


@cases
@pytest.mark.parametrize("geodesically", [False, True])
def test_a_step_with_curvature_and_momentum_against_the_reference(case: Case, geodesically: bool) -> None:
    """The paper's algorithm written out: momentum, gradient, r over a product, and the way."""
    m, n, p = case
    x, d, g = points(case), torch.randn_like(points(case)), torch.randn_like(points(case))
    new_d = 0.9 * d.numpy() + 0.7 * g.numpy()
    expected = np.empty_like(new_d)
    for i in range(2):
        total, v = 0.0, []
        for j in range(3):
            one = x[i, j].numpy()
            v.append(gradient(m, one, new_d[i, j]))
            total += v[j].ravel() @ metric_matrix(m, one) @ v[j].ravel()
        norm = total**0.5
        c = (-m.lower_curvature(n, p)) ** 0.5
        r = max(1.0, total * max((2 * 0.5 + norm) ** 2, 1 + c * (0.5 + norm))) ** 0.5
        for j in range(3):
            way = geodesic if geodesically else retract
            expected[i, j] = way(m, x[i, j].numpy(), -0.2 / r * v[j])
    motion = Motion(0.2, "curvature", 0.5, geodesic=geodesically, product=(1,), grad=g, decay=0.9, gain=0.7)
    m.move(x, d, motion)
    assert np.abs(x.numpy() - expected).max() < 1e-11
    assert np.abs(d.numpy() - new_d).max() < 1e-14


def test_r_at_known_places() -> None:
    norms = torch.tensor([0.0, 2**0.5 - 1, 1.0, 3.0], dtype=torch.float64)
    found = curvature_factor(norms**2, 1.0, 0.0)
    assert found.tolist() == pytest.approx([1.0, 1.0, 3.0, 15.0])  # R (2 + R)
    # With rho = 0 and R < 1 the curvature counts: 1 + sqrt(1/2) R > R^2; and r stays 1 until R^2 (1 + ...) exceeds 1.
    assert float(curvature_factor(torch.tensor(0.81), 0.0, -0.5)) == pytest.approx((0.81 * (1 + 0.5**0.5 * 0.9)) ** 0.5)


# ------------------------------------------------------------------------------------------------- known answers


def test_known_answers() -> None:
    pole, right = torch.tensor([[0.0, 0.0, 2.0]]), torch.tensor([[torch.pi, 0.0, 0.0]])
    sphere = Sphere(radius=2.0)
    quarter = sphere.geodesic(pole, right)  # half the way round a quarter circle of length pi
    assert torch.allclose(quarter, torch.tensor([[2.0, 0.0, 0.0]]), atol=1e-6)
    assert float(sphere.distance(pole, quarter)) == pytest.approx(torch.pi, rel=1e-6)
    assert float(sphere.distance(pole, -pole)) == pytest.approx(2 * torch.pi, rel=1e-6)
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    for t in (0.3, 2.0):
        expected = torch.tensor([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]], dtype=torch.float32)
        assert torch.allclose(Orthogonal().geodesic(torch.eye(2), turn, t), expected, atol=1e-6)
    assert float(Orthogonal().distance(torch.eye(3), torch.diag(torch.tensor([-1.0, -1.0, 1.0])))) == pytest.approx(
        2**0.5 * torch.pi, rel=1e-6
    )
    assert float(Orthogonal().distance(torch.eye(3), -torch.eye(3))) == float("inf")
    assert Oblique().distance(torch.eye(2), -torch.eye(2)).item() == pytest.approx(2**0.5 * torch.pi, rel=1e-6)
    assert [Stiefel().dim(5, 2), Stiefel().dim(2, 5), Orthogonal().dim(3, 3), Sphere().dim(1, 9)] == [7, 7, 3, 8]
    assert [Oblique().dim(4, 9), Oblique(by="column").dim(4, 9), ZeroMeanSphere().dim(1, 9)] == [32, 27, 7]
    assert Euclidean().dim(3, 4) == 12


def test_distances_of_rotations_are_those_of_the_logarithm() -> None:
    for n in (2, 3, 4, 5):
        x, y = Orthogonal().random_uniform((2, 12, n, n), like=torch.empty(0, dtype=torch.float64))
        for a, b, d in zip(x, y, Orthogonal().distance(x, y), strict=True):
            turn = (a.mT @ b).numpy()
            if np.linalg.det(turn) < 0:
                assert d == float("inf")
            else:
                assert float(d) == pytest.approx(float(np.linalg.norm(scipy.linalg.logm(turn))), abs=1e-7)


@pytest.mark.parametrize("shape", [(3, 3), (5, 2), (2, 5), (7, 7), (1, 4)], ids=str)
@pytest.mark.parametrize("size", [1e-12, 1e-6, 1e-2, 0.5, 3.0])
def test_deviation_of_many_points_bounds_that_of_few(shape: tuple[int, int], size: float) -> None:
    count = 4 * EXACT_BELOW
    x = Stiefel().random_uniform((count, *shape), like=torch.empty(0, dtype=torch.float64))
    x = x + size * torch.randn_like(x)
    exact = (torch.linalg.svdvals(x) - 1).abs().amax(-1)
    few = torch.cat([deviation(part) for part in x.split(EXACT_BELOW)])
    many = deviation(x)
    rounding = 1e-14 if size < 0.1 else 1e-7  # of a Gram matrix: the root of it where a singular value is near zero
    assert float((few - exact).abs().max()) < 10 * rounding
    assert bool((many >= exact - rounding).all())
    if size <= 1e-2:
        assert bool((many <= exact * (1.06 + 2 * size * sum(shape)) + rounding).all())


def test_deviation_at_its_edges() -> None:
    x = torch.eye(3).expand(2 * EXACT_BELOW, 3, 3).clone()
    x[1], x[2, 0, 0], x[3, 1, 1], x[4] = 0.0, float("nan"), float("inf"), 2 * torch.eye(3)
    found = deviation(x)
    assert found[0] == 0
    assert found[1] == 1
    assert found[2:4].isnan().all()
    assert float(found[4]) == pytest.approx(1.0, rel=0.02)
    assert deviation(x[:5])[2:4].isnan().all()


# ------------------------------------------------------------------------------------------------- mutants


@dataclass(frozen=True)
class DoubledRotations(Stiefel):
    """The gradient of the canonical metric taken for a projection, as a well-known package does."""

    def project_tangent(self, x, u):
        return u - x @ u.mT @ x


@dataclass(frozen=True)
class EmbeddedGradientOfCanonical(Stiefel):
    def gradient(self, x, g):
        return self.project_tangent(x, g)


@dataclass(frozen=True)
class WideAsTall(Stiefel):
    """Forgets the transposition of wide points."""

    def project_tangent(self, x, u):
        product = x.mT @ u
        return u - x @ (product + product.mT) / 2


@dataclass(frozen=True)
class SlowRotations(Stiefel):
    """The canonical geodesic in the embedded metric: A where 2A belongs."""

    def geodesic(self, x, v, t=1.0):
        return Stiefel(metric="canonical").geodesic(x, v, t)


@dataclass(frozen=True)
class FastRotations(Stiefel):
    """The embedded geodesic in the canonical metric."""

    def geodesic(self, x, v, t=1.0):
        return Stiefel().geodesic(x, v, t)


@dataclass(frozen=True)
class NoLastFactor(Stiefel):
    """Leaves out exp(-tA)."""

    def geodesic(self, x, v, t=1.0):
        return Stiefel().geodesic(x, v, t) @ torch.matrix_exp(t * x.mT @ v)


@dataclass(frozen=True)
class MuonsPolynomial(Stiefel):
    """Five steps of the polynomial that ends in [0.7, 1.2]."""

    def retract(self, x, v):
        y = (x + v) / torch.linalg.matrix_norm(x + v, keepdim=True)
        for _ in range(5):
            a = y.mT @ y
            y = 3.4445 * y + y @ (-4.7750 * a + 2.0315 * a @ a)
        return y


@dataclass(frozen=True)
class UnsignedQR(Stiefel):
    """Householder's Q, whatever the signs of R."""

    def retract(self, x, v):
        return torch.linalg.qr(x + v)[0]

    def random_uniform(self, shape, *, generator=None, like=None):
        return torch.linalg.qr(torch.randn(shape, generator=generator, dtype=torch.float64))[0]


@dataclass(frozen=True)
class NoRadiusInTangent(Sphere):
    def project_tangent(self, x, u):
        return u - (x * u).sum((-2, -1), keepdim=True) * x


@dataclass(frozen=True)
class NoRadiusInAngle(Sphere):
    def geodesic(self, x, v, t=1.0):
        angle = torch.linalg.matrix_norm(v, keepdim=True) * t
        return x * angle.cos() + v * (t * torch.sinc(angle / torch.pi)) * self.radius


@dataclass(frozen=True)
class NoRadiusInRetraction(Sphere):
    def retract(self, x, v):
        return Sphere("slice").retract(x, v)


@dataclass(frozen=True)
class NotCentered(ZeroMeanSphere):
    def project_tangent(self, x, u):
        return Sphere.project_tangent(self, x, u)


@dataclass(frozen=True)
class NotCenteredInRetraction(ZeroMeanSphere):
    def project(self, x):
        return Sphere.project(self, x)


@dataclass(frozen=True)
class OtherAxis(Oblique):
    def project_tangent(self, x, u):
        return Oblique(by="column").project_tangent(x, u)


@dataclass(frozen=True)
class TransportOfNothing(Stiefel):
    def transport(self, x, v, u):
        return u


@dataclass(frozen=True)
class HalfAngle(Orthogonal):
    """The angle without the square root of two that the Frobenius norm has."""

    def distance(self, x, y):
        return super().distance(x, y) / 2**0.5


@dataclass(frozen=True)
class CayleyOfTwice(Orthogonal):
    """Cayley's transform without its halves."""

    def retract(self, x, v):
        w = x.mT @ v
        eye = torch.eye(w.shape[-1], dtype=w.dtype)
        return x @ torch.linalg.solve(eye - w, eye + w)


MUTANTS = [
    (DoubledRotations(), 5, 3, CHECKS["tangent"]),
    (EmbeddedGradientOfCanonical(metric="canonical"), 5, 3, CHECKS["gradient"]),
    (WideAsTall(), 3, 5, CHECKS["tangent"]),
    (SlowRotations(), 5, 3, check_acceleration),
    (SlowRotations(), 5, 3, CHECKS["retraction"]),
    (FastRotations(metric="canonical"), 5, 3, check_canonical_equation),
    (NoLastFactor(), 5, 3, CHECKS["geodesic"]),
    (MuonsPolynomial(), 5, 3, CHECKS["points"]),
    (MuonsPolynomial(), 5, 3, CHECKS["retraction"]),
    (UnsignedQR(), 5, 3, CHECKS["retraction"]),
    (UnsignedQR(), 5, 3, check_uniform),
    (NoRadiusInTangent("slice", radius=2.0), 1, 5, CHECKS["tangent"]),
    (NoRadiusInAngle("slice", radius=2.0), 1, 5, CHECKS["geodesic"]),
    (NoRadiusInRetraction("slice", radius=2.0), 1, 5, CHECKS["points"]),
    (NotCentered("slice"), 1, 5, CHECKS["tangent"]),
    (NotCenteredInRetraction("slice"), 1, 5, CHECKS["points"]),
    (OtherAxis(), 4, 3, CHECKS["tangent"]),
    (TransportOfNothing(), 5, 3, CHECKS["transport"]),
    (HalfAngle(), 3, 3, check_distance),
    (CayleyOfTwice(), 3, 3, CHECKS["retraction"]),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{type(mutant[0]).__name__}-{mutant[3].__name__}")
def test_a_mutant_fails_the_check_that_its_original_passes(mutant) -> None:
    m, n, p, check = mutant
    original = type(m).__bases__[0]
    options = {f.name: getattr(m, f.name) for f in fields(m)}
    check(original(**options), points((original(**options), n, p)))
    with pytest.raises(AssertionError):
        check(m, points((original(**options), n, p)))
