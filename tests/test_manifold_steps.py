"""Fast in-place steps on vectors of one norm and on small points: alike the reference, on the manifold, in any layout."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from weightspace.kernels.points import Channels, point_view
from weightspace.manifolds import Manifold, Oblique, Orthogonal, Sphere, Stiefel, ZeroMeanSphere, _row_blocks, _slices
from weightspace.manifolds._moves import Motion, Moved, curvature_factor, move
from weightspace.manifolds._slices import own_factor, root_
from weightspace.manifolds._small_rotations import closed_form

SLICES = (1, 5, 7, 3, 3)
SQUARES = (1, 5, 7, 2, 2)
FILTERS = (2, 10, 1, 75)
WHOLE = torch.empty(0, dtype=torch.float64)

CASES: list[tuple[Manifold, tuple[int, ...]]] = [
    (Sphere("slice"), SLICES),
    (Sphere("slice", radius=2.5), SQUARES),
    (ZeroMeanSphere("slice", radius=0.5), SLICES),
    (Oblique("slice"), SLICES),
    (Oblique("slice"), (1, 5, 7, 2, 5)),
    (Sphere("filter", radius=2.5), FILTERS),
    (Sphere("filter"), (1, 40, 1, 9)),
    (Sphere("matrix"), (2, 10, 75)),
    (Sphere("kernel"), (1, 1, 40_000)),
    (ZeroMeanSphere("filter"), FILTERS),
    (Oblique(), (2, 10, 75)),
    (Oblique(by="column"), (2, 10, 75)),
    (Stiefel("slice"), (1, 9, 8, 1, 5)),
    *[
        (Stiefel("slice", retraction=retraction, metric=metric), shape)
        for retraction, metric in itertools.product(("polar", "qr"), ("embedded", "canonical"))
        for shape in (SLICES, SQUARES)
    ],
    (Orthogonal(), SLICES),
    (Orthogonal(), SQUARES),
]
MOTIONS = list(itertools.product(("plain", "curvature"), (False, True), (None, 1.0, 0.4)))


def name_of(case: tuple[Manifold, tuple[int, ...]]) -> str:
    return f"{case[0].text()}-{'x'.join(map(str, case[1]))}"


def random(shape: tuple[int, ...], scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(shape, dtype=torch.float64)


def compare(manifold: Manifold, x: torch.Tensor, d: torch.Tensor, motion: Motion, tolerance: float = 1e-12) -> Moved:
    """The fast step and the reference's, from the same point; returns what the fast one found."""
    slow_x, slow_d = x.clone(), d.clone()
    slow = move(manifold, slow_x, slow_d, replace(motion))
    fast = manifold.move(x, d, motion)
    torch.testing.assert_close(x, slow_x, rtol=0, atol=tolerance)
    torch.testing.assert_close(d, slow_d, rtol=0, atol=tolerance)
    assert (fast.squared is None) == (slow.squared is None)
    assert (fast.factor is None) == (slow.factor is None)
    if slow.squared is not None and fast.squared is not None:
        torch.testing.assert_close(fast.squared, slow.squared, rtol=1e-10, atol=1e-12)
    if slow.factor is not None and fast.factor is not None:
        torch.testing.assert_close(fast.factor, slow.factor, rtol=1e-10, atol=0)
    return fast


@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.parametrize(("step_size", "geodesic", "gain"), MOTIONS)
def test_the_fast_step_is_the_reference_s(case, step_size, geodesic, gain):
    manifold, shape = case
    torch.manual_seed(0)
    x = manifold.random_uniform(shape, like=WHOLE)
    grad = None if gain is None else random(shape, 0.3)
    motion = Motion(0.7, step_size, geodesic=geodesic, grad=grad, decay=0.8, gain=gain or 1.0, distance_bound=0.5)
    compare(manifold, x, random(shape, 0.3), motion)


@pytest.mark.parametrize("product", [(2,), (1,), (0, 1, 2)])
@pytest.mark.parametrize("manifold", [Sphere("slice"), ZeroMeanSphere("slice"), Oblique("slice"), Stiefel("slice")])
def test_products_share_their_step_size(manifold, product):
    torch.manual_seed(0)
    x = manifold.random_uniform(SLICES, like=WHOLE)
    motion = Motion(0.7, "curvature", product=product, grad=random(SLICES), decay=0.8)
    compare(manifold, x, random(SLICES), motion)


@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.parametrize("shape", ["one", "groups", "points"])
def test_a_given_factor_is_taken(case, shape):
    manifold, points = case
    torch.manual_seed(0)
    lead = points[:-2]
    factor = {
        "one": torch.tensor(1.7),
        "groups": torch.rand(lead[0], *[1] * (len(lead) - 1)),
        "points": torch.rand(lead),
    }
    motion = Motion(0.7, "curvature", factor=factor[shape].double() + 1)
    compare(manifold, manifold.random_uniform(points, like=WHOLE), random(points), motion)


@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.parametrize("step_size", ["plain", "curvature"])
def test_blocks_do_not_show(case, step_size, monkeypatch):
    manifold, shape = case
    torch.manual_seed(0)
    x, d, grad = manifold.random_uniform(shape, like=WHOLE), random(shape), random(shape)
    motion = Motion(0.7, step_size, grad=grad, decay=0.8)
    whole_x, whole_d = x.clone(), d.clone()
    manifold.move(whole_x, whole_d, motion)
    monkeypatch.setattr(_slices, "BLOCK", 8)
    monkeypatch.setattr(_row_blocks, "BLOCK", 4 * shape[-1] - 1)
    compare(manifold, x, d, motion)
    torch.testing.assert_close(x, whole_x, rtol=0, atol=1e-14)
    torch.testing.assert_close(d, whole_d, rtol=0, atol=0)


@pytest.mark.parametrize("manifold", [Sphere("slice"), Oblique("slice"), Orthogonal(), Sphere("filter"), Oblique()])
@pytest.mark.parametrize("layout", ["channels_last", "transposed", "groups", "other strides of d"])
def test_any_layout(manifold, layout):
    torch.manual_seed(0)
    memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    channels = Channels(1 if layout == "transposed" else 0, 2 if layout == "groups" else 1)
    weight = random((12, 8, 3, 3)).to(memory_format=memory)
    view = point_view(weight, manifold.grouping, channels)
    at = view.read(weight)
    at.copy_(manifold.project(at))
    d, grad = (view.read(random((12, 8, 3, 3)).to(memory_format=memory)) for _ in range(2))
    if layout == "other strides of d":
        d, grad = (t.transpose(-1, -3).contiguous().transpose(-1, -3) for t in (d, grad))
    for step_size in ("plain", "curvature"):
        compare(manifold, at, d, Motion(0.7, step_size, grad=grad, decay=0.8))


@pytest.mark.parametrize("manifold", [Sphere("slice"), Stiefel("slice"), Sphere("filter"), Oblique()])
def test_the_number_of_threads_does_not_show(manifold):
    shape = (1, 70, 60, 3, 3) if manifold.grouping == "slice" else (1, 40, 1, 900)
    shape = (1, 40, 900) if manifold.grouping == "matrix" else shape
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        x = manifold.random_uniform(shape, like=WHOLE)
        manifold.move(x, random(shape), Motion(0.7, "curvature"))
        results.append(x)
    torch.set_num_threads(before)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-14)


@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.parametrize("rate", [1e-12, 1e3, 1e12])
def test_tiny_and_huge_steps_stay_on_the_manifold(case, rate):
    manifold, shape = case
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        x = manifold.random_uniform(shape, like=torch.empty(0, dtype=dtype))
        before = torch.linalg.det(x) if isinstance(manifold, Orthogonal) else None
        manifold.move(x, random(shape).to(dtype), Motion(rate))
        assert float(manifold.violation(x).max()) <= manifold.bound(dtype, *shape[-2:])
        if before is not None:
            assert torch.equal(torch.linalg.det(x).sign(), before.sign())


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_step_far_off_or_on_zeros_ends_on_the_manifold(case):
    manifold, shape = case
    torch.manual_seed(0)
    x = manifold.random_uniform(shape).mul_(3)
    x.view(-1, *shape[-2:])[0].zero_()
    manifold.move(x, torch.zeros(shape), Motion(0.1))
    assert float(manifold.violation(x).max()) <= manifold.bound(torch.float32, *shape[-2:])


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_nan_stays_where_it_is(case):
    manifold, shape = case
    torch.manual_seed(0)
    x, d = manifold.random_uniform(shape), torch.randn(shape)
    d.view(-1)[0] = torch.nan
    manifold.move(x, d, Motion(0.1, "plain"))
    is_broken = manifold.violation(x).isnan().flatten()
    assert is_broken[0]
    assert not is_broken[1:].any()


@pytest.mark.parametrize("manifold", [Sphere("slice"), Oblique("slice"), Stiefel("slice")])
def test_a_huge_gradient_in_one_point_leaves_the_others_alone(manifold):
    torch.manual_seed(0)
    x, d = manifold.random_uniform((1, 6, 6, 3, 3)), torch.randn(1, 6, 6, 3, 3)
    d[0, 0, 0] *= 1e18
    expected = x[0, 1:].clone()
    manifold.move(expected, d[0, 1:].clone(), Motion(0.1))
    manifold.move(x, d, Motion(0.1))
    assert float(manifold.violation(x).max()) <= manifold.bound(torch.float32, 3, 3)
    torch.testing.assert_close(x[0, 1:], expected, rtol=0, atol=1e-6)


def many_steps(manifold: Manifold, shape: tuple[int, ...], count: int) -> float:
    """The largest violation after so many steps with momentum, against gradients that change all the time."""
    torch.manual_seed(0)
    x, d = manifold.random_uniform(shape), torch.zeros(shape)
    grads = [0.1 * torch.randn(shape) for _ in range(7)]
    motion = Motion(0.05, "curvature", decay=0.9)
    for k in range(count):
        manifold.move(x, d, replace(motion, grad=grads[k % 7], step_size="plain" if k % 2 else "curvature"))
    return float(manifold.violation(x).max())


LONG_RUNS: list[tuple[Manifold, tuple[int, ...]]] = [
    (Sphere("slice"), (1, 6, 4, 3, 3)),
    (ZeroMeanSphere("slice"), (1, 6, 4, 3, 3)),
    (Oblique("slice"), (1, 6, 4, 3, 3)),
    (Stiefel("slice"), (1, 6, 4, 3, 3)),
    (Stiefel("slice", retraction="qr"), (1, 6, 4, 3, 3)),
    (Orthogonal(), (1, 6, 4, 2, 2)),
    (Sphere("filter"), (1, 6, 1, 90)),
    (ZeroMeanSphere("filter"), (1, 6, 1, 90)),
    (Oblique(), (1, 6, 90)),
]


@pytest.mark.parametrize("case", LONG_RUNS, ids=name_of)
def test_two_thousand_steps_stay_on_the_manifold(case):
    assert many_steps(*case, 2_000) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("case", LONG_RUNS, ids=name_of)
def test_a_hundred_thousand_steps_stay_on_the_manifold(case):
    assert many_steps(*case, 100_000) < 1e-6


@pytest.mark.parametrize("length", [9, 576, 4608, 20_000, 40_000])
def test_float32_rows_have_their_norm(length):
    x = Sphere("filter").random_uniform((1, 20, 1, length))
    Sphere("filter").move(x, torch.randn(x.shape), Motion(0.3))
    assert float(Sphere("filter").violation(x).max()) < 5e-7


def test_the_closed_form_of_polar_is_not_cayley():
    """A quarter turn of the tangent vector: polar turns by arctan, Cayley by 2 arctan of the half, the geodesic by all."""
    generator = torch.zeros(1, 4, 4, 3, 3, dtype=torch.float64)
    generator[..., 0, 1], generator[..., 1, 0] = -1.0, 1.0
    for geodesic, angle in ((False, torch.tensor(0.5).atan()), (True, torch.tensor(0.5))):
        x = torch.eye(3, dtype=torch.float64).expand(1, 4, 4, 3, 3).clone()
        Stiefel("slice").move(x, -generator.clone(), Motion(0.5, geodesic=geodesic))
        torch.testing.assert_close(x[0, 0, 0, 1, 0], angle.double().sin(), rtol=0, atol=1e-7)


def test_closed_forms_are_for_many_square_points_only():
    assert closed_form(torch.zeros(1, 4, 4, 3, 3), "polar") is not None
    assert closed_form(torch.zeros(1, 1, 4, 3, 3), "polar") is None
    assert closed_form(torch.zeros(1, 4, 4, 5, 5), "polar") is None
    assert closed_form(torch.zeros(1, 4, 4, 2, 3), "polar") is None


def test_one_step_reports_slack_of_a_fresh_correction():
    manifold = Stiefel("slice", every=4)
    moved = manifold.move(manifold.random_uniform((1, 6, 6, 3, 3)), torch.randn(1, 6, 6, 3, 3), Motion(0.1))
    assert moved.slack is not None
    assert float(moved.slack[0]) < 1e-6
    assert float(moved.slack[1]) == 0


def test_roots_and_factors_at_their_ends():
    values = torch.tensor([0.0, 4.0, torch.inf])
    assert root_(values.clone()).tolist() == [0.0, 2.0, torch.inf]
    squared = torch.tensor([0.0, 0.04, 1.0, 9.0])
    out = torch.empty(4)
    own_factor(squared, 1.0, out)
    torch.testing.assert_close(out, curvature_factor(squared, 1.0, 0.0))
