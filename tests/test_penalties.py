"""Penalties: values against dense singular values, gradients against central differences, known traps, options."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from operator_cases import every_mode, some_operators
from weightspace.errors import OperatorError, RuleError
from weightspace.operators import ConvGeometry, ConvOperator, operator_of
from weightspace.operators.geometry import torus
from weightspace.operators.reference import reference_matrix
from weightspace.penalties import (
    SPECTRAL_TERMS,
    ConditionNumber,
    GramFrobenius,
    GramSpectralNorm,
    LargestSingularValue,
    Memory,
    SelfConvolution,
    SingularValueBand,
    SmallestSingularValue,
    SoftOrthogonality,
)

TERMS = [
    GramSpectralNorm(alpha=0.7),
    GramSpectralNorm(alpha=0.7, padding_mode="layer"),
    GramFrobenius(alpha=0.7),
    GramFrobenius(alpha=0.7, padding_mode="circular"),
    GramFrobenius(alpha=0.7, probes=2),
    LargestSingularValue(bound=0.5, steps=6),
    LargestSingularValue(bound=0.5, padding_mode="circular"),
    SmallestSingularValue(bound=0.9),
    SmallestSingularValue(bound=0.9, padding_mode="layer"),
    SingularValueBand(0.8, 1.2),
    SingularValueBand(0.8, 1.2, padding_mode="layer"),
    SingularValueBand(1.0, 1.0, frequencies=2),
    ConditionNumber(floor=1e-6),
    ConditionNumber(floor=1e-6, padding_mode="layer"),
    SoftOrthogonality(),
    SoftOrthogonality("DSO"),
    SoftOrthogonality("SRIP"),
    SelfConvolution(),
]
each_term = pytest.mark.parametrize("term", TERMS, ids=str)


def settled(term, operator):
    """Value and gradient after repeated evaluation, which sharpens what starts from the last vectors."""
    memory = Memory()
    result = term.evaluate(operator, memory)
    for _ in range(15 if memory.vectors else 0):
        result = term.evaluate(operator, memory)
    return result


def slope_by_differences(term, operator, direction, step=1e-5):
    up, down = (
        float(settled(term, operator.with_weight(operator.weight + sign * step * direction))[0]) for sign in (1, -1)
    )
    return (up - down) / (2 * step)


def looked_at(term, operator):
    """The operator whose singular values a term is about."""
    is_torus = term.padding_mode == "circular" and not operator.geometry.is_block_circulant()
    return ConvOperator(operator.weight, torus(operator.geometry) if is_torus else operator.geometry)


def free_values(term, operator):
    """Singular values of the dense matrix without rows and columns that no weight reaches; and the outputs of the grid."""
    seen = looked_at(term, operator)
    matrix = seen.dense()
    used = seen.with_weight(torch.ones_like(seen.weight)).dense() != 0
    return torch.linalg.svdvals(matrix[used.any(1)][:, used.any(0)]), math.prod(seen.geometry.output_size)


def expected_value(term, operator):
    """The definitions of the table, written once more over the dense matrix; None for baselines and samples."""
    sigma, positions = free_values(term, operator)
    if len(sigma) == 0 or getattr(term, "frequencies", None) or getattr(term, "probes", None):
        return None
    expected = None
    match term:
        case GramSpectralNorm():
            expected = (sigma**2 - term.alpha).abs().max()
        case GramFrobenius():
            every = torch.linalg.svdvals(looked_at(term, operator).dense())
            expected = ((every**2 - term.alpha) ** 2).sum() / positions
        case LargestSingularValue():
            expected = (sigma[0] - term.bound).clamp(min=0) ** 2
        case SmallestSingularValue():
            expected = (term.bound - sigma[-1]).clamp(min=0) ** 2
        case SingularValueBand():
            outside = (sigma - term.high).clamp(min=0) + (term.low - sigma).clamp(min=0)
            expected = (outside**2).sum() / positions
        case ConditionNumber() if sigma[-1] > 1e-5 * sigma[0]:
            expected = sigma[0].log() - sigma[-1].log()
    return None if expected is None else float(expected)


@every_mode
@each_term
def test_gradients_equal_central_differences(term, mode):
    checked = 0
    for k, operator in enumerate(some_operators(seed=11, count=12, mode=mode)):
        values, _ = free_values(term, operator)
        is_smallest = isinstance(term, SmallestSingularValue | ConditionNumber)
        if len(values) == 0 or (is_smallest and values[-1] < 1e-3):
            continue  # zero for every weight: no derivative to compare with
        direction = torch.randn(operator.weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
        value, gradient = settled(term, operator)
        assert value.dtype == gradient.dtype == torch.float64
        assert value.shape == ()
        assert gradient.shape == operator.weight.shape
        assert not gradient.requires_grad
        expected = slope_by_differences(term, operator, direction)
        found = float((gradient * direction).sum())
        scale = float(gradient.norm() * direction.norm()) + 1e-3
        assert abs(found - expected) < 1e-6 * scale, (operator.geometry, found, expected)
        checked += 1
    assert checked >= 5


@every_mode
@each_term
def test_values_equal_those_of_the_dense_matrix(term, mode):
    for operator in some_operators(seed=12, count=12, mode=mode):
        expected = expected_value(term, operator)
        if expected is not None:
            assert float(settled(term, operator)[0]) == pytest.approx(expected, rel=1e-8, abs=1e-8), operator.geometry


@pytest.mark.parametrize("channels", [(2, 5), (5, 2), (4, 4)])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_lanczos_vectors_give_value_and_gradient_of_the_largest(channels, is_transposed):
    term = LargestSingularValue(bound=0.5, steps=10)
    geometry = ConvGeometry(*channels, (7, 8), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    weight, direction = torch.randn(
        2, *geometry.weight_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4)
    )
    operator = ConvOperator(weight, geometry, is_transposed=is_transposed)
    value, gradient = settled(term, operator)
    assert float(value) == pytest.approx((float(torch.linalg.svdvals(operator.dense())[0]) - 0.5) ** 2, rel=1e-10)
    assert float((gradient * direction).sum()) == pytest.approx(
        slope_by_differences(term, operator, direction), rel=1e-6
    )


@each_term
def test_layers_of_every_kind_from_modules(term):
    layers = [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (7, 5)),
        (nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1), 4),
        (nn.Conv1d(2, 3, 3, dilation=2, padding="same"), 8),
        (nn.Conv3d(1, 2, 2), 3),
        (nn.Linear(3, 5), None),
    ]
    for layer, size in layers:
        value, gradient = term.evaluate(operator_of(layer, size))
        assert value.isfinite()
        assert gradient.shape == layer.weight.shape
        assert gradient.dtype == torch.float32
        assert gradient.isfinite().all()
        assert layer.weight.grad is None


# --------------------------------------------------------------------------------------------- the traps


def orthonormal(rows, columns):
    g = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(columns, rows, dtype=torch.float64, generator=g)).Q.T


def test_a_wide_isometry_has_no_penalty():
    """Trap 1: the larger Gram matrix would leave a floor of alpha for each missing dimension."""
    layer = nn.Conv2d(6, 2, 1, bias=False, dtype=torch.float64)
    layer.weight.data = orthonormal(2, 6)[:, :, None, None]
    operator = operator_of(layer, 4)
    terms = [GramFrobenius(), GramSpectralNorm(), SingularValueBand(1, 1), ConditionNumber(), SoftOrthogonality()]
    for term in [*terms, SoftOrthogonality("SRIP"), SelfConvolution(), LargestSingularValue(1.0)]:
        value, gradient = term.evaluate(operator)
        assert float(value) == pytest.approx(0, abs=1e-12), term
        assert gradient.isfinite().all()
    tall = operator_of(nn.Linear(2, 6, dtype=torch.float64))
    tall = tall.with_weight(orthonormal(2, 6).T)
    for term in [GramFrobenius(), GramSpectralNorm(), SoftOrthogonality("SRIP")]:
        assert float(term.evaluate(tall)[0]) == pytest.approx(0, abs=1e-12), term


@pytest.mark.parametrize(
    ("term", "moves"),
    [
        (GramFrobenius(), False),
        (SingularValueBand(1.0, 1.0), True),
        (SmallestSingularValue(0.5), True),
        (ConditionNumber(), True),
    ],
    ids=str,
)
def test_terms_in_sigma_move_a_dead_value_and_terms_in_its_square_do_not(term, moves):
    """Trap 2, by gradient steps from a matrix of rank 2."""
    weight = torch.diag(torch.tensor([1.2, 0.8, 0.0], dtype=torch.float64))
    operator = ConvOperator(weight, ConvGeometry(3, 3, (), (), (), (), ()))
    for _ in range(20):
        operator = operator.with_weight(operator.weight - 0.01 * term.evaluate(operator)[1])
    assert (float(torch.linalg.svdvals(operator.weight)[-1]) > 0.05) == moves


def test_zero_padding_leaves_a_floor_and_the_torus_none():
    """Trap 3: a shift is an isometry of the torus, but loses the rim with zero padding."""
    layer = nn.Conv1d(1, 1, 3, padding=1, bias=False, dtype=torch.float64)
    layer.weight.data = torch.tensor([[[1.0, 0.0, 0.0]]], dtype=torch.float64)
    operator = operator_of(layer, 8)
    assert float(GramFrobenius().evaluate(operator)[0]) == pytest.approx(1 / 8)
    assert float(GramFrobenius(padding_mode="circular").evaluate(operator)[0]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("term", [GramFrobenius(), SingularValueBand(1.0, 1.0)], ids=str)
def test_sums_do_not_grow_with_the_image(term):
    """Trap 4: a 1x1 kernel is one matrix, whatever the image."""
    layer = nn.Conv2d(3, 4, 1, bias=False, dtype=torch.float64)
    linear = ConvOperator(layer.weight.detach().flatten(1), ConvGeometry(3, 4, (), (), (), (), ()))
    value, gradient = term.evaluate(linear)
    for size in (1, 3, 8):
        other, slope = term.evaluate(operator_of(layer, size))
        torch.testing.assert_close(other, value)
        torch.testing.assert_close(slope.flatten(1), gradient)


@each_term
def test_gradients_are_finite_at_zero_and_repeated_values(term):
    for weight in (torch.zeros(2, 2, 3, 3), functional.pad(torch.eye(2)[:, :, None, None], (1, 1, 1, 1))):
        geometry = ConvGeometry(2, 2, (4, 4), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
        value, gradient = term.evaluate(ConvOperator(weight, geometry))
        assert value.isfinite()
        assert gradient.isfinite().all()


# --------------------------------------------------------------------------------------------- baselines


@pytest.mark.parametrize("variant", ["SO", "DSO", "SRIP"])
@pytest.mark.parametrize("shape", [(3, 2, 3, 3), (6, 2, 1, 1)])
def test_soft_orthogonality_is_its_definition(variant, shape):
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    geometry = ConvGeometry(2, shape[0], (4, 4), shape[2:], (1, 1), (1, 1), ((0, 0), (0, 0)))
    K = weight.flatten(1)
    rows, columns = K @ K.T - torch.eye(len(K)), K.T @ K - torch.eye(K.shape[1])
    if variant == "SRIP":
        smaller = rows if len(rows) <= len(columns) else columns
        expected = torch.linalg.eigvalsh(smaller).abs().max()
    else:
        expected = rows.square().sum() + (columns.square().sum() if variant == "DSO" else 0)
    value, gradient = SoftOrthogonality(variant).evaluate(ConvOperator(weight, geometry))
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, weight)[0])


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_self_convolution_is_the_row_gram_matrix_of_a_large_torus(stride, dilation, groups):
    n = 24 * stride
    geometry = torus(ConvGeometry(2, 4, (n,), (4,), (stride,), (dilation,), ((0, 0),), groups=groups))
    weight = torch.randn(geometry.weight_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    operator = ConvOperator(weight, geometry)
    M = reference_matrix(operator)
    expected = (M @ M.T - torch.eye(len(M))).square().sum() / 24
    assert float(SelfConvolution().evaluate(operator)[0]) == pytest.approx(float(expected))


def test_self_convolution_finds_no_fault_with_a_strided_isometry():
    """The defect of the published code: padding of `k - 1` whatever the stride compares shifts that never meet."""
    layer = nn.Conv2d(1, 4, 4, stride=2, padding=1, bias=False, dtype=torch.float64)
    haar = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / math.sqrt(2)
    patches = torch.einsum("ai,bj->abij", haar, haar).reshape(4, 1, 2, 2)
    layer.weight.data = functional.pad(patches, (1, 1, 1, 1))
    operator = operator_of(layer, 8)
    assert float(SelfConvolution().evaluate(operator)[0]) == pytest.approx(0, abs=1e-20)
    assert float(SingularValueBand(1, 1).evaluate(operator)[0]) == pytest.approx(0, abs=1e-20)


# --------------------------------------------------------------------------------------------- samples and starts


def conv(seed=0, c=3, size=6):
    torch.manual_seed(seed)
    return operator_of(nn.Conv2d(c, c, 3, padding=1, bias=False, dtype=torch.float64), size)


def test_random_frequencies_are_right_on_average_and_repeatable():
    operator = conv()
    value, gradient = SingularValueBand(1, 1).evaluate(operator)
    term = SingularValueBand(1, 1, frequencies=4)
    draws = [term.evaluate(operator, Memory(step=k)) for k in range(300)]
    assert float(sum(v for v, _ in draws) / len(draws)) == pytest.approx(float(value), rel=0.05)
    mean = sum(g for _, g in draws) / len(draws)
    assert float((mean - gradient).norm() / gradient.norm()) < 0.1
    assert len({float(v) for v, _ in draws}) > 200
    again = term.evaluate(operator, Memory(step=7))
    assert torch.equal(again[1], draws[7][1])
    assert float(SingularValueBand(1, 1, frequencies=999).evaluate(operator)[0]) == pytest.approx(float(value))


def test_random_probes_are_right_on_average_and_repeatable():
    operator = conv()
    value, gradient = GramFrobenius(alpha=0.5).evaluate(operator)
    term = GramFrobenius(alpha=0.5, probes=4)
    draws = [term.evaluate(operator, Memory(step=k)) for k in range(300)]
    assert float(sum(v for v, _ in draws) / len(draws)) == pytest.approx(float(value), rel=0.05)
    mean = sum(g for _, g in draws) / len(draws)
    assert float((mean - gradient).norm() / gradient.norm()) < 0.1
    assert torch.equal(term.evaluate(operator, Memory(step=7))[1], draws[7][1])
    isometry = operator_of(nn.Conv1d(1, 1, 1, bias=False), 5)
    assert float(GramFrobenius(probes=1).evaluate(isometry.with_weight(torch.ones(1, 1, 1)))[0]) == 0.0


def test_the_largest_value_is_tracked_by_few_steps():
    torch.manual_seed(3)
    operator = conv(c=8, size=12)
    term, memory = LargestSingularValue(bound=0.1), Memory()
    term.evaluate(operator, memory)
    first = memory.vectors["start"]
    assert first.shape == (2, 8 * 12 * 12)
    drift = torch.randn_like(operator.weight)
    for k in range(10):
        moved = operator.with_weight(operator.weight + 0.002 * k * drift)
        value, _ = term.evaluate(moved, memory)
    truth = torch.linalg.svdvals(moved.dense())[0]
    assert 0.995 * truth < math.sqrt(float(value)) + 0.1 <= truth * (1 + 1e-12)
    assert not torch.equal(first, memory.vectors["start"])
    other = conv(size=6)
    term.evaluate(other, memory)  # vectors of another size are no start
    assert memory.vectors["start"].shape == (2, 108)


def test_half_precision_is_computed_in_float32():
    operator = conv()
    for dtype in (torch.bfloat16, torch.float16):
        low = operator.with_weight(operator.weight.to(dtype))
        for term in TERMS:
            value, gradient = term.evaluate(low)
            assert value.dtype == gradient.dtype == torch.float32
            exact = term.evaluate(low.with_weight(low.weight.float()))
            assert torch.equal(gradient, exact[1])


def test_global_settings_change_nothing():
    operator = conv().with_weight(conv().weight.float())
    expected = [term.evaluate(operator)[1] for term in TERMS]
    torch.set_float32_matmul_precision("medium")
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = [term.evaluate(operator)[1] for term in TERMS]
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# --------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: GramFrobenius(alpha=-1), "GramFrobenius got alpha=-1; it must be a finite number from 0"),
        (lambda: GramFrobenius(weight=-1), "weight=-1; it must be a finite number from 0"),
        (lambda: GramFrobenius(weight=math.nan), "weight=nan"),
        (lambda: GramFrobenius(every=0), "every=0; it must be a whole number of at least 1"),
        (lambda: GramFrobenius(every=True), "every=True"),
        (lambda: GramFrobenius(input_size=(3, 0)), "input_size=0"),
        (lambda: GramFrobenius(input_size=(1, 2, 3, 4)), "pass one whole number, or one for each dimension"),
        (lambda: GramFrobenius(input_size="32"), "pass one whole number, or one for each dimension"),
        (lambda: GramFrobenius(padding_mode="zeros"), "choose one of 'layer', 'circular'"),
        (lambda: SingularValueBand(2.0, 1.0), "low=2.0 above high=1.0; swap them"),
        (lambda: SingularValueBand(frequencies=0), "frequencies=0"),
        (lambda: GramFrobenius(probes=0), "probes=0"),
        (lambda: ConditionNumber(floor=2.0), "below 1"),
        (lambda: SmallestSingularValue(bound=0.0), "bound=0.0"),
        (lambda: LargestSingularValue(steps=0), "steps=0"),
        (lambda: SoftOrthogonality("so"), "choose one of 'SO', 'DSO', 'SRIP'"),
        (lambda: SelfConvolution(input_size=3), "leave input_size and padding_mode out"),
    ],
)
def test_wrong_options_are_refused(make, sentence):
    with pytest.raises(RuleError) as error:
        make()
    assert sentence in str(error.value)


def test_layers_too_large_for_the_dense_matrix_are_refused():
    operator = operator_of(nn.Conv2d(16, 16, 3, padding=1), 32)
    with pytest.raises(OperatorError, match="16,384 x 16,384.*use padding_mode='circular'"):
        SingularValueBand(padding_mode="layer").evaluate(operator)


def test_rules_print_what_was_changed_and_keep_plain_values():
    assert str(SingularValueBand(0.5, 1.5, weight=1e-3)) == "SingularValueBand(high=1.5)"
    assert SingularValueBand(input_size=[8, 8]).input_size == (8, 8)
    assert hash(SingularValueBand(input_size=[8, 8])) == hash(SingularValueBand(input_size=(8, 8)))
    assert all(name == term.__name__ for name, term in SPECTRAL_TERMS.items())
