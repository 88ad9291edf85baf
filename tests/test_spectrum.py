"""All singular values: every route against the dense matrix from the definition, known answers, precision, threads."""

from __future__ import annotations

import itertools
import math
import threading

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from weightspace.errors import OperatorError
from weightspace.operators import PADDING_MODES, ConvGeometry, ConvOperator, _parallel, operator_of, spectrum
from weightspace.operators._parallel import workers
from weightspace.operators._small_svd import small_svdvals
from weightspace.operators.reference import reference_matrix, reference_singular_values
from weightspace.operators.spectrum import circular_spectrum, singular_values, singular_values_of
from weightspace.operators.symbol import symbol_grid

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def random_operator(
    geometry: ConvGeometry, dtype: torch.dtype = torch.float64, *, transposed: bool = False
) -> ConvOperator:
    return ConvOperator(torch.randn(geometry.weight_shape, dtype=dtype), geometry, is_transposed=transposed)


def check(operator: ConvOperator, bound: float = 1e-9) -> None:
    """Number, order and values, the last relative to the largest one."""
    expected, found = reference_singular_values(operator), singular_values(operator)
    assert found.shape == expected.shape
    assert bool((found.diff() <= 0).all())
    assert float((found.double() - expected).abs().max()) <= bound * float(expected[0])


def circular_geometry(size, kernel, stride, dilation, channels=(2, 3), groups=1) -> ConvGeometry:
    d = len(size)
    zero = ConvGeometry(
        channels[0] * groups, channels[1] * groups, size, kernel, stride, dilation, ((50, 50),) * d, groups=groups
    )
    return zero.circular()


def circular(channels_in: int, channels_out: int, kernel: int, **options) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel, padding_mode="circular", bias=False, **options)


# --------------------------------------------------------------------------- against the definition


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_every_kind_of_layer_has_the_values_of_its_matrix(dimensions: int, mode: str, groups: int):
    size = {1: (6,), 2: (4, 6), 3: (2, 3, 2)}[dimensions]
    cases = 0
    for kernel, stride, dilation, padding in itertools.product((1, 2, 3), (1, 2), (1, 2), (0, 1, "same")):
        pad = 0 if padding == "same" else padding
        reach = dilation * (kernel - 1) + 1
        if (padding == "same" and (stride > 1 or reach // 2 >= min(size))) or min(size) + 2 * pad < reach:
            continue
        layer = CONVS[dimensions - 1](
            groups, 2 * groups, kernel, stride, padding, dilation, groups, bias=False, padding_mode=mode
        ).double()
        check(operator_of(layer, size))
        cases += 1
    assert cases >= 15


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_transposed_layers(dimensions: int):
    for kernel, stride, dilation, padding in itertools.product((1, 2, 3), (1, 2), (1, 2), (0, 1)):
        if 2 * stride - 2 * padding + dilation * (kernel - 1) < 1 + stride:
            continue
        for groups in (1, 2):
            layer = TRANSPOSED[dimensions - 1](
                2, 2 * groups, kernel, stride, padding, stride - 1, groups, bias=False, dilation=dilation
            ).double()
            check(operator_of(layer, 2))


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    strides=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    kernels=st.lists(st.integers(1, 6), min_size=3, max_size=3),
    dilations=st.lists(st.integers(1, 6), min_size=3, max_size=3),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.integers(1, 2),
    transposed=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_symbols_have_the_values_of_the_matrix(sizes, strides, kernels, dilations, channels, groups, transposed):
    d = len(sizes)
    size = tuple(m * s for m, s in zip(sizes, strides, strict=False))
    assume(math.prod(size) <= 36 and math.prod(kernels[:d]) <= 40)
    geometry = circular_geometry(size, tuple(kernels[:d]), tuple(strides[:d]), tuple(dilations[:d]), channels, groups)
    operator = random_operator(geometry, transposed=transposed)
    expected, found = folded_values(operator), singular_values(operator)
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-9 * float(expected[0])
    grid = symbol_grid(geometry)
    assert int(grid.multiplicity.sum()) == math.prod(geometry.output_size)


def folded_values(operator: ConvOperator) -> torch.Tensor:
    """As the reference, but padded around the torus more than once where the kernel asks for it."""
    g = operator.geometry
    columns = operator.shape[1]
    eye = torch.eye(columns, dtype=torch.float64).view(columns, *operator.input_shape)
    return torch.linalg.svdvals(operator.apply(eye).reshape(columns, -1).T) if g else eye


@given(
    size=st.integers(3, 7),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 3),
    before=st.integers(-1, 4),
    after=st.integers(-1, 4),
    mode=st.sampled_from(PADDING_MODES),
)
@settings(max_examples=80, deadline=None)
def test_any_padding_has_the_values_of_the_matrix(size, kernel, stride, dilation, before, after, mode):
    if mode != "zeros":
        before, after = min(max(before, 0), size - 1), min(max(after, 0), size - 1)
    try:
        geometry = ConvGeometry(2, 2, (size,), (kernel,), (stride,), (dilation,), ((before, after),), mode)
    except OperatorError:
        assume(False)
    check(random_operator(geometry))


def test_a_kernel_larger_than_its_input_is_folded():
    layer = circular(2, 2, 5, padding=2).double()
    check(operator_of(layer, 3))
    folded = torch.zeros(2, 2, 3, 3, dtype=torch.float64)
    for p, q in itertools.product(range(5), repeat=2):
        folded[:, :, (p - 2) % 3, (q - 2) % 3] += layer.weight.detach()[:, :, p, q]
    full = torch.linalg.svdvals(torch.fft.fft2(folded).permute(2, 3, 0, 1)).flatten().sort(descending=True).values
    torch.testing.assert_close(singular_values(layer, 3), full, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_squares_sum_to_the_frobenius_norm(mode: str):
    operator = operator_of(nn.Conv2d(3, 4, 3, padding=1, bias=False, padding_mode=mode).double(), 5)
    torch.testing.assert_close(singular_values(operator).square().sum(), reference_matrix(operator).square().sum())


def test_frequencies_of_the_spectrum_are_those_of_the_fourier_transform():
    layer = circular(3, 4, 3, padding=1).double()
    grid = circular_spectrum(layer, (5, 6)).on_grid()
    symbols = torch.fft.fft2(layer.weight.detach(), s=(5, 6)).permute(2, 3, 0, 1)
    torch.testing.assert_close(grid, torch.linalg.svdvals(symbols), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_the_grid_of_a_dilated_layer_is_in_its_own_frequencies(dilation: int):
    layer = nn.Conv1d(2, 2, 3, padding=dilation, dilation=dilation, padding_mode="circular", bias=False).double()
    result = circular_spectrum(layer, 12)
    taps = torch.zeros(2, 2, 12, dtype=torch.float64)
    taps[:, :, [0, dilation, 2 * dilation]] = layer.weight.detach()
    expected = torch.linalg.svdvals(torch.fft.fft(taps).permute(2, 0, 1))
    torch.testing.assert_close(result.on_grid(), expected, rtol=0, atol=1e-12)
    assert result.period == (12 // math.gcd(12, dilation),)


# --------------------------------------------------------------------------- known answers


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_1x1_kernel_repeats_the_values_of_its_matrix(stride: int, padding: int):
    layer = nn.Conv2d(3, 2, 1, stride, padding, bias=False).double()
    own = torch.linalg.svdvals(layer.weight.detach().flatten(1))
    count = len([p for p in range(-padding, 7 + padding, stride) if 0 <= p < 7])
    values = singular_values(layer, 7)
    expected = own.repeat_interleave(count**2)
    torch.testing.assert_close(values[: len(expected)], expected, rtol=1e-12, atol=0)
    assert not bool(values[len(expected) :].any())
    assert len(values) == min(operator_of(layer, 7).shape)


def test_patches_are_one_matrix_even_where_the_stride_leaves_a_margin():
    layer = nn.Conv2d(3, 8, 16, stride=16, bias=False).double()  # 225 = 14 * 16 + 1: not block-circulant
    values = singular_values(layer, 225)
    own = torch.linalg.svdvals(layer.weight.detach().flatten(1))
    torch.testing.assert_close(values, own.repeat_interleave(14 * 14), rtol=1e-12, atol=0)


def test_a_shift_is_an_isometry():
    layer = circular(4, 4, 3, padding=1)
    layer.weight.data.zero_()
    layer.weight.data[range(4), range(4), 0, 2] = 1
    torch.testing.assert_close(singular_values(layer, 8), torch.ones(256), rtol=1e-6, atol=0)


def test_an_average_keeps_constants_and_nothing_more():
    layer = circular(1, 1, 3, padding=1)
    nn.init.constant_(layer.weight, 1 / 9)
    values = singular_values(layer, 7)
    assert values[0] == pytest.approx(1, abs=1e-6)
    assert values[1] < 0.99


def test_a_depthwise_layer_has_the_moduli_of_its_transform():
    layer = circular(5, 5, 3, padding=1, groups=5).double()
    moduli = torch.fft.fft2(layer.weight.detach()[:, 0], s=(6, 6)).abs().flatten().sort(descending=True).values
    torch.testing.assert_close(singular_values(layer, 6), moduli, rtol=0, atol=1e-12)


def test_a_linear_layer_has_the_values_of_its_weight():
    layer = nn.Linear(6, 4).double()
    torch.testing.assert_close(singular_values(layer), torch.linalg.svdvals(layer.weight.detach()))


def test_a_zero_kernel_has_zero_values():
    layer = circular(2, 3, 3, padding=1)
    nn.init.zeros_(layer.weight)
    assert singular_values(layer, 4).tolist() == [0.0] * 32


def test_the_circular_counterpart_of_a_zero_padded_layer():
    zeros = nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False)
    torus = circular(2, 3, 3, stride=2, padding=1)
    torus.weight = zeros.weight
    torch.testing.assert_close(singular_values(zeros, 6, padding_mode="circular"), singular_values(torus, 6))


# --------------------------------------------------------------------------- precision


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [8, 48])
def test_float32_is_good_to_2e_6_of_the_largest(channels: int, stride: int):
    layer = circular(channels, channels, 3, padding=1, stride=stride)
    exact = singular_values(operator_of(layer, 8).with_weight(layer.weight.detach().double()))
    found = singular_values(layer, 8)
    assert found.dtype == torch.float32
    assert float((found - exact).abs().max()) < 2e-6 * float(exact[0])
    fast = singular_values(layer, 8, fast=True)
    assert float((fast - exact).abs().max()) < 3e-4 * float(exact[0])
    assert float((fast - exact)[[0, -1]].abs().max()) < 2e-6 * float(exact[0])


@pytest.mark.parametrize("rank", [1, 5])
@pytest.mark.parametrize("shape", [(6, 6), (6, 24), (24, 6)])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.complex64, 2e-6), (torch.complex128, 1e-9), (torch.float64, 1e-9)])
def test_lost_rank_is_found(dtype: torch.dtype, bound: float, shape: tuple[int, int], rank: int):
    factors = torch.randn(20, shape[0], rank, dtype=dtype), torch.randn(20, rank, shape[1], dtype=dtype)
    values = small_svdvals(factors[0] @ factors[1])
    assert float((values[:, rank:] / values[:, :1]).max()) < bound


def test_small_values_in_double_precision_keep_nine_digits_of_the_largest():
    left, right = (torch.linalg.qr(torch.randn(6, 6, dtype=torch.complex128)).Q for _ in range(2))
    exact = 10.0 ** -torch.arange(0, 12, 2, dtype=torch.float64)
    found = small_svdvals((left * exact) @ right[None])
    assert float((found - exact).abs().max()) < 1e-9


def test_16_bit_weights_are_worked_on_in_float32():
    for dtype in (torch.bfloat16, torch.float16):
        layer = circular(4, 4, 3, padding=1).to(dtype)
        values = singular_values(layer, 6)
        assert values.dtype == torch.float32
        check(operator_of(layer, 6), bound=2e-6)
        assert not values.requires_grad


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_very_small_and_very_large_weights(factor: float):
    layer = circular(2, 8, 3, padding=1)
    expected = singular_values(layer, 4) * factor
    layer.weight.data.mul_(factor)
    torch.testing.assert_close(singular_values(layer, 4), expected, rtol=1e-5, atol=0)


def test_global_settings_of_torch_change_nothing():
    layers = [
        (circular(8, 8, 3, padding=1), 6),
        (nn.Conv2d(4, 4, 3, padding=1, bias=False), 4),
        (nn.Linear(9, 9), None),
    ]

    def measure() -> list[torch.Tensor]:
        return [singular_values(layer, size, fast=fast) for layer, size in layers for fast in (False, True)]

    before = measure()
    try:
        torch.set_float32_matmul_precision("medium")
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        after = measure()
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
    with torch.inference_mode():
        inferred = measure()
    for a, b, c in zip(before, after, inferred, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
        assert torch.equal(a, c)


# --------------------------------------------------------------------------- batches, memory, threads


def test_equal_layers_are_computed_together_and_come_back_in_order(monkeypatch):
    layers = [(circular(3, 4, 3, padding=1), 6), (nn.Conv2d(2, 2, 3, padding=1), 3), (circular(3, 4, 3, padding=1), 6)]
    operators = [operator_of(layer, size) for layer, size in layers]
    alone = [singular_values(operator) for operator in operators]
    calls = []
    original = spectrum._all_values
    monkeypatch.setattr(spectrum, "_all_values", lambda w, *a, **k: calls.append(len(w)) or original(w, *a, **k))
    for one, together in zip(alone, singular_values_of(operators), strict=True):
        torch.testing.assert_close(one, together, rtol=0, atol=1e-6)
    assert sorted(calls) == [1, 2]
    assert singular_values_of([]) == []


def test_chunks_change_nothing_but_the_memory(monkeypatch):
    layer = circular(6, 6, 3, padding=1)
    whole = singular_values(layer, 9)
    held = []
    original = spectrum.small_svdvals
    monkeypatch.setattr(spectrum, "CHUNK", 100)
    monkeypatch.setattr(spectrum, "small_svdvals", lambda m, **k: held.append(m.numel()) or original(m, **k))
    torch.testing.assert_close(singular_values(layer, 9), whole, rtol=0, atol=1e-6)
    assert max(held) <= 100
    assert len(held) > 10


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_the_thread_count_is_one_inside_and_restored_outside():
    with workers() as pool:
        assert torch.get_num_threads() == 1
        inside = pool.map(lambda task: (task, torch.get_num_threads()), range(8), side=4096)
        assert inside == [(task, 1) for task in range(8)]
        assert pool.map(lambda _: torch.get_num_threads(), [0], side=4) == [1]
        assert pool.map(lambda _: torch.get_num_threads(), [0], side=4096) == [2]
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    singular_values(circular(8, 8, 3, padding=1), 8)
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_the_thread_count_is_restored_after_an_error(monkeypatch):
    def fail(matrices, **_):
        raise RuntimeError("no convergence")

    monkeypatch.setattr(spectrum, "small_svdvals", fail)
    with pytest.raises(RuntimeError, match="no convergence"):
        singular_values(circular(8, 8, 3, padding=1), 8)
    assert torch.get_num_threads() == 2
    assert not _parallel._one_at_a_time.locked()


@pytest.mark.usefixtures("two_threads")
def test_calls_from_two_threads_do_not_spoil_the_thread_count():
    layer = circular(8, 8, 3, padding=1)
    callers = [threading.Thread(target=singular_values, args=(layer, 12)) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert torch.get_num_threads() == 2


# --------------------------------------------------------------------------- bad input


def test_a_layer_too_large_for_the_dense_route_says_what_to_use():
    layer = nn.Conv2d(64, 64, 3, padding=1)
    with pytest.raises(OperatorError) as caught:
        singular_values(layer, 32)
    assert str(caught.value) == (
        "All singular values of this layer take a dense matrix of 65,536 x 65,536 entries, and the limit is 16,777,216; "
        "use extreme_singular_values() or singular_value_moments(), or padding_mode='circular' for the layer's "
        "counterpart on a torus."
    )
    assert len(singular_values(nn.Conv2d(64, 64, 3, padding=1, groups=64), 8)) == 64 * 64  # a group at a time


def test_sizes_are_checked_before_anything_is_computed(monkeypatch):
    monkeypatch.setattr(spectrum, "_all_values", lambda *_, **__: pytest.fail("computed"))
    operators = [operator_of(circular(2, 2, 3, padding=1), 4), operator_of(nn.Conv2d(64, 64, 3, padding=1), 32)]
    with pytest.raises(OperatorError, match="dense matrix"):
        singular_values_of(operators)


def test_other_padding_modes_and_open_geometries_are_refused():
    layer = nn.Conv2d(2, 2, 3, padding=1)
    with pytest.raises(OperatorError, match="padding_mode is 'reflect'"):
        singular_values(layer, 4, padding_mode="reflect")
    with pytest.raises(OperatorError, match=r"take its \.circular\(\) counterpart"):
        symbol_grid(operator_of(layer, 4).geometry)
    with pytest.raises(OperatorError, match="stride 2 needs an input size"):
        singular_values(nn.Conv2d(2, 2, 3, stride=2, padding=1), 5, padding_mode="circular")
