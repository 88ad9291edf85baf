"""Bounds bound: over thousands of tiny operators, every padding, and with the counterexample that a naive one fails."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from operator_cases import every_mode, some_operators
from weightspace.errors import OperatorError
from weightspace.operators import ConvGeometry, ConvOperator, operator_of
from weightspace.operators.bounds import norm_bound, stacked_norm_bounds
from weightspace.operators.reference import reference_singular_values


def check(operator: ConvOperator) -> None:
    truth = reference_singular_values(operator)[0].item()
    for tolerance in (0.005, 0.3):
        assert norm_bound(operator, tolerance=tolerance).item() >= truth, operator.geometry
        (anywhere,) = stacked_norm_bounds(
            operator.weight[None], operator.geometry, every_size=True, tolerance=tolerance
        )
        assert anywhere.item() >= truth, operator.geometry


@every_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounds_bound(mode, dtype):
    for operator in some_operators(1, 120, dtype, mode):
        check(operator)


@pytest.mark.slow
@every_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounds_bound_thousands_of_times(mode, dtype):
    for operator in some_operators(100, 1500, dtype, mode):
        check(operator)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_bounds_bound_whatever_hypothesis_tries(seed):
    (operator,) = some_operators(seed, 1)
    check(operator)


def test_the_circular_counterpart_of_the_same_size_is_no_bound():
    # On the torus of 2 entries the taps 1, 0, -1 cancel at every frequency; with zeros they do not.
    operator = ConvOperator(torch.tensor([[[1.0, 0.0, -1.0]]]), ConvGeometry(1, 1, (2,), (3,), (1,), (1,), ((1, 1),)))
    truth = reference_singular_values(operator)[0].item()
    circular = reference_singular_values(operator.circular())[0].item()
    assert truth == pytest.approx(1.0)
    assert circular == pytest.approx(0.0)
    assert norm_bound(operator).item() >= truth


def test_circular_padding_is_exact():
    found = 0
    for operator in some_operators(4, 400, mode="circular"):
        if operator.geometry.is_block_circulant():
            found += 1
            truth = reference_singular_values(operator)[0].item()
            assert norm_bound(operator).item() == pytest.approx(truth, rel=1e-11)
    assert found > 10


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_strided_circular_layers_are_exact(stride):
    layer = nn.Conv2d(4, 6, 4, stride=stride, padding=2, padding_mode="circular", groups=2, dtype=torch.float64)
    operator = operator_of(layer, 8).circular()
    assert norm_bound(operator).item() == pytest.approx(reference_singular_values(operator)[0].item(), rel=1e-11)


def test_zero_padding_is_close_for_common_layers():
    layer = nn.Conv2d(4, 4, 3, padding=1, dtype=torch.float64)
    truth = reference_singular_values(operator_of(layer, 12))[0].item()
    assert truth <= norm_bound(layer, 12).item() <= 1.05 * truth
    assert truth <= norm_bound(layer).item() <= 1.1 * truth


@every_mode
def test_gradients_are_those_of_central_differences(mode):
    for operator in some_operators(5, 25, mode=mode):
        weight = operator.weight.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda w, o=operator: norm_bound(o.with_weight(w)), weight, atol=1e-4)


def test_gradients_are_finite_at_repeated_and_zero_values():
    for weight in (torch.eye(4)[:, :, None, None], torch.zeros(4, 4, 1, 1), torch.zeros(4, 4, 3, 3)):
        layer = nn.Conv2d(4, 4, weight.shape[2:], padding=weight.shape[2] // 2, bias=False)
        layer.weight.data = weight.clone()
        bound = norm_bound(layer, 6)
        bound.backward()
        assert bool(layer.weight.grad.isfinite().all())
        assert bound.item() == pytest.approx(float(weight.any()), rel=1e-5)


def test_known_answers():
    average = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False, dtype=torch.float64)
    nn.init.constant_(average.weight, 1 / 9)
    assert norm_bound(average, 8).item() == pytest.approx(1.0)
    linear = nn.Linear(5, 7, dtype=torch.float64)
    assert norm_bound(linear).item() == pytest.approx(torch.linalg.matrix_norm(linear.weight, 2).item())
    patches = nn.Conv2d(3, 8, 4, stride=4, dtype=torch.float64)
    flattened = torch.linalg.matrix_norm(patches.weight.flatten(1), 2).item()
    assert norm_bound(patches, 8).item() == pytest.approx(flattened)
    transposed = nn.ConvTranspose2d(8, 3, 4, stride=4, dtype=torch.float64)
    transposed.weight = patches.weight
    assert norm_bound(transposed, 2).item() == pytest.approx(flattened)


def test_no_size_means_every_size():
    for layer in (
        nn.Conv2d(2, 2, 3, padding=1, stride=2),
        nn.Conv1d(2, 3, 3, padding=2, dilation=2, padding_mode="circular"),
        nn.Conv1d(2, 3, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose1d(2, 3, 4, stride=2, padding=1),
    ):
        bound = norm_bound(layer).item()
        for size in (2, 3, 5, 8, 13):
            if isinstance(layer, nn.Conv2d) or size > 2:
                assert bound >= reference_singular_values(operator_of(layer, size))[0].item()


def test_equal_layers_run_as_one_batch():
    geometry = ConvGeometry(4, 6, (5, 5), (3, 3), (2, 1), (1, 1), ((1, 1), (1, 1)), groups=2)
    weights = torch.randn(3, *geometry.weight_shape)
    weights[1] *= 100
    weights[2] = 0
    bounds = stacked_norm_bounds(weights, geometry)
    for weight, bound in zip(weights, bounds, strict=True):
        assert norm_bound(ConvOperator(weight, geometry)).item() == pytest.approx(bound.item(), rel=1e-6)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_squares_neither_vanish_nor_overflow(scale):
    layer = nn.Conv1d(2, 2, 3, padding=1)
    bound = norm_bound(layer, 6).item()
    layer.weight.data *= scale
    assert norm_bound(layer, 6).item() == pytest.approx(scale * bound, rel=1e-5)


def test_sentences_of_errors():
    with pytest.raises(OperatorError, match="tolerance is 0"):
        norm_bound(nn.Conv1d(1, 1, 3), 8, tolerance=0)
    with pytest.raises(OperatorError, match="BatchNorm2d"):
        norm_bound(nn.BatchNorm2d(3))


def test_dtype_follows_the_weight_and_16_bits_are_widened():
    layer = nn.Conv2d(3, 3, 3)
    assert norm_bound(layer, 6).dtype == torch.float32
    assert norm_bound(layer.to(torch.bfloat16), 6).dtype == torch.float32
    norm_bound(layer, 6).backward()
    assert layer.weight.grad.dtype == torch.bfloat16
