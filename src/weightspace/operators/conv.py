"""Layers as linear maps: a convolution without its bias, its adjoint, and its matrix where that is small enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional

from weightspace.errors import OperatorError
from weightspace.operators.geometry import ConvGeometry

LARGEST_DENSE = 64_000_000  # entries: half a gigabyte in float64


@dataclass(frozen=True, eq=False)
class ConvOperator:
    """A convolution layer without its bias, as the linear map from one image to one image.

    Attributes:
        weight: `(out_channels, in_channels / groups, *kernel_size)` of the convolution that `geometry` describes. For a
            transposed layer that is the layer's own weight: it is the adjoint of that convolution.
        geometry: Sizes, stride, dilation, padding, groups.
        is_transposed: The layer maps as the adjoint of `geometry`.

    Gradients flow to `weight` through every method.

    Example:
        >>> layer = nn.Conv2d(1, 1, 2, bias=False)
        >>> _ = nn.init.ones_(layer.weight)
        >>> operator = operator_of(layer, (2, 3))
        >>> operator.shape, operator.dense().tolist()
        ((2, 6), [[1.0, 1.0, 0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0, 1.0, 1.0]])
    """

    weight: torch.Tensor
    geometry: ConvGeometry
    is_transposed: bool = False

    def __post_init__(self) -> None:
        if tuple(self.weight.shape) != self.geometry.weight_shape:
            raise OperatorError(
                f"The weight has shape {tuple(self.weight.shape)}, its geometry needs {self.geometry.weight_shape}."
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`(channels, *sizes)` of what `apply` reads."""
        return self._shapes()[0]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """`(channels, *sizes)` of what `apply` writes."""
        return self._shapes()[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return math.prod(self.output_shape), math.prod(self.input_shape)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """The layer without bias: `(batch, *input_shape)` to `(batch, *output_shape)`."""
        _check_block(x, self.input_shape, "apply")
        return self._backward(x) if self.is_transposed else self._forward(x)

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """The adjoint map, `<A x, y> = <x, A* y>`: `(batch, *output_shape)` to `(batch, *input_shape)`."""
        _check_block(y, self.output_shape, "adjoint")
        return self._forward(y) if self.is_transposed else self._backward(y)

    def dense(self) -> torch.Tensor:
        """The matrix `(rows, columns)`: output entries by input entries, both in row-major order.

        Cost: `rows * columns` entries of memory, one application to every unit vector.

        Raises:
            OperatorError: The matrix has more than `LARGEST_DENSE` entries.
        """
        rows, columns = self.shape
        if rows * columns > LARGEST_DENSE:
            raise OperatorError(
                f"The matrix of this layer has {rows:,} x {columns:,} entries, more than the limit of {LARGEST_DENSE:,}"
                "; use apply() and adjoint(), extreme_singular_values() or singular_value_moments()."
            )
        eye = torch.eye(columns, dtype=self.weight.dtype, device=self.weight.device)
        return self.apply(eye.view(columns, *self.input_shape)).reshape(columns, rows).T

    def circular(self) -> ConvOperator:
        """The same weight with circular padding; see `ConvGeometry.circular`."""
        return replace(self, geometry=self.geometry.circular())

    def with_weight(self, weight: torch.Tensor) -> ConvOperator:
        """The same geometry with another weight (of any dtype or device)."""
        return replace(self, weight=weight)

    # ------------------------------------------------------------------ the convolution that `geometry` describes

    def _shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        g = self.geometry
        inner, outer = (g.in_channels, *g.input_size), (g.out_channels, *g.output_size)
        return (outer, inner) if self.is_transposed else (inner, outer)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        g = self.geometry
        if g.dimensions == 0:
            return functional.linear(x, self.weight)
        convolution = (functional.conv1d, functional.conv2d, functional.conv3d)[g.dimensions - 1]
        return convolution(self._pad(x), self.weight, None, g.stride, 0, g.dilation, g.groups)

    def _backward(self, y: torch.Tensor) -> torch.Tensor:
        g = self.geometry
        if g.dimensions == 0:
            return functional.linear(y, self.weight.T)
        transposed = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[
            g.dimensions - 1
        ]
        return self._fold(transposed(y, self.weight, None, g.stride, 0, 0, g.groups, g.dilation))

    def _pad(self, x: torch.Tensor) -> torch.Tensor:
        """Padding (or cropping), dimension by dimension, up to the last entry that a window reads."""
        g = self.geometry
        for axis in range(g.dimensions):
            dim, before = axis + 2, g.padding[axis][0]
            after = g.padded_length(axis) - before - g.input_size[axis]
            if min(before, after) < -g.input_size[axis]:  # no window reads any entry
                x = x.new_zeros((*x.shape[:dim], g.padded_length(axis), *x.shape[dim + 1 :]))
            elif g.padding_mode == "zeros" or not (before or after):
                x = functional.pad(x, [0, 0] * (g.dimensions - 1 - axis) + [before, after])
            else:
                x = x.index_select(dim, torch.tensor(g.sources(axis), device=x.device))
        return x

    def _fold(self, x: torch.Tensor) -> torch.Tensor:
        """The adjoint of `_pad`: copies add up at their source, added zeros vanish, cropped entries become zero."""
        g = self.geometry
        for axis in range(g.dimensions):
            dim, n, before = axis + 2, g.input_size[axis], g.padding[axis][0]
            after = g.padded_length(axis) - before - n
            if min(before, after) < -n:
                x = x.new_zeros((*x.shape[:dim], n, *x.shape[dim + 1 :]))
            elif g.padding_mode == "zeros" or not (before or after):
                x = functional.pad(x, [0, 0] * (g.dimensions - 1 - axis) + [-before, -after])
            else:
                target = x.new_zeros((*x.shape[:dim], n, *x.shape[dim + 1 :]))
                x = target.index_add(dim, torch.tensor(g.sources(axis), device=x.device), x)
        return x


def operator_of(layer: nn.Module, input_size: int | Sequence[int] | None = None) -> ConvOperator:
    """The linear map of a layer.

    Args:
        layer: `nn.Conv1d/2d/3d`, `nn.ConvTranspose1d/2d/3d` or `nn.Linear`, parametrized or not.
        input_size: Spatial sizes of the layer's input, e.g. `(32, 32)`; one number stands for all dimensions. Not
            needed for a linear layer.

    Raises:
        OperatorError: The layer is of another kind, lazy, on the meta device or holds non-finite weights, or the size
            does not fit it.

    Example:
        >>> operator_of(nn.ConvTranspose2d(4, 2, 2, stride=2), 8).shape
        (512, 256)
        >>> operator_of(nn.Linear(3, 5)).shape
        (5, 3)
    """
    weight = _usable_weight(layer)
    if isinstance(layer, nn.Linear):
        return ConvOperator(weight, ConvGeometry(weight.shape[1], weight.shape[0], (), (), (), (), ()))
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return ConvOperator(weight, _transposed_geometry(layer, _sizes(layer, input_size)), is_transposed=True)
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return ConvOperator(weight, _geometry(layer, _sizes(layer, input_size)))
    raise OperatorError(
        f"{type(layer).__name__} is no layer whose linear map is known; pass a Conv1d, Conv2d, Conv3d, one of their "
        "transposed kinds, or a Linear."
    )


def fitting_size(layer: nn.Module, least: int = 1) -> tuple[int, ...]:
    """Some input size that a layer accepts, each at least `least`; `()` for a linear layer.

    Example:
        >>> fitting_size(nn.Conv2d(1, 1, 3, padding=4)), fitting_size(nn.ConvTranspose1d(1, 1, 2, padding=3))
        ((5, 5), (6,))
    """
    if not isinstance(layer, _Conv | _ConvTranspose):
        return ()
    reaches = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    padding = [0] * len(reaches) if isinstance(layer.padding, str) else list(layer.padding)
    if isinstance(layer, _ConvTranspose):  # its output, (n - 1) stride - 2 padding + reach, must not be empty
        return tuple(
            max(least, math.ceil((2 * int(p) + 1 - r) / s) + 1)
            for r, p, s in zip(reaches, padding, layer.stride, strict=True)
        )
    # Reflect padding needs more entries than it adds; "same" adds less than the reach.
    return tuple(max(r, int(p) + 1, least) for r, p in zip(reaches, padding, strict=True))


_Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
_ConvTranspose = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def _geometry(layer: _Conv, size: tuple[int, ...]) -> ConvGeometry:
    reaches = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if layer.padding == "same":
        padding = tuple((r // 2, r - r // 2) for r in reaches)
    elif isinstance(layer.padding, str):
        padding = ((0, 0),) * len(reaches)
    else:
        padding = tuple((p, p) for p in layer.padding)
    return ConvGeometry(
        layer.in_channels,
        layer.out_channels,
        size,
        tuple(layer.kernel_size),
        tuple(layer.stride),
        tuple(layer.dilation),
        padding,
        layer.padding_mode,  # pyright: ignore[reportArgumentType]  # torch checks it and declares it as str
        layer.groups,
    )


def _transposed_geometry(layer: _ConvTranspose, size: tuple[int, ...]) -> ConvGeometry:
    """The convolution whose adjoint the layer is: it reads the layer's output and writes the layer's input."""
    outputs: list[int] = []
    padding: list[tuple[int, int]] = []
    for n, k, s, d, p, extra in zip(
        size, layer.kernel_size, layer.stride, layer.dilation, layer.padding, layer.output_padding, strict=True
    ):
        if not isinstance(p, int):
            raise OperatorError(f"{type(layer).__name__} has padding {layer.padding!r}; it must be numbers.")
        outputs.append((n - 1) * s - 2 * p + d * (k - 1) + 1 + extra)
        padding.append((p, p - extra))  # so that exactly n windows fit
    return ConvGeometry(
        layer.out_channels,
        layer.in_channels,
        tuple(outputs),
        tuple(layer.kernel_size),
        tuple(layer.stride),
        tuple(layer.dilation),
        tuple(padding),
        groups=layer.groups,
    )


def _sizes(layer: _Conv | _ConvTranspose, input_size: int | Sequence[int] | None) -> tuple[int, ...]:
    dimensions = len(layer.kernel_size)
    if input_size is None:
        raise OperatorError(f"{type(layer).__name__} needs input_size, the spatial sizes of what it reads.")
    sizes = (input_size,) * dimensions if isinstance(input_size, int) else tuple(input_size)
    if len(sizes) != dimensions or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes):
        raise OperatorError(
            f"{type(layer).__name__} got input_size={input_size!r}; give {dimensions} positive whole numbers."
        )
    return sizes


def _usable_weight(layer: nn.Module) -> torch.Tensor:
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, torch.Tensor):
        raise OperatorError(f"{type(layer).__name__} has no weight; pass a convolution or a Linear.")
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise OperatorError(f"{type(layer).__name__} is lazy and has no weight yet; run one forward pass first.")
    if weight.device.type == "meta":
        raise OperatorError(
            f"The weight of {type(layer).__name__} is on the meta device and has no values; load it first."
        )
    if not bool(weight.isfinite().all()):
        raise OperatorError(f"The weight of {type(layer).__name__} holds NaN or infinity; nothing can be said of it.")
    return weight


def _check_block(x: torch.Tensor, shape: tuple[int, ...], name: str) -> None:
    if tuple(x.shape[1:]) != shape:
        raise OperatorError(f"{name}() got shape {tuple(x.shape)}; it needs (batch, {', '.join(map(str, shape))}).")
