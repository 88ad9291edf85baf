"""What an evaluation of an operator penalty takes, estimated: good to a factor of about two on one core.

Fitted to times measured for 16 to 256 channels on images of 4x4 to 16x16 (one core of an AMD EPYC; not on a GPU). For
who evaluates what only ratios matter. For whether a penalty is worth a message seconds do; but the terms on the
spectrum took a hundred times as long as sending their gradients, so that the machine hardly decides it.
"""

from __future__ import annotations

import math

from weightspace.operators import ConvGeometry
from weightspace.operators.geometry import torus
from weightspace.penalties import (
    GramFrobenius,
    LargestSingularValue,
    OperatorPenalty,
    SelfConvolution,
    SoftOrthogonality,
)
from weightspace.penalties.spectral import SpectralPenalty

_OVERHEAD = 0.4e-3  # seconds of any evaluation
_SVD = 0.8e-9, 150e-9  # seconds of an SVD with vectors, by `m^2 n` and by `m n`
_PRODUCT = 60e9  # floating-point operations a second of products of channel matrices and of convolutions


def estimated_seconds(penalty: OperatorPenalty, geometry: ConvGeometry) -> float:
    """Seconds of one evaluation for a layer; of a penalty that is not ours, those of all its singular values.

    Example:
        >>> from torch import nn
        >>> from weightspace.operators import operator_of
        >>> from weightspace.penalties import SingularValueBand
        >>> geometry = operator_of(nn.Conv2d(64, 64, 3, padding=1), 16).geometry
        >>> estimated_seconds(SingularValueBand(), geometry) > 20 * estimated_seconds(SoftOrthogonality(), geometry)
        True
    """
    rows, columns = geometry.out_channels, math.prod(geometry.weight_shape[1:])
    taps, outputs = math.prod(geometry.kernel_size), math.prod(geometry.output_size)
    application = 2.0 * rows * columns * outputs / _PRODUCT
    if isinstance(penalty, SoftOrthogonality):
        gram = 4.0 * min(rows, columns) * rows * columns / _PRODUCT
        return 0.1e-3 + gram * (8 if penalty.variant == "SRIP" else 1)
    if isinstance(penalty, SelfConvolution):
        overlaps = math.prod(2 * k - 1 for k in geometry.kernel_size)
        return _OVERHEAD + 0.04e-9 * overlaps * rows**2 * columns
    if isinstance(penalty, GramFrobenius):
        if penalty.probes is not None:
            return _OVERHEAD + 9 * penalty.probes * application
        side = min(rows, columns // taps)
        return 1.5e-3 + 3.0 * taps**2 * side * rows * (columns // taps) / (0.6 * _PRODUCT)
    if isinstance(penalty, LargestSingularValue) and penalty.padding_mode == "layer":
        return 3e-3 + 7 * penalty.steps * application
    return _OVERHEAD + _spectrum(penalty, geometry)


def _spectrum(penalty: OperatorPenalty, geometry: ConvGeometry) -> float:
    """Of the singular values of all symbols, or of some, or of the dense matrix."""
    if penalty.padding_mode == "layer" and not geometry.is_block_circulant():
        return _svd(*geometry.shape)
    circular = torus(geometry)
    count = 1 if math.prod(geometry.kernel_size) == 1 else math.prod(circular.output_size) // 2 + 1
    is_sum = False
    if isinstance(penalty, SpectralPenalty):
        count, is_sum = min(count, penalty.frequencies or count), penalty.is_sum
    rows, columns = circular.out_channels // circular.groups, circular.in_channels // circular.groups
    each = circular.groups * _svd(rows, columns * math.prod(circular.stride))
    return count * each * (1.0 if is_sum else 0.5)


def _svd(rows: int, columns: int) -> float:
    return _SVD[0] * min(rows, columns) * rows * columns + _SVD[1] * rows * columns
