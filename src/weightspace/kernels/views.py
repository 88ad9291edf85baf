"""A weight seen as what a rule acts on: `(batch, length, inner)` blocks, without a copy.

Every view returns a 3-D tensor that shares the weight's memory. `length` is the axis that a rule acts along; `batch`
and `inner` enumerate everything else *in memory order*, so that channels_last weights are viewed, not copied. No rule
depends on the order of what it does not act along.

| view | `(batch, length, inner)` of a `(c_out, c_in, k_h, k_w)` kernel | a rule acts |
|---|---|---|
| `out` | `(1, c_out, c_in*k_h*k_w)` | along the output channels |
| `in` | `(c_out, c_in, k_h*k_w)` | along the input channels |
| `spatial` | `(c_out*c_in, k_h*k_w, 1)` | along the taps |
| `filter` | `(c_out, c_in*k_h*k_w, 1)` | within each output filter |
| `kernel` | `(1, c_out*c_in*k_h*k_w, 1)` | on the whole tensor, flattened |
| `slice` | `(c_out*c_in, k_h, k_w)` | on each spatial slice as a matrix |
| `matrix` | `(1, c_out, c_in*k_h*k_w)` | on the kernel as one matrix |

`out` and `matrix` are the same block of memory: what differs is what the rules that use them mean by it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from weightspace.errors import SelectionError
from weightspace.kernels.parameters import ParameterInfo, is_dense_layout

ViewName = Literal["out", "in", "spatial", "filter", "kernel", "slice", "matrix"]
"""How `view_of` looks at a weight; its table says what each view's dimensions are."""
VIEWS: tuple[ViewName, ...] = ("out", "in", "spatial", "filter", "kernel", "slice", "matrix")
"""All values of `ViewName`."""


@dataclass(frozen=True)
class View:
    """How one tensor layout becomes `(batch, length, inner)`: a permutation, then a reshape that never copies.

    Attributes:
        name: Which view.
        permutation: Dimensions in the order in which they are laid out.
        shape: `(batch, length, inner)`.
        grid: Sizes of the dimensions merged into `length`, in the order of the weight's own dimensions.
    """

    name: ViewName
    permutation: tuple[int, ...]
    shape: tuple[int, int, int]
    grid: tuple[int, ...]

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """The block `(batch, length, inner)` that shares memory with `tensor`; raises RuntimeError if it cannot."""
        if self.permutation != tuple(range(tensor.ndim)):
            tensor = tensor.permute(self.permutation)
        return tensor.view(self.shape)


def _length_axes(info: ParameterInfo, name: ViewName) -> tuple[int, ...]:
    axes = range(len(info.shape))
    return {
        "out": (info.out_axis,),
        "matrix": (info.out_axis,),
        "in": (info.in_axis,),
        "spatial": info.spatial_axes,
        "filter": tuple(a for a in axes if a != info.out_axis),
        "kernel": tuple(axes),
        "slice": info.spatial_axes[:1],
    }[name]


def view_of(info: ParameterInfo, name: ViewName, like: torch.Tensor | None = None) -> View:
    """The view `name` of a parameter (or of a tensor of its shape with other strides, such as its gradient).

    Raises:
        SelectionError: The tensor has no such axis, or its elements cannot be viewed that way without a copy.

    Example:
        >>> from torch import nn
        >>> from weightspace.kernels.parameters import describe
        >>> info = describe(nn.Conv2d(3, 8, 5, bias=False))[0]
        >>> view_of(info, "out").shape, view_of(info, "in").shape, view_of(info, "spatial").shape
        ((1, 8, 75), (8, 3, 25), (24, 25, 1))
    """
    tensor = info.parameter if like is None else like
    if name not in VIEWS:
        raise SelectionError(f"View {name!r} was asked for; the views are {', '.join(VIEWS)}.")
    if tensor.ndim < 2 and name != "kernel":
        raise SelectionError(f"{info.name} of shape {info.shape} has no {name} view: it is no matrix or kernel.")
    if not is_dense_layout(tensor):
        raise SelectionError(
            f"{info.name} is not dense in memory, so its {name} view would be a copy; make it .contiguous()."
        )
    along = _length_axes(info, name)
    if not along:
        raise SelectionError(f"{info.name} of shape {info.shape} has no {name} view: it has no spatial taps.")
    # Memory order; dimensions of size one have no place in it and come first.
    order = sorted(range(tensor.ndim), key=lambda d: -tensor.stride(d) if tensor.shape[d] > 1 else -math.inf)
    if name == "slice":
        return _slice_view(info, tensor, order)
    places = [order.index(a) for a in along if tensor.shape[a] > 1] or [order.index(along[0])]
    first, last = min(places), max(places)
    inside = order[first : last + 1]
    if any(tensor.shape[d] > 1 and d not in along for d in inside):
        # E.g. the filters of a transposed kernel, whose elements interleave.
        raise SelectionError(
            f"The {name} view of {info.name} does not fit its strides {tuple(tensor.stride())}; "
            "make it .contiguous() or take "
            "another view."
        )
    if name == "spatial" and [d for d in inside if d in along] != sorted(d for d in inside if d in along):
        raise SelectionError(
            f"The spatial dimensions of {info.name} are stored in another order than they are named; "
            "make it .contiguous()."
        )
    shape = (
        math.prod(tensor.shape[d] for d in order[:first]),
        math.prod(tensor.shape[d] for d in inside),
        math.prod(tensor.shape[d] for d in order[last + 1 :]),
    )
    grid = tuple(tensor.shape[a] for a in along)
    return View(name, tuple(order), shape, grid)


def _slice_view(info: ParameterInfo, tensor: torch.Tensor, order: list[int]) -> View:
    if tensor.ndim != 4 or order[-2:] != [2, 3]:
        raise SelectionError(f"{info.name} of shape {info.shape} has no slice view: a contiguous 2-D kernel has.")
    rows, columns = tensor.shape[2], tensor.shape[3]
    return View("slice", tuple(order), (tensor.numel() // (rows * columns), rows, columns), (rows,))
