"""A weight as a bundle of points of a manifold: which numbers form one point, and which points form one product.

Every point is a matrix `(n, p)`; a vector is a matrix of one row. A grouping turns a weight into `(*lead, n, p)`:

| grouping | one point is | points of a `(c_out, c_in, k_h, k_w)` kernel | one step size for |
|---|---|---|---|
| `slice` | a spatial slice | `(1, c_out, c_in, k_h, k_w)` | each slice |
| `input` | a spatial slice | the same | the slices of one filter: a product over input channels |
| `output` | a spatial slice | the same | the slices that read one channel: a product over output channels |
| `both` | a spatial slice | the same | all slices of the kernel: a product over both |
| `filter` | an output filter, flattened | `(1, c_out, 1, c_in*k_h*k_w)` | each filter |
| `matrix` | the kernel as a matrix | `(1, c_out, c_in*k_h*k_w)` | the kernel |
| `kernel` | the kernel as a vector | `(1, 1, c_out*c_in*k_h*k_w)` | the kernel |
| `entry` | each number | `(c_out*c_in*k_h*k_w, 1, 1)` | each number |

The first dimension counts the groups of a grouped convolution: `matrix` is one matrix for each. Columns come in memory
order (channels_last weights are viewed, not copied); no manifold here depends on the order of columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from weightspace.errors import SelectionError

Grouping = Literal["slice", "filter", "matrix", "kernel", "input", "output", "both", "entry"]
"""Which numbers of a weight form one point of a manifold; docs/manifolds/index.md draws each."""
GROUPINGS: tuple[Grouping, ...] = ("slice", "filter", "matrix", "kernel", "input", "output", "both", "entry")
"""All values of `Grouping`."""
SLICES = frozenset({"slice", "input", "output", "both"})
# Leading dimensions (groups, out, in) that one step size spans.
_PRODUCTS: dict[str, tuple[int, ...]] = {"input": (2,), "output": (1,), "both": (0, 1, 2)}


@dataclass(frozen=True)
class Channels:
    """Where a weight keeps its channels.

    Attributes:
        out_axis: Dimension of the output channels: 1 for transposed convolutions, else 0.
        groups: `groups` of the convolution, else 1.
        chains: The first dimension of a tensor counts independent weights `(chains, *weight)`.
    """

    out_axis: int = 0
    groups: int = 1
    chains: bool = False


@dataclass(frozen=True)
class PointView:
    """How tensors of one shape and layout become points `(*lead, n, p)`.

    Attributes:
        name: The grouping.
        shape: `(*lead, n, p)`.
        product: The leading dimensions that share one step size; empty if every point has its own.
        is_view: Whether the points of a tensor with the strides of the first one share its memory.
    """

    name: Grouping
    shape: tuple[int, ...]
    product: tuple[int, ...]
    is_view: bool
    _channels: Channels
    _order: tuple[int, ...] = ()

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        """The points of `tensor`: its own memory if `is_view` and its strides are those of the first tensor.

        Tensors with other strides (a contiguous gradient of a channels_last weight) are copied into the same order.
        """
        return whole(tensor, self._channels).permute(self._order).reshape(self.shape)

    def write(self, tensor: torch.Tensor, points: torch.Tensor) -> None:
        """Puts points into a tensor; nothing to do where they are its own memory."""
        if not (points.data_ptr() == tensor.data_ptr() and points.dtype == tensor.dtype):
            ordered = whole(tensor, self._channels).permute(self._order)
            ordered.copy_(points.reshape(ordered.shape))


def point_view(tensor: torch.Tensor, grouping: Grouping, channels: Channels, name: str = "The weight") -> PointView:
    """How a tensor becomes points of a grouping.

    Raises:
        SelectionError: The tensor has no such points.

    Example:
        >>> kernel = torch.zeros(8, 3, 5, 5)
        >>> point_view(kernel, "matrix", Channels()).shape, point_view(kernel, "slice", Channels()).shape
        ((1, 8, 75), (1, 8, 3, 5, 5))
    """
    if grouping not in GROUPINGS:
        raise SelectionError(f"Grouping {grouping!r} was asked for; the groupings are {', '.join(GROUPINGS)}.")
    ndim = tensor.ndim - channels.chains
    if ndim < 2:
        raise SelectionError(f"{name} of shape {tuple(tensor.shape)} is no matrix or kernel: it has no points.")
    if grouping in SLICES and ndim not in (3, 4):
        raise SelectionError(
            f"{name} of shape {tuple(tensor.shape)} has no spatial slices: 1-D and 2-D convolutions have."
        )
    if grouping in SLICES and math.prod(tensor.shape[2 + channels.chains :]) == 1:
        raise SelectionError(f"{name} is a 1x1 kernel: its slices are single numbers, whose manifold is {{+1, -1}}.")
    if channels.chains and channels.groups > 1:
        raise SelectionError(f"{name} holds chains of a grouped kernel; chains of ungrouped kernels only.")
    parts = whole(tensor, channels)
    order = _order(parts, grouping, channels)
    ordered = parts.permute(order)
    shape = _shape(ordered, grouping, channels)
    return PointView(grouping, shape, _PRODUCTS.get(grouping, ()), _can_view(ordered, shape), channels, order)


def row_axis(channels: Channels) -> int:
    """The leading dimension of points `(*lead, n, p)` of which each index holds numbers of one row of dimension 0.

    Of groupings whose points lie within one row; see `lies_in_rows`.
    """
    return 0 if channels.chains else 1 + channels.out_axis


def lies_in_rows(grouping: Grouping, channels: Channels) -> bool:
    """Whether every point has numbers of one row (index of dimension 0) of the weight only.

    Example:
        >>> lies_in_rows("filter", Channels()), lies_in_rows("matrix", Channels()), lies_in_rows("slice", Channels(1))
        (True, False, True)
    """
    if channels.chains:
        return True
    if channels.groups > 1:
        return False
    return grouping in SLICES or grouping == "entry" or (grouping == "filter" and channels.out_axis == 0)


def steps_in_rows(grouping: Grouping, channels: Channels) -> bool:
    """The same for what shares one step size.

    Example:
        >>> [steps_in_rows(grouping, Channels()) for grouping in ("slice", "input", "output", "both")]
        [True, True, False, False]
    """
    return lies_in_rows(grouping, channels) and row_axis(channels) not in _PRODUCTS.get(grouping, ())


def whole(tensor: torch.Tensor, channels: Channels) -> torch.Tensor:
    """A view of the tensor as `(groups, out, in, *taps)`; chains count as groups, for groups share nothing."""
    groups = channels.groups
    if channels.chains:
        return tensor.transpose(1, 2) if channels.out_axis == 1 else tensor
    parts = tensor.unflatten(0, (groups, tensor.shape[0] // groups)) if groups > 1 else tensor.unsqueeze(0)
    return parts.transpose(1, 2) if channels.out_axis == 1 else parts


def _order(whole: torch.Tensor, grouping: Grouping, channels: Channels) -> tuple[int, ...]:
    """The dimensions with those that a point merges in memory order, in which every dense layout can be viewed."""
    first = whole.ndim if grouping in SLICES else {"kernel": int(channels.chains), "entry": 0}.get(grouping, 2)
    merged = sorted(range(first, whole.ndim), key=lambda d: -whole.stride(d) if whole.shape[d] > 1 else -math.inf)
    return (*range(first), *merged)


def _shape(ordered: torch.Tensor, grouping: Grouping, channels: Channels) -> tuple[int, ...]:
    if grouping in SLICES:
        return tuple(ordered.shape) if ordered.ndim == 5 else (*ordered.shape[:3], 1, ordered.shape[3])
    if grouping == "entry":
        return (ordered.numel(), 1, 1)
    if grouping == "kernel":
        count = ordered.shape[0] if channels.chains else 1
        return (count, 1, ordered.numel() // max(1, count))
    groups, rows = ordered.shape[:2]
    columns = ordered.numel() // max(1, groups * rows)
    return (groups, rows, columns) if grouping == "matrix" else (groups, rows, 1, columns)


def _can_view(ordered: torch.Tensor, shape: tuple[int, ...]) -> bool:
    try:
        ordered.view(shape)
    except RuntimeError:
        return False
    return True
