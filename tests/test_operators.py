"""Layers as linear maps: against torch's own layers, against the matrix from the definition, and adjoint identities."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from weightspace.errors import OperatorError
from weightspace.operators import PADDING_MODES, ConvGeometry, ConvOperator, operator_of
from weightspace.operators.conv import fitting_size
from weightspace.operators.reference import reference_matrix, reference_singular_values

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
SIZES = (5, 6, 4)


def inner(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a * b).detach().sum())


def random_like(operator: ConvOperator) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.randn(2, *shape, dtype=torch.float64) for shape in (operator.input_shape, operator.output_shape))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_apply_is_the_layer_and_adjoint_its_adjoint(dimensions: int, mode: str, groups: int):
    size, cases = SIZES[:dimensions], 0
    for kernel, stride, dilation, padding in itertools.product(
        (1, 2, 3), (1, 2, 3), (1, 2), (0, 1, 2, "same", "valid")
    ):
        reach = dilation * (kernel - 1) + 1
        if padding == "same" and stride > 1:
            continue  # torch refuses it
        if padding != "same" and min(size) + 2 * (0 if padding == "valid" else padding) < reach:
            continue
        layer = CONVS[dimensions - 1](
            2 * groups, 4, kernel, stride, padding, dilation, groups, bias=False, padding_mode=mode
        ).double()
        operator = operator_of(layer, size)
        x, y = random_like(operator)
        torch.testing.assert_close(operator.apply(x), layer(x), rtol=0, atol=1e-12)
        assert abs(inner(operator.apply(x), y) - inner(x, operator.adjoint(y))) < 1e-12 * (1 + abs(inner(x, x)))
        cases += 1
    assert cases >= 30


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_transposed_layers_are_adjoints_of_convolutions(dimensions: int):
    for kernel, stride, dilation, padding, groups in itertools.product((1, 2, 3), (1, 2, 3), (1, 2), (0, 1), (1, 2)):
        for extra in range(max(stride, dilation)):
            layer = TRANSPOSED[dimensions - 1](
                4, 2 * groups, kernel, stride, padding, extra, groups, bias=False, dilation=dilation
            ).double()
            operator = operator_of(layer, 3)
            x, y = random_like(operator)
            torch.testing.assert_close(operator.apply(x), layer(x), rtol=0, atol=1e-12)
            assert abs(inner(operator.apply(x), y) - inner(x, operator.adjoint(y))) < 1e-11


@given(
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    before=st.integers(-1, 4),
    after=st.integers(-1, 4),
    size=st.integers(3, 6),
    mode=st.sampled_from(PADDING_MODES),
    transposed=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_dense_is_the_matrix_from_the_definition(
    kernel: int, stride: int, dilation: int, before: int, after: int, size: int, mode: str, transposed: bool
):
    arguments = (2, 3, (size,), (kernel,), (stride,), (dilation,), ((before, after),), mode)
    try:
        geometry = ConvGeometry(*arguments)
    except OperatorError:
        return
    if mode == "circular" and max(before, after) > size:
        return  # torch, which pads for the reference, goes round once at most
    operator = ConvOperator(torch.randn(3, 2, kernel, dtype=torch.float64), geometry, transposed)
    reference = reference_matrix(operator)
    assert operator.shape == tuple(reference.shape)
    torch.testing.assert_close(operator.dense(), reference, rtol=0, atol=1e-13)
    y = torch.randn(1, *operator.output_shape, dtype=torch.float64)
    torch.testing.assert_close(operator.adjoint(y).reshape(-1), reference.T @ y.reshape(-1), rtol=0, atol=1e-12)


def test_linear_is_the_trivial_case():
    layer = nn.Linear(4, 3).double()
    operator = operator_of(layer)
    x, y = random_like(operator)
    torch.testing.assert_close(operator.dense(), layer.weight)
    torch.testing.assert_close(operator.apply(x), x @ layer.weight.T)
    torch.testing.assert_close(operator.adjoint(y), y @ layer.weight)


def test_known_matrices():
    shift = nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular", bias=False).double()
    with torch.no_grad():
        shift.weight.copy_(torch.tensor([[[1.0, 0.0, 0.0]]]))
    assert operator_of(shift, 4).dense().tolist() == [[0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    with torch.no_grad():
        shift.weight.copy_(torch.tensor([[[1.0, 2.0, 4.0]]]))
    reflected = nn.Conv1d(1, 1, 3, padding=1, padding_mode="reflect", bias=False).double()
    reflected.load_state_dict(shift.state_dict())
    assert operator_of(reflected, 3).dense().tolist() == [[2, 5, 0], [1, 2, 4], [0, 5, 2]]


@pytest.mark.parametrize("stride", [1, 2])
def test_circular_counterpart_commutes_with_shifts(stride: int):
    layer = nn.Conv2d(2, 3, 3, stride, 1, bias=False).double()
    operator = operator_of(layer, 8)
    assert not operator.geometry.is_block_circulant()
    torus = operator.circular()
    assert torus.geometry.is_block_circulant()
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    shifted = torus.apply(x.roll((stride, 2 * stride), (2, 3)))
    torch.testing.assert_close(shifted, torus.apply(x).roll((1, 2), (2, 3)))
    zero, torus_values = reference_singular_values(operator), reference_singular_values(torus)
    assert float((zero - torus_values).abs().max()) > 1e-3  # the two are different maps


def test_padding_that_is_never_read_is_circulant():
    assert operator_of(nn.Conv2d(2, 2, 1, 2), 8).geometry.is_block_circulant()
    assert not operator_of(nn.Conv2d(2, 2, 1, 1, 1), 8).geometry.is_block_circulant()


def test_gradients_flow_to_the_weight():
    weight = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    geometry = ConvGeometry(2, 3, (5,), (3,), (1,), (1,), ((1, 1),), "reflect")
    x, y = torch.randn(1, 2, 5, dtype=torch.float64), torch.randn(1, 3, 5, dtype=torch.float64)

    def forward(w: torch.Tensor) -> torch.Tensor:
        return ConvOperator(w, geometry).apply(x)

    def backward(w: torch.Tensor) -> torch.Tensor:
        return ConvOperator(w, geometry).adjoint(y)

    assert torch.autograd.gradcheck(forward, weight)
    assert torch.autograd.gradcheck(backward, weight)


def test_parametrized_weights_are_what_the_layer_uses():
    layer = nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 2, 3)).eval()
    torch.testing.assert_close(operator_of(layer, 4).weight, layer.weight)


@pytest.mark.parametrize(
    ("make", "size", "sentence"),
    [
        (lambda: nn.LazyConv2d(3, 3), 8, "is lazy and has no weight yet"),
        (lambda: nn.Conv2d(2, 3, 3, device="meta"), 8, "on the meta device"),
        (lambda: nn.BatchNorm2d(3), 8, "no layer whose linear map is known"),
        (nn.ReLU, 8, "has no weight"),
        (lambda: nn.Conv2d(2, 3, 3), None, "needs input_size"),
        (lambda: nn.Conv2d(2, 3, 3), (8,), "give 2 positive whole numbers"),
        (lambda: nn.Conv2d(2, 3, 3), 0, "give 2 positive whole numbers"),
        (lambda: nn.Conv2d(2, 3, 3), True, "give 2 positive whole numbers"),
        (lambda: nn.Conv2d(2, 3, 3), 2, "shorter than the kernel's reach of 3"),
        (lambda: nn.Conv2d(2, 3, 3, padding=3, padding_mode="reflect"), 3, "needs an input of at least 4"),
    ],
)
def test_what_cannot_be_analyzed_is_refused_in_a_sentence(make, size, sentence: str):
    with pytest.raises(OperatorError, match=sentence):
        operator_of(make(), size)


def test_non_finite_weights_are_refused():
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
    with pytest.raises(OperatorError, match="NaN or infinity"):
        operator_of(layer)


def test_wrong_blocks_and_too_large_matrices_are_refused():
    operator = operator_of(nn.Conv2d(64, 64, 3, padding=1), 32)
    with pytest.raises(OperatorError, match=r"it needs \(batch, 64, 32, 32\)"):
        operator.apply(torch.zeros(64, 32, 32))
    with pytest.raises(OperatorError, match="65,536 x 65,536 entries"):
        operator.dense()
    with pytest.raises(OperatorError, match="that 2 divides"):
        operator_of(nn.Conv2d(1, 1, 3, 2, 1), 7).circular()
    with pytest.raises(OperatorError, match="its geometry needs"):
        operator.with_weight(torch.zeros(3))


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    padding=st.integers(0, 6),
    mode=st.sampled_from(PADDING_MODES),
    least=st.integers(1, 9),
    transposed=st.booleans(),
)
def test_the_fitting_size_of_a_layer_is_accepted(kernel, stride, dilation, padding, mode, least, transposed):
    options = {"stride": stride, "dilation": dilation, "padding": padding}
    layer = (
        nn.ConvTranspose1d(1, 1, kernel, **options)
        if transposed
        else nn.Conv1d(1, 1, kernel, padding_mode=mode, **options)
    )
    (size,) = fitting_size(layer, least)
    assert size >= least
    assert operator_of(layer, size).shape[0] >= 1
    assert layer(torch.zeros(1, 1, size)).numel() >= 1
