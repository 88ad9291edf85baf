"""The mathematics of gradient metrics against a dense, loop-written reference."""

from __future__ import annotations

import gc
import math
import weakref

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from weightspace.errors import RuleError
from weightspace.kernels import Workspace
from weightspace.metrics import (
    ChannelL2,
    ChannelSobolev,
    GradientCentralization,
    LaplacianSmoothing,
    Layout,
    channel_sobolev,
    mean_energy,
    transform_gradient,
)
from weightspace.metrics._constants import rate
from weightspace.metrics._recurrence import solve

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


AXES_OF_SHAPES = [(axis, shape) for shape in SHAPES for axis in (("out", "in", "spatial")[: len(shape)])]


@pytest.mark.parametrize(("axis", "shape"), AXES_OF_SHAPES, ids=str)
@pytest.mark.parametrize("metric", CHANNEL_METRICS, ids=str)
def test_closed_form_equals_dense_solve(metric, axis, shape):
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


LENGTHS = [1, 2, 3, 31, 32, 63, 64, 65, 95, 96, 97, 128, 700, 2080]  # around a block, a dense solve, a chunk of blocks


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("smoothing", [1e-15, 1e-3, 1.0, 3.0, 1e3, 1e8])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_laplacian_smoothing_equals_dense_solve(length, smoothing, dtype, tolerance):
    g = torch.randn(1, length, dtype=dtype)
    dense = torch.eye(length, dtype=torch.float64) + smoothing * laplacian_matrix(length, "periodic")
    # Solved for the deviation from the mean, which passes unchanged: the whole system is nearly singular at 1e8.
    mean = g.double().mean()
    expected = mean + torch.linalg.solve(dense, (g.double() - mean).flatten())
    got = transform_gradient(LaplacianSmoothing(smoothing=smoothing), g).flatten().double()
    assert (got - expected).abs().max() <= tolerance * max(1.0, float(g.abs().max())) * max(1.0, smoothing * 1e-7)


@pytest.mark.parametrize("length", [40, 70, 5_000, 140_001])  # dense, and one to three levels of carries
@pytest.mark.parametrize("smoothing", [1.0, 1e7, 1e15])
def test_laplacian_smoothing_equals_the_spectral_form(length, smoothing):
    g = torch.randn(length, 1, dtype=torch.float64)
    angle = torch.arange(length // 2 + 1, dtype=torch.float64) * (math.pi / length)
    spectrum = torch.fft.rfft(g.flatten()) / (1 + 4 * smoothing * angle.sin().square())
    expected = torch.fft.irfft(spectrum, n=length)
    got = transform_gradient(LaplacianSmoothing(smoothing=smoothing), g).flatten()
    assert (got - expected).abs().max() <= 1e-13


@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 300),
    inner=st.sampled_from([1, 2, 9, 40]),
    smoothing=st.floats(1e-6, 1e6),
    boundary=st.sampled_from(["neumann", "periodic"]),
    in_place=st.booleans(),
    seed=st.integers(0, 9),
)
@example(batch=1, length=2, inner=3, smoothing=1.0, boundary="periodic", in_place=False, seed=0)
@example(batch=2, length=2080, inner=1, smoothing=30.0, boundary="neumann", in_place=True, seed=0)
@settings(max_examples=80, deadline=None)
def test_recurrence_satisfies_its_equation(batch, length, inner, smoothing, boundary, in_place, seed):
    g = torch.randn(batch, length, inner, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = torch.linalg.solve(
        torch.eye(length, dtype=torch.float64) + smoothing * laplacian_matrix(length, boundary), g
    )
    x = g if in_place else torch.empty_like(g)
    solve(g, smoothing, boundary, x, Workspace())
    assert (x - expected).abs().max() <= 1e-9 * max(1.0, float(expected.abs().max()))


def test_strided_blocks_are_solved_like_contiguous_ones():
    g = torch.randn(2, 96, 80, dtype=torch.float64)
    x, expected = torch.empty(96, 2, 80, dtype=torch.float64).transpose(0, 1), torch.empty_like(g)
    solve(g, 4.0, "neumann", expected, Workspace())
    solve(g.transpose(1, 2).contiguous().transpose(1, 2), 4.0, "neumann", x, Workspace())
    torch.testing.assert_close(x, expected)


def test_rate_is_accurate_for_small_and_large_smoothing():
    # The textbook form of the decay gives 0 or garbage at the first, exactly 1 at the last.
    assert math.isclose(math.exp(-rate(1e-12)), 1e-12, rel_tol=1e-9)
    assert math.isclose(rate(1e30), 1e-15, rel_tol=1e-12)


# --------------------------------------------------------------------------- memory and devices

ALL_METRICS = [
    ChannelL2(),
    ChannelSobolev(),
    ChannelSobolev(boundary="periodic", axis="in"),
    ChannelSobolev(axis="spatial"),
    ChannelSobolev(permutation_seed=3),
    ChannelSobolev(order="mean+derivative"),
    ChannelSobolev(order="mean+derivative", axis="spatial"),
    GradientCentralization(),
    LaplacianSmoothing(),
]


def block_of(metric, channels=96):
    """A block of `(channels, 8, 3, 3)` as `metric` sees it, and its layout."""
    length, inner, grid = {
        "out": (channels, 72, (channels,)),
        "in": (8, 9, (8,)),
        "spatial": (9, 1, (3, 3)),
        "filter": (72, 1, (72,)),
        "kernel": (channels * 72, 1, (channels, 8, 3, 3)),
    }[metric.view]
    return torch.randn(channels * 72 // (length * inner), length, inner), Layout(1, grid)


@pytest.mark.parametrize("metric", ALL_METRICS, ids=str)
def test_nothing_outlives_the_workspace(metric):
    block, layout = block_of(metric)
    gc.collect()
    before = {id(t) for t in gc.get_objects() if type(t) is torch.Tensor}
    work = Workspace()
    out = torch.empty_like(block)
    metric.apply(block, out, layout, work)
    held = [
        weakref.ref(t) for t in gc.get_objects() if type(t) is torch.Tensor and id(t) not in before and t is not out
    ]
    assert held
    del metric
    work.clear()
    gc.collect()
    assert not [t for ref in held if (t := ref()) is not None]


@pytest.mark.parametrize("metric", ALL_METRICS, ids=str)
def test_a_second_step_allocates_no_buffer_and_no_constant(metric):
    block, layout = block_of(metric)
    work, out = Workspace(), torch.empty_like(block)
    metric.apply(block, out, layout, work)
    first = {key: tensor.data_ptr() for key, tensor in work._buffers.items()}
    metric.apply(block, out, layout, work)
    assert {key: tensor.data_ptr() for key, tensor in work._buffers.items()} == first


class LargestAllocation(torch.utils._python_dispatch.TorchDispatchMode):
    """The most elements in a tensor that an operator returned in new memory."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given_memory = {
            t.untyped_storage().data_ptr()
            for t in torch.utils._pytree.tree_leaves((args, kwargs))
            if isinstance(t, torch.Tensor)
        }
        if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in given_memory:
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("metric", ALL_METRICS, ids=str)
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("channels", [96, 97])
def test_temporaries_of_the_size_of_the_gradient_are_lent(metric, in_place, channels):
    block, layout = block_of(metric, channels)
    out = block if in_place else torch.empty_like(block)
    work = Workspace()
    metric.apply(block, out, layout, work)
    with LargestAllocation() as largest:
        metric.apply(block, out, layout, work)
    assert largest.elements <= block.numel() // 8


@pytest.mark.parametrize("metric", ALL_METRICS, ids=str)
def test_the_default_device_does_not_matter(metric):
    g = torch.randn(96, 8, 3, 3)
    expected = transform_gradient(metric, g)
    torch.set_default_device("meta")
    try:
        got = transform_gradient(metric, g)
        view_length = {"out": 96, "in": 8, "spatial": 9, "filter": 72, "kernel": 6912}[metric.view]
        block = g.reshape(-1, view_length, 1)
        grid = (3, 3) if metric.view == "spatial" else (view_length,)
        residual = metric.residual(block, block, Layout(1, grid))
    finally:
        torch.set_default_device("cpu")
    assert got.device.type == residual.device.type == "cpu"
    assert torch.equal(got, expected)


@pytest.mark.parametrize("metric", [ChannelSobolev(), ChannelSobolev(axis="in"), LaplacianSmoothing()], ids=str)
def test_autocast_does_not_lower_the_precision(metric):
    g = torch.randn(96, 96, 3, 3)
    expected = transform_gradient(metric, g)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(transform_gradient(metric, g), expected)


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


@pytest.mark.parametrize("metric", [ChannelSobolev(axis="spatial"), ChannelSobolev(), LaplacianSmoothing()], ids=str)
def test_a_nan_stays_within_its_weight_of_a_stack(metric):
    blocks = torch.randn(2, 99, 9)  # 99 slices: no multiple of the four that share one product
    length, grid = {"spatial": (9, (3, 3)), "out": (99, (99,)), "kernel": (891, (891,))}[metric.view]
    blocks = blocks.view(-1, length, 9 if metric.view == "out" else 1)
    blocks[0, 0, 0] = math.nan
    out = torch.empty_like(blocks)
    metric.apply(blocks, out, Layout(2, grid), Workspace())
    assert out[0].isnan().any()
    assert out[len(out) // 2 :].isfinite().all()


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


SMOOTHED = [ChannelL2, ChannelSobolev, LaplacianSmoothing]
RULES = [*SMOOTHED, GradientCentralization]


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "4", True, 1e200, 1e-200, 10**400, 1j, [4.0], np.True_])
@pytest.mark.parametrize("rule", SMOOTHED)
def test_smoothing_must_be_a_positive_number(rule, value):
    with pytest.raises(RuleError, match="smoothing=.*; it must be a finite number above 0, from 1e-15 to 1e"):
        rule(smoothing=value)


@pytest.mark.parametrize("rule", SMOOTHED)
@pytest.mark.parametrize("keep_norm", [False, True])
@pytest.mark.parametrize("smoothing", [1e-15, 1e15])
def test_every_allowed_smoothing_gives_finite_gradients(rule, keep_norm, smoothing):
    g = 1e-3 * torch.randn(70, 3, 3, 3)
    assert transform_gradient(rule(smoothing=smoothing, keep_norm=keep_norm), g).isfinite().all()
    if rule is ChannelSobolev:
        other = rule(smoothing=smoothing, keep_norm=keep_norm, order="mean+derivative", boundary="periodic")
        assert transform_gradient(other, g).isfinite().all()


@pytest.mark.parametrize("rule", SMOOTHED)
@pytest.mark.parametrize("number", [4, np.float64(4), np.float32(4), np.int64(4), np.uint8(4), np.float16(4)])
def test_numbers_of_every_kind_make_the_same_rule(rule, number):
    made = rule(smoothing=number, keep_norm=np.True_)
    assert made == rule(smoothing=4.0, keep_norm=True)
    assert repr(made) == repr(rule(smoothing=4.0, keep_norm=True))


@given(value=st.one_of(st.text(), st.integers(), st.none(), st.floats(), st.lists(st.booleans()), st.just(np.int64(1))))
@example(value="false")
@settings(max_examples=40, deadline=None)
def test_keep_norm_must_be_a_boolean(value):
    for rule in RULES:
        with pytest.raises(RuleError, match="got keep_norm=.*; pass True or False\\."):
            rule(keep_norm=value)


@given(
    value=st.one_of(
        st.text(min_size=1),
        st.floats(),
        st.booleans(),
        st.integers(max_value=-1),
        st.integers(min_value=2**63),
        st.lists(st.integers(), max_size=2),
    )
)
@example(value="a")
@example(value=1.5)
@example(value=True)
@settings(max_examples=40, deadline=None)
def test_permutation_seed_must_be_an_integer(value):
    with pytest.raises(RuleError, match="got permutation_seed=.*; pass an integer from 0"):
        ChannelSobolev(permutation_seed=value)


def test_seeds_of_numpy_are_kept_as_python_integers():
    assert repr(ChannelSobolev(permutation_seed=np.int64(3))) == repr(ChannelSobolev(permutation_seed=3))
    assert ChannelSobolev(permutation_seed=2**63 - 1).permutation_seed == 2**63 - 1


@given(value=st.one_of(st.text(), st.integers(), st.none(), st.lists(st.text(), max_size=2), st.just({"out": 1})))
@example(value=[1])
@example(value=np.array(["out", "in"]))
@settings(max_examples=40, deadline=None)
def test_words_must_be_among_the_choices(value):
    for rule, option in [
        (ChannelL2, "axis"),
        (ChannelSobolev, "axis"),
        (ChannelSobolev, "order"),
        (ChannelSobolev, "boundary"),
    ]:
        with pytest.raises(RuleError, match=f"(?s){rule.__name__} got {option}=.*; choose one of "):
            rule(**{option: value})


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


@pytest.mark.parametrize("boundary", ["neumann", "periodic"])
@pytest.mark.parametrize("shape", [(32, 7), (96, 4, 3, 3), (128, 1), (64, 40)])
@pytest.mark.parametrize("smoothing", [0.1, 1e-6, 1e15])
def test_integrals_by_blocks_are_cumulative_sums(boundary, shape, smoothing, monkeypatch):
    g = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    metric = ChannelSobolev(smoothing, order="mean+derivative", boundary=boundary)
    blocked = transform_gradient(metric, g)
    monkeypatch.setattr(channel_sobolev, "BLOCK", g.numel() + 1)
    torch.testing.assert_close(blocked, transform_gradient(metric, g), rtol=1e-8, atol=1e-12 / min(smoothing, 1))
