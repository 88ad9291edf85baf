"""Extremes: intervals hold the truth, warm starts follow a moving weight, exact values are exact."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from operator_cases import every_mode, some_operators
from weightspace.errors import OperatorError
from weightspace.operators import operator_of
from weightspace.operators.extremes import extreme_singular_values, stacked_ritz
from weightspace.operators.lanczos import bidiagonalize
from weightspace.operators.reference import reference_singular_values


@every_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_intervals_hold_the_truth(mode, dtype):
    for operator in some_operators(1, 40, dtype, mode):
        values = reference_singular_values(operator)
        found = extreme_singular_values(operator, exact=False, steps=4)
        slack = 1e-5 if dtype == torch.float32 else 1e-12
        assert found.sigma_max <= values[0].item() * (1 + slack), operator.geometry
        assert found.sigma_max_bound >= values[0].item(), operator.geometry
        assert found.sigma_min >= values[-1].item() - slack * values[0].item(), operator.geometry
        assert not found.is_sigma_min_exact


@every_mode
def test_small_layers_are_solved_exactly(mode):
    for operator in some_operators(2, 20, mode=mode):
        values = reference_singular_values(operator)
        found = extreme_singular_values(operator)
        assert tuple(found) == pytest.approx((values[0].item(), values[-1].item()), abs=1e-12)
        assert found.is_sigma_min_exact
        assert found.method == "dense"


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 5, 3, padding=1, stride=2),
        nn.Conv2d(6, 4, 3, padding=1, groups=2),
        nn.ConvTranspose2d(4, 3, 4, stride=2, padding=1),
        nn.Conv2d(3, 4, 3, padding=2, dilation=2, padding_mode="reflect"),
    ],
)
def test_many_steps_find_the_largest_value_and_its_vectors(layer):
    layer = layer.double().requires_grad_(False)
    operator = operator_of(layer, 8)
    truth = reference_singular_values(operator)[0].item()
    found = extreme_singular_values(layer, 8, exact=False, steps=40)
    assert found.sigma_max == pytest.approx(truth, rel=1e-8)
    assert found.is_converged
    u, v = found.left[0], found.right[0]
    image = operator.apply(v.view(1, *operator.input_shape)).flatten()
    torch.testing.assert_close(image, found.sigma_max * u, rtol=1e-8, atol=1e-8)
    back = operator.adjoint(u.view(1, *operator.output_shape)).flatten()
    assert torch.linalg.vector_norm(back - found.sigma_max * v).item() == pytest.approx(found.residual, abs=1e-6)


def test_the_wave_of_the_torus_starts_close():
    layer = nn.Conv2d(16, 16, 3, padding=1)
    truth = torch.linalg.svdvals(operator_of(layer, 10).dense())[0].item()
    assert extreme_singular_values(layer, 10, exact=False, steps=2).sigma_max > 0.97 * truth


def test_a_warm_start_follows_a_moving_weight():
    layer = nn.Conv2d(8, 8, 3, padding=1)
    found = extreme_singular_values(layer, 12, exact=False)
    reused = 0
    for _ in range(8):
        with torch.no_grad():
            layer.weight += 1e-4 * torch.randn_like(layer.weight)
        before = found
        found = extreme_singular_values(layer, 12, exact=False, start=before)
        reused += found.known_bound is before.known_bound
        truth = torch.linalg.svdvals(operator_of(layer, 12).dense())[0].item()
        assert found.iterations == 2
        assert 0.995 * truth <= found.sigma_max <= truth * (1 + 1e-5)
        assert truth <= found.sigma_max_bound <= 1.03 * truth
    assert 0 < reused < 8


def test_a_reused_bound_holds_after_a_jump():
    for operator in some_operators(7, 60, torch.float32):
        first = extreme_singular_values(operator, exact=False, steps=1)
        moved = operator.with_weight(operator.weight * (1 + 0.3 * torch.rand(operator.weight.shape)))
        found = extreme_singular_values(moved, exact=False, start=first, drift=10.0)
        truth = reference_singular_values(moved)[0].item()
        assert found.sigma_max_bound >= truth, operator.geometry


def test_exact_insists():
    layer = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
    values = torch.linalg.svdvals(operator_of(layer.double(), 12).dense())
    layer.float()
    found = extreme_singular_values(layer, 12, exact=True)
    assert found.method == "all values"
    assert tuple(found) == pytest.approx((values[0].item(), values[-1].item()), rel=1e-4)
    assert found.sigma_max <= values[0].item() <= found.sigma_max_bound
    with pytest.raises(OperatorError):
        extreme_singular_values(nn.Conv2d(64, 64, 3, padding=1), 32, exact=True)


def test_text_rounds_outwards():
    layer = nn.Conv2d(8, 8, 3, padding=1)
    text = str(extreme_singular_values(layer, 12, exact=False))
    assert text.startswith("sigma_max in [")
    assert ", sigma_min <= " in text
    linear = nn.Linear(2, 2, bias=False)
    linear.weight.data = torch.tensor([[3.0, 0.0], [0.0, 0.5]])
    assert str(extreme_singular_values(linear)) == "sigma_max in [3, 3.001], sigma_min = 0.5"


def test_zero_weights_and_single_values():
    layer = nn.Conv1d(2, 2, 3, padding=1, bias=False)
    nn.init.zeros_(layer.weight)
    for exact in (None, False):
        assert tuple(extreme_singular_values(layer, 5, exact=exact)) == (0.0, 0.0)
    one = nn.Linear(1, 3, bias=False)
    nn.init.ones_(one.weight)
    for exact in (None, False):
        assert tuple(extreme_singular_values(one, exact=exact)) == pytest.approx((3**0.5, 3**0.5), rel=1e-5)


def test_sentences_of_errors():
    layer = nn.Conv1d(2, 2, 3)
    found = extreme_singular_values(layer, 9)
    with pytest.raises(OperatorError, match="leave start out"):
        extreme_singular_values(layer, 8, start=found)
    with pytest.raises(OperatorError, match="steps is 0"):
        extreme_singular_values(layer, 8, steps=0)
    with pytest.raises(OperatorError, match="at least one step"):
        bidiagonalize(lambda x: x, lambda y: y, torch.ones(1, 3, 2), 2, steps=1)


# ------------------------------------------------------------------------------------------------------ lanczos


@pytest.mark.parametrize("block", [1, 2, 3])
@pytest.mark.parametrize("shape", [(12, 7), (7, 12)])
def test_a_full_space_gives_all_values(block, shape):
    A = torch.randn(2, *shape, dtype=torch.float64)
    start = torch.randn(2, block, shape[1], dtype=torch.float64)
    ritz = bidiagonalize(lambda x: x @ A.mT, lambda y: y @ A, start, shape[0], steps=99)
    count = 7 // block * block
    assert ritz.values.shape == (2, count)
    values = torch.linalg.svdvals(A)
    if count == shape[1]:
        torch.testing.assert_close(ritz.values, values)
    for vectors in (ritz.left, ritz.right):
        torch.testing.assert_close(vectors @ vectors.mT, torch.eye(count, dtype=A.dtype).expand(2, -1, -1))
    torch.testing.assert_close(ritz.right @ A.mT, ritz.values[..., None] * ritz.left)
    residuals = torch.linalg.vector_norm(ritz.left @ A - ritz.values[..., None] * ritz.right, dim=2)
    torch.testing.assert_close(residuals, ritz.residuals, atol=1e-12, rtol=1e-6)
    assert bool((ritz.values <= values[:, :1] * (1 + 1e-12)).all())


def test_dependent_and_zero_starts_break_nothing():
    A = torch.diag(torch.tensor([3.0, 3.0, 3.0, 1.0, 0.0, 0.0], dtype=torch.float64))[None]
    for start in (torch.zeros(1, 2, 6), torch.ones(1, 2, 6), torch.eye(6)[None, 3:5]):
        ritz = bidiagonalize(lambda x: x @ A.mT, lambda y: y @ A, start.double(), 6, steps=3)
        torch.testing.assert_close(ritz.right @ ritz.right.mT, torch.eye(6, dtype=A.dtype)[None])
        torch.testing.assert_close(ritz.values, torch.linalg.svdvals(A))


def test_equal_layers_run_as_groups_of_one_convolution():
    layers = [nn.Conv2d(4, 6, 3, padding=1, groups=2, dtype=torch.float64) for _ in range(3)]
    geometry = operator_of(layers[0], 5).geometry
    weights = torch.stack([layer.weight.detach() for layer in layers])
    start = torch.randn(3, 1, 100, dtype=torch.float64)
    together = stacked_ritz(weights, geometry, start=start, steps=6)
    for i in range(3):
        alone = stacked_ritz(weights[i : i + 1], geometry, start=start[i : i + 1], steps=6)
        torch.testing.assert_close(together.values[i], alone.values[0])
