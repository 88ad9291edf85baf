"""The mathematics of gradient metrics against a dense, loop-written reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightspace.errors import RuleError
from weightspace.kernels import Workspace
from weightspace.metrics import (
    ChannelL2,
    ChannelSobolev,
    GradientCentralization,
    LaplacianSmoothing,
    Layout,
    mean_energy,
    transform_gradient,
)
from weightspace.metrics._recurrence import decay, solve

SHAPES = [(8, 3, 3, 3), (5, 7, 1, 1), (16, 4, 5), (6, 2, 3, 3, 3), (12, 9), (130, 2, 3, 3), (97, 1, 2, 2)]


# --------------------------------------------------------------------------- the independent reference


def laplacian_matrix(length: int, boundary: str) -> torch.Tensor:
    """D^T D, entry by entry."""
    matrix = torch.zeros(length, length, dtype=torch.float64)
    edges = [(i, i + 1) for i in range(length - 1)] + ([(length - 1, 0)] if boundary == "periodic" else [])
    for a, b in edges:
        matrix[a, a] += 1
        matrix[b, b] += 1
        matrix[a, b] -= 1
        matrix[b, a] -= 1
    return matrix


def grid_laplacian(grid: tuple[int, ...], boundary: str) -> torch.Tensor:
    total = torch.zeros(1, 1, dtype=torch.float64)
    for size in grid:
        one = laplacian_matrix(size, boundary)
        total = torch.kron(total, torch.eye(size, dtype=torch.float64)) + torch.kron(
            torch.eye(total.shape[0], dtype=torch.float64), one
        )
    return total


def gram(metric: ChannelL2 | ChannelSobolev, length: int, grid: tuple[int, ...]) -> torch.Tensor:
    """The Gram matrix M of the metric along its axis: <h, k> = h^T M k."""
    identity = torch.eye(length, dtype=torch.float64)
    average = torch.full_like(identity, 1 / length)
    if isinstance(metric, ChannelL2):
        return average + metric.smoothing * (identity - average)
    stiff = grid_laplacian(grid, metric.boundary)
    if metric.order == "H1":
        return identity + metric.strength * stiff
    return average + metric.strength * length**2 * stiff


def along(tensor: torch.Tensor, axis: str) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Brings the axis to the front as (length, rest), by index arithmetic that knows nothing of views."""
    if axis == "out":
        return tensor.reshape(tensor.shape[0], -1), (tensor.shape[0],)
    if axis == "in":
        return tensor.transpose(0, 1).reshape(tensor.shape[1], -1), (tensor.shape[1],)
    taps = tuple(tensor.shape[2:])
    return tensor.reshape(-1, math.prod(taps)).T, taps


def along_back(matrix: torch.Tensor, like: torch.Tensor, axis: str) -> torch.Tensor:
    if axis == "out":
        return matrix.reshape(like.shape)
    if axis == "in":
        return matrix.reshape(like.shape[1], like.shape[0], *like.shape[2:]).transpose(0, 1)
    return matrix.T.reshape(like.shape)


CHANNEL_METRICS = [
    ChannelL2(smoothing=4.0),
    ChannelL2(smoothing=0.3),
    ChannelSobolev(smoothing=4.0),
    ChannelSobolev(smoothing=4.0, boundary="periodic"),
    ChannelSobolev(smoothing=1e-3),
    ChannelSobolev(smoothing=300.0),
    ChannelSobolev(smoothing=300.0, boundary="periodic"),
    ChannelSobolev(order="mean+derivative"),
    ChannelSobolev(order="mean+derivative", boundary="periodic"),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("axis", ["out", "in", "spatial"])
@pytest.mark.parametrize("metric", CHANNEL_METRICS, ids=str)
def test_closed_form_equals_dense_solve(metric, axis, shape):
    if axis == "spatial" and len(shape) == 2:
        pytest.skip("a matrix has no taps")
    metric = type(metric)(**{**metric.__dict__, "axis": axis})
    g = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows, grid = along(g, axis)
    expected = along_back(torch.linalg.solve(gram(metric, rows.shape[0], grid), rows), g, axis)
    got = transform_gradient(metric, g)
    assert (got - expected).abs().max() <= 1e-12 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("metric", CHANNEL_METRICS, ids=str)
def test_riesz_identity(metric):
    g, h = (torch.randn(70, 3, 3, 3, dtype=torch.float64) for _ in range(2))
    gradient = transform_gradient(metric, g)
    m = gram(metric, 70, (70,))
    inner = (gradient.flatten(1) * (m @ h.flatten(1))).sum()
    assert torch.isclose(inner, (g * h).sum(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("metric", CHANNEL_METRICS, ids=str)
def test_mean_over_channels_is_preserved_and_direction_descends(metric):
    g = torch.randn(67, 4, 3, 3, dtype=torch.float64)
    gradient = transform_gradient(metric, g)
    torch.testing.assert_close(gradient.mean(0), g.mean(0), rtol=1e-11, atol=1e-12)
    assert (gradient * g).sum() > 0


def test_identity_at_smoothing_one_and_zero():
    g = torch.randn(9, 4, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(transform_gradient(ChannelL2(smoothing=1.0), g), g)
    for boundary in ("neumann", "periodic"):
        near = transform_gradient(ChannelSobolev(smoothing=1e-14, boundary=boundary), g)
        torch.testing.assert_close(near, g, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [2, 7, 64, 65, 200])
@pytest.mark.parametrize("smoothing", [0.1, 4.0, 200.0])
def test_kernel_sums_to_one_and_matches_the_closed_form(length, smoothing):
    identity = torch.eye(length, dtype=torch.float64)
    kernel = transform_gradient(ChannelSobolev(smoothing=smoothing, boundary="periodic"), identity)
    torch.testing.assert_close(kernel.sum(0), torch.ones(length, dtype=torch.float64))
    r = (1 + 2 * smoothing - math.sqrt(1 + 4 * smoothing)) / (2 * smoothing)
    j = torch.arange(length, dtype=torch.float64)
    row = (r**j + r ** (length - j)) / ((1 - r**length) * math.sqrt(1 + 4 * smoothing))
    torch.testing.assert_close(kernel[:, 0], row, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(("strength", "is_nonnegative"), [(1 / 24 * 1.001, True), (1 / 24 * 0.97, False)])
def test_mean_plus_derivative_kernel_is_nonnegative_from_one_24th(strength, is_nonnegative):
    # The bound is that of the periodic continuum; 400 points are close to it.
    metric = ChannelSobolev(smoothing=strength, order="mean+derivative", boundary="periodic")
    kernel = transform_gradient(metric, torch.eye(400, dtype=torch.float64))
    assert (kernel.min() >= -1e-6) == is_nonnegative


def test_channel_l2_is_permutation_equivariant_and_sobolev_is_not():
    g = torch.randn(32, 3, 3, 3, dtype=torch.float64)
    order = torch.randperm(32)
    torch.testing.assert_close(transform_gradient(ChannelL2(), g[order]), transform_gradient(ChannelL2(), g)[order])
    sobolev = ChannelSobolev()
    assert not torch.allclose(transform_gradient(sobolev, g[order]), transform_gradient(sobolev, g)[order])


def test_permuted_sobolev_is_the_sobolev_metric_in_another_order():
    g = torch.randn(70, 3, dtype=torch.float64)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(5))
    expected = torch.empty_like(g)
    expected[order] = transform_gradient(ChannelSobolev(), g[order])
    torch.testing.assert_close(transform_gradient(ChannelSobolev(permutation_seed=5), g), expected)


def test_permuted_sobolev_has_the_same_statistics():
    g = torch.randn(64, 2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain, permuted = (transform_gradient(ChannelSobolev(permutation_seed=s), g).square().mean() for s in (None, 3))
    assert abs(float(plain / permuted) - 1) < 0.02


def test_shrinkage_follows_rho():
    g = torch.randn(32, 5, 3, 3, dtype=torch.float64) + 0.2
    lam = 10.0
    rho = float(mean_energy(g.reshape(1, 32, -1), 1))
    ratio = transform_gradient(ChannelL2(smoothing=lam), g).norm() / g.norm()
    assert math.isclose(float(ratio) ** 2, rho + (1 - rho) / lam**2, rel_tol=1e-12)
    white = torch.randn(32, 4000, dtype=torch.float64)
    assert abs(float(mean_energy(white[None], 1)) * 32 - 1) < 0.1  # rho ~ 1/channels


def test_softmax_head_has_zero_mean_and_becomes_g_over_lambda():
    head = torch.nn.Linear(6, 10).double()
    loss = torch.nn.functional.cross_entropy(head(torch.randn(20, 6, dtype=torch.float64)), torch.randint(10, (20,)))
    (g,) = torch.autograd.grad(loss, head.weight)
    assert g.mean(0).abs().max() < 1e-15
    torch.testing.assert_close(transform_gradient(ChannelL2(smoothing=4.0), g), g / 4.0)


def test_commutes_with_momentum():
    metric = ChannelSobolev()
    a, b = torch.randn(2, 20, 6, dtype=torch.float64)
    together = transform_gradient(metric, 0.9 * a + b)
    torch.testing.assert_close(together, 0.9 * transform_gradient(metric, a) + transform_gradient(metric, b))


def test_centralization_and_channel_metric_commute():
    g = torch.randn(16, 3, 3, 3, dtype=torch.float64)
    a = transform_gradient(GradientCentralization(), transform_gradient(ChannelL2(), g))
    b = transform_gradient(ChannelL2(), transform_gradient(GradientCentralization(), g))
    torch.testing.assert_close(a, b)


def test_centralization_removes_each_filters_mean():
    g = torch.randn(6, 3, 3, 3, dtype=torch.float64)
    expected = torch.stack([f - f.mean() for f in g])
    torch.testing.assert_close(transform_gradient(GradientCentralization(), g), expected)


@pytest.mark.parametrize("shape", [(2, 1), (3, 5), (4, 3, 3, 3)])
def test_laplacian_smoothing_equals_dense_solve(shape):
    g = torch.randn(shape, dtype=torch.float64)
    n = g.numel()
    dense = torch.eye(n, dtype=torch.float64) + 2.0 * laplacian_matrix(n, "periodic")
    if n == 2:  # the periodic sequence of two has each neighbor twice
        dense = torch.tensor([[5.0, -4.0], [-4.0, 5.0]], dtype=torch.float64)
    expected = torch.linalg.solve(dense, g.flatten()).view(shape)
    torch.testing.assert_close(transform_gradient(LaplacianSmoothing(smoothing=2.0), g), expected)


@given(
    length=st.integers(2, 300),
    smoothing=st.floats(1e-6, 1e6),
    boundary=st.sampled_from(["neumann", "periodic"]),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_recurrence_satisfies_its_equation(length, smoothing, boundary, seed):
    g = torch.randn(2, length, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = torch.empty_like(g)
    solve(g, smoothing, boundary, x)
    expected = torch.linalg.solve(
        torch.eye(length, dtype=torch.float64) + smoothing * laplacian_matrix(length, boundary), g
    )
    if length == 2 and boundary == "periodic":
        return  # both wrap-around edges coincide: covered by the kernel test
    assert (x - expected).abs().max() <= 1e-9 * max(1.0, float(expected.abs().max()))


def test_decay_is_accurate_for_small_smoothing():
    assert math.isclose(decay(1e-12), 1e-12, rel_tol=1e-9)  # the textbook form gives 0 or garbage here


@pytest.mark.parametrize("metric", [*CHANNEL_METRICS, GradientCentralization(), LaplacianSmoothing()], ids=str)
def test_keep_norm_keeps_the_norm_of_each_weight(metric):
    metric = type(metric)(**{**metric.__dict__, "keep_norm": True})
    blocks = torch.randn(2, 66, 9, dtype=torch.float64)
    blocks[1] *= 100
    out = torch.empty_like(blocks)
    if metric.view in ("filter", "kernel"):
        blocks = out = blocks.view(2, -1, 1) if metric.view == "kernel" else blocks.reshape(-1, 9, 1)
    before = blocks.reshape(2, -1).norm(dim=1)
    metric.apply(blocks, out, Layout(2, (blocks.shape[1],)), Workspace())
    torch.testing.assert_close(out.reshape(2, -1).norm(dim=1), before)


def test_zero_gradient_stays_zero_with_keep_norm():
    for metric in (ChannelL2(keep_norm=True), ChannelSobolev(keep_norm=True)):
        assert transform_gradient(metric, torch.zeros(4, 3, 3, 3)).eq(0).all()


@pytest.mark.parametrize("metric", [*CHANNEL_METRICS, GradientCentralization(), LaplacianSmoothing()], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(metric, dtype):
    g = torch.randn(40, 3, 3, 3).to(dtype)
    got = transform_gradient(metric, g)
    expected = transform_gradient(metric, g.float()).to(dtype)
    assert got.dtype == dtype
    assert torch.equal(got, expected)


@pytest.mark.parametrize("axis", ["out", "in", "spatial"])
@pytest.mark.parametrize("metric", [ChannelL2(), ChannelSobolev(), ChannelSobolev(order="mean+derivative")], ids=str)
def test_channels_last_gives_the_same_answer_and_keeps_strides(metric, axis):
    metric = type(metric)(**{**metric.__dict__, "axis": axis})
    g = torch.randn(70, 6, 3, 3, dtype=torch.float64)
    last = g.to(memory_format=torch.channels_last)
    got = transform_gradient(metric, last)
    assert got.stride() == last.stride()
    torch.testing.assert_close(got, transform_gradient(metric, g))


@pytest.mark.parametrize("metric", [*CHANNEL_METRICS, GradientCentralization(), LaplacianSmoothing()], ids=str)
def test_any_non_finite_entry_reaches_the_witness(metric):
    for place in [(0, 0), (69, 5), (33, 3)]:
        for bad in (math.nan, math.inf):
            g = torch.randn(70, 6)
            g[place] = bad
            view = (70, 6, 1) if metric.view == "filter" else (1, 420, 1) if metric.view == "kernel" else (1, 70, 6)
            out = torch.empty(view)
            metric.apply(g.view(view), out, Layout(1, (view[1],)), Workspace())
            assert not out[:, 0].sum().isfinite()


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "4", True])
@pytest.mark.parametrize("rule", [ChannelL2, ChannelSobolev, LaplacianSmoothing])
def test_smoothing_must_be_a_positive_number(rule, value):
    with pytest.raises(RuleError, match="smoothing="):
        rule(smoothing=value)


def test_unknown_options_are_named():
    with pytest.raises(RuleError, match="'out', 'in', 'spatial'"):
        ChannelL2(axis="channels")
    with pytest.raises(RuleError, match="mean\\+derivative"):
        ChannelSobolev(order="H2")
    with pytest.raises(RuleError, match="periodic"):
        ChannelSobolev(boundary="dirichlet")
    with pytest.raises(RuleError, match="2 to 5 dimensions"):
        transform_gradient(ChannelL2(), torch.ones(3))


def test_rules_have_value_equality_and_read_back():
    a, b = ChannelL2(smoothing=2.0), ChannelL2(smoothing=2.0)
    assert a == b
    assert hash(a) == hash(b)
    assert str(a) == "ChannelL2(smoothing=2.0)"
    assert eval(repr(ChannelSobolev()), {"ChannelSobolev": ChannelSobolev}) == ChannelSobolev()


def test_keep_norm_does_not_blow_up_rounding_noise():
    constant = torch.full((4, 3, 3, 3), 0.1)
    constant[1] = 0.3
    assert transform_gradient(GradientCentralization(keep_norm=True), constant).norm() < 1e-5


def test_spatial_sobolev_has_no_permuted_control():
    with pytest.raises(RuleError, match="taps are a grid"):
        ChannelSobolev(axis="spatial", permutation_seed=1)
