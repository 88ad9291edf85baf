"""Slow and obviously right: the matrix of a layer by unit vectors, and its singular values by one dense SVD.

Nothing here is used by the fast routes; tests and doubters compare against it.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch.nn import functional

from weightspace.operators.conv import ConvOperator


def reference_matrix(operator: ConvOperator) -> torch.Tensor:
    """The float64 matrix `(rows, columns)`, built entry by entry from the definition of a strided, dilated correlation.

    Cost: Python loops over every tap and every output; for sizes of a test only.
    """
    g, weight = operator.geometry, operator.weight.detach().to("cpu", torch.float64)
    inputs = _padded_indices(operator)
    rows, columns = g.shape
    area = math.prod(g.input_size)
    matrix = torch.zeros(rows, columns, dtype=torch.float64)
    outputs = [*_grid(g.output_size)]
    per_group_out, per_group_in = g.out_channels // g.groups, g.in_channels // g.groups
    for o in range(g.out_channels):
        for place, position in enumerate(outputs):
            for tap in _grid(g.kernel_size):
                padded = tuple(p * s + t * d for p, s, t, d in zip(position, g.stride, tap, g.dilation, strict=True))
                source = int(inputs[padded])
                if source < 0:
                    continue
                for i in range(per_group_in):
                    column = (o // per_group_out * per_group_in + i) * area + source
                    matrix[o * len(outputs) + place, column] += weight[(o, i, *tap)]
    return matrix.T if operator.is_transposed else matrix


def reference_singular_values(operator: ConvOperator) -> torch.Tensor:
    """All `min(rows, columns)` singular values, descending, float64."""
    return torch.linalg.svdvals(reference_matrix(operator))


def _padded_indices(operator: ConvOperator) -> torch.Tensor:
    """The flat index of the input entry behind each padded entry, -1 for zeros; padded by torch itself."""
    g = operator.geometry
    index = torch.arange(1, math.prod(g.input_size) + 1, dtype=torch.float64).reshape(1, 1, *g.input_size)
    padding = [side for pair in reversed(g.padding) for side in pair]
    if padding:
        mode = "constant" if g.padding_mode == "zeros" else g.padding_mode
        index = functional.pad(index, padding, mode=mode)
    return index[0, 0].long() - 1


def _grid(sizes: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, sizes)))
