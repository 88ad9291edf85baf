"""Weights as 8-bit integers with one scale for each output channel.

    scale = max |w| / 127 over the channel,    stored as q = round(w / scale),    read as q * scale

so `|read - w| <= scale / 2`, plus the rounding of the result to the tensor's dtype. The scale is kept in float16 where
its normal range holds all of them, else in float32 or float64, and q is computed with the scale as it is kept: rounding
the scale moves the grid, it adds no error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weightspace.errors import CompressError

LARGEST = 127


def quantize(name: str, weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """A weight in 8 bits.

    Args:
        name: For the error.
        weight: `(rows, ...)`, floating point, on the CPU. Rows are output channels (input channels of a transposed
            convolution).

    Returns:
        int8 of the weight's shape and the scales `(rows,)`; None where no scale can be: vectors and scalars, integers,
        empty tensors, channels whose largest number is below the normal range of float64.

    Raises:
        CompressError: The weight holds NaN or infinity.

    Example:
        >>> quantize("w", torch.tensor([[1.0, -0.5], [0.0, 0.0]]))
        (tensor([[127, -64],
                [  0,   0]], dtype=torch.int8), tensor([0.0079, 0.0000], dtype=torch.float16))
    """
    if weight.ndim < 2 or weight.numel() == 0 or not weight.is_floating_point():
        return None
    rows = weight.reshape(len(weight), -1).double()
    largest = rows.abs().amax(1)
    if not bool(largest.isfinite().all()):
        raise CompressError(
            f"{name} holds NaN or infinity, which 8 bits cannot hold; repair the weight or save with bits=None."
        )
    dtype = _dtype_for((largest / LARGEST)[largest > 0])
    if dtype is None:
        return None
    scales = (largest / LARGEST).to(dtype)
    steps = scales.double()
    steps[steps == 0] = 1.0  # a channel of zeros
    numbers = rows.div(steps[:, None]).round_().clamp_(-LARGEST, LARGEST).to(torch.int8)
    return numbers.view(weight.shape), scales


def dequantize(numbers: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The product of numbers and scales of equal length, in `dtype`."""
    return (numbers.double() * scales.double()).to(dtype)


def _dtype_for(scales: Tensor) -> torch.dtype | None:
    """The smallest dtype whose normal range holds all scales."""
    for dtype in (torch.float16, torch.float32, torch.float64):
        limits = torch.finfo(dtype)
        if bool(((scales >= limits.tiny) & (scales <= limits.max)).all()):
            return dtype
    return None
