"""Lipschitz constants of what stands between layers: activations, pools, rearrangements.

All constants are of the Euclidean norm of one image. Those of activations are the largest slope, rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from weightspace.errors import InspectionError

# The largest slope of gelu is Phi(sqrt 2) + sqrt 2 phi(sqrt 2); the others have no closed form or an obvious one.
SLOPES: Mapping[type[nn.Module], float] = MappingProxyType(
    {
        nn.ReLU: 1.0,
        nn.ReLU6: 1.0,
        nn.Hardtanh: 1.0,
        nn.Tanh: 1.0,
        nn.Tanhshrink: 1.0,
        nn.Softsign: 1.0,
        nn.Softshrink: 1.0,
        nn.LogSigmoid: 1.0,
        nn.Sigmoid: 0.25,
        nn.Hardsigmoid: 0.1666667,
        nn.Hardswish: 1.5,
        nn.SELU: 1.7580994,
        nn.GELU: 1.13,
        nn.SiLU: 1.1,
        nn.Mish: 1.09,
    }
)
SLOPES_OF_FUNCTIONS: Mapping[Any, float] = MappingProxyType(
    {
        **dict.fromkeys(
            (torch.relu, functional.relu, "relu", torch.tanh, functional.tanh, "tanh", torch.abs, "abs"), 1
        ),
        **dict.fromkeys((torch.sigmoid, functional.sigmoid, "sigmoid"), 0.25),
        functional.gelu: 1.13,
        functional.silu: 1.1,
    }
)
# Entries are kept, moved or dropped; none is copied.
MOVES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.ZeroPad2d)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
ADAPTIVE_AVERAGES = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
MAXIMA = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


def slope(module: nn.Module) -> float | None:
    """The largest slope of an activation; None for what is none.

    >>> slope(nn.LeakyReLU(-2.0)), slope(nn.Sigmoid()), slope(nn.Linear(1, 1))
    (2.0, 0.25, None)
    """
    if isinstance(module, nn.LeakyReLU):
        return max(1.0, abs(module.negative_slope))
    if isinstance(module, nn.PReLU):
        return max(1.0, float(module.weight.detach().abs().max()))
    if isinstance(module, nn.ELU):
        return max(1.0, abs(module.alpha))
    if isinstance(module, nn.CELU):  # exp(x / alpha) for x < 0
        return 1.0 if module.alpha > 0 else None
    if isinstance(module, nn.Softplus):  # it jumps at the threshold, from 20 on by less than float32 resolves
        return 1.0 if module.beta > 0 and module.threshold >= 20 else None
    return SLOPES.get(type(module))


def average_pool(module: nn.Module, sizes: tuple[int, ...]) -> float:
    """The norm of an average pool: it is a Kronecker product of one small matrix a dimension.

    Args:
        module: One of `AVERAGES` or `ADAPTIVE_AVERAGES`.
        sizes: Spatial sizes of its input.

    >>> round(average_pool(nn.AvgPool2d(2), (8, 8)), 3), round(average_pool(nn.AvgPool1d(3, stride=1), (64,)), 3)
    (0.5, 0.999)
    """
    pool: Any = module
    _check_dimensions(module, sizes)
    if getattr(pool, "divisor_override", None) is not None:
        raise InspectionError(f"{type(module).__name__} has divisor_override, which has no bound here; leave it out.")
    norms: list[float] = []
    for axis, size in enumerate(sizes):
        eye = torch.eye(size, dtype=torch.float64)[None]
        if isinstance(module, ADAPTIVE_AVERAGES):
            matrix = functional.adaptive_avg_pool1d(eye, _output(pool.output_size, axis) or size)
        else:
            kernel, stride, padding = (_along(x, axis) for x in (pool.kernel_size, pool.stride, pool.padding))
            matrix = functional.avg_pool1d(eye, kernel, stride, padding, pool.ceil_mode, pool.count_include_pad)
        norms.append(float(torch.linalg.matrix_norm(matrix[0], 2)))
    return math.prod(norms)


def maximum_pool(module: nn.Module, sizes: tuple[int, ...]) -> float:
    """The root of how many windows read one entry at most: 1 without overlap.

    `|max - max'| <= max |x - x'|` in each window, so the sum of squares counts an entry once for each of its windows;
    an entry that is the maximum of all of them attains it.

    >>> maximum_pool(nn.MaxPool2d(2), (8, 8)), maximum_pool(nn.MaxPool2d(3, stride=2, padding=1), (8, 8))
    (1.0, 2.0)
    """
    pool: Any = module
    _check_dimensions(module, sizes)
    reads = 1
    for axis, size in enumerate(sizes):
        kernel, stride, padding, dilation = (
            _along(x, axis) for x in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
        )
        windows = functional.max_pool1d(
            torch.zeros(1, 1, size), kernel, stride, padding, dilation, pool.ceil_mode
        ).shape[-1]
        places = [w * stride + dilation * a - padding for w in range(windows) for a in range(kernel)]
        reads *= max(places.count(place) for place in range(size))
    return math.sqrt(reads)


def batch_norm_scale(module: nn.Module) -> torch.Tensor:
    """What batch norm multiplies each channel with in evaluation, float64."""
    norm: Any = module
    scale = torch.ones(norm.num_features, dtype=torch.float64, device=norm.running_var.device)
    if norm.weight is not None:
        scale = norm.weight.detach().double()
    return scale / (norm.running_var.double() + norm.eps).sqrt()


def _check_dimensions(module: nn.Module, sizes: tuple[int, ...]) -> None:
    wanted = int(type(module).__name__[-2])
    if len(sizes) != wanted:
        raise InspectionError(
            f"{type(module).__name__} got images of {len(sizes)} spatial dimensions; pass batches (images, channels, "
            f"and {wanted} sizes)."
        )


def _output(option: Any, axis: int) -> int | None:
    return option[axis] if isinstance(option, tuple | list) else option


def _along(option: Any, axis: int) -> int:
    return int(option[axis] if isinstance(option, tuple | list) else option)
