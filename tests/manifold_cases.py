"""Manifolds with points to try them on, and the checks of their contract: shared by the tests and by their mutants.

Each check takes a manifold and float64 points `(*lead, n, p)` and fails by an AssertionError. A mutant is a manifold
with one method spoiled; the same check that passes for the manifold has to fail for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from weightspace.manifolds import Circle, Euclidean, Manifold, Oblique, Orthogonal, Sphere, Stiefel, ZeroMeanSphere

Case = tuple[Manifold, int, int]
LEAD = (2, 3)

CASES: list[Case] = [
    (Euclidean("slice"), 2, 3),
    (Sphere("filter"), 1, 7),
    (Sphere("slice", radius=3.0), 3, 3),
    (Sphere("kernel", radius=0.5), 1, 12),
    (ZeroMeanSphere("filter", radius=2.0), 1, 7),
    (ZeroMeanSphere("slice"), 3, 2),
    (Oblique(), 4, 3),
    (Oblique("matrix", by="column"), 3, 5),
    (Oblique("slice"), 3, 3),
    (Stiefel(), 7, 3),
    (Stiefel(), 3, 7),
    (Stiefel(retraction="qr"), 5, 2),
    (Stiefel(retraction="qr"), 2, 5),
    (Stiefel(metric="canonical"), 6, 3),
    (Stiefel("input", metric="canonical"), 3, 5),
    (Stiefel("both", retraction="qr", metric="canonical"), 4, 3),
    (Stiefel("slice"), 3, 3),
    (Stiefel("slice", metric="canonical"), 4, 4),
    (Stiefel("output"), 1, 5),
    (Orthogonal(), 2, 2),
    (Orthogonal("both"), 3, 3),
    (Orthogonal("matrix"), 5, 5),
    (Circle(radius=2.0), 1, 2),
    (Circle(radius=0.5, slack=3), 1, 4),
]


def name_of(case: Case) -> str:
    """How a case is called in the output of pytest."""
    manifold, n, p = case
    return f"{manifold.text()}-{n}x{p}"


def points(case: Case, lead: tuple[int, ...] = LEAD) -> torch.Tensor:
    """Random points in float64."""
    manifold, n, p = case
    return manifold.random_uniform((*lead, n, p), like=torch.empty(0, dtype=torch.float64))


def flat(x: torch.Tensor) -> torch.Tensor:
    """Norms of each point."""
    return torch.linalg.vector_norm(x, dim=(-2, -1))


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-12) -> None:
    """The largest difference is at most `tolerance`."""
    error = float((a - b).abs().max())
    assert error <= tolerance, error


def order(error: Callable[[float], torch.Tensor], t: float = 0.04) -> float:
    """The measured k of an error that goes as t^k; infinite for an error that is rounding."""
    first, second = float(error(t).max()), float(error(t / 2).max())
    return math.inf if first < 1e-13 else math.log2(first / second)


# ---------------------------------------------------------------------------------------------------------- checks


def check_points(m: Manifold, x: torch.Tensor) -> None:
    n, p = x.shape[-2:]
    noise = torch.randn_like(x)
    v = 0.7 * m.random_tangent(x)
    for y in (x, m.project(noise), m.project(100 * noise), m.retract(x, v), m.geodesic(x, v), m.geodesic(x, v, 4.0)):
        assert float(m.violation(y).max()) <= m.bound(x.dtype, n, p)


def check_projection(m: Manifold, x: torch.Tensor) -> None:
    """Points stay; of all points tried, none is nearer."""
    close(m.project(x), x)
    y = m.project(x + 0.3 * torch.randn_like(x))
    close(m.project(y), y)
    far = torch.randn_like(x)
    nearest = flat(far - m.project(far))
    for size in (1e-3, 1e-1, 1.0):
        other = m.retract(m.project(far), size * m.random_tangent(m.project(far)))
        assert bool((nearest <= flat(far - other) + 1e-12).all())


def check_tangent(m: Manifold, x: torch.Tensor) -> None:
    """The projection is idempotent, self-adjoint, of the right rank, and its range is what curves on M do."""
    u, w = torch.randn_like(x), torch.randn_like(x)
    v = m.project_tangent(x, u)
    close(m.project_tangent(x, v), v)
    close((v * w).sum((-2, -1)), (u * m.project_tangent(x, w)).sum((-2, -1)))
    assert order(lambda t: flat(m.project(x + t * v) - x - t * v)) > 1.8
    n, p = x.shape[-2:]
    one = x[(0,) * (x.ndim - 2)]
    basis = torch.eye(n * p, dtype=x.dtype).view(-1, n, p)
    matrix = m.project_tangent(one.expand(n * p, n, p), basis).reshape(n * p, n * p)
    assert int(torch.linalg.matrix_rank(matrix, atol=1e-9)) == m.dim(n, p)


def check_gradient(m: Manifold, x: torch.Tensor) -> None:
    """A derivative is converted: `<gradient, v>_x = <g, v>` for tangent v, and the result is tangent."""
    g, v = torch.randn_like(x), m.random_tangent(x)
    gradient = m.gradient(x, g)
    close(m.inner(x, gradient, v), (g * v).sum((-2, -1)))
    close(m.project_tangent(x, gradient), gradient)


def check_retraction(m: Manifold, x: torch.Tensor) -> None:
    """`retract(x, 0) = x`, `D retract(x, 0) = identity`, and it agrees with the geodesic to the declared order."""
    v = m.random_tangent(x)
    v = v / flat(v).amax()
    close(m.retract(x, 0 * v), x)
    assert order(lambda t: flat(m.retract(x, t * v) - x - t * v)) > 1.8
    assert order(lambda t: flat(m.retract(x, t * v) - m.geodesic(x, v, t))) > declared_order(m, *x.shape[-2:]) - 0.2


def declared_order(m: Manifold, n: int, p: int) -> int:
    """Of the difference from the geodesic: 3 for retractions of second order."""
    is_first = (
        isinstance(m, Stiefel) and min(n, p) > 1 and (m.retraction == "qr" or (m.metric == "canonical" and n != p))
    )
    return 2 if is_first else 3


def velocity(m: Manifold, x: torch.Tensor, v: torch.Tensor, t: float) -> torch.Tensor:
    h = 1e-4
    return (m.geodesic(x, v, t + h) - m.geodesic(x, v, t - h)) / (2 * h)


def check_geodesic(m: Manifold, x: torch.Tensor) -> None:
    """Begins at x with velocity v; constant speed; going on from anywhere on it stays on it."""
    v = m.random_tangent(x)
    v = v / flat(v).amax()
    close(m.geodesic(x, v, 0.0), x)
    close(velocity(m, x, v, 0.0), v, 1e-7)
    y, along = m.geodesic(x, v, 0.8), velocity(m, x, v, 0.8)
    close(m.inner(y, along, along), m.inner(x, v, v), 1e-7)
    close(m.geodesic(y, along, 0.5), m.geodesic(x, v, 1.3), 1e-7)
    close(m.geodesic(x, -v, -0.8), y)


def check_acceleration(m: Manifold, x: torch.Tensor) -> None:
    """The acceleration has no tangent part: of metrics inherited from the surrounding space."""
    v = m.random_tangent(x)
    v = v / flat(v).amax()
    h, t = 1e-3, 0.6
    before, y, after = (m.geodesic(x, v, s) for s in (t - h, t, t + h))
    close(m.project_tangent(y, (before - 2 * y + after) / h**2), torch.zeros_like(x), 1e-5)


def check_canonical_equation(m: Manifold, x: torch.Tensor) -> None:
    """`Y'' + Y' Y'^T Y + Y ((Y^T Y')^2 + Y'^T Y') = 0`: Edelman, Arias, Smith, 1998, equation (2.41)."""
    v = m.random_tangent(x)
    v = v / flat(v).amax()
    h, t = 1e-3, 0.6
    curve = [m.geodesic(x, v, s) for s in (t - h, t, t + h)]
    before, y, after = (c if x.shape[-2] >= x.shape[-1] else c.mT for c in curve)
    first, second = (after - before) / (2 * h), (before - 2 * y + after) / h**2
    a = y.mT @ first
    close(second + first @ first.mT @ y + y @ (a @ a + first.mT @ first), torch.zeros_like(y), 1e-5)


def check_transport(m: Manifold, x: torch.Tensor) -> None:
    """What arrives is tangent there, no longer than what left, and near it for a short way."""
    v, u = m.random_tangent(x), m.random_tangent(x)
    arrived = m.transport(x, v, u)
    close(m.project_tangent(m.retract(x, v), arrived), arrived)
    assert bool((flat(arrived) <= flat(u) + 1e-12).all())
    assert order(lambda t: flat(m.transport(x, t * v, u) - u)) > 0.8


def check_distance(m: Manifold, x: torch.Tensor) -> None:
    """Along a short geodesic it is the length; symmetric; zero at x."""
    v = m.random_tangent(x)
    v = 0.9 * v / flat(v).amax()
    y = m.geodesic(x, v)
    close(m.distance(x, y), m.inner(x, v, v).sqrt(), 1e-10)
    close(m.distance(y, x), m.distance(x, y), 1e-10)
    close(m.distance(x, x), torch.zeros(x.shape[:-2], dtype=x.dtype), 1e-7)


def check_uniform(m: Manifold, x: torch.Tensor) -> None:
    """Mean 0, and on the sphere of m dimensions `E X^2 = 1/m`, `E X^4 = 3/(m(m+2))`, for every entry: 6 sigma."""
    n, p = x.shape[-2:]
    count = 6_000
    sample = m.random_uniform((count, n, p), generator=torch.Generator().manual_seed(1)).double()
    size = max(n, p) if isinstance(m, Stiefel | Orthogonal) else n * p
    for power, expected in ((1, 0.0), (2, 1 / size), (3, 0.0), (4, 3 / (size * (size + 2)))):
        values = (sample / getattr(m, "radius", 1.0)) ** power
        error = (values.mean(0) - expected).abs() / (values.std(0) / count**0.5)
        assert float(error.max()) < 6, (power, float(error.max()))


CHECKS: dict[str, Callable[[Manifold, torch.Tensor], None]] = {
    "points": check_points,
    "projection": check_projection,
    "tangent": check_tangent,
    "gradient": check_gradient,
    "retraction": check_retraction,
    "geodesic": check_geodesic,
    "transport": check_transport,
}
