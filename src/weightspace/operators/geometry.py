"""The geometry of a convolution: everything about the linear map but its numbers.

Along each dimension the map is: pad (zeros, or copies of entries by the padding mode; negative padding crops), then
take every `stride`-th window of taps that lie `dilation` apart. Dimensions do not interact, so all index arithmetic
here is one-dimensional. A transposed convolution is the adjoint of the convolution that this geometry describes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from weightspace.errors import OperatorError

PaddingMode = Literal["zeros", "circular", "reflect", "replicate"]
"""What a convolution reads beyond the border, as torch names it (`nn.Conv2d`'s `padding_mode`)."""
PADDING_MODES: tuple[PaddingMode, ...] = ("zeros", "circular", "reflect", "replicate")
"""All values of `PaddingMode`."""


@dataclass(frozen=True)
class ConvGeometry:
    """Sizes of a convolution without bias, seen as a linear map.

    Attributes:
        in_channels: Channels that it reads.
        out_channels: Channels that it writes.
        input_size: Spatial sizes that it reads, one a dimension; empty for a linear layer.
        kernel_size: Taps along each dimension.
        stride: Step of the window along each dimension.
        dilation: Distance between taps along each dimension.
        padding: Entries added before and after, along each dimension; negative ones are cut off (zeros only).
        padding_mode: What the added entries hold.
        groups: Number of independent blocks of channels.

    Raises:
        OperatorError: No window fits into the padded input, or a size is out of range.

    Example:
        >>> ConvGeometry(3, 8, (32, 32), (3, 3), (2, 2), (1, 1), ((1, 1), (1, 1))).output_size
        (16, 16)
    """

    in_channels: int
    out_channels: int
    input_size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    padding_mode: PaddingMode = "zeros"
    groups: int = 1

    def __post_init__(self) -> None:
        lengths = {len(t) for t in (self.input_size, self.kernel_size, self.stride, self.dilation, self.padding)}
        if len(lengths) != 1 or self.dimensions > 3:
            raise OperatorError(
                "input size, kernel size, stride, dilation and padding must have one entry a dimension, up to 3: "
                f"got {self.input_size}, {self.kernel_size}, {self.stride}, {self.dilation}, {self.padding}."
            )
        if self.padding_mode not in PADDING_MODES:
            raise OperatorError(f"The padding mode is {self.padding_mode!r}; choose one of {', '.join(PADDING_MODES)}.")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise OperatorError(
                f"{self.in_channels} input and {self.out_channels} output channels do not divide into "
                f"{self.groups} groups."
            )
        for axis in range(self.dimensions):
            self._check_axis(axis)

    def _check_axis(self, axis: int) -> None:
        n, (before, after) = self.input_size[axis], self.padding[axis]
        if n < 1:
            raise OperatorError(f"The input size is {self.input_size}; every size must be at least 1.")
        if self.padding_mode == "reflect" and max(before, after) >= n:
            raise OperatorError(
                f"Reflect padding of {max(before, after)} needs an input of at least {max(before, after) + 1} along "
                f"dimension {axis}; got {n}."
            )
        if self.padding_mode != "zeros" and min(before, after) < 0:
            raise OperatorError(f"Padding of {self.padding[axis]} cuts off entries, which only 'zeros' padding can do.")
        if self.output_length(axis) < 1:
            raise OperatorError(
                f"An input of {n} with padding {self.padding[axis]} is shorter than the kernel's reach of "
                f"{self.reach(axis)} along dimension {axis}; give a larger input_size."
            )

    @property
    def dimensions(self) -> int:
        """Number of spatial dimensions, 0 for a linear layer."""
        return len(self.input_size)

    @property
    def output_size(self) -> tuple[int, ...]:
        """Spatial sizes that it writes."""
        return tuple(self.output_length(axis) for axis in range(self.dimensions))

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """`(out_channels, in_channels / groups, *kernel_size)`."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix of the convolution."""
        return self.out_channels * math.prod(self.output_size), self.in_channels * math.prod(self.input_size)

    def reach(self, axis: int) -> int:
        """Entries from the first tap to the last, both included."""
        return self.dilation[axis] * (self.kernel_size[axis] - 1) + 1

    def output_length(self, axis: int) -> int:
        """Number of windows along one dimension."""
        padded = self.input_size[axis] + sum(self.padding[axis])
        return (padded - self.reach(axis)) // self.stride[axis] + 1

    def padded_length(self, axis: int) -> int:
        """Length after padding, cut after the last entry that any window reads."""
        return (self.output_length(axis) - 1) * self.stride[axis] + self.reach(axis)

    def sources(self, axis: int) -> list[int]:
        """For each entry of the padded input the entry of the input that it copies, or -1 for a zero."""
        n, before = self.input_size[axis], self.padding[axis][0]
        positions = range(-before, self.padded_length(axis) - before)
        if self.padding_mode == "circular":
            return [p % n for p in positions]
        if self.padding_mode == "replicate":
            return [min(max(p, 0), n - 1) for p in positions]
        if self.padding_mode == "reflect":
            return [-p if p < 0 else 2 * (n - 1) - p if p >= n else p for p in positions]
        return [p if 0 <= p < n else -1 for p in positions]

    def is_block_circulant(self) -> bool:
        """True if the map commutes with shifts of a torus by the stride: the Fourier transform then splits its matrix.

        It takes an output of `input / stride` entries, and padding that is circular or never read.
        """
        return all(self.is_circulant_along(axis) for axis in range(self.dimensions))

    def is_circulant_along(self, axis: int) -> bool:
        """`is_block_circulant` for one dimension."""
        n, before = self.input_size[axis], self.padding[axis][0]
        if self.output_length(axis) * self.stride[axis] != n:
            return False
        return all(source == (i - before) % n for i, source in enumerate(self.sources(axis)))

    def circular(self) -> ConvGeometry:
        """The same windows on a torus, `input / stride` outputs: the classical approximation of a zero-padded layer.

        Raises:
            OperatorError: The stride does not divide the input size.
        """
        padding: list[tuple[int, int]] = []
        for axis in range(self.dimensions):
            n, s = self.input_size[axis], self.stride[axis]
            if n % s:
                raise OperatorError(
                    f"The circular counterpart of a convolution with stride {s} needs an input size that {s} divides; "
                    f"got {n} along dimension {axis}."
                )
            total = max(0, self.reach(axis) - s)
            before = min(max(self.padding[axis][0], 0), total)
            padding.append((before, total - before))
        return replace(self, padding=tuple(padding), padding_mode="circular")

    def with_input_size(self, input_size: tuple[int, ...]) -> ConvGeometry:
        """The same layer on inputs of another size."""
        return replace(self, input_size=input_size)


@lru_cache(maxsize=256)
def torus(geometry: ConvGeometry) -> ConvGeometry:
    """The circular counterpart, on inputs of the next size that the stride divides; itself if it is one already.

    Example:
        >>> odd = ConvGeometry(1, 1, (7,), (3,), (2,), (1,), ((1, 1),))
        >>> torus(odd).input_size, torus(odd).padding_mode
        ((8,), 'circular')
    """
    if geometry.is_block_circulant():
        return geometry
    sizes = tuple(-(-n // s) * s for n, s in zip(geometry.input_size, geometry.stride, strict=True))
    # Other padding may not fit the rounded size; what counts on a torus is the number of windows only.
    wide = tuple((geometry.reach(axis), geometry.reach(axis)) for axis in range(geometry.dimensions))
    return replace(geometry, input_size=sizes, padding_mode="circular", padding=wide).circular()
