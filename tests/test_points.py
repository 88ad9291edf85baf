"""Weights as points: shapes, memory, layouts, refusals."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightspace.errors import SelectionError
from weightspace.kernels.points import GROUPINGS, Channels, point_view

KERNEL = torch.arange(4 * 6 * 3 * 2, dtype=torch.float32).view(4, 6, 3, 2)


@pytest.mark.parametrize(
    ("grouping", "shape", "product"),
    [
        ("slice", (1, 4, 6, 3, 2), ()),
        ("input", (1, 4, 6, 3, 2), (2,)),
        ("output", (1, 4, 6, 3, 2), (1,)),
        ("both", (1, 4, 6, 3, 2), (0, 1, 2)),
        ("filter", (1, 4, 1, 36), ()),
        ("matrix", (1, 4, 36), ()),
        ("kernel", (1, 1, 144), ()),
    ],
)
def test_the_table(grouping, shape: tuple[int, ...], product: tuple[int, ...]) -> None:
    view = point_view(KERNEL, grouping, Channels())
    found = view.read(KERNEL)
    assert (view.shape, view.product, tuple(found.shape)) == (shape, product, shape)
    assert view.is_view
    assert found.data_ptr() == KERNEL.data_ptr()


def test_which_numbers_form_a_point() -> None:
    slices = point_view(KERNEL, "slice", Channels()).read(KERNEL)
    filters = point_view(KERNEL, "filter", Channels()).read(KERNEL)
    matrix = point_view(KERNEL, "matrix", Channels()).read(KERNEL)
    for o in range(4):
        assert filters[0, o, 0].tolist() == KERNEL[o].flatten().tolist() == matrix[0, o].tolist()
        for i in range(6):
            assert torch.equal(slices[0, o, i], KERNEL[o, i])


def test_grouped_kernels_are_one_matrix_a_group() -> None:
    view = point_view(KERNEL, "matrix", Channels(groups=2))
    assert view.shape == (2, 2, 36)
    assert torch.equal(view.read(KERNEL)[1, 0], KERNEL[2].flatten())
    assert point_view(KERNEL, "kernel", Channels(groups=2)).shape == (1, 1, 144)


def test_transposed_convolutions_have_their_filters_along_the_second_dimension() -> None:
    channels = Channels(out_axis=1)
    assert point_view(KERNEL, "matrix", channels).shape == (1, 6, 24)
    view = point_view(KERNEL, "filter", channels)
    assert sorted(view.read(KERNEL)[0, 5, 0].tolist()) == sorted(KERNEL[:, 5].flatten().tolist())
    grouped = point_view(KERNEL, "slice", Channels(out_axis=1, groups=2))
    assert grouped.shape == (2, 6, 2, 3, 2)
    assert torch.equal(grouped.read(KERNEL)[1, 4, 0], KERNEL[2, 4])


def test_vectors_of_one_dimensional_convolutions_and_linear_layers() -> None:
    conv1d, linear, conv3d = torch.randn(4, 3, 5), torch.randn(7, 5), torch.randn(4, 3, 2, 2, 2)
    assert point_view(conv1d, "slice", Channels()).shape == (1, 4, 3, 1, 5)
    assert point_view(linear, "matrix", Channels()).shape == (1, 7, 5)
    assert point_view(conv3d, "matrix", Channels()).shape == (1, 4, 24)
    assert point_view(conv3d, "filter", Channels()).shape == (1, 4, 1, 24)


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_channels_last_is_viewed_not_copied(grouping) -> None:
    kernel = torch.randn(4, 6, 3, 3).to(memory_format=torch.channels_last)
    view = point_view(kernel, grouping, Channels())
    assert view.is_view
    view.read(kernel).mul_(0)
    assert not kernel.any()


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_tensors_of_other_strides_come_in_the_order_of_the_first(grouping) -> None:
    """A contiguous gradient of a channels_last weight: entry by entry the same."""
    weight = torch.randn(4, 6, 3, 3).to(memory_format=torch.channels_last)
    gradient = weight.clone(memory_format=torch.contiguous_format)
    for first, second in ((weight, gradient), (gradient, weight)):
        view = point_view(first, grouping, Channels())
        assert torch.equal(view.read(first), view.read(second))
        target = torch.zeros_like(second)
        view.write(target, view.read(first) + 1)
        assert torch.equal(target, first + 1)


def test_a_slice_of_a_larger_tensor_that_cannot_be_viewed_is_written_back() -> None:
    whole = torch.randn(4, 6, 3, 8)
    rest = whole[..., 4:].clone()
    part = whole[..., :4]
    view = point_view(part, "matrix", Channels())
    assert not view.is_view
    copy = view.read(part)
    view.write(part, copy * 2)
    assert torch.equal(view.read(whole[..., :4]), copy * 2)
    assert torch.equal(whole[..., 4:], rest)


@pytest.mark.parametrize(
    ("tensor", "grouping", "sentence"),
    [
        (KERNEL, "rows", "Grouping 'rows' was asked for; the groupings are slice"),
        (torch.zeros(5), "matrix", "is no matrix or kernel"),
        (torch.zeros(4, 3), "slice", "has no spatial slices"),
        (torch.zeros(4, 3, 2, 2, 2), "both", "has no spatial slices"),
        (torch.zeros(4, 3, 1, 1), "input", r"1x1 kernel.*\{\+1, -1\}"),
        (torch.zeros(4, 3, 1), "output", "1x1 kernel"),
    ],
)
def test_refusals(tensor: torch.Tensor, grouping, sentence: str) -> None:
    with pytest.raises(SelectionError, match=sentence):
        point_view(tensor, grouping, Channels(), "conv.weight")


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(GROUPINGS),
    st.lists(st.integers(1, 4), min_size=4, max_size=4),
    st.sampled_from([1, 2]),
    st.sampled_from([0, 1]),
    st.permutations(range(4)),
)
def test_reading_and_writing_lose_nothing(grouping, sizes: list[int], groups: int, out_axis: int, layout) -> None:
    shape = (groups * sizes[0], *sizes[1:])
    if grouping in ("slice", "input", "output", "both") and shape[2] * shape[3] == 1:
        return
    strides = torch.empty([shape[d] for d in layout]).permute(*(layout.index(d) for d in range(4))).stride()
    tensor = torch.empty_strided(shape, strides).copy_(torch.randn(shape))
    view = point_view(tensor, grouping, Channels(out_axis, groups))
    found = view.read(tensor)
    assert tuple(found.shape) == view.shape
    assert sorted(found.flatten().tolist()) == sorted(tensor.flatten().tolist())
    target = torch.zeros_like(tensor)
    view.write(target, found.clone())
    assert torch.equal(target, tensor)
    assert all(0 <= d < len(view.shape) - 2 for d in view.product)


def test_views_compare_by_value() -> None:
    views = [point_view(KERNEL, g, Channels()) for g in GROUPINGS]
    assert views == [point_view(KERNEL.clone(), g, Channels()) for g in GROUPINGS]
    assert all(a != b for a, b in itertools.combinations(views, 2))
