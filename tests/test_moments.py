"""The closed form of the moments against the values of a matrix that is written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from operator_cases import every_mode, some_operators
from weightspace.errors import OperatorError
from weightspace.operators import ConvGeometry, ConvOperator
from weightspace.operators.moments import Moments, singular_value_moments, stacked_moments, stochastic_moments
from weightspace.operators.reference import reference_matrix, reference_singular_values


def sums(operator: ConvOperator) -> tuple[float, float]:
    squares = reference_singular_values(operator).square()
    return float(squares.sum()), float(squares.square().sum())


@every_mode
def test_moments_are_those_of_the_written_matrix(mode):
    for operator in some_operators(1, 60, mode=mode):
        moments = singular_value_moments(operator)
        s2, s4 = sums(operator)
        assert moments.s2.item() == pytest.approx(s2, rel=1e-12, abs=1e-300), operator.geometry
        assert moments.s4.item() == pytest.approx(s4, rel=1e-12, abs=1e-300), operator.geometry
        assert (moments.rows, moments.columns) == operator.shape


@given(seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_moments_hold_for_any_geometry(seed):
    (operator,) = some_operators(seed, 1)
    moments = singular_value_moments(operator)
    assert (moments.s2.item(), moments.s4.item()) == pytest.approx(sums(operator), rel=1e-12, abs=1e-300)


@every_mode
def test_gradients_are_those_of_central_differences(mode):
    for operator in some_operators(2, 12, mode=mode):
        weight = operator.weight.clone().requires_grad_()

        def both(w, operator=operator):
            moments = singular_value_moments(operator.with_weight(w))
            return moments.s2, moments.s4

        assert torch.autograd.gradcheck(both, weight)


def test_gram_distance_is_that_of_the_gram_matrices():
    for operator in some_operators(3, 30):
        M = reference_matrix(operator)
        moments = singular_value_moments(operator)
        for side, G in (("columns", M.T @ M), ("rows", M @ M.T)):
            expected = (G - 0.7 * torch.eye(len(G), dtype=G.dtype)).square().sum().item()
            assert moments.gram_distance(0.7, side=side).item() == pytest.approx(expected, rel=1e-11, abs=1e-11)
        smaller = "columns" if M.shape[1] <= M.shape[0] else "rows"
        assert moments.gram_distance(0.7) == moments.gram_distance(0.7, side=smaller)


def test_derived_numbers_are_those_of_the_values():
    layer = nn.Conv2d(2, 3, 3, padding=1, bias=False, dtype=torch.float64)
    moments = singular_value_moments(layer, 5)
    matrix = singular_value_moments(nn.Conv2d(2, 3, 3, bias=False), 5)
    assert matrix.columns == 50
    assert matrix.rows == 27
    operator = ConvOperator(layer.weight, ConvGeometry(2, 3, (5, 5), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))))
    squares = reference_singular_values(operator).square()
    assert moments.smaller_side == len(squares) == 50
    assert moments.variance.item() == pytest.approx(squares.var(correction=0).item())
    assert moments.forward_gain.item() == pytest.approx(squares.sum().item() / 50)
    assert moments.backward_gain.item() == pytest.approx(squares.sum().item() / 75)
    assert moments.participation_rank.item() == pytest.approx((squares.sum() ** 2 / squares.square().sum()).item())
    assert moments.isometry_defect.item() == pytest.approx((squares - 1).square().mean().sqrt().item())


def test_an_exact_isometry_with_stride_has_no_defect():
    # OCNN's penalty with its shipped padding gives such a layer a loss of 2.68.
    layer = nn.Conv2d(1, 4, 2, stride=2, bias=False, dtype=torch.float64)
    layer.weight.data = torch.eye(4, dtype=torch.float64).view(4, 1, 2, 2)
    moments = singular_value_moments(layer, 8)
    assert moments.gram_distance(1.0).item() == 0.0
    assert moments.isometry_defect.item() == 0.0


def test_dilation_with_zeros_counts_its_own_overlaps():
    # A mutant that counts overlaps as if dilation were 1 gives 2 * 7 + ... here.
    layer = nn.Conv1d(1, 1, 2, dilation=4, bias=False, padding=4)
    nn.init.ones_(layer.weight)
    moments = singular_value_moments(layer, 6)
    operator = ConvOperator(layer.weight, ConvGeometry(1, 1, (6,), (2,), (1,), (4,), ((4, 4),)))
    assert (moments.s2.item(), moments.s4.item()) == pytest.approx(sums(operator))
    assert moments.s2.item() == 12.0


def test_copies_read_twice_by_one_window_add_before_they_are_squared():
    layer = nn.Conv1d(1, 1, 2, padding=1, padding_mode="replicate", bias=False)
    nn.init.ones_(layer.weight)
    assert singular_value_moments(layer, 2).s2.item() == 4 + 2 + 4


def test_equal_layers_run_as_one_batch():
    geometry = ConvGeometry(4, 6, (5, 5), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), groups=2)
    weights = torch.randn(3, *geometry.weight_shape, dtype=torch.float64, requires_grad=True)
    s2, s4 = stacked_moments(weights, geometry)
    (s2.sum() + (torch.arange(3) * s4).sum()).backward()
    for i, weight in enumerate(weights.detach()):
        own = weight.clone().requires_grad_()
        moments = singular_value_moments(ConvOperator(own, geometry))
        (moments.s2 + i * moments.s4).backward()
        assert moments.s4.item() == pytest.approx(s4[i].item(), rel=1e-13)
        torch.testing.assert_close(weights.grad[i], own.grad, rtol=1e-12, atol=1e-12)


def test_float32_and_16_bit_weights_are_close_and_sums_are_float64():
    layer = nn.Conv2d(16, 16, 3, padding=1)
    exact = singular_value_moments(nn.Conv2d(16, 16, 3, padding=1).double().requires_grad_(False), 16)
    assert exact.s4.dtype == torch.float64
    weight = layer.weight.detach()
    reference = ConvOperator(weight.double(), ConvGeometry(16, 16, (9, 9), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))))
    single = singular_value_moments(reference.with_weight(weight))
    double = singular_value_moments(reference)
    assert single.s4.dtype == torch.float64
    assert single.s4.item() == pytest.approx(double.s4.item(), rel=1e-7)
    assert single.variance.item() == pytest.approx(double.variance.item(), rel=1e-6)
    half = weight.to(torch.bfloat16).requires_grad_()
    moments = singular_value_moments(reference.with_weight(half))
    moments.s4.backward()
    assert half.grad.dtype == torch.bfloat16
    assert moments.s4.item() == pytest.approx(double.s4.item(), rel=0.02)


@pytest.mark.parametrize("scale", [1e-15, 1e12])
def test_fourth_powers_neither_vanish_nor_overflow(scale):
    geometry = ConvGeometry(2, 2, (4,), (3,), (1,), (1,), ((1, 1),))
    weight = torch.randn(geometry.weight_shape)
    one, other = (singular_value_moments(ConvOperator(w, geometry)) for w in (weight, scale * weight))
    assert other.s4.item() / scale**4 == pytest.approx(one.s4.item(), rel=1e-5)


def test_reduced_matmul_precision_changes_nothing():
    layer = nn.Conv2d(64, 64, 3, padding=1)
    before = singular_value_moments(layer, 8).s4.item()
    setting = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert singular_value_moments(layer, 8).s4.item() == before
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(setting)


def test_zero_weights_have_zero_moments_and_gradients():
    geometry = ConvGeometry(2, 3, (4,), (3,), (1,), (1,), ((1, 1),))
    weight = torch.zeros(geometry.weight_shape, requires_grad=True)
    moments = singular_value_moments(ConvOperator(weight, geometry))
    (moments.s2 + moments.s4).backward()
    assert moments.s4.item() == 0.0
    assert bool((weight.grad == 0).all())


def test_differentiating_twice_is_an_error_not_a_wrong_number():
    layer = nn.Conv1d(2, 2, 3)
    loss = singular_value_moments(layer, 5).s4 + layer.weight.pow(3).sum()
    (gradient,) = torch.autograd.grad(loss, layer.weight, create_graph=True)
    with pytest.raises(OperatorError, match="first derivative only"):
        gradient.sum().backward()


@every_mode
def test_stochastic_moments_are_unbiased(mode):
    layer = nn.Conv2d(2, 3, 3, padding=1, stride=2, padding_mode=mode, dtype=torch.float64)
    exact = singular_value_moments(layer, 6)
    estimate = stochastic_moments(layer, 6, probes=3000, generator=torch.Generator().manual_seed(0))
    assert estimate.s2.item() == pytest.approx(exact.s2.item(), rel=0.03)
    assert estimate.s4.item() == pytest.approx(exact.s4.item(), rel=0.05)
    estimate.gram_distance(1.0).backward()
    ours = layer.weight.grad.clone()
    layer.weight.grad = None
    exact.gram_distance(1.0).backward()
    assert torch.linalg.vector_norm(ours - layer.weight.grad) < 0.2 * torch.linalg.vector_norm(layer.weight.grad)


def test_sentences_of_errors():
    with pytest.raises(OperatorError, match="use stochastic_moments"):
        singular_value_moments(nn.Conv1d(1, 1, 400), 16_000)
    with pytest.raises(OperatorError, match="probes is 0"):
        stochastic_moments(nn.Conv1d(1, 1, 4), 16, probes=0)
    with pytest.raises(OperatorError, match="side is 'left'"):
        Moments(torch.ones(()), torch.ones(()), 1, 1).gram_distance(side="left")
