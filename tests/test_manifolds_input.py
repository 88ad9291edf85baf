"""Manifolds and what should not be given to them: any scale, no rank, NaN, wrong options, texts from anywhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manifold_cases import CASES, Case, name_of, points
from weightspace.errors import RuleError, SelectionError
from weightspace.kernels.points import Channels
from weightspace.manifolds import Euclidean, Manifold, Oblique, Orthogonal, Sphere, Stiefel, ZeroMeanSphere, parse
from weightspace.manifolds._moves import Motion

cases = pytest.mark.parametrize("case", CASES, ids=name_of)
SCALES = [3e38, 1e30, 1e19, 1e-19, 1e-30, 1e-42]


def within(m: Manifold, x: torch.Tensor) -> bool:
    return bool((m.violation(x) <= m.bound(x.dtype, *x.shape[-2:])).all())


@cases
@pytest.mark.parametrize("scale", SCALES)
def test_any_finite_input_projects(case: Case, scale: float) -> None:
    m, n, p = case
    x = scale * (torch.rand(20, n, p) * 2 - 1)
    y = m.project(x)
    assert within(m, y)
    if scale >= 1e-30:
        unscaled = torch.rand(20, n, p) * 2 - 1
        big = m.project((unscaled * scale).double())
        expected = m.project(unscaled.double()) if not isinstance(m, Euclidean) else (unscaled * scale).double()
        assert float((big / expected - 1).abs().median()) < 1e-3


@cases
@pytest.mark.parametrize("size", [1e-30, 1e3, 1e12, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_any_step_ends_on_the_manifold(case: Case, size: float, dtype: torch.dtype) -> None:
    m, n, p = case
    x = m.random_uniform((20, n, p), like=torch.empty(0, dtype=dtype))
    v = m.random_tangent(x) * size
    for y in (m.retract(x, v), m.geodesic(x, v), m.geodesic(x, v, -3.0)):
        assert within(m, y)
    if isinstance(m, Orthogonal):
        assert torch.equal(torch.linalg.det(m.retract(x, v)) > 0, torch.linalg.det(x) > 0)
        assert torch.equal(torch.linalg.det(m.geodesic(x, v)) > 0, torch.linalg.det(x) > 0)
    if size > 1e-20:
        for motion in (
            Motion(1.0),
            Motion(1.0, geodesic=True),
            Motion(1.0, "curvature"),
            Motion(1.0, "curvature", geodesic=True),
        ):
            y = x.clone()
            m.move(y, torch.randn_like(x) * min(size, 1e18), motion)
            assert within(m, y)


@cases
def test_points_without_direction_go_to_a_fixed_one(case: Case) -> None:
    m, n, p = case
    x = torch.zeros(4, n, p)
    x[1] = 1.0  # constant, and of rank one
    x[2, 0, 0] = 1.0
    if n > 1:
        x[3, -1] = 2.0
    y = m.project(x)
    assert y.isfinite().all()
    assert within(m, y)
    assert torch.equal(y, m.project(x))
    assert within(m, m.project(1e20 * x))


@cases
def test_nan_and_infinity_stay_in_their_point(case: Case) -> None:
    m = case[0]
    x = points(case, (4,)).float()
    v = m.random_tangent(x)
    for bad in (torch.nan, torch.inf):
        broken = x.clone()
        broken[2, -1, -1] = bad
        rest = [0, 1, 3]
        for got, expected in (
            (m.project(broken), m.project(x)),
            (m.retract(broken, v), m.retract(x, v)),
            (m.geodesic(broken, v), m.geodesic(x, v)),
            (m.transport(broken, v, v), m.transport(x, v, v)),
        ):
            assert torch.allclose(got[rest], expected[rest], atol=1e-5)
            assert isinstance(m, Euclidean) or not got[2].isfinite().all()
        assert m.violation(broken)[2].isnan() or m.violation(broken)[2].isinf()
        if bad is torch.nan:
            assert m.violation(broken)[2].isnan()
        assert m.violation(broken)[rest].isfinite().all()
        if not isinstance(m, Stiefel):
            assert m.distance(x, x.roll(1, 0)).shape == (4,)
            assert m.distance(broken, x)[rest].isfinite().all()


def test_a_point_far_off_is_measured() -> None:
    off = 1.5 * torch.eye(3).expand(4, 3, 3)
    for m in (Stiefel("slice"), Orthogonal(), Oblique("slice"), Sphere("slice", radius=3**0.5)):
        assert m.violation(off).tolist() == pytest.approx([0.5] * 4)
    assert ZeroMeanSphere("slice").violation(torch.ones(3, 3) / 3).item() == pytest.approx(1.0)
    assert Euclidean().violation(off).tolist() == [0.0] * 4


# ------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Sphere(radius=0.0), "Sphere got radius=0.0; it must be a finite number above 0"),
        (lambda: ZeroMeanSphere(radius=float("nan")), "ZeroMeanSphere got radius=nan"),
        (lambda: Sphere("rows"), "Sphere got grouping='rows'; choose one of 'slice', 'filter'"),
        (lambda: Oblique("filter"), "Oblique got grouping='filter'; choose one of 'matrix', 'slice'"),
        (lambda: Oblique(by="row"), "Oblique got by='row'; choose one of 'filter', 'column'"),
        (lambda: Oblique("slice", by="filter"), "whose rows are rows of pixels; use by='column', or grouping='matrix'"),
        (lambda: Stiefel("filter"), r"Stiefel got grouping='filter', whose points are vectors; use Sphere\('filter'\)"),
        (lambda: Stiefel("kernel"), r"use Sphere\('kernel'\)"),
        (lambda: Stiefel("rows"), "Stiefel got grouping='rows'; choose one of 'matrix'"),
        (lambda: Orthogonal("filter"), r"Orthogonal got grouping='filter', whose points are vectors; use Sphere"),
        (lambda: Stiefel(retraction="cayley"), "Stiefel got retraction='cayley'; choose one of 'polar', 'qr'"),
        (lambda: Stiefel(metric="euclidean"), "Stiefel got metric='euclidean'; choose one of 'embedded', 'canonical'"),
        (lambda: Stiefel(tolerance=0), "Stiefel got tolerance=0"),
        (lambda: Stiefel(tolerance=0.5), "Stiefel got tolerance=0.5; it must be at most 0.1"),
        (lambda: Stiefel(every=0), "Stiefel got every=0; it must be a whole number of at least 1"),
        (lambda: parse("stiefel(matrix, retraction=cayley)"), "choose one of 'polar', 'qr'"),
        (lambda: parse("stiefle"), "There is no manifold 'stiefle'.*nearest is 'stiefel'"),
        (lambda: parse("sphere(radios=2)"), "Sphere has no option 'radios'"),
        (lambda: parse("sphere(filter"), "cannot be read"),
        (lambda: parse("sphere(filter, 1.0, 2, 3)"), "cannot be read"),
        (lambda: parse("print('x')"), "There is no manifold 'print'"),
        (lambda: parse("__import__('os').system('true')"), "write it as 'sphere"),
        (lambda: parse(None), "reads a manifold from text"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_option_is_one_sentence(make, sentence: str) -> None:
    with pytest.raises(RuleError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("m", "shape", "sentence"),
    [
        (Orthogonal("matrix"), (4, 2, 3, 3), "orthogonal matrices are square; use Stiefel"),
        (Orthogonal("slice"), (4, 2, 3, 1), "use Stiefel"),
        (Orthogonal("slice"), (4, 2, 1, 1), "1x1 kernel"),
        (Stiefel("matrix"), (1, 1, 1, 1), r"a single number on it is \+1 or -1"),
        (Sphere(), (4, 1, 1, 1), r"a single number on a sphere is \+r or -r"),
        (ZeroMeanSphere(), (4, 2, 1, 1), "fewer than three numbers"),
        (Oblique(), (4, 1, 1, 1), "each row is a single number"),
        (Oblique("slice"), (4, 2, 3), "each column is a single number"),
    ],
)
def test_degenerate_points_are_refused_with_a_reason(m: Manifold, shape: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(SelectionError, match=sentence):
        m.points_of(torch.zeros(shape), Channels(), "layer1.weight")


# ------------------------------------------------------------------------------------------------- properties

sizes = st.integers(1, 6)
kinds = st.sampled_from(
    [
        Euclidean(),
        Sphere(radius=0.3),
        ZeroMeanSphere(),
        Oblique(),
        Oblique(by="column"),
        Stiefel(),
        Stiefel(retraction="qr", metric="canonical"),
        Orthogonal(),
    ]
)


@settings(max_examples=150, deadline=None)
@given(kinds, sizes, sizes, st.integers(0, 3), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 2**31))
def test_random_shapes_scales_and_ranks(m: Manifold, n: int, p: int, rank: int, dtype: torch.dtype, seed: int) -> None:
    p = n if isinstance(m, Orthogonal) else p
    if m.degenerate(n, p) is not None:
        return
    torch.manual_seed(seed)
    scale = 10.0 ** torch.randint(-15, 16, ()).item()
    x = scale * (torch.randn(3, n, rank, dtype=dtype) @ torch.randn(3, rank, p, dtype=dtype))
    y = m.project(x)
    assert within(m, y)
    v = m.random_tangent(y) * 10.0 ** torch.randint(-3, 4, ()).item()
    assert within(m, m.retract(y, v))
    assert within(m, m.geodesic(y, v))
    eps = torch.finfo(dtype).eps
    carried = m.transport(y, v, v)
    again = m.project_tangent(m.retract(y, v), carried)
    assert float((again - carried).abs().max()) <= 100 * eps * float(v.abs().max())
    assert 0 <= m.dim(n, p) <= n * p
    assert m.lower_curvature(n, p) <= 0


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40) | st.from_regex(r"(sphere|stiefel|oblique)\([a-z0-9=,. ()*-]{0,20}\)?", fullmatch=True))
def test_any_text_is_a_manifold_or_a_sentence(text: str) -> None:
    try:
        m = parse(text)
    except RuleError as error:
        sentence = str(error)
    else:
        sentence = "."
        assert parse(m.text()) == m
    assert sentence.endswith(".")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["matrix", "slice", "input", "output", "both"]),
    st.sampled_from(["polar", "qr"]),
    st.sampled_from(["embedded", "canonical"]),
    st.none() | st.floats(1e-9, 0.1),
    st.integers(1, 1000),
)
def test_text_keeps_every_option(grouping, retraction, metric, tolerance, every) -> None:
    m = Stiefel(grouping, retraction, metric, tolerance, every)
    assert parse(m.text()) == m
    assert parse(f" {m.text()} ") == m
    sphere = Sphere("slice", radius=tolerance or 1.0)
    assert parse(sphere.text()) == sphere


def test_the_tolerance_is_part_of_the_bound() -> None:
    assert Stiefel(tolerance=1e-3).bound(torch.float32, 9, 3) == pytest.approx(
        1e-3 + Stiefel().bound(torch.float32, 9, 3)
    )
    assert Stiefel().bound(torch.bfloat16, 9, 4) == pytest.approx(2 * 2**-8, rel=1e-3)
    assert Stiefel().bound(torch.float64, 9, 4) <= 1e-12
