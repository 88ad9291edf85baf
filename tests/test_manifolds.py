"""The contract of manifolds: once, over all of them, their groupings and dtypes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from manifold_cases import (
    CASES,
    CHECKS,
    Case,
    check_acceleration,
    check_canonical_equation,
    check_distance,
    check_uniform,
    close,
    name_of,
    points,
)
from weightspace.errors import RuleError
from weightspace.manifolds import Euclidean, Manifold, Oblique, Orthogonal, Sphere, Stiefel, ZeroMeanSphere, parse
from weightspace.manifolds._moves import Motion, move

cases = pytest.mark.parametrize("case", CASES, ids=name_of)
HALF = [torch.bfloat16, torch.float16]


@cases
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_contract(case: Case, check) -> None:
    check(case[0], points(case))


@cases
def test_a_geodesic_is_one(case: Case) -> None:
    check = check_canonical_equation if getattr(case[0], "metric", "") == "canonical" else check_acceleration
    check(case[0], points(case))


@cases
def test_distance_where_closed(case: Case) -> None:
    if isinstance(case[0], Stiefel):
        with pytest.raises(RuleError, match="no closed form of the distance"):
            case[0].distance(points(case), points(case))
    else:
        check_distance(case[0], points(case))


@pytest.mark.parametrize(
    "case", [(Sphere(radius=2.0), 1, 5), (Stiefel(), 5, 2), (Stiefel(), 2, 5), (Orthogonal(), 3, 3)], ids=name_of
)
def test_uniform_by_its_moments(case: Case) -> None:
    check_uniform(case[0], points(case))


def test_both_components_are_drawn_equally_often() -> None:
    for n in (2, 3, 4):
        sample = Orthogonal().random_uniform((2_000, n, n), generator=torch.Generator().manual_seed(0))
        share = float((torch.linalg.det(sample) > 0).float().mean())
        assert abs(share - 0.5) < 0.05


@cases
def test_random_points_repeat_with_their_generator(case: Case) -> None:
    m, n, p = case
    first, second = (m.random_uniform((3, n, p), generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.dtype == torch.float32
    state = torch.get_rng_state()
    m.random_uniform((n, p), generator=torch.Generator())
    assert torch.equal(state, torch.get_rng_state())


# ------------------------------------------------------------------------------------------------- shapes and dtypes


@cases
@pytest.mark.parametrize("lead", [(), (1,), (0,), (2, 1, 3)], ids=str)
def test_leading_dimensions_are_a_batch(case: Case, lead: tuple[int, ...]) -> None:
    m = case[0]
    x = points(case, lead)
    v = m.random_tangent(x)
    got = [m.project(x), m.project_tangent(x, v), m.gradient(x, v), m.retract(x, v), m.geodesic(x, v)]
    got += [m.transport(x, v, v), m.random_tangent(x)]
    assert all(y.shape == x.shape for y in got)
    assert m.inner(x, v, v).shape == m.violation(x).shape == lead
    if len(lead) == 3:
        single = m.geodesic(x[1, 0, 2], v[1, 0, 2])
        close(single, m.geodesic(x, v)[1, 0, 2])


@cases
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_dtypes_come_back_and_stay_within_their_bound(case: Case, dtype: torch.dtype) -> None:
    m, n, p = case
    x = m.random_uniform((50, n, p), like=torch.empty(0, dtype=dtype))
    v = m.random_tangent(x)
    moved = [m.project(torch.randn_like(x)), m.retract(x, v), m.geodesic(x, v)]
    for y in (x, *moved, m.project_tangent(x, v), m.gradient(x, v), m.transport(x, v, v)):
        assert y.dtype == dtype
        assert y.isfinite().all()
    for y in (x, *moved):
        assert float(m.violation(y).max()) <= m.bound(dtype, n, p)
    assert m.inner(x, v, v).dtype == torch.float32
    assert m.violation(x).dtype == torch.float64
    exact = m.retract(x.double(), v.double())
    assert float((m.retract(x, v).double() - exact).abs().max()) <= 4 * torch.finfo(dtype).eps * float(
        exact.abs().max()
    )


@pytest.mark.parametrize("setting", ["high", "medium"])
def test_the_scripts_matmul_precision_does_not_reach_a_manifold(setting: str) -> None:
    x = Stiefel().random_uniform((1, 64, 96))
    v = Stiefel().random_tangent(x)
    torch.set_float32_matmul_precision(setting)
    try:
        y = Stiefel().retract(x, v)
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision("highest")
    close(y.double(), Stiefel().retract(x.double(), v.double()), 1e-5)


@pytest.mark.parametrize("options", [{}, {"retraction": "qr"}, {"metric": "canonical"}], ids=str)
def test_wide_is_the_transpose_of_tall(options: dict[str, str]) -> None:
    m = Stiefel(**options)  # type: ignore[arg-type]
    x = m.random_uniform((4, 6, 3), like=torch.empty(0, dtype=torch.float64))
    u, g = m.random_tangent(x), torch.randn_like(x)
    close(m.project(g.mT), m.project(g).mT)
    close(m.project_tangent(x.mT, g.mT), m.project_tangent(x, g).mT)
    close(m.gradient(x.mT, g.mT), m.gradient(x, g).mT)
    close(m.retract(x.mT, u.mT), m.retract(x, u).mT)
    close(m.geodesic(x.mT, u.mT), m.geodesic(x, u).mT)
    close(m.inner(x.mT, u.mT, u.mT), m.inner(x, u, u))
    close(m.violation(g.mT), m.violation(g))
    assert m.dim(3, 6) == m.dim(6, 3)
    assert m.lower_curvature(3, 6) == m.lower_curvature(6, 3)


def test_oblique_by_column_is_the_transpose_of_by_filter() -> None:
    rows, columns = Oblique(by="filter"), Oblique(by="column")
    x = rows.random_uniform((4, 6, 3), like=torch.empty(0, dtype=torch.float64))
    u, g = rows.random_tangent(x), torch.randn_like(x)
    close(columns.project(g.mT), rows.project(g).mT)
    close(columns.project_tangent(x.mT, g.mT), rows.project_tangent(x, g).mT)
    close(columns.geodesic(x.mT, u.mT), rows.geodesic(x, u).mT)
    close(columns.distance(x.mT, rows.project(g).mT), rows.distance(x, rows.project(g)))
    assert columns.dim(3, 6) == rows.dim(6, 3) == 12


@pytest.mark.parametrize("metric", ["embedded", "canonical"])
def test_stiefel_of_vectors_is_a_sphere_and_of_squares_orthogonal(metric: str) -> None:
    m = Stiefel(metric=metric)  # type: ignore[arg-type]
    x = Sphere().random_uniform((5, 1, 6), like=torch.empty(0, dtype=torch.float64))
    u = Sphere().random_tangent(x)
    close(m.geodesic(x, u), Sphere().geodesic(x, u))
    close(m.retract(x, u), Sphere().retract(x, u))
    for n in (2, 3, 5):
        y = Orthogonal().random_uniform((5, n, n), like=torch.empty(0, dtype=torch.float64))
        w = Orthogonal().random_tangent(y)
        close(m.geodesic(y, w), Orthogonal().geodesic(y, w), 1e-11)
        close(m.retract(y, w), Orthogonal().retract(y, w), 1e-11)
        close(m.project_tangent(y, w), w)


# ------------------------------------------------------------------------------------------------- steps


def motions(lead: int) -> list[Motion]:
    product = tuple(range(lead))
    return [
        Motion(0.1),
        Motion(0.1, geodesic=True),
        Motion(0.3, step_size="curvature"),
        Motion(0.3, step_size="curvature", product=product[1:], distance_bound=0.5),
        Motion(0.3, step_size="curvature", product=product, geodesic=True),
        Motion(0.3, factor=torch.tensor(3.0, dtype=torch.float64)),
    ]


LAYOUTS: dict[str, tuple[tuple[int, ...], Callable[[torch.Tensor], torch.Tensor]]] = {
    "few": ((2, 3), torch.Tensor.clone),
    "many": ((5, 8), torch.Tensor.clone),  # the ways of fast steps depend on the count of points, and on strides
    "points last": ((5, 8), lambda t: t.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)),
    "channels last": ((5, 8), lambda t: t.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)),
    "transposed": ((5, 8), lambda t: t.transpose(0, 1).contiguous().transpose(0, 1)),
    "in a larger tensor": ((5, 8), lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]]),
}


def check_step(m: Manifold, x: torch.Tensor, motion: Motion, laid: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """`move` is `_moves.move`: new point, momentum, R^2 and r."""
    lead = x.shape[:-2]
    d = laid(torch.randn_like(x))
    fast, slow, kept, other = laid(x), x.clone(), d.clone(), d.clone()
    moved, expected = m.move(fast, d, motion), move(m, slow, other, motion)
    close(fast, slow, 1e-11)
    close(d, other, 1e-14)
    assert torch.equal(d, kept) == (motion.grad is None)
    assert moved.fallbacks >= 0
    if motion.step_size == "curvature":
        close(moved.squared, expected.squared, 1e-12 * float(expected.squared.max()))
        close(moved.factor.expand(lead), expected.factor.expand(lead), 1e-12 * float(expected.factor.max()))
        assert float(moved.factor.min()) >= 1
    assert float(m.violation(fast).max()) <= m.bound(torch.float64, *x.shape[-2:])


@cases
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_is_that_of_the_reference(case: Case, layout: str) -> None:
    lead, laid = LAYOUTS[layout]
    for momentum in (False, True):
        for k, motion in enumerate(motions(2)):
            x = points(case, lead)
            if momentum:
                motion.grad, motion.decay, motion.gain = laid(torch.randn_like(x)), 0.9, (1.0 if k % 2 else 0.8)
            check_step(case[0], x, motion, laid)


@pytest.mark.parametrize("manifold", [Sphere(), Oblique(), ZeroMeanSphere()], ids=str)
@pytest.mark.parametrize("geodesic", [False, True])
def test_a_step_of_many_long_rows_is_that_of_the_reference(manifold: Manifold, geodesic: bool) -> None:
    shape = (1, 260, 2304) if isinstance(manifold, Oblique) else (1, 260, 1, 2304)
    x = manifold.random_uniform(shape, like=torch.empty(0, dtype=torch.float64))
    motion = Motion(0.01, "curvature", geodesic=geodesic, grad=torch.randn_like(x), decay=0.9)
    check_step(manifold, x, motion, torch.Tensor.clone)


@cases
def test_a_step_descends(case: Case) -> None:
    """Of the linear function <g, x>, by what the metric says."""
    m = case[0]
    x = points(case)
    g = torch.randn_like(x)
    y = x.clone()
    rate = 1e-5
    m.move(y, g.clone(), Motion(rate))
    v = m.gradient(x, g)
    close(((x - y) * g).sum((-2, -1)) / rate, m.inner(x, v, v), 1e-2)


@cases
@pytest.mark.parametrize("geodesic", [False, True])
def test_many_float32_steps_stay_on_the_manifold(case: Case, geodesic: bool) -> None:
    m, n, p = case
    x = m.random_uniform((20, n, p))
    d, g = torch.zeros_like(x), torch.randn(10, *x.shape)
    for k in range(200 if geodesic else 400):
        m.move(x, d, Motion(0.05, geodesic=geodesic, grad=g[k % 10], decay=0.9))
    assert float(m.violation(x).max()) <= m.bound(torch.float32, n, p)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [(Sphere(), 1, 27), (ZeroMeanSphere(), 1, 27), (Oblique(), 8, 27), (Oblique("slice"), 3, 3), (Orthogonal(), 3, 3)],
    ids=name_of,
)
@pytest.mark.parametrize("geodesic", [False, True])
def test_1e5_float32_steps(case: Case, geodesic: bool) -> None:
    m, n, p = case
    x = m.random_uniform((20, n, p))
    d, g = torch.zeros_like(x), torch.randn(16, *x.shape)
    for k in range(100_000):
        m.move(x, d, Motion(0.05, geodesic=geodesic, grad=g[k % 16], decay=0.9))
    assert float(m.violation(x).max()) < 1e-6


@pytest.mark.parametrize(
    "case",
    [
        (Sphere("kernel"), 1, 2_359_296),
        (ZeroMeanSphere("kernel", radius=40.0), 1, 2_359_296),
        (Oblique(by="column"), 512, 1152),
        (Oblique(), 128, 4608),
        (Stiefel(), 128, 1152),
        (Stiefel(retraction="qr"), 512, 128),
    ],
    ids=name_of,
)
def test_large_points_are_right_to_rounding(case: Case) -> None:
    """Sums of millions of float32 squares, one by one, would be wrong by 4e-5."""
    m, n, p = case
    x = m.project(torch.randn(n, p))
    v = 0.01 * m.random_tangent(x)
    d = torch.randn_like(x)
    y = x.clone()
    m.move(y, d, Motion(0.01, "curvature"))
    for point in (x, m.retract(x, v), y):
        assert float(m.violation(point).max()) <= m.bound(torch.float32, n, p)
    rounded = m.project(torch.randn(n, p).bfloat16())
    assert float(m.violation(rounded).max()) <= m.bound(torch.bfloat16, n, p)


def test_the_curvature_bound_of_each() -> None:
    assert Stiefel().lower_curvature(6, 3) == -0.5
    flat_below: list[tuple[Manifold, int, int]] = [
        (Stiefel(), 3, 3),
        (Stiefel(), 1, 9),
        (Stiefel(metric="canonical"), 6, 3),
        (Orthogonal(), 3, 3),
        (Sphere(), 1, 9),
        (Oblique(), 3, 9),
        (ZeroMeanSphere(), 1, 9),
        (Euclidean(), 1, 9),
    ]
    assert all(m.lower_curvature(n, p) == 0 for m, n, p in flat_below)


@pytest.mark.parametrize(("metric", "low", "high"), [("embedded", -0.5, 1.0), ("canonical", 0.0, 1.25)])
def test_sectional_curvatures_lie_between_the_bounds(metric: str, low: float, high: float) -> None:
    """By the defect of small geodesic circles: distance of two geodesics that leave x at a right angle.

    With |u| = |w| = 1 and <u, w> = 0: the length of the curve a -> exp(s(u cos a + w sin a)) of a whole turn is
    2 pi s (1 - K s^2 / 6 + ...).
    """
    m = Stiefel(metric=metric)  # type: ignore[arg-type]
    x = m.random_uniform((40, 5, 2), like=torch.empty(0, dtype=torch.float64))
    u, w = m.random_tangent(x), m.random_tangent(x)
    u = u / m.inner(x, u, u).sqrt()[:, None, None]
    w = w - m.inner(x, u, w)[:, None, None] * u
    w = w / m.inner(x, w, w).sqrt()[:, None, None]
    s, turn = 0.1, 24
    h = 1e-4
    length = torch.zeros(40, dtype=torch.float64)
    for k in range(turn):  # of a periodic function the trapezoidal rule is exact to rounding
        a = torch.tensor(2 * torch.pi * k / turn, dtype=torch.float64)
        y = m.geodesic(x, s * (u * a.cos() + w * a.sin()))
        before, after = (m.geodesic(x, s * (u * (a + e).cos() + w * (a + e).sin())) for e in (-h, h))
        along = (after - before) / (2 * h)
        length += m.inner(y, along, along).sqrt() * (2 * torch.pi / turn)
    curvature = 6 / s**2 * (1 - length / (2 * torch.pi * s))
    assert float(curvature.min()) > low - 0.02
    assert float(curvature.max()) < high + 0.02
    assert float(curvature.max() - curvature.min()) > 0.1


# ------------------------------------------------------------------------------------------------- as text


@cases
def test_text_reads_back(case: Case) -> None:
    assert parse(case[0].text()) == case[0]
    assert hash(parse(case[0].text())) == hash(case[0])


def test_oblique_says_by_what() -> None:
    assert Oblique() == Oblique("matrix", by="filter") == parse("oblique")
    assert Oblique("slice").text() == "oblique(slice, by=column)"
    assert Oblique("slice") != Oblique("matrix", by="column")
